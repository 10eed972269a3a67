"""A batch as the user's module takes it: checked, on its device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.errors import InputError
from graphprune.util.modes import on_device

from ..lm.passes.inputs import TOLD

__all__ = ["Inputs", "answered", "read_inputs"]

_VARYING = ("input_ids", "pixel_values", "decoder_input_ids")
_SHARED = ("attention_mask", "token_type_ids", "decoder_attention_mask")


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch: arguments of the module's forward, and where answers are read.

    ``weights`` (``[B, T]`` for each stack that reads tokens, ``None`` for images) are 1 at tokens
    and 0 at padding.
    """

    clean: dict[str, Any]
    corrupt: dict[str, Any] | None
    positions: Tensor | None
    weights: list[Tensor | None]

    def repeated(self, times: int) -> Inputs:
        """The clean side of ``times`` copies of the batch, one behind the other."""

        def again(value: Any) -> Any:
            return value.repeat(times, *[1] * (value.ndim - 1)) if torch.is_tensor(value) else value

        return Inputs(
            {key: again(value) for key, value in self.clean.items()},
            None,
            again(self.positions),
            [again(weight) for weight in self.weights],
        )


def _side(model: nn.Module, given: Any, side: str) -> dict[str, Tensor]:
    """The arguments of one side of a batch; raises :class:`InputError` for others."""
    if isinstance(given, Tensor):
        given = {"pixel_values" if given.is_floating_point() else "input_ids": given}
    if not isinstance(given, Mapping):
        raise InputError(
            f"{type(model).__name__} takes a mapping with tensors such as input_ids or "
            f"pixel_values, got {type(given).__name__} as {side} inputs"
        )
    taken = inspect.signature(model.forward).parameters
    parts: dict[str, Tensor] = {}
    for key, value in given.items():
        if value is None or (key in TOLD and key not in taken):
            continue
        known = key in _VARYING or key in _SHARED
        if known and key not in taken and isinstance(value, Tensor) and not bool(value.any()):
            continue  # tokenizers give types of zeros to models that have none
        if not known or key not in taken or not isinstance(value, Tensor):
            names = ", ".join(k for k in (*_VARYING, *_SHARED) if k in taken)
            raise InputError(
                f"the {side} inputs hold {key!r} ({type(value).__name__}), which masked runs of "
                f"{type(model).__name__} do not read; they take the tensors {names}"
            )
        parts[key] = value
    missing = [k for k in ("input_ids", "pixel_values") if k in taken and k not in parts]
    if missing:
        raise InputError(f"the {side} inputs of {type(model).__name__} lack {missing[0]}")
    return parts


def _require_ids(parts: Mapping[str, Tensor], tables: list[nn.Module], side: str) -> None:
    for key, table in zip(("input_ids", "decoder_input_ids"), tables, strict=False):
        size = getattr(table, "num_embeddings", None)
        ids = parts.get(key)
        if ids is None or size is None:
            continue
        if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
            raise InputError(
                f"{side} {key} must be token ids [B, T] of an integer type, got {ids.dtype} "
                f"{list(ids.shape)}"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise InputError(
                f"the {side} {key} are from {int(ids.min())} to {int(ids.max())}; the model's "
                f"vocabulary is 0 to {size - 1}"
            )


def read_inputs(
    model: nn.Module, tables: list[nn.Module], batch: Batch, device: torch.device
) -> Inputs:
    """A batch for a model whose embeddings are ``tables``, one for each stack.

    Raises :class:`InputError` with what came and where, also where clean and corrupted inputs
    differ in more than tokens or pixels.
    """
    if batch.alignment is not None:
        raise InputError(
            "prompts aligned span by span are read by decoder-only models alone; give clean and "
            "corrupted prompts of one length"
        )
    clean, corrupt = _side(model, batch.clean, "clean"), None
    _require_ids(clean, tables, "clean")
    if batch.corrupt is not None:
        corrupt = _side(model, batch.corrupt, "corrupted")
        _require_ids(corrupt, tables, "corrupted")
        for key in _VARYING:
            one, two = (side[key].shape if key in side else None for side in (clean, corrupt))
            if one != two:
                raise InputError(f"the clean {key} are {one} and the corrupted ones {two}")
        for key in _SHARED:
            here, there = clean.get(key), corrupt.get(key)
            if there is None and here is not None:
                corrupt[key] = here
            elif there is not None and (here is None or not torch.equal(here.cpu(), there.cpu())):
                raise InputError(
                    f"the clean and the corrupted {key} differ; what they do to a run is no "
                    "message that an edge could carry, so both sides must have the same"
                )
    weights: list[Tensor | None] = []
    for ids, mask in (("input_ids", "attention_mask"),
                      ("decoder_input_ids", "decoder_attention_mask")):  # fmt: skip
        tokens = clean.get(ids)
        ones = None if tokens is None else torch.ones_like(tokens)
        weights.append(None if ones is None else on_device(clean.get(mask, ones), device))
    caches = "use_cache" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if caches else {}
    return Inputs(
        on_device(clean, device) | options,
        None if corrupt is None else on_device(corrupt, device) | options,
        batch.positions,
        weights,
    )


def answered(outputs: Any, inputs: Inputs) -> Tensor:
    """The logits at the answers, ``[B, V]`` or ``[B, P, V]``, of what the module gave.

    Models that answer once for an example give ``[B, V]``; they have no positions, and those that
    a batch names are passed over.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None:
        logits = getattr(outputs, "image_embeds", None)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        raise InputError(
            f"a masked model's outputs are logits [B, V] or [B, T, V]; {type(outputs).__name__} "
            "has none: wrap a model with a head, such as one for masked tokens or classes"
        )
    positions = inputs.positions
    if logits.ndim == 2:
        if positions is not None and positions.ndim > 1 and positions.shape[1] > 1:
            raise InputError(
                f"the model answers once for an example, got positions {list(positions.shape)}: "
                "leave them out"
            )
        return logits
    if positions is None:
        weights = [w for w in inputs.weights if w is not None]
        if not weights or weights[-1].shape[1] != logits.shape[1]:
            last = torch.full((len(logits),), logits.shape[1] - 1)
        else:
            count = torch.arange(1, logits.shape[1] + 1, device=weights[-1].device)
            last = (count * (weights[-1] != 0)).argmax(1)
        positions = last
    positions = positions.to(logits.device).long()
    most = int(positions.max())
    if most >= logits.shape[1] or int(positions.min()) < -1:
        raise InputError(
            f"answers are read at positions {int(positions.min())} to {most}; the model answers "
            f"at 0 to {logits.shape[1] - 1}"
        )
    rows = torch.arange(len(logits), device=logits.device).view(-1, *[1] * (positions.ndim - 1))
    return logits[rows, positions.clamp(min=0)]
