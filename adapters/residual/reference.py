"""Clean and ablated messages of a batch, and means of messages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.model import Ablation, Reference
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError

from ..lm.attribution.relevance import Rule
from .engine import Engine
from .forward import Forward
from .inputs import Inputs, read_inputs
from .streams import Ablated, Watch, zeros_for

_AT_ONCE = 1024  # tokens of a forward that runs several masks

__all__ = ["MessageMeans", "ResidualReference", "summed_messages"]


@dataclass(frozen=True, eq=False)
class MessageMeans:
    """Mean messages of each group's nodes, ``[w, 1, T, D]`` (``T`` is 1 where pooled)."""

    messages: list[Tensor]
    graph: ComputationalGraph


class ResidualReference(Reference):
    """What each node sends on a batch's clean input, and what stands in for it where ablated."""

    def __init__(self, engine: Engine, batch: Batch, ablation: Ablation) -> None:
        self.engine, self.batch, self.ablation = engine, batch, ablation
        self.inputs = read_inputs(engine.module, engine.parts.embeddings, batch, engine.device)
        self.weights = engine.snapshot.weights()
        clean = engine.run(Forward(engine.parts), self.inputs)
        self.clean, self.fronts, self._full = clean.sent, clean.fronts, clean.outputs
        largest = [int(ids.max()) for ids in (batch.answer, batch.distractor) if ids is not None]
        if largest and max(largest) >= self._full.shape[-1]:
            raise InputError(
                f"the largest answer or distractor id is {max(largest)}; the model's outputs are "
                f"0 to {self._full.shape[-1] - 1}"
            )
        self._ablated: Tensor | None = None
        if ablation.kind == "counterfactual":
            self._messages = self._corrupted(clean.entries)

    def _corrupted(self, entries: list[Tensor]) -> Ablated:
        if self.inputs.corrupt is None:
            raise InputError(
                "counterfactual ablation needs corrupted inputs and this task has none; give "
                "them, or use ablation='zero' or 'mean'"
            )
        corrupted = self.engine.run(Forward(self.engine.parts), self.inputs, corrupt=True)
        for one, two in zip(entries, corrupted.entries, strict=True):
            if not torch.equal(one, two):
                raise InputError(
                    "clean and corrupted inputs have other positions or token types, which no "
                    "edge carries: give pairs that differ in tokens or pixels alone"
                )
        self._ablated = corrupted.outputs
        return Ablated(corrupted.sent)

    def ablated_now(self) -> Ablated:
        """What stands in for messages; of learned constants as they are now."""
        kind, values = self.ablation.kind, self.ablation.values
        if kind == "counterfactual":
            return self._messages
        if kind == "zero":
            return zeros_for(self.clean)
        if kind == "mean":
            if not isinstance(values, MessageMeans) or values.graph != self.engine.parts.graph:
                raise InputError(
                    "mean ablation needs the values that this model's mean_ablation(...) gives"
                )
            return Ablated([self._spread(i, m) for i, m in enumerate(values.messages)])
        (constants,) = self.ablation.parameters
        nodes = [group.nodes for group in self.engine.parts.groups]
        if constants.shape != (sum(map(len, nodes)), self.engine.parts.width):
            raise InputError(
                f"learned constants of the shape {list(constants.shape)} come from another model: "
                "use model.learned_ablation(start)"
            )
        each = constants.to(self.clean[0]).split([len(group) for group in nodes])
        return Ablated(
            [  # an embedding may be narrower than its layers
                self._spread(i, part[:, None, None, : self.clean[i].shape[-1]])
                for i, part in enumerate(each)
            ]
        )

    def _spread(self, group: int, messages: Tensor) -> Tensor:
        """Messages where their nodes send any: an embedding sends none at a class token."""
        stack = self.engine.parts.groups[group].stack
        front, length = self.fronts[stack], self.clean[group].shape[2]
        messages = messages.to(self.clean[group])
        if messages.shape[2] not in (1, length):
            raise InputError(
                f"means were kept for {messages.shape[2]} positions; this batch has {length}"
            )
        if not front or not self.engine.is_embedding(group):
            return messages
        sending = (torch.arange(length, device=messages.device) >= front).to(messages)
        return messages * sending[:, None]

    def changes_nothing(self) -> bool:
        """Whether every node's ablated message is its clean one."""
        if self.ablation.kind == "optimal":
            return False
        pairs = zip(self.clean, self.ablated_now().messages, strict=True)
        return all(equal_but_for_rounding(one, two) for one, two in pairs)

    def outputs(self, mask: Tensor) -> Tensor:
        """Outputs under one mask ``[E]`` or ``[B, E]``."""
        return self._masked(mask, self.ablated_now(), self.inputs)

    def stacked(self, masks: Tensor) -> Tensor:
        """Outputs ``[K, B, ...]`` under masks ``[K, E]`` or ``[K, B, E]``.

        Small batches are copied, so that one forward runs several masks.
        """
        size, tokens = self.batch.size, self.clean[0].shape[1] * self.clean[0].shape[2]
        few = max(1, _AT_ONCE // tokens)
        if few == 1 or len(masks) == 1:
            return torch.stack([self.outputs(mask) for mask in masks])
        ablated, found = self.ablated_now(), []
        for part in masks.split(few):
            copies = len(part)
            each = part if part.ndim == 3 else part[:, None].expand(-1, size, -1)
            outputs = self._masked(
                each.flatten(0, 1), ablated.repeated(copies), self.inputs.repeated(copies)
            )
            found.append(outputs.unflatten(0, (copies, size)))
        return torch.cat(found)

    def _masked(self, mask: Tensor, ablated: Ablated, inputs: Inputs) -> Tensor:
        self.engine.snapshot.require_same(self.weights)
        forward = Forward(self.engine.parts, mask.to(self.engine.device), ablated)
        return self.engine.run(forward, inputs).outputs

    def watched(self, gates: Tensor | None, watch: Watch, rule: Rule = "gradient") -> Tensor:
        """Outputs with a gate ``[N]`` for each node (``None``: all open), looked on at."""
        self.engine.snapshot.require_same(self.weights)
        parts, open_ = self.engine.parts, gates is None or bool((gates == 1).all())
        if open_ or gates is None:
            forward = Forward(parts, watch=watch, rule=rule)
        else:
            gates = gates.to(self.engine.device)
            forward = Forward(parts, None, self.ablated_now(), gates=gates, watch=watch)
        return self.engine.run(forward, self.inputs).outputs

    def weight(self, stack: int) -> Tensor:
        """``[B, T]``: 1 at what a stack reads, 0 at padding."""
        batch, length = self.clean[self.engine.parts.first_group(stack)].shape[1:3]
        weight = self.inputs.weights[stack]
        if weight is None or weight.shape[1] != length:
            return self._full.new_ones(batch, length)
        return weight

    @property
    def full(self) -> Tensor:
        """Outputs of the unmasked model, ``[B, V]`` or ``[B, P, V]``."""
        return self._full

    @property
    def ablated(self) -> Tensor:
        """Outputs with every edge ablated, shaped as ``full``."""
        if self._ablated is not None:
            return self._ablated
        with torch.no_grad():
            nothing = torch.zeros(self.engine.parts.graph.num_edges, device=self.engine.device)
            outputs = self.outputs(nothing)
        if self.ablation.kind != "optimal":
            self._ablated = outputs
        return outputs

    @property
    def nbytes(self) -> int:
        """Messages of the clean and, where they are another run's, of the ablated input."""
        held = [self._full, *self.clean]
        if self.ablation.kind == "counterfactual":
            held += self._messages.messages
        return sum(value.numel() * value.element_size() for value in held)


def summed_messages(
    reference: ResidualReference, group: int, per_position: bool
) -> tuple[Tensor, Tensor]:
    """A group's messages summed over examples (and positions), and how many there were."""
    messages, stack = reference.clean[group].double(), reference.engine.parts.groups[group].stack
    weight, front = reference.weight(stack).double(), reference.fronts[stack]
    if per_position and not bool((weight == 1).all()):
        raise InputError(
            "means for each position need inputs without padding; pool over positions "
            "(ablation='mean') instead"
        )
    if reference.engine.is_embedding(group) and not per_position:
        weight[:, :front] = 0
    total = torch.einsum("wbtd,bt->wtd", messages, weight)[:, None]
    count = weight.sum(0)[None, None, :, None]
    if not per_position:
        total, count = total.sum(2, keepdim=True), count.sum(2, keepdim=True)
    return total, count
