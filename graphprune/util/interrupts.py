"""Ctrl-C that ends a search after the step at hand, where somebody can tell its result as such.

On the command line SIGTERM, which schedulers send before they kill, does the same.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

_WHOLE: ContextVar[bool] = ContextVar("graphprune_whole_results", default=False)


@contextmanager
def whole_results() -> Iterator[None]:
    """Ctrl-C inside ends everything, for callers that could not tell a stopped run's result."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: everything is cleaned up as after Ctrl-C."""

    @staticmethod
    def handler(number: int, frame: Any) -> NoReturn:
        """Raises it, as a signal's handler."""
        raise Terminated


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
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        came.append(number)

    # SIGTERM only where it would interrupt: another program's must end it as it wants.
    signals = [signal.SIGINT]
    signals += [signal.SIGTERM] if signal.getsignal(signal.SIGTERM) is Terminated.handler else []
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
