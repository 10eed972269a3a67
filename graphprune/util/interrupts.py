"""Ctrl-C that ends a search after the step at hand, where somebody can tell its result as such."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_WHOLE: ContextVar[bool] = ContextVar("graphprune_whole_results", default=False)


@contextmanager
def whole_results() -> Iterator[None]:
    """Ctrl-C inside ends everything, for callers that could not tell a stopped run's result."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


@contextmanager
def interruptible(came: list[int]) -> Iterator[list[int]]:
    """Notes a first Ctrl-C in ``came``; a second one stops at once.

    Inside :func:`whole_results` the first one does.
    """
    if _WHOLE.get() or threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)
