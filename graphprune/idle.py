"""Ablations that change nothing, so that no edge matters: no message differs, or none that counts.

Scores would be all zero, a mask of the best edges arbitrary, and an optimiser would find that any
circuit is perfect. It happens where corrupted inputs are the clean ones, where features are alike
on all nodes and are shuffled, where a mean is taken over equal inputs, and where no edge leads to
the nodes that are asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.capabilities import MeanMessages, require
from graphprune.errors import GraphPruneError, InputError
from graphprune.model import Ablation, AblationKind, MaskedModel, Reference

__all__ = ["Compared", "Idle", "changes_nothing", "equal_inputs", "require_effect", "rounding"]

_MASKS = 4  # drawn, where an adapter cannot compare messages
_OTHERS: tuple[AblationKind, ...] = ("zero", "delete", "mean")


@runtime_checkable
class Compared(Protocol):
    """A reference that can tell whether its ablation changes any message."""

    def changes_nothing(self) -> bool | None:
        """Whether every ablated message is the clean one (a mean: but for its rounding).

        ``None``: only runs can tell.
        """
        ...


def equal_inputs(batch: Batch) -> bool:
    """Whether a batch's corrupted inputs are its clean ones, tensor by tensor."""
    clean, corrupt = batch.clean, batch.corrupt
    if isinstance(clean, Tensor) and isinstance(corrupt, Tensor):
        return torch.equal(clean, corrupt)
    if not isinstance(clean, Mapping) or not isinstance(corrupt, Mapping):
        return False
    # What a corrupted side does not name (a mask of padding) is the clean side's.
    return batch.alignment is None and all(
        key in clean and isinstance(value, Tensor) and torch.equal(clean[key], value)
        for key, value in corrupt.items()
    )


def rounding(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of a mean."""
    one, other = torch.broadcast_tensors(one, other)
    if not one.numel():
        return True
    kind = one.dtype if one.is_floating_point() else torch.float32
    size = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) <= 16 * torch.finfo(kind).eps * size


@torch.no_grad()
def changes_nothing(model: MaskedModel, batch: Batch, reference: Reference) -> bool:
    """Whether no edge of the batch sends anything else, or nothing that reaches the outputs.

    Equal outputs are not enough: single edges may matter where all of them together do not. So
    runs of a few drawn circuits decide, unless all messages are known to be the clean ones.
    """
    if reference.ablation.kind == "counterfactual" and equal_inputs(batch):
        return True
    told = reference.changes_nothing() if isinstance(reference, Compared) else None
    if told:
        return True
    # Messages that differ may still not reach what is asked, a node that no edge leads to.
    if not rounding(reference.full, reference.ablated):
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(_MASKS, model.graph.num_edges, generator=generator)
    masks = (drawn < torch.linspace(0.2, 0.8, _MASKS)[:, None]).float()
    return rounding(model.run(batch, masks, reference), reference.full)


class Idle:
    """Looks at a method's references until one of them changes something.

    One example that changes is enough: edges have effects on it. The others add zeros.
    """

    def __init__(self, model: MaskedModel, what: str) -> None:
        self._model, self._what = model, what
        self._last: tuple[Batch, Ablation] | None = None
        self._changed = False

    def see(self, batch: Batch, reference: Reference) -> None:
        """One more reference; costs nothing once one has changed something."""
        if self._changed:
            return
        self._changed = not changes_nothing(self._model, batch, reference)
        self._last = batch, reference.ablation

    @property
    def settled(self) -> bool:
        """Whether one has changed something."""
        return self._changed

    def finish(self) -> None:
        """Raises :class:`InputError` if all that were seen change nothing."""
        why = self.reason()
        if why is not None:
            raise InputError(f"{self._what}: {why}")

    def reason(self) -> str | None:
        """Why all that were seen change nothing, and what would; ``None`` if one does."""
        if self._changed or self._last is None:
            return None
        batch, ablation = self._last
        would = [kind for kind in _OTHERS if self._would(batch, kind, ablation)]
        other = " or ".join(f"ablation={kind!r}" for kind in would)
        return (
            f"{ablation.name} ablation changes nothing here: on every example every "
            "ablated message is the clean one (corrupted inputs equal to the clean ones, features "
            "alike on all nodes, or a mean over equal inputs), or none that differs reaches the "
            "outputs asked for (a node that no edge leads to), so no edge has an effect. "
            + (f"Use {other}, or give" if other else "Give")
            + " corrupted inputs that differ, or ask where edges lead"
        )

    def _would(self, batch: Batch, kind: AblationKind, now: Ablation) -> bool:
        if kind == now.kind:
            return False
        try:
            other = Ablation(kind)
            if kind == "mean":
                other = require(self._model, MeanMessages, "mean ablation").mean_ablation([batch])
            return not changes_nothing(self._model, batch, self._model.reference(batch, other))
        except GraphPruneError:
            return False  # this adapter has no such ablation


def require_effect(model: MaskedModel, pairs: Iterable[tuple[Batch, Reference]], what: str) -> None:
    """Raises :class:`InputError` unless one of the references changes something."""
    idle = Idle(model, what)
    for pair in pairs:
        idle.see(*pair)
        if idle.settled:
            return
    idle.finish()
