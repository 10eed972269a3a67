"""Fingerprints of contents: alike for equal values, whatever they are called, wherever they lie.

What is kept to be used again (a study's jobs, its rankings, a run's checkpoint) is found by these
and never by names, so that a file with other contents under an old name is something else.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def fingerprint(*values: Any) -> str:
    """64 hexadecimal digits (SHA-256) of the contents of ``values``.

    Lists and tuples of equal parts are alike, so are mappings in any order. Tensors and arrays
    count with type and shape; a dataclass by the fields that take part in comparison; a module by
    its class and weights; a function by its code, its defaults and the constants and functions of
    its package that it reads (lists, dicts and sets in its closure are its notes, such as a count
    of calls, and may change); any other object by what pickle keeps of it, or else by its class.

    Example:
        >>> fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": (2.0,), "a": 1})
        True
        >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
        False
    """
    writer = _Writer()
    for value in values:
        writer.add(value)
    return writer.digest.hexdigest()


class _Writer:
    """Feeds values to one hash, each with its kind and length so that no two run together."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._open: dict[int, int] = {}  # objects that are being written, by id: how deep they lie

    def _tag(self, kind: str, text: str | bytes = "") -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.digest.update(f"{kind}:{len(raw)}:".encode())
        self.digest.update(raw)

    def add(self, value: Any) -> None:
        """One more value."""
        if isinstance(value, Enum):
            self._tag("enum", f"{_name(type(value))}.{value.name}")
        elif isinstance(value, _PLAIN):
            self._tag(type(value).__name__, repr(value))
        elif isinstance(value, np.generic):
            self.add(value.item())
        elif isinstance(value, PurePath):
            self._tag("path", str(value))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._tag("array", f"{value.dtype} {list(value.shape)}")
            self.digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, type | types.BuiltinFunctionType):
            self._tag("name", _name(value))
        elif isinstance(value, types.ModuleType):
            self._tag("module", value.__name__)
        elif id(value) in self._open:
            self._tag("itself", str(self._open[id(value)]))
        else:
            self._open[id(value)] = len(self._open)
            self._compound(value)
            del self._open[id(value)]

    def _compound(self, value: Any) -> None:
        if isinstance(value, Mapping):
            rows = sorted((fingerprint(key), item) for key, item in value.items())
            self._tag("mapping", str(len(rows)))
            for key, item in rows:
                self._tag("key", key)
                self.add(item)
        elif isinstance(value, list | tuple):
            self._several("list", value)
        elif isinstance(value, set | frozenset):
            self._several("set", sorted(map(fingerprint, value)))
        elif isinstance(value, ComputationalGraph):
            self._tag("graph", value.fingerprint)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._several("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._several("partial", (value.func, value.args, value.keywords))
        elif dataclasses.is_dataclass(value):
            self._tag("dataclass", _name(type(value)))
            for field in dataclasses.fields(value):
                if field.compare:  # others are no settings, such as where a run is kept
                    self._tag("field", field.name)
                    self.add(getattr(value, field.name))
        else:
            self._object(value)

    def _several(self, kind: str, values: Iterable[Any]) -> None:
        parts = list(values)
        self._tag(kind, str(len(parts)))
        for part in parts:
            self.add(part)

    def _tensor(self, tensor: Tensor) -> None:
        values = tensor.detach()
        values = (values if values.layout == torch.strided else values.to_dense()).cpu()
        self._tag("tensor", f"{values.dtype} {list(values.shape)}")
        self.digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _function(self, function: types.FunctionType) -> None:
        self._code(function.__code__, function)
        self._several("defaults", (function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            if _filled(cell):
                self._outside(cell.cell_contents)

    def _code(self, code: types.CodeType, function: types.FunctionType) -> None:
        self._tag("code", code.co_code)
        self._several("names", code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, function)
            else:
                self.add(constant)
        for name in code.co_names:
            value = function.__globals__.get(name)
            own = isinstance(value, types.FunctionType) and _package(value) == _package(function)
            if own or isinstance(value, (*_PLAIN, tuple, np.ndarray, Tensor)):
                self.add(value)

    def _outside(self, value: Any) -> None:
        if isinstance(value, list | dict | set):
            self._tag("notes", _name(type(value)))
        else:
            self.add(value)

    def _object(self, value: Any) -> None:
        self._tag("object", _name(type(value)))
        try:
            kept = value.state_dict() if isinstance(value, nn.Module) else value.__reduce_ex__(4)
        except Exception:  # a type may refuse with any error: locks, open files
            return
        if isinstance(kept, tuple):  # of a class, its arguments, its state, its items
            kept = [list(p) if isinstance(p, Iterator) else p for p in kept[1:]]
        self.add(kept)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def _package(function: types.FunctionType) -> str:
    return function.__module__.partition(".")[0]


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


# -------------------------------------------------------------------- files


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes; read once in a process while the file stays as it is.

    Raises :class:`InputError` for a file that cannot be read.
    """
    file = Path(path)
    try:
        stat = file.stat()
        # The time of change is the system's own: copying with the old times kept does not reset it.
        state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        return _file_fingerprint(str(file.resolve()), state)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


@functools.lru_cache(maxsize=4096)
def _file_fingerprint(path: str, state: tuple[int, ...]) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_fingerprint(folder: str | Path, patterns: Iterable[str] = ("**/*",)) -> str:
    """A fingerprint of the files in a folder that fit ``patterns``, by contents and name inside it.

    Hidden files do not count.
    """
    place = Path(folder)
    matching = {
        path.relative_to(place).as_posix(): path
        for pattern in patterns
        for path in place.glob(pattern)
        if path.is_file()
    }
    shown = {name for name in matching if not any(part.startswith(".") for part in name.split("/"))}
    return fingerprint({name: file_fingerprint(matching[name]) for name in sorted(shown)})
