"""Settings, figures and versions as plain JSON values, weights as a hash: to keep and compare."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class Short(Protocol):
    """A value that has a short text of its own, such as an ablation with its constants."""

    def as_plain(self) -> str:
        """The text that stands for it."""
        ...


@runtime_checkable
class HasToDict(Protocol):
    """Whatever can be written as plain values, such as an :class:`~graphprune.EvaluationReport`."""

    def to_dict(self) -> Mapping[str, Any]:
        """Its figures by name."""
        ...


def plain(value: Any) -> Any:
    """``value`` as dicts, lists, strings, finite numbers, booleans and ``None``.

    JSON has no NaN and no infinities: they become the strings ``"NaN"``, ``"Infinity"`` and
    ``"-Infinity"``. A tensor of one or more axes becomes its shape and the start of a hash, an
    ablation its short name: neither is a setting that a person reads. A dataclass becomes a dict
    with its class name under ``type``; a function its name; anything else the name of its class,
    never a ``repr`` that may hold an address.

    Example:
        >>> plain({"a": (1, np.float32(0.5)), 2: float("nan"), "f": plain})
        {'a': [1, 0.5], '2': 'NaN', 'f': 'plain'}
        >>> plain(torch.zeros(2, 3)), plain(torch.tensor(0.5))
        ('tensor[2, 3] sha256:bb40f2a94210', 0.5)
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Tensor):
        return plain(value.item()) if value.ndim == 0 else _summary(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Short) and not isinstance(value, type):
        return value.as_plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    return str(getattr(value, "__name__", type(value).__name__))


def _summary(tensor: Tensor) -> str:
    """``"tensor[2, 3] sha256:bb40f2a94210"``: equal tensors of one dtype have equal texts."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(_bytes(tensor))
    return f"tensor{list(tensor.shape)} sha256:{digest.hexdigest()[:12]}"


def _bytes(tensor: Tensor) -> memoryview:
    values = tensor.detach().cpu().contiguous().flatten()
    return values.view(torch.uint8).numpy().data


def _held(tensor: Tensor) -> list[Tensor]:
    """The tensors that another library's quantised one is made of; any other alone."""
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is None or type(tensor).__module__.startswith("torch."):
        return [tensor]
    return [part for name in flatten(tensor)[0] for part in _held(getattr(tensor, name))]


def weights_hash(tensors: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 of a module's named tensors in the order given, in hexadecimal digits.

    What is no tensor (a module's extra state) counts by its name alone.

    Example:
        >>> weights_hash([("weight", torch.ones(2))])[:12]
        'b667b5703293'
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            for part in _held(tensor):
                digest.update(_bytes(part))
    return digest.hexdigest()


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as rows ``(dotted name, text)``, for tables.

    Example:
        >>> flatten({"task": {"name": "ioi", "n": 3}, "kl": 0.123456789})
        [('task.name', 'ioi'), ('task.n', '3'), ('kl', '0.123457')]
    """
    if isinstance(value, Mapping):
        rows = []
        for key, item in value.items():
            rows += flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return rows
    if isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        return flatten({str(i): item for i, item in enumerate(value)}, prefix)
    if isinstance(value, list):
        return [(prefix, ", ".join(_text(item) for item in value))]
    return [(prefix, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def recorded(provenance: Mapping[str, Any], part: str, key: str) -> str:
    """A name in a part of a provenance, which may be the name alone; empty where not known."""
    record = provenance.get(part)
    return str((record.get(key) if isinstance(record, Mapping) else record) or "")


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before.

    Example:
        >>> import pandas as pd
        >>> print(csv_text(pd.DataFrame({"name": ["a", "=1+1"], "score": [-1.0, 2.0]})), end="")
        name,score
        a,-1.0
        '=1+1,2.0
    """
    from pandas.api.types import is_numeric_dtype

    texts = {
        name: column.map(_no_formula)
        for name, column in frame.items()
        if not is_numeric_dtype(column)
    }
    safe = frame.assign(**{str(name): column for name, column in texts.items()})
    return str(safe.rename(columns=_no_formula).to_csv(index=False, lineterminator="\n"))


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    formula = cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    # Python's writer puts no marks around a carriage return, which would begin a row.
    return f"{chr(39) * formula}{cell}".replace("\r", "\\r")


_PACKAGES = ("graphprune", "numpy", "torch", "transformers", "torch_geometric")


def versions_now() -> dict[str, Any]:
    """Versions of Python and of packages that may have had a part in a result, and the time."""
    known = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        # What is not imported had no part in the result.
        if package in sys.modules:
            try:
                known[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                known[package] = "uninstalled checkout"
    return {"versions": known, "created": datetime.now(UTC).isoformat(timespec="seconds")}
