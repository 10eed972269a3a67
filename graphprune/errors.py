"""One family of errors: each says what was expected, what came and where."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "FetchError",
    "FormatError",
    "GraphMismatchError",
    "GraphPruneError",
    "InputError",
    "MissingExtraError",
    "NumericalError",
    "UnsupportedModelError",
    "nearest",
    "unknown_name",
]

_SHOWN = 40  # names that an error lists at most
_LONGEST = 3000  # letters of a message; what it quotes of a file may be as long as the file


class GraphPruneError(Exception):
    """Base class of every error graphprune raises on purpose."""

    def __str__(self) -> str:
        """The message, what stands in its middle left out where it is very long."""
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        half = _LONGEST // 2
        return f"{text[:half]} ({len(text) - 2 * half} letters left out) {text[-half:]}"


class InputError(GraphPruneError, ValueError):
    """An argument, a task or a file of prompts is not what was expected."""


class GraphMismatchError(GraphPruneError, ValueError):
    """Two objects belong to different computational graphs."""


class UnsupportedModelError(GraphPruneError, TypeError):
    """A model's architecture is not known, or failed the exactness check at wrap time."""


class MissingExtraError(GraphPruneError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


class FetchError(GraphPruneError, RuntimeError):
    """A model or data file could not be fetched or did not match its checksum."""


class FormatError(GraphPruneError, ValueError):
    """A file is corrupted, foreign or of an unknown version."""


class NumericalError(GraphPruneError, ArithmeticError):
    """A NaN or an infinity appeared where a finite number was expected."""


def unknown_name(
    what: str, got: object, known: Iterable[object], hint: str = "", *, where: str = ""
) -> InputError:
    """The error for a name that is not known.

    It suggests the nearest name, whatever the case and the kind of dashes.

    Args:
        what: what is named, such as ``"metric"``.
        got: the name that came, or anything else that came in its place.
        known: the names that are known; of very many only some are shown.
        hint: what else may be given, said at the end.
        where: the place in a file or a table, said at the start.

    Example:
        >>> print(unknown_name("metric", "KL", ["accuracy", "kl"], "a callable"))
        unknown metric 'KL'; did you mean 'kl'? Known: accuracy, kl, a callable
    """
    names = [str(name) for name in known]
    close = nearest(got, names)
    meant = f"did you mean {close!r}? Known" if close else "known"
    shown = names if len(names) <= _SHOWN else [*names[:5], f"... ({len(names):,} in all)"]
    listed = ", ".join([*shown, *([hint] if hint else [])]) or "none"
    return InputError(
        f"{where}{': ' if where else ''}unknown {what} {got!r:.200}; {meant}: {listed}"
    )


def nearest(got: object, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely means; ``None`` where none is close."""
    if not isinstance(got, str):
        return None
    plain = {_plain(name): name for name in reversed(list(known))}
    matches = get_close_matches(_plain(got), plain, n=1, cutoff=0.6)
    return plain[matches[0]] if matches else None


def _plain(name: str) -> str:
    return name.casefold().translate(str.maketrans("_ ", "--"))
