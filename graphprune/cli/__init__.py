"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs ``graphprune``; ends with :class:`SystemExit`.

    Exit codes: 0 done, 1 the job could not be done (a sentence on stderr says why), 2 the command
    line is wrong, 130 stopped by Ctrl-C.
    """
    try:
        from graphprune.cli.app import app

        app(None if arguments is None else list(arguments), prog_name="graphprune")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output went away, as `graphprune info | head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
