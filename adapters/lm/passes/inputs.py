"""A batch as the engine reads it: on the model's device, checked, answers as flat token numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.errors import InputError
from graphprune.util.modes import on_device

from ..describe.architecture import Architecture

_KEYS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
# What tokenizers tell about a text beside the model's inputs; no model reads it.
TOLD = (
    "special_tokens_mask",
    "length",
    "offset_mapping",
    "overflow_to_sample_mapping",
    "overflowing_tokens",
    "num_truncated_tokens",
)

__all__ = ["TOLD", "Inputs", "may_pad", "position_slots", "read_inputs"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch on the model's device. ``answers [n]`` are flat token numbers, ``shape`` theirs.

    ``asked [m]`` are the different ones of ``answers``, ``which [n]`` says which of them each is,
    and ``first`` is their first position. ``prefix`` is the first position at which a clean and its
    corrupted prompt differ. All of it is counted once, so that no run waits for a device to tell.
    """

    clean: Tensor
    corrupt: Tensor | None
    weight: Tensor
    answers: Tensor
    asked: Tensor
    which: Tensor
    first: int
    shape: tuple[int, ...]
    alignment: Tensor | None
    prefix: int


def may_pad(arch: Architecture) -> bool:
    """Whether no token reads padding behind it, or the module itself sees what is padding."""
    asked = inspect.signature(arch.model.forward).parameters
    return arch.family.causal or "attention_mask" not in asked


def position_slots(batch: Batch, inputs: Inputs) -> tuple[Tensor, int]:
    """The slot each token's scores are kept in, ``[B * T]``, and how many slots there are.

    A slot is the token's span where the batch names spans, its position otherwise.
    """
    if batch.slots is not None:
        return batch.slots.to(inputs.clean.device).reshape(-1), len(batch.slot_names)
    examples, tokens = inputs.clean.shape
    return torch.arange(tokens, device=inputs.clean.device).repeat(examples), tokens


def _shared_prefix(clean: Tensor, corrupt: Tensor | None, alignment: Tensor | None) -> int:
    """The first position at which a clean and its corrupted prompt differ, least over the batch.

    A causal model gives both the same values before it. At most T - 1; 0 for aligned prompts.
    """
    if corrupt is None or alignment is not None:
        return 0
    differs = torch.nonzero((clean != corrupt).any(0))
    last = clean.shape[1] - 1
    return min(int(differs[0]), last) if len(differs) else last


def _side(arch: Architecture, given: Any, side: str) -> tuple[Tensor, Tensor]:
    """Token ids ``[B, T]`` and the weights of tokens, 0 at padding, of one side of a batch.

    Raises :class:`InputError` for what a masked run would have to leave unread: Hugging Face's
    model would read it, and the numbers would be another model's.
    """
    if not isinstance(given, Mapping) or given.get("input_ids") is None:
        got = list(given) if isinstance(given, Mapping) else type(given).__name__
        raise InputError(
            f"a language model's batch needs a mapping with input_ids, got {got} as {side} inputs"
        )
    given = {
        key: value
        for key, value in given.items()
        if key not in TOLD or key in inspect.signature(arch.model.forward).parameters
    }
    for key, value in given.items():
        if value is not None and not (isinstance(value, Tensor) and key in _KEYS):
            raise InputError(
                f"the {side} inputs hold {key!r} ({type(value).__name__}), which masked runs do "
                f"not read; they take the tensors {', '.join(_KEYS[:2])} (right-padded) and "
                "position_ids 0, 1, 2, ...: leave the rest out"
            )
    parts = {key: value for key, value in given.items() if value is not None}
    ids = parts.pop("input_ids")
    if ids.ndim != 2 or not _whole(ids) or not ids.numel():
        raise InputError(
            f"{side} input_ids must be ids [B, T] of an integer type, got {ids.dtype} "
            f"{list(ids.shape)}"
        )
    if ids.dtype != torch.int32:  # which tables of embeddings take as it is, but none smaller
        ids = ids.long()
    weight = parts.pop("attention_mask", torch.ones_like(ids))
    if weight.shape != ids.shape:
        raise InputError(
            f"the {side} attention_mask must have the shape of input_ids, {list(ids.shape)}, got "
            f"{list(weight.shape)}"
        )
    odd = weight[(weight != 0) & (weight != 1)]
    if odd.numel():
        raise InputError(
            f"the {side} attention_mask must hold 1 at tokens and 0 at padding, got "
            f"{odd[0].item()} too"
        )
    weight = weight.to(ids)
    if bool((weight[:, 1:] > weight[:, :-1]).any()) or not bool(weight[:, 0].all()):
        raise InputError(
            f"batches must be padded on the right (Task.from_tensors moves padding); the {side} "
            "attention_mask has padding in front of tokens, or a prompt without any"
        )
    if not may_pad(arch) and not bool(weight.all()):
        raise InputError(
            f"the {side} prompts are padded, and this model reads in both directions, so that "
            "its tokens would read padding: give prompts of one length to a batch"
        )
    for key, value in parts.items():
        _require_unread(arch, key, value, weight, side)
    return ids, weight


