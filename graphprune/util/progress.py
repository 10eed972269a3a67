"""Progress bars by tqdm; one switch silences them all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["bar", "quiet", "track"]

T = TypeVar("T")
_quiet: ContextVar[bool] = ContextVar("graphprune_quiet", default=False)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """No progress bars inside: ``with gp.quiet(): ...``.

    The environment variable ``GRAPHPRUNE_QUIET=1`` silences them for good.
    """
    token = _quiet.set(on)
    try:
        yield
    finally:
        _quiet.reset(token)


def track(items: Iterable[T], description: str, total: int | None = None) -> Any:
    """``items`` behind a tqdm bar, shown on a terminal unless silenced."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=description, total=total, disable=_disabled(), leave=False)


def bar(description: str, total: int, done: int = 0) -> Any:
    """A bar to be moved by hand, ``done`` steps of ``total`` behind it; silenced as the others."""
    from tqdm.auto import tqdm

    return tqdm(desc=description, total=total, initial=done, disable=_disabled(), leave=False)


def _disabled() -> bool | None:
    """``None`` lets tqdm decide: it shows bars on terminals only."""
    silent = _quiet.get() or os.environ.get("GRAPHPRUNE_QUIET", "") not in ("", "0")
    return True if silent else None
