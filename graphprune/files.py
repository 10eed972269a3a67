"""Writing without halves: a file appears whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphprune.errors import InputError

__all__ = ["atomic_path", "beside", "write_text"]


def beside(path: Path) -> Path:
    """A fresh hidden name in the same folder (so that a rename stays on one file system)."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to that becomes ``path`` when the block ends well, and is removed if not.

    Missing parent folders are made. A file that stands there is replaced in one step; a folder
    there is an :class:`InputError`.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(place) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> place.read_text(), len(list(place.parent.iterdir()))
        ('whole', 1)
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"expected the name of a file to write, got the folder {target}")
    temporary = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error}") from error
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes UTF-8 text with ``\\n`` line ends, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
    return Path(path)
