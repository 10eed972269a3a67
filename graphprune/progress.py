"""Progress bars by tqdm; one switch silences them all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["quiet", "track"]

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

    silent = _quiet.get() or os.environ.get("GRAPHPRUNE_QUIET", "") not in ("", "0")
    return tqdm(items, desc=description, total=total, disable=True if silent else None, leave=False)
