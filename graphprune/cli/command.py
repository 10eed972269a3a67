"""What all commands share: options, notes, results, and errors that are sentences.

A command is a function whose first argument is a :class:`CommandOutput`. An argument whose type is
a dataclass (see ``options.py``) stands for a group of options, one for each field.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import IO, TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn, get_type_hints

import typer

from graphprune import __version__
from graphprune.cli.options import AnyTask, OptionalModel
from graphprune.errors import GraphPruneError, InputError
from graphprune.util.checks import usable
from graphprune.util.interrupts import Terminated
from graphprune.util.progress import command_line_progress, printable

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.core.task import Task
    from graphprune.study.by_name import Loaded

__all__ = ["CommandOutput", "as_command", "root", "table"]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphprune {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before any command."""


@dataclass(kw_only=True)
class CommandOutput:
    """Where a command's words go: notes to stderr, the result to stdout."""

    panel: ClassVar[str] = "Output"
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False
    stdout: IO[str] = field(default_factory=lambda: sys.stdout, init=False)
    checked: bool = field(default=False, init=False)

    def start(self) -> None:
        """Marks that everything given was checked: from now on a failure is the job's."""
        self.checked = True

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Inside, what was given is checked once more, now that the model is known."""
        self.checked = False
        yield
        self.checked = True

    def load(self, model: OptionalModel, task: AnyTask) -> tuple[Loaded, Task | None]:
        """The model and the task if one is named, both checked before anything is loaded."""
        from graphprune.study.by_name import choose_model, choose_task

        chosen = choose_model(**vars(model))
        named = vars(task)["task"] is not None
        make = choose_task(**vars(task), system=chosen.system) if named else None
        self.start()
        loaded = chosen.load(None if self.quiet else self.note)
        with self.checking():
            return loaded, None if make is None else make(loaded.tokenizer)

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
            show(_console(self.stdout))
        self.stdout.flush()


def _console(stream: IO[str]) -> Console:
    """A console for texts of others: they cannot steer the terminal."""
    from rich.console import Console

    class PlainConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(
                *(printable(one) if isinstance(one, str) else one for one in objects), **options
            )

    return PlainConsole(file=stream, highlight=False, soft_wrap=True, markup=False)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: bool = False,
) -> None:
    """Prints a table; ``numbers``: all columns but the first stand right.

    Where it is wider than the console, headings of numbers break at spaces, and the first column
    gives way.
    """
    from rich.markup import escape
    from rich.table import Table

    rows = [[printable(cell) for cell in row] for row in rows]
    grid = Table(title=escape(printable(title)), title_justify="left", title_style="bold")
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)] or [0] * len(columns)
    natural = [max(width, len(name)) for width, name in zip(widths, columns, strict=True)]
    narrow = numbers and sum(natural) + 3 * len(natural) + 1 > console.width
    for number, column in enumerate(columns):
        firm, heading = numbers and number > 0, column
        if firm and narrow:
            heading = "\n".join(wrap(column, max(widths[number], 1), break_long_words=False))
        grid.add_column(
            escape(heading),
            justify="right" if firm else "left",
            overflow="fold",
            no_wrap=firm and narrow,
        )
    for row in rows:
        grid.add_row(*map(escape, row))
    console.print(grid, soft_wrap=False)


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """The function as typer takes it: groups of options flat, errors turned into exit codes."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if is_dataclass(kind):
            groups[name] = kind
            parameters += [] if kind is CommandOutput else _options_of(kind)
        else:
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )
    parameters += _options_of(CommandOutput)

    def run(**values: Any) -> None:
        arguments = {
            name: kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.init})
            for name, kind in groups.items()
        }
        (out,) = (value for value in arguments.values() if isinstance(value, CommandOutput))
        with _ending(out):
            for value in values.values():
                for path in value if isinstance(value, list) else [value]:
                    if isinstance(path, Path):
                        usable(path)
            function(**arguments, **values)

    run.__doc__ = function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _options_of(kind: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        if entry.init:
            (option,) = hints[entry.name].__metadata__
            option.rich_help_panel = option.rich_help_panel or kind.panel
            factory = entry.default_factory
            default = entry.default if factory is MISSING else factory()
            yield inspect.Parameter(
                entry.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=hints[entry.name],
            )


def _say(text: str) -> None:
    sys.stderr.write(printable(text.rstrip("\n")) + "\n")
    sys.stderr.flush()


@contextmanager
def _ending(out: CommandOutput) -> Iterator[None]:
    """Runs a command's body: progress and notes, exit codes, and no traceback for bad input.

    What is wrong with the command line ends with 2 as long as it is being checked; a job that
    cannot be done ends with 1.
    """
    out.debug = out.debug or os.environ.get("GRAPHPRUNE_DEBUG", "") not in ("", "0")
    try:
        with command_line_progress(out.quiet), _logging(out.quiet), redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt as stop:
        _stopped(out.debug, stop)
    except BrokenPipeError:
        raise
    except Exception as error:
        interrupt = _interrupt_behind(error)
        if interrupt is not None:
            _stopped(out.debug, interrupt)
        usage = not out.checked and isinstance(error, InputError | FileNotFoundError)
        _fail(f"error: {_reason(error)}", out.debug, 2 if usage else 1)


def _reason(error: Exception) -> str:
    """The sentence that a user reads of an error."""
    if isinstance(error, GraphPruneError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory {error}".strip() + "; a smaller --batch-size needs less"
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}"
    return (
        f"unexpected {type(error).__name__}: {error}\nThis is a fault of graphprune or of a "
        "package it uses; --debug shows where it happened."
    )


def _stopped(debug: bool, stop: KeyboardInterrupt) -> NoReturn:
    code = 143 if isinstance(stop, Terminated) else 130
    _fail("\nstopped; nothing half-written was left behind", debug, code)


def _fail(message: str, debug: bool, code: int) -> NoReturn:
    if debug:
        traceback.print_exc()
    _say(message)
    raise SystemExit(code) from None


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C behind it: Python and libraries wrap one that comes in an import."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """Graphprune's own log lines go to stderr; other libraries only say what is wrong."""
    logger = logging.getLogger("graphprune")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        with suppress(ValueError):
            logger.removeHandler(handler)
