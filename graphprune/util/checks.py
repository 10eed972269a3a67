"""Numbers and names that users give, checked: what was expected and what came."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

from graphprune.errors import InputError, unknown_name


def at_least(value: object, least: int, what: str) -> int:
    """``value`` as an int that is at least ``least``; raises :class:`InputError` otherwise."""
    if not is_integer(value) or value < least:
        raise InputError(f"{what} must be an integer of at least {least}, got {value!r}")
    return int(value)


def is_integer(value: object) -> TypeGuard[int]:
    """``True`` if ``value`` is a whole number of Python or numpy, and no boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def seed_checked(value: object, what: str = "seed") -> int:
    """``value`` as an int from 0 on; raises :class:`InputError` otherwise."""
    if not is_integer(value) or value < 0:
        raise InputError(f"{what} must be an integer from 0 on, got {value!r}")
    return int(value)


def share(value: object, what: str, most: float = 1.0) -> float:
    """``value`` as a float strictly between 0 and ``most``; raises :class:`InputError`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < most:  # type: ignore[arg-type]
        raise InputError(f"{what} must lie between 0 and {most:g}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def share_checked(value: object, what: str) -> float:
    """``value`` as a share in (0, 1]; raises :class:`InputError` otherwise."""
    number = isinstance(value, numbers.Real)
    if isinstance(value, bool) or not number or not 0 < float(value) <= 1:  # type: ignore[arg-type]
        raise InputError(f"{what} must be a share in (0, 1], got {value!r}")
    return float(value)  # type: ignore[arg-type]


def at_least_0(value: object, what: str) -> None:
    """Raises :class:`InputError` unless ``value`` is ``None`` or a finite number from 0 on."""
    if value is not None and not 0 <= value < float("inf"):  # type: ignore[operator]
        raise InputError(f"{what} must be a number from 0 on, got {value!r}")


def require_one_of(value: object, known: Iterable[object], what: str) -> None:
    """Raises :class:`InputError` that lists the ``known`` values unless ``value`` is one of them.

    ``None`` among them stands for "not said" and is not listed.
    """
    names = list(known)
    if value not in names:
        raise unknown_name(what, value, [name for name in names if name is not None])


def usable(path: str | os.PathLike[str]) -> Path:
    """The path, whether or not something is there; :class:`InputError` for what no file can have.

    Asked of every name that a user or a file gives, before anything else is asked of it.

    Example:
        >>> usable("a/b.csv").name
        'b.csv'
        >>> usable("n" * 5000)
        Traceback (most recent call last):
        graphprune.errors.InputError: nnn...nnn cannot be used: File name too long
    """
    place = Path(path)
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"{_shown(place)} cannot be used: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"no file can be called {str(place)!r}") from None
    return place


def is_usable(path: str | os.PathLike[str]) -> bool:
    """Whether a text can be the name of a file.

    Example:
        >>> is_usable("a/b.csv"), is_usable("n" * 5000), is_usable("a\\0b")
        (True, False, False)
    """
    try:
        usable(path)
    except InputError:
        return False
    return True


def _shown(place: Path) -> str:
    name = str(place)
    return name if len(name) < 300 else f"{name[:100]}...{name[-100:]}"
