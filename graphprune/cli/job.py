"""What all commands share: options, notes, results, and errors that are sentences."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from graphprune import __version__
from graphprune.errors import GraphPruneError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["AsJson", "Debug", "Job", "Quiet", "cells", "job", "root"]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphprune {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What stands before any command."""


@dataclass(frozen=True)
class Job:
    """Where a command's words go: notes to stderr, the result to stdout."""

    stdout: IO[str]
    as_json: bool
    quiet: bool

    @property
    def told(self) -> Callable[[str], None] | None:
        """:meth:`note`, or ``None`` when silenced."""
        return None if self.quiet else self.note

    def note(self, text: str) -> None:
        """A line on stderr about what is going on, unless silenced."""
        if not self.quiet:
            _say(text)

    def warn(self, text: str) -> None:
        """A line on stderr that is shown even when silenced."""
        _say(f"warning: {text}")

    def result(self, document: dict[str, Any], show: Callable[[Console], None]) -> None:
        """The result: ``document`` where JSON was asked for, else what ``show`` prints."""
        if self.as_json:
            from graphprune.util.plain import plain

            self.stdout.write(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")
        else:
            from rich.console import Console

            show(Console(file=self.stdout, highlight=False, soft_wrap=True))
        self.stdout.flush()


def cells(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: bool = False,
) -> None:
    """A table; ``numbers``: all columns but the first stand right."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(
            escape(column), justify="right" if numbers and number else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table, soft_wrap=False)


def _say(text: str) -> None:
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


@contextmanager
def job(*, quiet: bool, as_json: bool, debug: bool) -> Iterator[Job]:
    """Runs a command's body: progress and notes, exit codes, and no traceback for bad input."""
    from graphprune.util.progress import quiet as no_bars

    debug = debug or os.environ.get("GRAPHPRUNE_DEBUG", "") not in ("", "0")
    stdout = sys.stdout
    try:
        with no_bars(quiet), _logging(quiet), redirect_stdout(sys.stderr):
            yield Job(stdout, as_json, quiet)
    except KeyboardInterrupt:
        _stopped(debug)
    except GraphPruneError as error:
        if _was_interrupted(error):
            _stopped(debug)
        _fail(f"error: {error}", debug)
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:
        _fail(f"error: {_plain_reason(error)}", debug)
    except Exception as error:
        if _was_interrupted(error):
            _stopped(debug)
        if type(error).__name__ == "OutOfMemoryError":
            _fail(f"error: out of memory: {error}\nA smaller --batch-size needs less.", debug)
        kind = type(error).__name__
        _fail(
            f"error: unexpected {kind}: {error}\nThis is a fault of graphprune or of a package it "
            "uses; --debug shows where it happened.",
            debug,
        )


def _stopped(debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    _say("\nstopped; nothing half-written was left behind")
    raise SystemExit(130) from None


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: Python and libraries wrap one that comes in an import."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _plain_reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory {error}".strip() + "; a smaller --batch-size needs less"
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}"


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    _say(message)
    raise SystemExit(1) from None


@contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """Graphprune's own log lines go to stderr; other libraries only say what is wrong."""
    logger = logging.getLogger("graphprune")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        with suppress(ValueError):
            logger.removeHandler(handler)
