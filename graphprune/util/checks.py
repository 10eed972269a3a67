"""Numbers that users give, checked: what was expected and what came."""

from __future__ import annotations

import numpy as np

from graphprune.errors import InputError

__all__ = ["at_least", "share"]


def at_least(value: object, least: int, what: str) -> int:
    """``value`` as an int that is at least ``least``; raises :class:`InputError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} must be an integer of at least {least}, got {value!r}")
    return value


def share(value: object, what: str, most: float = 1.0) -> float:
    """``value`` as a float strictly between 0 and ``most``; raises :class:`InputError`."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not number or not 0 < float(value) < most:  # type: ignore[arg-type]
        raise InputError(f"{what} must lie between 0 and {most:g}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def share_checked(value: object, what: str) -> float:
    """``value`` as a share in (0, 1]; raises :class:`InputError` otherwise."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not number or not 0 < float(value) <= 1:  # type: ignore[arg-type]
        raise InputError(f"{what} must be a share in (0, 1], got {value!r}")
    return float(value)  # type: ignore[arg-type]