def _whole(value: Tensor) -> bool:
    """Whether a tensor's type is one of integers."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def _integers(value: Tensor, name: str, size: int) -> Tensor:
    """Ids or positions of ``size`` examples, where -1 pads, as int64.

    Raises :class:`InputError` for other types and smaller numbers.
    """
    if not isinstance(value, Tensor) or not _whole(value):
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must be a tensor of an integer type, got {came}")
    if not value.ndim or len(value) != size or not value.numel():
        raise InputError(
            f"{name} must have a row for each of the {size} examples, got the shape "
            f"{list(value.shape)}"
        )
    value = value.long()
    if int(value.min()) < -1:
        raise InputError(
            f"{name} hold {int(value.min())}; numbers count from 0, and of those below only -1 is "
            "known, which pads a row (it is not the last token)"
        )
    return value


def _require_unread(arch: Architecture, key: str, value: Tensor, weight: Tensor, side: str) -> None:
    """Raises :class:`InputError` unless the model would give the same without ``key``.

    Tokenizers add ``token_type_ids`` of zeros by habit, also for models that have no types.
    """
    if key == "position_ids":
        own = torch.arange(weight.shape[1], device=weight.device)
        try:
            same = bool(((value == own) | (weight == 0)).all())
        except RuntimeError:  # the shapes do not fit
            same = False
        if same:
            return
        raise InputError(
            f"the {side} position_ids are not 0, 1, 2, ... on every prompt, the only ones that "
            "masked runs know: leave them out, or move the prompts' padding to the right"
        )
    if bool(value.any()) or key in inspect.signature(arch.model.forward).parameters:
        raise InputError(
            f"the {side} inputs hold {key!r}, which this model adds something for and masked runs "
            "do not read: leave it out"
        )


def _require_counterparts(weight: Tensor, there: Tensor, alignment: Tensor | None) -> None:
    """Raises :class:`InputError` where a clean token would read a corrupted prompt's padding."""
    read = there.float()
    if alignment is not None:
        weights = alignment.to(read)
        if weights.shape != (*weight.shape, there.shape[1]) or len(there) != len(weight):
            raise InputError(
                f"alignment must be {[*weight.shape, there.shape[1]]} for {len(there)} corrupted "
                f"prompts, got {list(weights.shape)}"
            )
        read = torch.bmm(weights, read[..., None])[..., 0]
    bare = (weight != 0) & (read < 1 - 1e-4)
    if bool(bare.any()):
        row, token = (int(i) for i in torch.nonzero(bare)[0])
        raise InputError(
            f"token {token} of example {row}'s clean prompt has padding for a counterpart: the "
            f"attention_mask gives the corrupted prompt {int(there[row].sum())} tokens and the "
            f"clean one {int(weight[row].sum())}; pairs of different length need spans to align "
            "them"
        )


def read_inputs(arch: Architecture, batch: Batch) -> Inputs:
    """Checks a batch against the model; raises :class:`InputError` with what came and where."""
    device = arch.device
    # Checked on the CPU: each look at a device's numbers would wait for the device.
    parts = ("clean", "corrupt", "positions", "answer", "distractor", "alignment")
    batch = replace(batch, **{name: on_device(getattr(batch, name), "cpu") for name in parts})
    ids, weight = _side(arch, batch.clean, "clean")
    corrupt = None
    if batch.corrupt is not None:
        corrupt, there = _side(arch, batch.corrupt, "corrupted")
        if corrupt.shape != ids.shape and batch.alignment is None:
            raise InputError(
                f"clean prompts have the shape {list(ids.shape)} and corrupted ones "
                f"{list(corrupt.shape)}; pairs of different length need spans to align them"
            )
        _require_counterparts(weight, there, batch.alignment)
    vocabulary = len(arch.table)
    for side, tokens in (("clean", ids), ("corrupted", corrupt)):
        if tokens is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise InputError(
                f"the {side} prompts hold token ids from {int(tokens.min())} to "
                f"{int(tokens.max())}; the model's vocabulary is 0 to {vocabulary - 1}"
            )
    limit = arch.table_positions
    if limit is not None and ids.shape[1] > limit:
        raise InputError(
            f"the prompts have {ids.shape[1]} tokens; the model's position table ends at {limit}"
        )
    for side, named in (("answer", batch.answer), ("distractor", batch.distractor)):
        if named is None or (isinstance(named, Tensor) and not named.numel()):
            continue
        largest = int(_integers(named, f"{side} ids", len(ids)).max())
        if largest >= arch.outputs:
            raise InputError(
                f"the largest {side} id is {largest}; the model's outputs are 0 to "
                f"{arch.outputs - 1}"
            )
    positions = weight.sum(1) - 1
    if batch.positions is not None:
        positions = _integers(batch.positions, "positions", len(ids))
    if positions.ndim > 2:
        raise InputError(f"positions must be [B] or [B, P], got {list(positions.shape)}")
    lost = (positions.reshape(len(ids), -1) < 0).all(1)
    if bool(lost.any()):
        raise InputError(f"positions of example {int(lost.nonzero()[0, 0])} are all -1")
    if int(positions.max()) >= ids.shape[1]:
        raise InputError(
            f"an answer is read at position {int(positions.max())}; the prompts of this batch have "
            f"{ids.shape[1]} tokens, positions count from 0"
        )
    rows = torch.arange(len(ids)).view(-1, *[1] * (positions.ndim - 1))
    flat = (positions.clamp(min=0) + rows * ids.shape[1]).reshape(-1)
    asked, which = torch.unique(flat, return_inverse=True)
    alignment = None if batch.alignment is None else batch.alignment.to(device, arch.dtype)
    return Inputs(
        ids.to(device),
        None if corrupt is None else corrupt.to(device),
        weight.to(device, arch.dtype),
        flat.to(device),
        asked.to(device),
        which.to(device),
        int((asked % ids.shape[1]).min()),
        tuple(positions.shape),
        alignment,
        _shared_prefix(ids, corrupt, alignment),
    )
