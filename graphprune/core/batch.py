"""A batch of examples, and where batches come from.

Prompts are right-padded. ``positions`` are the places an answer is read at; ``-1`` pads a ragged
list of positions or answers.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.util.modes import on_device


@dataclass(frozen=True, eq=False)
class Batch:
    """Clean and corrupted inputs of the same ``size`` examples, and what is asked of them.

    Args:
        clean: the adapter's inputs; for language models a mapping with ``input_ids [B, T]`` and
            ``attention_mask [B, T]`` (right-padded; without one all tokens are real). An adapter
            refuses what it does not read: ``position_ids`` other than 0, 1, 2, ...,
            ``inputs_embeds``, ``labels`` and so on; what a tokenizer tells besides (``length``,
            ``offset_mapping``, ``special_tokens_mask`` and so on) is no input and is passed over.
        corrupt: the same for the corrupted prompts, or ``None``. Their own ``attention_mask`` may
            give them more tokens than the clean ones; fewer, where spans align the two.
        size: number of examples ``B``.
        indices: numbers of the examples in their task.
        positions: ``[B]`` or ``[B, P]`` int64, where answers are read, counted from 0; ``-1`` pads
            a row of several. Other negative numbers are refused.
        answer: ``[B, A]`` (or ``[B, P, A]``) int64 ids of right answers; ``-1`` is padding.
        distractor: the same for wrong answers.
        alignment: ``[B, T, T']`` float, rows sum to 1: how a clean position reads corrupted
            positions where the two prompts differ in length. ``None`` means position by position.
        slots: ``[B, T]`` int64, the slot of each clean token where named spans are aligned: scores
            by position are kept for each slot. ``None`` makes every position a slot of its own.
        slot_names: the spans' names, then ``"other"`` for tokens outside all of them.

    Example:
        >>> batch = next(prompts.batches(2))
        >>> batch.size, batch.clean["input_ids"].shape, tokenizer.decode(batch.answer[0])
        (2, torch.Size([2, 14]), ' Jessica')
    """

    clean: Any
    corrupt: Any | None
    size: int
    indices: tuple[int, ...] = ()
    positions: Tensor | None = None
    answer: Tensor | None = None
    distractor: Tensor | None = None
    alignment: Tensor | None = None
    slots: Tensor | None = None
    slot_names: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on a device; itself where all are there already.

        Prompts may lie on another device than the model; a metric or loss of a user's gets its
        batch on the device of the outputs. What was moved last is kept, so that it is moved once.

        Example:
            >>> batch = next(task.batches())
            >>> batch.to("cpu") is batch, batch.to("meta").answer.device
            (True, device(type='meta'))
        """
        device = torch.device(device)
        last: tuple[torch.device, Batch] | None = self.__dict__.get("_moved")
        if last is not None and last[0] == device:
            return last[1]
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        placed = {name: on_device(value, device) for name, value in parts.items()}
        changed = {name: value for name, value in placed.items() if value is not parts[name]}
        if not changed:
            return self
        moved = replace(self, **changed)
        self.__dict__["_moved"] = device, moved
        return moved


@runtime_checkable
class Examples(Protocol):
    """A finite, indexable source of examples; a task draws its batches from it.

    Example:
        >>> prompts.examples.batch([0, 3]).indices, prompts.examples.lengths()[:3]
        ((0, 3), array('i', [19, 16, 14]))
    """

    def __len__(self) -> int: ...

    def lengths(self) -> Sequence[int]:
        """A size for each example; batches group examples of similar size."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices`` as one batch, padded to the longest of them."""
        ...


@runtime_checkable
class Aligned(Protocol):
    """Examples that know whether their clean and corrupted inputs are aligned span by span."""

    @property
    def has_spans(self) -> bool:
        """``True`` if some may be; batches without an ``alignment`` are not."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """Examples that know fingerprints of their inputs; of others single examples are read."""

    def fingerprints(self) -> NDArray[np.int64]:
        """``[N, 2]``: fingerprints of the clean and the corrupted inputs (0: none)."""
        ...


@runtime_checkable
class Readable(Protocol):
    """Examples that a person can read."""

    def texts(self, number: int) -> dict[str, str]:
        """The parts of an example by name: ``clean``, ``corrupt``, ``answer``, ``distractor``."""
        ...


@runtime_checkable
class Redrawable(Protocol):
    """Examples that can draw corrupted inputs again."""

    def redrawn(
        self, wanted: NDArray[np.int64], part: NDArray[np.int64], taken: Set[int]
    ) -> tuple[Examples, Sequence[int]]:
        """The examples with other corrupted inputs of those ``wanted``, and which were found.

        ``part`` are the examples in use; no new input has a fingerprint of ``taken``.
        """
        ...
