"""A batch as the engine reads it: on the model's device, checked, answers as flat token numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.errors import InputError

from .architecture import Architecture

__all__ = ["Inputs", "position_slots", "read_inputs", "shared_prefix"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch on the model's device. ``answers [n]`` are flat token numbers, ``shape`` theirs."""

    clean: Tensor
    corrupt: Tensor | None
    weight: Tensor
    answers: Tensor
    shape: tuple[int, ...]
    alignment: Tensor | None


def position_slots(batch: Batch, inputs: Inputs) -> tuple[Tensor, int]:
    """The slot each token's scores are kept in, ``[B * T]``, and how many slots there are.

    A slot is the token's span where the batch names spans, its position otherwise.
    """
    if batch.slots is not None:
        return batch.slots.to(inputs.clean.device).reshape(-1), len(batch.slot_names)
    examples, tokens = inputs.clean.shape
    return torch.arange(tokens, device=inputs.clean.device).repeat(examples), tokens


def shared_prefix(inputs: Inputs) -> int:
    """The first position at which a clean and its corrupted prompt differ, least over the batch.

    A causal model gives both the same values before it. At most T - 1; 0 for aligned prompts.
    """
    if inputs.corrupt is None or inputs.alignment is not None:
        return 0
    differs = torch.nonzero((inputs.clean != inputs.corrupt).any(0))
    last = inputs.clean.shape[1] - 1
    return min(int(differs[0]), last) if len(differs) else last


def read_inputs(arch: Architecture, batch: Batch) -> Inputs:
    """Checks a batch against the model; raises :class:`InputError` with what came and where."""
    device = arch.device
    if not isinstance(batch.clean, Mapping) or "input_ids" not in batch.clean:
        raise InputError(
            "a language model's batch needs a mapping with input_ids, got "
            f"{type(batch.clean).__name__}"
        )
    ids = batch.clean["input_ids"].to(device)
    mask = batch.clean.get("attention_mask")
    weight = torch.ones_like(ids) if mask is None else mask.to(device)
    if bool((weight[:, 1:] > weight[:, :-1]).any()):
        raise InputError("batches must be padded on the right (Task.from_tensors moves padding)")
    corrupt = None if batch.corrupt is None else batch.corrupt["input_ids"].to(device)
    if corrupt is not None and corrupt.shape != ids.shape and batch.alignment is None:
        raise InputError(
            f"clean prompts have the shape {list(ids.shape)} and corrupted ones "
            f"{list(corrupt.shape)}; pairs of different length need spans to align them"
        )
    vocabulary = cast(Tensor, arch.embedding.weight).shape[0]
    for side, tokens in (("clean", ids), ("corrupted", corrupt)):
        if tokens is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise InputError(
                f"the {side} prompts hold token ids from {int(tokens.min())} to "
                f"{int(tokens.max())}; the model's vocabulary is 0 to {vocabulary - 1}"
            )
    limit = arch.longest
    if limit is not None and ids.shape[1] > limit:
        raise InputError(
            f"the prompts have {ids.shape[1]} tokens; the model's position table ends at {limit}"
        )
    for side, found in (("answer", batch.answer), ("distractor", batch.distractor)):
        if found is not None and found.numel() and int(found.max()) >= arch.outputs:
            raise InputError(
                f"a {side} id is {int(found.max())}; the model's outputs are 0 to "
                f"{arch.outputs - 1}"
            )
    positions = (weight.sum(1) - 1) if batch.positions is None else batch.positions.to(device)
    if int(positions.max()) >= ids.shape[1]:
        raise InputError(
            f"an answer is read at position {int(positions.max())}; the prompts of this batch have "
            f"{ids.shape[1]} tokens, positions count from 0"
        )
    rows = torch.arange(len(ids), device=device).view(-1, *[1] * (positions.ndim - 1))
    flat = positions.clamp(min=0) + rows * ids.shape[1]
    alignment = None if batch.alignment is None else batch.alignment.to(device, arch.dtype)
    return Inputs(
        ids, corrupt, weight.to(arch.dtype), flat.reshape(-1), tuple(positions.shape), alignment
    )
