"""Settings that are names."""

from __future__ import annotations

from typing import Any, get_args

from graphprune.errors import InputError

__all__ = ["known"]


def known(value: object, names: Any, what: str) -> None:
    """Raises :class:`InputError` unless a setting is one of a ``Literal``'s names."""
    if value not in get_args(names):
        raise InputError(f"{what} must be one of {', '.join(get_args(names))}, got {value!r}")
