"""RASP programs ready to compile, each small enough to be tried on every input.

Most are Tracr's own library programs (``tracr.compiler.lib``, after the RASP paper, Weiss et al.
2021); Tracr is imported when a program is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from graphprune.errors import MissingExtraError

__all__ = ["RaspProgram", "rasp_programs"]


def _tracr() -> tuple[Any, Any, Any]:
    """Tracr's compiler, program library and language."""
    try:
        from tracr.compiler import compiling, lib
        from tracr.rasp import rasp
    except ImportError as error:
        raise MissingExtraError(
            "RASP programs are compiled by Tracr; install it by pip install 'graphprune[tracr]'"
        ) from error
    return compiling, lib, rasp


@dataclass(frozen=True)
class RaspProgram:
    """A RASP program with the inputs it is compiled for.

    Args:
        name: short and unique.
        about: what the output at each position is.
        vocabulary: the tokens of its inputs.
        max_length: the longest input, BOS not counted.
        build: ``(lib, rasp) -> SOp``, from ``tracr.compiler.lib`` and ``tracr.rasp.rasp``.
    """

    name: str
    about: str
    vocabulary: tuple[Any, ...]
    max_length: int
    build: Callable[[Any, Any], Any] = field(repr=False)

    @property
    def num_inputs(self) -> int:
        """How many sequences there are, of every length from 1 to the longest."""
        return sum(len(self.vocabulary) ** n for n in range(1, self.max_length + 1))

    def compile(self) -> Any:
        """The program as Tracr compiles it, for :func:`graphprune.adapters.tracr`.

        Raises :class:`MissingExtraError` where Tracr is not installed.
        """
        compiling, lib, rasp = _tracr()
        return compiling.compile_rasp_to_model(
            self.build(lib, rasp), vocab=set(self.vocabulary), max_seq_len=self.max_length
        )


_ABC = ("a", "b", "c")
_PROGRAMS = (
    RaspProgram(
        "reverse",
        "the sequence from its end to its start",
        (1, 2, 3),
        5,
        lambda lib, rasp: lib.make_reverse(rasp.tokens),
    ),
    RaspProgram(
        "frac_prevs",
        "the fraction of tokens up to here that are x (Edge Pruning's xproportion)",
        ("a", "b", "c", "x"),
        4,
        lambda lib, rasp: lib.make_frac_prevs(rasp.tokens == "x"),
    ),
    RaspProgram(
        "sort",
        "the tokens in ascending order",
        (1, 2, 3),
        4,
        lambda lib, rasp: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=4, min_key=1),
    ),
    RaspProgram(
        "sort_freq",
        "the tokens from the most to the least frequent",
        (1, 2, 3),
        4,
        lambda lib, rasp: lib.make_sort_freq(max_seq_len=4),
    ),
    RaspProgram(
        "hist",
        "how often this token occurs",
        _ABC,
        4,
        lambda lib, rasp: lib.make_hist(),
    ),
    RaspProgram(
        "length",
        "how many tokens there are",
        _ABC,
        4,
        lambda lib, rasp: rasp.categorical(lib.make_length()),
    ),
    RaspProgram(
        "count",
        "how many tokens are a",
        _ABC,
        4,
        lambda lib, rasp: lib.make_count(rasp.tokens, "a"),
    ),
    RaspProgram(
        "count_less_freq",
        "how many tokens occur at most twice",
        _ABC,
        4,
        lambda lib, rasp: lib.make_count_less_freq(2),
    ),
    RaspProgram(
        "shift",
        "the token before this one (none for the first)",
        _ABC,
        4,
        lambda lib, rasp: lib.shift_by(1, rasp.tokens),
    ),
    RaspProgram(
        "detect_pattern",
        "whether this token ends the pattern ab (no answer for the first)",
        _ABC,
        4,
        lambda lib, rasp: lib.detect_pattern(rasp.tokens, "ab"),
    ),
    RaspProgram(
        "pair_balance",
        "the fraction of ( less the fraction of ) up to here",
        ("(", ")", "a"),
        4,
        lambda lib, rasp: lib.make_pair_balance(rasp.tokens, "(", ")"),
    ),
    RaspProgram(
        "dyck",
        "whether the parentheses are balanced",
        ("(", ")"),
        5,
        lambda lib, rasp: lib.make_shuffle_dyck(["()"]),
    ),
    RaspProgram(
        "shuffle_dyck",
        "whether two kinds of parentheses are balanced, each for itself",
        ("(", ")", "{", "}"),
        4,
        lambda lib, rasp: lib.make_shuffle_dyck(["()", "{}"]),
    ),
)


def rasp_programs() -> dict[str, RaspProgram]:
    """Programs by name, each with a vocabulary and a longest input.

    Example:
        >>> program = rasp_programs()["reverse"]
        >>> program.vocabulary, program.max_length, program.num_inputs
        ((1, 2, 3), 5, 363)
    """
    return {program.name: program for program in _PROGRAMS}
