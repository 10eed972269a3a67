"""Checkpoints: gates, optimiser state and the best mask so far, never the model's weights.

A run directory holds ``run.json`` (settings and what the run belongs to, written once) and
``checkpoint.safetensors`` (replaced in one step each time). Noise and order of examples are
functions of seed and step, so there is no random state to keep: a run killed at any step and
resumed ends in the same bits. Each checkpoint carries the SHA-256 of its own file, so that a
flipped bit is found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from torch import Tensor

from graphprune import __version__
from graphprune.capabilities import identity_of
from graphprune.core.contents import fingerprint
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import FormatError, InputError
from graphprune.util.checks import usable
from graphprune.util.files import contents, remove_stale, write_bytes, write_text
from graphprune.util.plain import plain
from graphprune.util.readers import Schema, file_bytes, json_value, validated
from graphprune.util.sealed import Seal

__all__ = ["RunDirectory", "RunState", "identity"]

_FORMAT = "graphprune-run"
_VERSION = 3  # 1 knew settings by name and the ends of long data sets alone; 2 had no digest
_RUN, _STATE = "run.json", "checkpoint.safetensors"
_SEAL = Seal(_FORMAT)


class _Notes(BaseModel):
    """What every checkpoint's notes hold beside those of its search."""

    model_config = ConfigDict(extra="allow", strict=True)
    step: NonNegativeInt


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
        self.folder = usable(folder)
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
            description = json_value(file_bytes(path))
        except (OSError, ValueError) as error:
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
        notes = {"step": checkpoint.step, **checkpoint.notes}
        write_bytes(self.folder / _STATE, _SEAL.tensors(checkpoint.tensors, notes))

    def load(self) -> RunState | None:
        """The last checkpoint, or ``None`` if there is none yet.

        Raises :class:`FormatError` if a single bit of it is not as it was written.
        """
        path = self.folder / _STATE
        if not path.exists():
            return None
        try:
            tensors, notes = _SEAL.read_tensors(path)
            step = validated(_Notes, notes, "its notes").step
        except (OSError, ValueError) as error:  # a FormatError is one
            raise FormatError(
                f"{path}: no checkpoint, the file is damaged: {error}. Put back a copy of it, or "
                "delete it and the run begins anew"
            ) from None
        del notes["step"]
        return RunState(step, tensors, notes)

    def validated(self, schema: type[Schema], state: RunState) -> Schema:
        """A state's notes as the search that wrote them has them; :class:`FormatError` if not."""
        return validated(schema, state.notes, self.folder / _STATE)


def same_columns(before: list[str], now: list[str], folder: RunDirectory | None) -> list[str]:
    """The figures that a step notes; :class:`FormatError` if those of earlier steps were others."""
    if before and before != now and folder is not None:
        raise FormatError(
            f"the checkpoint in {folder.folder} does not belong to this method: its history has "
            f"the columns {before}, a step has {now}"
        )
    return now


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
