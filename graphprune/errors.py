"""One family of errors: each says what was expected, what came and where."""

__all__ = [
    "FetchError",
    "FormatError",
    "GraphMismatchError",
    "GraphPruneError",
    "InputError",
    "MissingExtraError",
    "NumericalError",
    "UnsupportedModelError",
]


class GraphPruneError(Exception):
    """Base class of every error graphprune raises on purpose."""


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
