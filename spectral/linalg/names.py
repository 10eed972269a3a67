"""Settings that are names."""

from __future__ import annotations

from typing import Any, get_args

from graphprune.errors import unknown_name

__all__ = ["known"]


def known(value: object, names: Any, what: str) -> None:
    """Raises :class:`~graphprune.InputError` unless a setting is one of a ``Literal``'s names."""
    if value not in get_args(names):
        raise unknown_name(what, value, get_args(names))
