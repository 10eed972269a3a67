"""Encoders, vision transformers and encoder-decoders as a :class:`~graphprune.MaskedModel`."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.model import (
    Ablation,
    Gradients,
    MaskedModel,
    Objective,
    Reference,
    each_mask,
    gradient_points,
    require_same_batch,
)
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.util.plain import weights_hash

from ..lm.describe.hooks import Snapshot
from .families import ResidualFamily
from .forward import Ablated, Forward, Probe, zeros_for
from .inputs import Inputs, answered, read_inputs
from .parts import Parts

__all__ = ["ResidualModel", "ResidualReference"]


@dataclass(frozen=True, eq=False)
class MessageMeans:
    """Mean messages of each group's nodes, ``[w, 1, T, D]`` (``T`` is 1 where pooled)."""

    messages: list[Tensor]
    graph: ComputationalGraph


class ResidualReference(Reference):
    """What each node sends on a batch's clean input, and what stands in for it where ablated."""

    def __init__(self, model: ResidualModel, batch: Batch, ablation: Ablation) -> None:
        self.model, self.batch, self.ablation = model, batch, ablation
        self.inputs = read_inputs(model.module, model.parts.embeddings, batch, model.device)
        self.weights = model.snapshot.weights()
        clean = model.forwarded(Forward(model.parts), self.inputs)
        self.clean, self.fronts, self._full = clean.sent, clean.fronts, clean.outputs
        largest = [int(ids.max()) for ids in (batch.answer, batch.distractor) if ids is not None]
        if largest and max(largest) >= self._full.shape[-1]:
            raise InputError(
                f"the largest answer or distractor id is {max(largest)}; the model's outputs are "
                f"0 to {self._full.shape[-1] - 1}"
            )
        if ablation.kind == "counterfactual":
            self._messages = self._corrupted(clean.entries)
        else:
            self._ablated = None

    def _corrupted(self, entries: list[Tensor]) -> Ablated:
        if self.inputs.corrupt is None:
            raise InputError(
                "counterfactual ablation needs corrupted inputs and this task has none; give "
                "them, or use ablation='zero' or 'mean'"
            )
        corrupted = self.model.forwarded(Forward(self.model.parts), self.inputs, corrupt=True)
        for one, two in zip(entries, corrupted.entries, strict=True):
            if not torch.equal(one, two):
                raise InputError(
                    "clean and corrupted inputs have other positions or token types, which no "
                    "edge carries: give pairs that differ in tokens or pixels alone"
                )
        self._ablated: Tensor | None = corrupted.outputs
        return Ablated(corrupted.sent)

    def ablated_now(self) -> Ablated:
        """What stands in for messages; of learned constants as they are now."""
        kind, values = self.ablation.kind, self.ablation.values
        if kind == "counterfactual":
            return self._messages
        if kind == "zero":
            return zeros_for(self.clean)
        if kind == "mean":
            if not isinstance(values, MessageMeans) or values.graph != self.model.graph:
                raise InputError(
                    "mean ablation needs the values that this model's mean_ablation(...) gives"
                )
            return Ablated([self._spread(i, m) for i, m in enumerate(values.messages)])
        (constants,) = self.ablation.parameters
        nodes = [group.nodes for group in self.model.parts.groups]
        if constants.shape != (sum(map(len, nodes)), self.clean[0].shape[-1]):
            raise InputError(
                f"learned constants of the shape {list(constants.shape)} come from another model: "
                "use model.learned_ablation(start)"
            )
        parts = constants.to(self.clean[0]).split([len(group) for group in nodes])
        return Ablated([self._spread(i, part[:, None, None]) for i, part in enumerate(parts)])

    def _spread(self, group: int, messages: Tensor) -> Tensor:
        """Messages where their nodes send any: an embedding sends none at a class token."""
        stack = self.model.parts.groups[group].stack
        front, length = self.fronts[stack], self.clean[group].shape[2]
        messages = messages.to(self.clean[group])
        if messages.shape[2] not in (1, length):
            raise InputError(
                f"means were kept for {messages.shape[2]} positions; this batch has {length}"
            )
        if not front or not self.model.sends_tokens(group):
            return messages
        sending = (torch.arange(length, device=messages.device) >= front).to(messages)
        return messages * sending[:, None]

    def changes_nothing(self) -> bool:
        """Whether every node's ablated message is its clean one."""
        if self.ablation.kind == "optimal":
            return False
        pairs = zip(self.clean, self.ablated_now().messages, strict=True)
        return all(equal_but_for_rounding(one, two) for one, two in pairs)

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
            nothing = torch.zeros(self.model.graph.num_edges, device=self.model.device)
            outputs = self.model.outputs_under(nothing, self)
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


