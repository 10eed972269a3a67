"""The error of a structure that cannot be read: which part, and why."""

from __future__ import annotations

from typing import NoReturn

from graphprune.errors import UnsupportedModelError

__all__ = ["FOREIGN", "cannot_read", "refusal"]

# What a model's own code raises when a part of it is called in a way that it was not made for.
FOREIGN = (RuntimeError, IndexError, ValueError, TypeError, AttributeError, KeyError)


def cannot_read(part: str, why: str) -> NoReturn:
    """Raises :class:`UnsupportedModelError` about a part of the model."""
    raise refusal(part, why)


def refusal(part: str, why: str) -> UnsupportedModelError:
    """The error about a part of the model."""
    return UnsupportedModelError(
        f"its structure could not be read off the model: {part}: {why}. Its graph can be described "
        "by hand with graphprune.adapters.lm.Family where it has heads between projections"
    )
