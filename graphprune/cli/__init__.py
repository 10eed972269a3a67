"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs ``graphprune``; ends with :class:`SystemExit`.

    Exit codes: 0 done, 1 the job could not be done (a sentence on stderr says why), 2 the command
    line is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    try:
        from graphprune.cli.app import app

        with _termination_interrupts():
            app(None if arguments is None else list(arguments), prog_name="graphprune")
    except KeyboardInterrupt as stop:
        sys.stderr.write("\nstopped\n")
        raise SystemExit(143 if type(stop).__name__ == "Terminated" else 130) from None
    except BrokenPipeError:
        # The reader of our output went away, as `graphprune info | head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Inside, SIGTERM ends what runs as Ctrl-C does; left as it is in any but the main thread."""
    from graphprune.util.interrupts import Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, Terminated.handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
