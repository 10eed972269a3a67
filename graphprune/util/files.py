"""Writing without halves: a file or a folder appears whole, or not at all, also after a kill.

A file is written beside its place and renamed. A folder is written beside its place too; where one
stands there already, the two are exchanged in one step. Where that cannot be (the system has no
such call, or files that must stay lie in the old folder), the new files are moved into it as one
hidden folder, and from there each to its place: after a kill in between,
:func:`finish_overwriting` moves the rest. So a reader that calls it first finds the old files or
the new ones, never some of each.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from graphprune.errors import FormatError, InputError
from graphprune.util.checks import usable
from graphprune.util.readers import file_bytes, json_value

PENDING = ".graphprune-pending"
"""Holds the new files of a folder while they are moved to their places in it."""

# What is being written: a name, who writes (earlier versions did not say), a random number.
_SCRATCH = re.compile(
    r"\.(?P<name>.*)\.((?P<machine>[0-9a-f]{6})-(?P<process>\d+)-)?[0-9a-f]{8}\.tmp(\.[^.]*)?",
    re.DOTALL,
)
_LETTERS = 50  # of a name, at most four bytes each: a folder takes names of 255 bytes
_STALE_SECONDS = 24 * 3600


# -------------------------------------------------------------------- files


def beside(path: Path) -> Path:
    """A fresh hidden name in the same folder (so that a rename stays on one file system)."""
    who = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:_LETTERS]}.{who}.tmp{path.suffix[:20]}")


def contents(folder: Path) -> list[Path]:
    """The paths in a folder, without those that a killed write left there."""
    return [p for p in folder.iterdir() if p.name != PENDING and not _SCRATCH.fullmatch(p.name)]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to that becomes ``path`` when the block ends well, and is removed if not.

    Missing parent folders are made. A file that stands there is replaced in one step (a link stays
    a link, and the file it leads to is replaced). Anything else there, such as a folder, a device
    or a pipe, is an :class:`InputError`, and so is a write that fails, as on a full disk.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(place) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> place.read_text(), len(list(place.parent.iterdir()))
        ('whole', 1)
    """
    given = usable(path)
    if given.is_dir():
        raise InputError(f"expected the name of a file to write, got the folder {given}")
    if given.exists() and not given.is_file():
        raise InputError(
            f"expected the name of a file to write, but {given} is a device, a pipe or a socket; "
            "nothing was touched, name a file"
        )
    target = given.resolve()
    temporary = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target.parent, target.name)
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    except OSError as error:
        raise _not_written(f"cannot write {given}", temporary, error) from error
    finally:
        with suppress(OSError):  # its folder was not made, or may not be written to
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> Path:
    """Writes bytes, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    r"""Writes UTF-8 text with ``\n`` line ends, whole or not at all.

    A lone surrogate, which UTF-8 has not, is written as an escape, ``\ud800``.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def require_free(target: Path, overwrite: bool, what: str, is_one: Callable[[], bool]) -> None:
    """Raises :class:`InputError` unless a folder is new, or empty, or may be overwritten.

    ``overwrite`` allows that where ``is_one()`` says that the folder holds a ``what`` ("circuit")
    and nothing else.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"expected a folder for the {what}, but {target} is a file")
    if not contents(target):
        return
    if not overwrite:
        raise InputError(
            f"the folder {target} exists and is not empty; name another, or say overwrite=True to "
            f"replace the {what} in it"
        )
    if not is_one():
        raise InputError(
            f"the folder {target} exists and holds no graphprune {what}, or more than it; "
            f"overwrite=True replaces a {what} only, so nothing was touched"
        )


def states_format(path: Path, name: str) -> bool:
    """``True`` if a file is JSON that says ``"format": name``."""
    try:
        document = json_value(file_bytes(path))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == name


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Removes what killed writes of ``name`` left in a folder, of all names by default.

    That is what a process of this machine was writing that is no more; of other machines, and of
    names without a process, what is older than a day.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            found = _SCRATCH.fullmatch(entry.name) if entry.name[:1] == "." else None
            if found is None or (name is not None and found["name"] != name[:_LETTERS]):
                continue
            with suppress(OSError):  # gone meanwhile
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS
                if old or _is_orphan(found):
                    path = Path(entry.path)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_orphan(scratch: re.Match[str]) -> bool:
    """``True`` if the process that was writing is known, and is no more."""
    if scratch["machine"] != _machine() or os.name != "posix":
        return False
    try:
        os.kill(int(scratch["process"]), 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        return False
    return False


@cache
def _machine() -> str:
    """Six digits for what process numbers belong to: a machine since it started, or a container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:6]


def _not_written(what: str, temporary: Path, error: OSError) -> InputError:
    """The error of a write that failed, with the bytes written so far and those left there."""
    room = ""
    with suppress(OSError):
        files = temporary.rglob("*") if temporary.is_dir() else [temporary]
        done = sum(file.stat().st_size for file in files)
        free = shutil.disk_usage(temporary.parent).free
        room = f" (after {done:,} bytes; {free:,} are free there)"
    return InputError(f"{what}: {error.strerror or error}{room}")


