"""Checkpoints: gates, optimiser state and the best mask so far, never the model's weights.

A run directory holds ``run.json`` (settings and what the run belongs to, written once) and
``checkpoint.safetensors`` (replaced in one step each time). Noise and order of examples are
functions of seed and step, so there is no random state to keep: a run killed at any step and
resumed ends in the same bits. Each checkpoint carries the SHA-256 of its own file, so that a
flipped bit is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from graphprune import __version__
from graphprune.capabilities import identity_of
from graphprune.core.contents import fingerprint
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import FormatError, InputError
from graphprune.util.files import contents, remove_stale, write_bytes, write_text
from graphprune.util.plain import plain

__all__ = ["RunDirectory", "RunState", "identity"]

_FORMAT = "graphprune-run"
_VERSION = 3  # 1 knew settings by name and the ends of long data sets alone; 2 had no digest
_RUN, _STATE = "run.json", "checkpoint.safetensors"
# Stands where the file's digest goes while that is computed; no other text happens to be this one.
_UNSEALED = hashlib.sha256(_FORMAT.encode()).hexdigest().encode()


def identity(model: MaskedModel, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run belongs to: version of the library, settings, graph, weights and all examples."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "made_by": f"graphprune {__version__}",
        "settings": {k: _shown(v) for k, v in settings.items()},
        "graph": model.graph.fingerprint,
        "model": plain(identity_of(model)),
        "task": {"name": task.name, "examples": len(task), "digest": task.fingerprint[:16]},
    }


def _shown(value: Any) -> Any:
    """A setting as people read it, and the start of its fingerprint where that does not say all."""
    shown = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return shown
    contents = fingerprint(value)[:12]
    if isinstance(shown, str):
        return f"{shown} {contents}"
    return {**(shown if isinstance(shown, dict) else {"value": shown}), "contents": contents}


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name, as they are."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves


@dataclass(frozen=True, eq=False)
class RunState:
    """``step``: steps done; ``tensors``: named state; ``notes``: plain values."""

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class RunDirectory:
    """A folder that a run writes its state to, and is resumed from.

    Raises :class:`InputError` if the folder holds the run of other settings, another model or
    another data set, naming what differs; :class:`FormatError` if its files are damaged.
    """

    def __init__(self, folder: str | Path, belongs_to: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"expected a run directory, but {self.folder} is a file")
        remove_stale(self.folder)
        before = self._read()
        if before is None:
            write_text(self.folder / _RUN, json.dumps(belongs_to, indent=2) + "\n")
        else:
            self._require_same(before, belongs_to)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / _RUN
        if not path.exists():
            if self.folder.exists() and contents(self.folder):
                raise InputError(
                    f"the folder {self.folder} is not empty and holds no run; nothing was touched, "
                    "name another"
                )
            return None
        try:
            description = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path}: no run description: {error}") from None
        if not isinstance(description, dict) or description.get("format") != _FORMAT:
            raise FormatError(f"{path}: expected the format {_FORMAT!r}")
        if description.get("version") != _VERSION:
            raise FormatError(
                f"{path}: version {description.get('version')!r} of the format cannot be resumed, "
                f"expected {_VERSION}; name another folder"
            )
        return description

    def _require_same(self, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        before, after = _leaves(earlier), _leaves(json.loads(json.dumps(now)))
        differ = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if differ:
            shown = "; ".join(
                f"{name} was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
                for name in sorted(differ)[:6]
            )
            raise InputError(
                f"the run in {self.folder} was started differently: {shown}. Resume it with the "
                "same settings, model and task, or name another folder"
            )

    def save(self, checkpoint: RunState) -> None:
        """Replaces the checkpoint in one step."""
        notes = {"step": checkpoint.step, "sha256": _UNSEALED.decode(), **checkpoint.notes}
        data = dump_tensors(
            {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()},
            {"graphprune": json.dumps(plain(notes))},
        )
        digest = hashlib.sha256(data).hexdigest().encode()
        write_bytes(self.folder / _STATE, data.replace(_UNSEALED, digest, 1))

    def load(self) -> RunState | None:
        """The last checkpoint, or ``None`` if there is none yet.

        Raises :class:`FormatError` if a single bit of it is not as it was written.
        """
        path = self.folder / _STATE
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            notes = json.loads(header["__metadata__"]["graphprune"])
            digest = notes.pop("sha256").encode()
            if hashlib.sha256(data.replace(digest, _UNSEALED, 1)).hexdigest().encode() != digest:
                raise ValueError("its bytes are not those that were written (digests differ)")
            tensors = load_tensors(data)
            step = int(notes.pop("step"))
        except (
            *(SafetensorError, OSError, ValueError, KeyError),
            *(TypeError, AttributeError, RecursionError),
        ) as error:
            raise FormatError(
                f"{path}: no checkpoint, the file is damaged: {error}. Put back a copy of it, or "
                "delete it and the run begins anew"
            ) from None
        return RunState(step, tensors, notes)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors."""
    tensors: dict[str, Tensor] = {}
    for number, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimiser.{number}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what :func:`optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    whole = optimiser.state_dict()
    optimiser.load_state_dict({**whole, "state": state})
