"""Progress by tqdm: bars on a terminal, a line now and then in a log; one switch silences all.

Texts of others are made harmless for terminals by :func:`printable`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.std import tqdm as TextBar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_quiet: ContextVar[bool] = ContextVar("graphprune_quiet", default=False)
_in_log: ContextVar[bool] = ContextVar("graphprune_in_log", default=False)
_passes: ContextVar[Mapping[str, int] | None] = ContextVar("graphprune_passes", default=None)

LOG_SECONDS = 15.0  # between two lines in a log


_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Text for a terminal or a table: what would steer it or hide is shown as an escape.

    These are control characters but line ends and tabs, marks of writing direction, and surrogates.

    Example:
        >>> print(printable("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class quiet(ContextDecorator):
    """No progress bars from here on, and ``with gp.quiet(): ...`` until the end of the block.

    ``gp.quiet(False)`` shows them again. The environment variable ``GRAPHPRUNE_QUIET=1`` silences
    them for good.

    Example:
        >>> with quiet():
        ...     scores = gp.EAPIG(steps=2).score(model, task)
        >>> scores
        EdgeScores(24 edges, method='EAPIG(steps=2)')
    """

    def __init__(self, on: bool = True) -> None:
        self._on, self._before = on, _quiet.get()
        _quiet.set(on)

    def __enter__(self) -> None:
        _quiet.set(self._on)

    def __exit__(self, *error: object) -> None:
        _quiet.set(self._before)

    def __call__(self, function: F) -> F:
        """The function with bars silenced inside it, and nowhere else."""
        _quiet.set(self._before)
        return super().__call__(function)

    def _recreate_cm(self) -> quiet:
        return quiet(self._on)


@contextmanager
def command_line_progress(silent: bool) -> Iterator[None]:
    """Inside, a line now and then takes a bar's place where stderr is no terminal."""
    token = _in_log.set(not sys.stderr.isatty())
    try:
        with quiet(silent):
            yield
    finally:
        _in_log.reset(token)


@contextmanager
def counted_in_passes(passes: Mapping[str, int]) -> Iterator[None]:
    """Inside, bars of these descriptions count passes: so many for each of their items.

    A pass is one forward and backward run of one batch.
    """
    token = _passes.set(passes)
    try:
        yield
    finally:
        _passes.reset(token)


def track(items: Iterable[T], description: str, total: int | None = None) -> Any:
    """``items`` behind a tqdm bar, shown on a terminal unless silenced."""
    return _progress(iterable=items, desc=description, total=total)


def bar(description: str, total: int, done: int = 0) -> Any:
    """A bar to be moved by hand, ``done`` steps of ``total`` behind it; silenced as the others."""
    return _progress(desc=description, total=total, initial=done)


def _progress(**options: Any) -> Any:
    options["desc"] = printable(options["desc"])
    silent = _quiet.get() or os.environ.get("GRAPHPRUNE_QUIET", "") not in ("", "0")
    each = (_passes.get() or {}).get(options["desc"])
    if each is not None:
        # tqdm multiplies by a scale above 1; 1 would mean "shorten large numbers".
        options |= {"unit": " passes", "unit_scale": each if each > 1 else False}
    if _in_log.get():
        return _LogLines(disable=silent, **options)
    # `None` lets tqdm decide: it shows bars on terminals only.
    return TextBar(disable=True if silent else None, leave=False, **options)


class _LogLines(TextBar):  # type: ignore[type-arg]
    """Progress as whole lines: none in the first seconds, then one every ``LOG_SECONDS``."""

    def __init__(self, *, unit: str = "", **options: Any) -> None:
        super().__init__(
            mininterval=LOG_SECONDS, miniters=1, delay=LOG_SECONDS, file=sys.stderr, unit=unit,
            bar_format="{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} gone, {remaining} left"
            "{postfix}", **options,
        )  # fmt: skip

    @staticmethod
    def status_printer(file: Any) -> Any:
        """Gives the function that writes a state: as a line of its own."""

        def write(state: str) -> None:
            file.write(f"{state}\n")
            file.flush()

        return write

    def close(self) -> None:
        """Ends without the blank line that wipes a bar off a terminal."""
        self.last_print_t = float("-inf")  # tqdm wipes only what it has shown
        super().close()


@contextmanager
def hugging_face_bars(shown: bool) -> Iterator[None]:
    """Inside, transformers' own bars are shown or hidden, whatever was set before."""
    from transformers.utils import logging

    settings: Any = logging
    before = settings.is_progress_bar_enabled()
    (settings.enable_progress_bar if shown else settings.disable_progress_bar)()
    try:
        yield
    finally:
        (settings.enable_progress_bar if before else settings.disable_progress_bar)()