def _flush(path: Path) -> None:
    """Waits until a file's contents are on the disk: a power cut must not leave an empty name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# -------------------------------------------------------------------- folders


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder in ``parent``, removed in the end; after a kill, by the next of these."""
    scratch = new_scratch(parent)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def new_scratch(parent: Path) -> Path:
    """Makes a fresh folder of this user's in ``parent``; removes those that killed processes left.

    Raises :class:`OSError`.
    """
    scratch = beside(parent / "graphprune-scratch")
    remove_stale(parent, "graphprune-scratch")
    scratch.mkdir(mode=0o700)
    return scratch


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, whole: bool = False) -> Iterator[Path]:
    """A folder to write to whose files stand in ``path`` when the block ends well.

    Missing parents are made, and removed again if nothing comes of it. Files of other names in a
    folder that stands there stay, unless ``whole``: then they go. After a kill at any moment,
    :func:`finish_overwriting` and then reading gives all old files or all new ones. Whether the
    folder may be overwritten is for the caller to decide (:func:`require_free`).

    Raises :class:`InputError` for what cannot be written, as on a full disk.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "new"
        >>> for text in ("old", "new"):
        ...     with atomic_folder(place) as folder:
        ...         _ = (folder / "a.txt").write_text(text)
        >>> (place / "a.txt").read_text(), [p.name for p in place.parent.iterdir()]
        ('new', ['new'])
    """
    target = usable(path).resolve()
    staging = beside(target)
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        staging.mkdir(parents=True)
        yield staging
        for file in _files(staging):
            _flush(staging / file)
        with _uninterrupted():
            _move_into_place(staging, target, whole)
    except OSError as error:
        raise _not_written(f"cannot write to {target}", staging, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()


def _move_into_place(staging: Path, target: Path, whole: bool) -> None:
    """Puts the files of ``staging`` into ``target``; the old ones may be left in ``staging``."""
    remove_stale(target.parent, target.name)
    if not target.exists():
        staging.rename(target)  # fails where somebody else made one meanwhile
        return
    remove_stale(target)
    finish_overwriting(target)
    others = set(_files(target)) - set(_files(staging))
    if (whole or not others) and not _works_in(target):
        shutil.copymode(target, staging)
        if _exchange(staging, target):
            return
    # The journal: one rename decides, and what it brings is moved by whoever comes next.
    inside = beside(target / PENDING)
    try:
        try:
            staging.rename(inside)
        except OSError:  # the target is a disk of its own
            shutil.copytree(staging, inside)
        inside.rename(target / PENDING)
    finally:
        shutil.rmtree(inside, ignore_errors=True)
    finish_overwriting(target)
    for other in others if whole else ():
        (target / other).unlink(missing_ok=True)


def _works_in(folder: Path) -> bool:
    """``True`` if this process works in the folder, which then must not be exchanged."""
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # it works in one that was removed before
        return False


def finish_overwriting(folder: Path) -> None:
    """Completes an overwriting of ``folder`` that was killed half-way; else does nothing.

    Raises :class:`FormatError` where the files cannot be moved.
    """
    pending = folder / PENDING
    if not pending.is_dir():
        return
    try:
        for name in _files(pending):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            with suppress(FileNotFoundError):  # another reader moved it meanwhile
                (pending / name).replace(folder / name)
        for left in sorted((p for p in pending.rglob("*") if p.is_dir()), reverse=True):
            left.rmdir()
        pending.rmdir()
    except FileNotFoundError:  # another reader was faster
        return
    except OSError as error:
        raise FormatError(
            f"an overwriting of {folder} was stopped half-way and cannot be completed: "
            f"{error.strerror or error}; move the files in {pending} one level up"
        ) from error


def _files(folder: Path) -> list[Path]:
    """Files under a folder, as paths in it, without what killed writes left."""
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [
        path
        for path in inside
        if not any(part == PENDING or _SCRATCH.fullmatch(part) for part in path.parts)
    ]


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step; ``False`` where the system or the disk cannot."""
    call = _exchange_call()
    return call is not None and call(os.fsencode(first), os.fsencode(second)) == 0


@cache
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """The C library's exchange of two paths, 0 where it went well; ``None`` where it has none."""
    import ctypes

    try:
        if platform.system() == "Linux":
            renameat2 = ctypes.CDLL(None).renameat2
            here = -100  # AT_FDCWD: relative to the working folder
            return lambda a, b: int(renameat2(here, a, here, b, 2))  # RENAME_EXCHANGE
        if platform.system() == "Darwin":
            renamex_np = ctypes.CDLL(None).renamex_np
            return lambda a, b: int(renamex_np(a, b, 2))  # RENAME_SWAP
    except (OSError, AttributeError):  # an older C library
        return None
    return None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    for one in came:
        signal.raise_signal(one)
