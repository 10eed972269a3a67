"""Checkpoints: gates, optimiser state and the best mask so far, never the model's weights.

A run directory holds ``run.json`` (settings and what the run belongs to, written once) and
``checkpoint.safetensors`` (replaced in one step each time). Noise and order of examples are
functions of seed and step, so there is no random state to keep: a run killed at any step and
resumed ends in the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from graphprune.batch import Batch
from graphprune.errors import FormatError, InputError
from graphprune.files import atomic_path, write_text
from graphprune.model import MaskedModel
from graphprune.plain import plain
from graphprune.task import Task

__all__ = ["Checkpoint", "RunDirectory", "identity"]

_FORMAT = "graphprune-run"
_RUN, _STATE = "run.json", "checkpoint.safetensors"


def identity(model: MaskedModel, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run belongs to: settings, graph, weights and examples."""
    digest = hashlib.sha256(repr((task.name, len(task), task.metric.name)).encode())
    numbers = range(len(task.examples)) if task.order is None else task.order
    some = [*numbers[:64], *numbers[-64:]]
    batch = task.examples.batch(some)
    for tensor in _tensors(batch):
        digest.update(str(tensor.dtype).encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    told = plain(dict(settings))
    told |= {k: f"{told[k]} {_code(v)}" for k, v in settings.items() if _code(v)}
    return {
        "format": _FORMAT,
        "version": 1,
        "settings": told,
        "graph": model.graph.fingerprint,
        "model": plain(model.provenance()),
        "task": {"name": task.name, "examples": len(task), "digest": digest.hexdigest()[:16]},
    }


def _tensors(batch: Batch) -> list[Tensor]:
    """Everything in a batch that a loss may depend on."""
    found = [batch.positions, batch.answer, batch.distractor, batch.alignment]
    for side in (batch.clean, batch.corrupt):
        found += list(side.values()) if isinstance(side, Mapping) else [side]
    return [part for part in found if isinstance(part, Tensor)]


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name, as they are."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _code(value: Any) -> str:
    """A short hash of a function's code: two lambdas have one name."""
    inner = getattr(value, "function", value)  # a Metric's
    code = getattr(inner, "__code__", None)
    if code is None:
        return ""
    constants = [c for c in code.co_consts if isinstance(c, (int, float, str))]
    text = repr((code.co_code, code.co_names, constants))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Checkpoint:
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
        found = self._read()
        if found is None:
            write_text(self.folder / _RUN, json.dumps(belongs_to, indent=2) + "\n")
        else:
            self._require_same(found, belongs_to)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / _RUN
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(
                    f"the folder {self.folder} is not empty and holds no run; nothing was touched, "
                    "name another"
                )
            return None
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path}: no run description: {error}") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise FormatError(f"{path}: expected the format {_FORMAT!r}")
        if found.get("version") != 1:
            raise FormatError(f"{path}: version {found.get('version')!r} is not known, expected 1")
        return found

    def _require_same(self, found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        before, after = _leaves(found), _leaves(json.loads(json.dumps(now)))
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

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint in one step."""
        notes = {"step": checkpoint.step, **checkpoint.notes}
        data = dump_tensors(
            {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()},
            {"graphprune": json.dumps(plain(notes))},
        )
        with atomic_path(self.folder / _STATE) as path:
            path.write_bytes(data)

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or ``None`` if there is none yet."""
        path = self.folder / _STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = json.loads(file.metadata()["graphprune"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int(notes.pop("step"))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: no checkpoint: {error}") from None
        return Checkpoint(step, tensors, notes)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors."""
    found: dict[str, Tensor] = {}
    for number, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            found[f"optimiser.{number}.{name}"] = torch.as_tensor(value)
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what :func:`optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    whole = optimiser.state_dict()
    optimiser.load_state_dict({**whole, "state": state})
