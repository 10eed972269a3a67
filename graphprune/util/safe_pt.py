"""Reading ``.pt`` files of strangers: nothing in them is executed, and nothing grows on reading.

``torch.load(weights_only=True)`` runs no code, but it calls what a file names out of a list that
can make gigabytes from a few bytes, and it unpacks compressed parts. Here a file may name tensors'
parts alone, and its parts are as large in memory as on the disk.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - an error's name
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import FormatError
from graphprune.util.readers import require_small

_DTYPES = ("Float", "Double", "Half", "BFloat16", "Bool", "Byte", "Char", "Short", "Int", "Long")
_NAMES = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in _DTYPES),
}
_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_OLD_PARTS = 5  # pickles at the head of a file of torch before 1.6
_MOST_VALUES = 10**6  # of names and settings; a tensor is one
# torch's unpickler applies what a file says to whatever the file gives it, without checks of its
# own: these are all the errors of Python's operations on values of other types.
_UNPICKLING = (UnpicklingError, AttributeError, LookupError, TypeError, ValueError, OverflowError)
_READING = (OSError, EOFError, RuntimeError, AssertionError, struct.error)
_UNZIPPING = (zipfile.BadZipFile, zlib.error)


def read_pt(path: str | os.PathLike[str]) -> Any:
    """The values that ``torch.save`` wrote: plain ones and tensors, on the CPU.

    Tensors may still be expanded views; see :func:`require_stored`. Raises :class:`FormatError` for
    anything else, before memory is taken for it.
    """
    file = Path(path)
    try:
        for part in _pickles(file):
            _require_plain(part)
        values = torch.load(file, map_location="cpu", weights_only=True)
        require_small(values, _parts, _MOST_VALUES)
        return values
    except (*_UNPICKLING, *_READING, *_UNZIPPING) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} is no .pt file that can be read safely: {first}") from error


def require_stored(value: Tensor, what: str) -> None:
    """Raises :class:`FormatError` unless all of a tensor's numbers are held in memory already."""
    plain = value.layout is torch.strided and value.device.type == "cpu"
    needed = value.numel() * value.element_size()
    if not plain or value.untyped_storage().nbytes() < needed:
        raise FormatError(
            f"{what} should be a tensor with all its numbers in the file; this one is expanded, "
            f"sparse or empty: {list(value.shape)} would take {needed} bytes"
        )


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def _pickles(path: Path) -> Iterator[Any]:
    """Each pickle of the file, as bytes or as an open file that stands at its start."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            for _ in range(_OLD_PARTS):
                yield file
            return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > size:
            raise ValueError(f"its parts would unpack from {size} to {unpacked} bytes")
        for part in archive.infolist():
            if part.filename.endswith(".pkl"):
                yield archive.read(part)


def _require_plain(part: Any) -> None:
    """Raises unless a pickle names nothing but the parts of tensors."""
    for opcode, argument, _ in pickletools.genops(part):
        if opcode.name in _CALLS:
            raise ValueError(f"it holds the pickle instruction {opcode.name}")
        if opcode.name == "GLOBAL" and argument not in _NAMES and not _is_dtype(str(argument)):
            raise ValueError(f"it names {argument}, which is no part of a tensor")


def _is_dtype(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    return module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)