@dataclass(frozen=True, eq=False)
class _Ran:
    """What a forward gave: outputs at the answers, messages, and streams that no edge carries."""

    outputs: Tensor
    sent: list[Tensor]
    fronts: list[int]
    entries: list[Tensor]


class ResidualModel(MaskedModel):
    """Edges of an encoder, a vision transformer or an encoder-decoder over its residual streams.

    Nodes are ``input``, heads ``a0.h1``, MLPs ``m0`` and ``logits``. In encoder-decoders those of
    the encoder begin with ``e.``, those of the decoder with ``d.``; heads of cross-attention are
    ``d.c0.h1``, whose keys and values read the encoder's nodes. Under post-norms every reader norms
    its own masked stream at each norm on the way to it.

    Args:
        model: the user's own module with a head for masked tokens, classes or texts; it is never
            changed.
        family: where its parts are.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> bert = gp.wrap(BertForMaskedLM(BertConfig(**size, num_hidden_layers=1, vocab_size=9)))
        >>> clean, corrupt = torch.tensor([[2, 4, 3, 5]]), torch.tensor([[2, 6, 3, 5]])
        >>> task = gp.Task.from_tensors(clean, corrupt, positions=[2], answer=[7], distractor=[8])
        >>> gp.EAP().score(bert, task).top(2).num_kept
        2
    """

    def __init__(self, model: nn.Module, family: ResidualFamily) -> None:
        away = next((n for n, m in model.named_modules() if "_hf_hook" in m.__dict__), None)
        if away is not None or any(p.is_meta for p in model.parameters()):
            raise UnsupportedModelError(
                f"weights of {type(model).__name__} are not loaded, or come and go "
                f"({away or 'meta tensors'}): load it whole on one device"
            )
        self._model = model
        self.snapshot = Snapshot(model)
        self.parts = Parts(model, family)

    @property
    def graph(self) -> ComputationalGraph:
        """Nodes and maskable edges, place by place, reader by reader."""
        return self.parts.graph

    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return self._model

    @cached_property
    def _weight(self) -> Tensor:
        return next(p for p in self._model.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self._weight.device

    def sends_tokens(self, group: int) -> bool:
        """Whether a group is an embedding."""
        return self.graph.nodes[self.parts.groups[group].nodes[0]].kind == "embed"

    def provenance(self) -> dict[str, Any]:
        """Model id, class, sizes, dtype and a hash of all weights, as plain values."""
        name = str(getattr(getattr(self._model, "config", None), "_name_or_path", "") or "")
        kind = type(self._model).__name__
        return {
            "model": Path(name).name if Path(name).exists() else name or kind,
            "architecture": kind,
            "nodes": self.graph.num_nodes,
            "edges": self.graph.num_edges,
            "dtype": str(self._weight.dtype).removeprefix("torch."),
            "weights": weights_hash(sorted(self._model.state_dict().items())),
        }

    # ---------------------------------------------------------------- running

    def forwarded(self, forward: Forward, inputs: Inputs, *, corrupt: bool = False) -> _Ran:
        """What one forward gives, on the clean or the corrupted inputs.

        Raises :class:`InputError` where the module does not take them.
        """
        self.snapshot.check()
        side = inputs.corrupt if corrupt else inputs.clean
        assert side is not None
        try:
            given = forward.run(side)
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{type(self._model).__name__} does not take these inputs: {error}"
            ) from error
        outputs = answered(given, inputs)
        return _Ran(outputs, forward.sent, forward.fronts, forward.entries)

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> ResidualReference:
        """Clean and ablated messages of a batch."""
        ablation = ablation or Ablation()
        if ablation.kind == "delete":
            raise UnsupportedModelError(
                "nothing in a transformer normalises over the messages that a reader sums, so an "
                "edge that is deleted is an edge that sends zero: use ablation='zero'"
            )
        return ResidualReference(self, batch, ablation)

    def outputs_under(
        self, mask: Tensor, reference: ResidualReference, probe: Probe | None = None
    ) -> Tensor:
        """Outputs of one mask ``[E]`` or ``[B, E]``."""
        return self._under(mask, reference, probe).outputs

    def _under(
        self, mask: Tensor, reference: ResidualReference, probe: Probe | None = None
    ) -> _Ran:
        self.snapshot.require_same(reference.weights)
        forward = Forward(self.parts, mask.to(self.device), reference.ablated_now(), probe)
        return self.forwarded(forward, reference.inputs)

    def run(
        self, batch: Batch, mask: EdgeMask | Tensor, reference: Reference | None = None
    ) -> Tensor:
        """Outputs under a mask; see :meth:`graphprune.MaskedModel.run`."""
        checked = self._checked(batch, reference)
        under = partial(self.outputs_under, reference=checked)
        return each_mask(self.graph, mask, under, batch.size)

    def _checked(self, batch: Batch, reference: Reference | None) -> ResidualReference:
        if reference is None:
            return self.reference(batch)
        if not isinstance(reference, ResidualReference) or reference.model is not self:
            raise InputError("the reference was made by another model")
        require_same_batch(batch, reference)
        return reference

    def widened(self) -> ResidualModel:
        """The same model in float64."""
        return ResidualModel(copy.deepcopy(self._model).double(), self.parts.family)

    # ---------------------------------------------------------------- gradients

    def edge_gradients(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None = None,
        *,
        gates: Tensor | None = None,
        weights: Tensor | None = None,
        by_position: bool = False,
        neurons: bool = False,
        constant: Tensor | None = None,
    ) -> Gradients:
        """Attribution at the clean model or at gated nodes; see the capability."""
        checked = self._checked(batch, reference)
        if by_position and batch.slots is not None:
            raise InputError("scores by span are for decoder-only models; leave the spans out")
        graph, clean = self.graph, checked.clean
        gates, constant, shares = gradient_points(gates, weights, constant, graph.num_nodes)
        deltas = [
            (one - two).expand_as(one)
            for one, two in zip(clean, checked.ablated_now().messages, strict=True)
        ]
        length = max(messages.shape[2] for messages in clean)
        shape = (length, graph.num_edges) if by_position else (graph.num_edges,)
        edges = torch.zeros(shape, device=self.device, dtype=_summed_in(clean[0].dtype))
        by_neuron = [edges.new_zeros(len(d), d.shape[-1]) for d in deltas] if neurons else []
        groups = [list(group.nodes) for group in self.parts.groups]
        for gate, fixed, share in zip(gates, constant, shares, strict=True):
            leaf = torch.zeros_like(edges, requires_grad=True)
            own = [torch.zeros_like(n, requires_grad=True) for n in by_neuron]
            chosen = [fixed[nodes] for nodes in groups] if bool(fixed.any()) else None
            probe = Probe(leaf, deltas, own or None, clean, chosen)
            outputs = self.outputs_under(gate[graph.edge_index[0]], checked, probe)
            found = torch.autograd.grad(objective(outputs).sum(), [leaf, *own])
            edges += share * found[0]
            for total, each in zip(by_neuron, found[1:], strict=True):
                total += share * each
        edge = edges.cpu()
        total = edge.sum(0) if by_position else edge
        node = torch.zeros(graph.num_nodes, dtype=edge.dtype)
        node.index_add_(0, graph.edge_index[0], total)  # a message goes to all its readers
        named = {
            graph.nodes[n].name: values
            for nodes, sums in zip(groups, by_neuron, strict=False)
            for n, values in zip(nodes, sums.cpu(), strict=True)
        }
        return Gradients(edge.T.contiguous() if by_position else edge, node, named)

    def source_groups(self) -> list[list[int]]:
        """Each stack's embedding, then layer by layer heads together and the MLP."""
        return [list(group.nodes) for group in self.parts.groups]

    # ---------------------------------------------------------------- other ablations

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every node; see the capability."""
        sums: list[Tensor] = []
        counts: list[Tensor] = []
        for batch in batches:
            plain = batch if batch.corrupt is None else Batch(batch.corrupt, None, batch.size)
            with torch.no_grad():
                reference = self.reference(plain, Ablation("zero"))
            each = [self._summed(reference, i, per_position) for i in range(len(self.parts.groups))]
            if sums and any(a.shape != b.shape for a, (b, _) in zip(sums, each, strict=True)):
                raise InputError(
                    "means for each position need inputs of one length; pool over positions "
                    "(ablation='mean') instead"
                )
            sums = [total for total, _ in each] if not sums else [
                a + b for a, (b, _) in zip(sums, each, strict=True)
            ]  # fmt: skip
            counts = [count for _, count in each] if not counts else [
                a + b for a, (_, b) in zip(counts, each, strict=True)
            ]  # fmt: skip
        if not sums:
            raise InputError("the mean over an empty reference set is not defined")
        means = [total / count.clamp(min=1) for total, count in zip(sums, counts, strict=True)]
        return Ablation("mean", MessageMeans(means, self.graph), per_position)

    def _summed(
        self, reference: ResidualReference, group: int, per_position: bool
    ) -> tuple[Tensor, Tensor]:
        """A group's messages summed over examples (and positions), and how many there were."""
        messages, stack = reference.clean[group].double(), self.parts.groups[group].stack
        weight, front = reference.inputs.weights[stack], reference.fronts[stack]
        batch, length = messages.shape[1:3]
        if weight is None or weight.shape[1] != length:
            weight = messages.new_ones(batch, length)
        if per_position and not bool((weight == 1).all()):
            raise InputError(
                "means for each position need inputs without padding; pool over positions "
                "(ablation='mean') instead"
            )
        weight = weight.double().clone()
        if self.sends_tokens(group) and not per_position:
            weight[:, :front] = 0
        total = torch.einsum("wbtd,bt->wtd", messages, weight)[:, None]
        count = weight.sum(0)[None, None, :, None]
        if not per_position:
            total, count = total.sum(2, keepdim=True), count.sum(2, keepdim=True)
        return total, count

    def learned_ablation(self, start: Ablation) -> Ablation:
        """One constant ``[D]`` for each node that sends, pooled over positions."""
        width = int(self.parts.width)
        dtype = _summed_in(self._weight.dtype)
        count = sum(len(group.nodes) for group in self.parts.groups)
        constants = torch.zeros(count, width, dtype=dtype, device=self.device)
        if start.kind == "mean" and not start.per_position:
            constants = torch.cat([m[:, 0, 0] for m in start.values.messages]).to(constants)
        elif start.kind != "zero":
            raise InputError(
                "learned constants start from zero or from means pooled over positions "
                f"(model.mean_ablation(batches)), got {start.name}"
            )
        return Ablation("optimal", (constants.clone().requires_grad_(True),))

    def __repr__(self) -> str:
        return f"ResidualModel({type(self._model).__name__}, {self.graph!r})"


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
