"""Encoders, vision transformers and encoder-decoders as a :class:`~graphprune.MaskedModel`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
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
    Messages,
    Objective,
    Reference,
    gradient_points,
    mask_values,
    require_same_batch,
)
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.util.plain import weights_hash

from ..lm.attribution.relevance import Rule
from ..lm.describe.norms import wide
from .attribution import Attribution, Points, arriving
from .engine import Engine
from .families import ResidualFamily
from .reference import MessageMeans, ResidualReference, summed_messages

__all__ = ["ResidualModel"]


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
        self.engine = Engine(model, family)
        self.parts = self.engine.parts

    @property
    def graph(self) -> ComputationalGraph:
        """Nodes and maskable edges, place by place, reader by reader."""
        return self.parts.graph

    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return self.engine.module

    def provenance(self) -> dict[str, Any]:
        """Model id, class, sizes, dtype and a hash of all weights, as plain values."""
        name = str(getattr(getattr(self.module, "config", None), "_name_or_path", "") or "")
        kind = type(self.module).__name__
        return {
            "model": Path(name).name if Path(name).exists() else name or kind,
            "architecture": kind,
            "nodes": self.graph.num_nodes,
            "edges": self.graph.num_edges,
            "d_model": self.parts.width,
            "dtype": str(self.engine.weight.dtype).removeprefix("torch."),
            "weights": weights_hash(sorted(self.module.state_dict().items())),
        }

    # ---------------------------------------------------------------- running

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> ResidualReference:
        """Clean and ablated messages of a batch."""
        ablation = ablation or Ablation()
        if ablation.kind == "delete":
            raise UnsupportedModelError(
                "nothing in a transformer normalises over the messages that a reader sums, so an "
                "edge that is deleted is an edge that sends zero: use ablation='zero'"
            )
        return ResidualReference(self.engine, batch, ablation)

    def run(
        self, batch: Batch, mask: EdgeMask | Tensor, reference: Reference | None = None
    ) -> Tensor:
        """Outputs under a mask; see :meth:`graphprune.MaskedModel.run`."""
        checked = self._checked(batch, reference)
        values = mask_values(self.graph, mask, batch.size)
        return checked.outputs(values) if values.ndim == 1 else checked.stacked(values)

    def _checked(self, batch: Batch, reference: Reference | None) -> ResidualReference:
        if reference is None:
            return self.reference(batch)
        if not isinstance(reference, ResidualReference) or reference.engine is not self.engine:
            raise InputError("the reference was made by another model")
        require_same_batch(batch, reference)
        return reference

    def widened(self) -> ResidualModel:
        """The same model in float64."""
        return ResidualModel(copy.deepcopy(self.module).double(), self.parts.family)

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
        return self._attributed(
            batch, objective, reference, gates, weights, by_position, neurons, constant
        )

    def relevance_gradients(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None = None,
        *,
        by_position: bool = False,
        frozen: bool = False,
    ) -> Gradients:
        """Relevance at the clean model; see the capability."""
        rule: Rule = "relp-frozen" if frozen else "relp"
        return self._attributed(batch, objective, reference, by_position=by_position, rule=rule)

    def _attributed(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None,
        gates: Tensor | None = None,
        weights: Tensor | None = None,
        by_position: bool = False,
        neurons: bool = False,
        constant: Tensor | None = None,
        rule: Rule = "gradient",
    ) -> Gradients:
        checked = self._checked(batch, reference)
        if by_position and batch.slots is not None:
            raise InputError("scores by span are for decoder-only models; leave the spans out")
        graph, clean = self.graph, checked.clean
        gates, constant, shares = gradient_points(gates, weights, constant, graph.num_nodes)
        deltas = [
            wide(one - two).expand_as(one)
            for one, two in zip(clean, checked.ablated_now().messages, strict=True)
        ]
        length = max(messages.shape[2] for messages in clean)
        shape = (length, graph.num_edges) if by_position else (graph.num_edges,)
        edges = torch.zeros(shape, device=self.engine.device, dtype=self.engine.summed_in)
        by_neuron = [edges.new_zeros(len(d), d.shape[-1]) for d in deltas] if neurons else []
        groups = [list(group.nodes) for group in self.parts.groups]
        for gate, fixed, share in zip(gates, constant, shares, strict=True):
            chosen = fixed if bool(fixed.any()) else None
            watch = Attribution(
                self.parts, deltas, clean, chosen, share, edges, by_neuron,
                frozen=rule != "gradient",
            )  # fmt: skip
            watch.backward(objective(checked.watched(gate, watch, rule)).sum())
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

    def messages(self, batch: Batch) -> Iterator[Messages]:
        """Clean messages place by place, as they arrive there; see the capability.

        Under post-norms a message arrives through the norms on its way, whose scales are constants:
        so all that arrives adds up to what is read.
        """
        checked, watch, parts = self.reference(batch, Ablation("zero")), Points(), self.parts
        with torch.no_grad():
            checked.watched(None, watch)
            for stack in range(len(parts.entries)):
                weight = checked.weight(stack)
                found = arriving(parts, stack, checked.clean, watch.points, frozen=True)
                for place, values in found:
                    edges = torch.arange(place.edges.start, place.edges.stop)
                    rows = edges.view(len(place.rows), -1)
                    total = parts.behind(place.groups[-1], watch.points[place.groups[-1]])
                    yield Messages(rows, values.clone(), total, weight)

    # ---------------------------------------------------------------- other ablations

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every node; see the capability."""
        groups = range(len(self.parts.groups))
        totals: list[tuple[Tensor, Tensor]] = []  # sums of messages, and of how many
        for batch in batches:
            plain = batch if batch.corrupt is None else Batch(batch.corrupt, None, batch.size)
            reference = self.reference(plain, Ablation("zero"))
            each = [summed_messages(reference, group, per_position) for group in groups]
            if totals and any(a[0].shape != b[0].shape for a, b in zip(totals, each, strict=True)):
                raise InputError(
                    "means for each position need inputs of one length; pool over positions "
                    "(ablation='mean') instead"
                )
            before = totals or [(torch.zeros_like(s), torch.zeros_like(n)) for s, n in each]
            totals = [(a + s, b + n) for (a, b), (s, n) in zip(before, each, strict=True)]
        if not totals:
            raise InputError("the mean over an empty reference set is not defined")
        means = [total / count.clamp(min=1) for total, count in totals]
        return Ablation("mean", MessageMeans(means, self.graph), per_position)

    def learned_ablation(self, start: Ablation) -> Ablation:
        """One constant ``[D]`` for each node that sends, pooled over positions."""
        count = sum(len(group.nodes) for group in self.parts.groups)
        shape, dtype = (count, self.parts.width), self.engine.summed_in
        constants = torch.zeros(shape, dtype=dtype, device=self.engine.device)
        if start.kind == "mean" and not start.per_position:
            each = [m[:, 0, 0] for m in start.values.messages]
            pad = torch.nn.functional.pad  # an embedding may be narrower than its layers
            wider = [pad(m, (0, shape[1] - m.shape[1])) for m in each]
            constants = torch.cat(wider).to(constants)
        elif start.kind != "zero":
            raise InputError(
                "learned constants start from zero or from means pooled over positions "
                f"(model.mean_ablation(batches)), got {start.name}"
            )
        return Ablation("optimal", (constants.clone().requires_grad_(True),))

    def __repr__(self) -> str:
        return f"ResidualModel({type(self.module).__name__}, {self.graph!r})"
