"""The messages of one batch's clean and corrupted runs, and what stands in for ablated ones."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Reference
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError, UnsupportedModelError

from .passing import Call

if TYPE_CHECKING:
    from .message_model import MessageModel

__all__ = ["MessageReference"]


class MessageReference(Reference):
    """Messages and outputs of the clean and the ablated run; made when first asked for."""

    def __init__(self, model: MessageModel, batch: Batch, ablation: Ablation) -> None:
        self.model, self.batch, self.ablation = model, batch, ablation
        self.given = model.source.features(batch.clean, batch.size)
        own = any(len(value) > 1 for value in ablation.parameters)
        if own and self.given.shared:
            raise InputError(
                "all examples share their features, so an edge's message is the same for all and "
                "the best constant in its place is that message: every edge could be cut at no "
                "cost. gp.wrap(module, data=data, means='type') learns one constant for all edges "
                "of a type instead"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the messages of one run, or of two."""
        runs = 2 if self.ablation.kind == "counterfactual" else 1
        calls, _ = self.clean
        return runs * sum(c.messages.numel() * c.messages.element_size() for c in calls)

    @cached_property
    def clean(self) -> tuple[list[Call], Tensor]:
        """Messages by call, and outputs ``[C, rows, V]`` of every copy."""
        return self.model.seen(self.given)

    @cached_property
    def corrupt(self) -> list[Call]:
        """Messages of the corrupted run."""
        given = self.model.source.features(self.batch.corrupt, self.batch.size)
        if given.copies != self.given.copies:
            raise InputError(
                "clean and corrupted inputs must both be shared by all examples, or both be "
                "patterns"
            )
        return self.model.seen(given)[0]

    def changes_nothing(self) -> bool | None:
        """Whether what stands in for each message is the message; learned constants may change."""
        kind = self.ablation.kind
        if kind == "delete":
            return None
        if kind in ("counterfactual", "optimal"):
            return False  # equal inputs are told before
        copies = torch.arange(self.given.copies)
        instead = self.replaced(copies)
        for number, call in enumerate(self.clean[0]):
            own = call.own(len(copies))
            if instead is None:
                if bool(own.any()):
                    return False
            elif not equal_but_for_rounding(own, instead[number].view_as(own)):
                return False
        return True

    @property
    def full(self) -> Tensor:
        """Outputs of the module itself."""
        copies = torch.arange(self.batch.size) % self.given.copies
        return self.model.read(self.clean[1], self.batch, copies)

    @property
    def ablated(self) -> Tensor:
        """Outputs with every edge's message replaced (or every edge absent)."""
        return self._ablated() if self.ablation.kind == "optimal" else self._kept

    @cached_property
    def _kept(self) -> Tensor:
        return self._ablated()

    @torch.no_grad()
    def _ablated(self) -> Tensor:
        zeros = torch.zeros(1, self.model.graph.num_edges)
        return self.model.run(self.batch, zeros, self)[0]

    def replaced(self, copies: Tensor) -> list[Tensor] | None:
        """For each call ``[k * E_r, ...]``, what stands in for messages of ``copies [k]``."""
        kind = self.ablation.kind
        if kind in ("zero", "delete"):
            return None
        if kind == "counterfactual":
            return [call.own(self.given.copies)[copies].flatten(0, 1) for call in self.corrupt]
        if kind in ("mean", "optimal"):
            return [
                value.expand(edges, *value.shape[1:]).repeat(len(copies), *[1] * (value.ndim - 1))
                for value, edges in self._constants()
            ]
        raise UnsupportedModelError(
            f"message passing knows no ablation {self.ablation.name!r}; use counterfactual, zero, "
            "mean, optimal or delete"
        )

    def _constants(self) -> list[tuple[Tensor, int]]:
        """Each call's constants ``[E_r or 1, ...]`` and its relation's number of edges."""
        calls, _ = self.clean
        values: list[Tensor] = list(self.ablation.values)
        counts = [self.model.source.counts[call.relation] for call in calls]
        if len(values) != len(calls) or any(
            len(value) not in (1, count) or value.shape[1:] != call.messages.shape[1:]
            for value, count, call in zip(values, counts, calls, strict=True)
        ):
            raise InputError(f"the {self.ablation.name} messages were made by another model")
        return list(zip(values, counts, strict=True))
