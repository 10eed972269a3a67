"""Names that a file can have: neither too long, nor with a zero byte or a lone surrogate."""

from __future__ import annotations

import os
from pathlib import Path

from graphprune.errors import InputError


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
