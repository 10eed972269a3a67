"""Any module of PyG's message passing as a masked model.

The graph is the data's: its nodes, and its edges in the data's order (of a heterogeneous graph type
after type, :mod:`graphprune.adapters.gnn.graph_data`). A mask value holds for an edge at every
layer and step. What an ablated message becomes (zero, its mean, the corrupted run's, a learned
constant) is put in the message's place, and whatever else the layer computes (degrees, attention)
stays. Under ``delete`` the edge is absent: masks of zeros and ones are run on the smaller graph,
which is right for every layer; between them they weigh every sum over edges, where that was found
to equal deletion (:mod:`graphprune.adapters.gnn.edge_tracking`). A module that merges a
heterogeneous graph's edge types into one (HGTConv), or passes messages over edges that it makes
itself (GraphUNet), shows no messages by edge: only deletion is right for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.contents import fingerprint
from graphprune.core.model import Ablation, Messages, Reference
from graphprune.core.reach import EdgeReach
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.search.cut_edges import CutEdges
from graphprune.util.checks import require_one_of
from graphprune.util.modes import quiet

from .cutting import cutting_messages
from .edge_values import row_products
from .graph_data import GraphData
from .graph_model import GradientPoint, GraphModel, PointGradients, require_corrupt
from .hooks import MessageHooks, convolutions
from .messages import MessageReference, each_reader, mean_messages
from .propagation import Propagation
from .reach import edge_reach
from .read_data import read_data
from .self_check import Deletion, checked_module, require_maskable
from .tying import Tie, tied

__all__ = ["MessageModel"]


class MessageModel(GraphModel):
    """See the module's text.

    Args:
        module: the user's own; used as it is.
        data: a PyG ``Data``, ``HeteroData`` or ``Batch``, copied to the module's device where it is
            on another; what the module's ``forward`` names is
            taken from it (``x_dict``, ``edge_index_dict`` and the like of heterogeneous data, or
            ``x``, ``edge_index`` where ``to_hetero`` made the module); a module that takes the data
            itself gets data of the same kind with all its attributes.
        forward: ``(module, data) -> outputs``, how the module is called on data like the user's,
            where names do not tell (``forward(x, edge_index, edge_weight)``, weights in
            ``data.edge_attr``).
        level: ``"node"``, ``"graph"`` or ``"pair"`` (a column of ``data.edge_label_index``), what
            a row of the outputs is; ``None`` tells it by the number of rows.
        node_type: of heterogeneous data, the type of node the outputs are of; ``None``
            leaves it to outputs by type, or to the number of rows.
        means: what mean messages and learned constants are for: each ``"edge"``, or all edges of
            an edge ``"type"``; ``None`` means ``"type"`` for heterogeneous data, else ``"edge"``.
        tie: which edges are one, with one mask value for both directions: ``"auto"`` those of
            undirected graphs, ``True`` all that come in pairs, ``False`` none, or a mapping of
            relations to their reverses; see :func:`~graphprune.adapters.gnn.tying.tied`.
        name: in provenance.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Any,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        level: str | None = None,
        node_type: str | None = None,
        means: Literal["edge", "type"] | None = None,
        tie: Tie = "auto",
        name: str = "",
    ) -> None:
        from torch_geometric.data import Data, HeteroData

        if not isinstance(data, Data | HeteroData):
            got = f"{type(data).__name__}; give Data(x=x, edge_index=edge_index)"
            if isinstance(data, list | tuple):
                got = (
                    f"a {type(data).__name__} of {len(data)}; put graphs into one: "
                    "torch_geometric.data.Batch.from_data_list(graphs)"
                )
            raise InputError(f"data must be PyG's Data, HeteroData or Batch, got {got}")
        require_one_of(level, (None, "node", "graph", "pair"), "level")
        require_one_of(means, (None, "edge", "type"), "means")
        require_maskable(module)
        data = _beside(module, data)
        source = read_data(data)
        if node_type is not None and not source.heterogeneous:
            raise InputError("node_type is for heterogeneous data; this graph has one type")
        if not source.num_edges:
            raise InputError("the graph has no edges, so there is nothing to prune")
        self._module, self._name = module, name
        self.means = means or ("type" if source.heterogeneous else "edge")
        with quiet(module), torch.no_grad():
            self.checked = checked_module(module, source, data, forward, level, node_type)
        decided = self.checked.call.data
        self._graph = tied(decided.graph(), decided.edge_features(), tie)
        self._deletion = Deletion(self.checked)

    def __repr__(self) -> str:
        return f"MessageModel({type(self._module).__name__}, {self._graph!r})"

    @property
    def level(self) -> str:
        """``"node"``, ``"graph"`` or ``"pair"``, what a row of the outputs is."""
        return self.checked.rows.level

    def provenance(self) -> dict[str, Any]:
        """Sizes, hashes of the weights and of the data, and the convolutions."""
        kinds = [type(conv).__name__ for conv in convolutions(self._module).values()]
        source = self.checked.call.data
        notes = {**super().provenance(), "convolutions": kinds, "level": self.level}
        notes["call"] = str(self.checked.call)
        notes["data"] = fingerprint(source)[:16]
        if source.heterogeneous:
            notes["node_types"] = dict(source.types)
            notes["relations"] = dict(zip(source.relation_names, source.edge_counts, strict=True))
        return notes

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> MessageReference:
        """See the base class; the default ablation is counterfactual."""
        ablation = ablation or Ablation()
        if ablation.kind != "delete":
            self.checked.require_messages(f"{ablation.name} ablation")
        require_corrupt(batch, ablation)
        return MessageReference(self.checked, self._deletion, batch, ablation)

    def reach(self, batch: Batch, reference: Reference) -> EdgeReach | None:
        """See :class:`~graphprune.capabilities.LocalEffects`."""
        assert isinstance(reference, MessageReference)
        return edge_reach(self._graph, batch, reference)

    def cutting(self) -> AbstractContextManager[CutEdges]:
        """See :class:`~graphprune.capabilities.CutsWhileTraining`."""
        self.checked.require_messages("pruning while it trains")
        return cutting_messages(self.checked.call, self._graph)

    # ---------------------------------------------------------------- gradients

    def _at_point(self, reference: MessageReference, point: GradientPoint) -> PointGradients:
        row = point.gate
        if row is None:
            row = torch.ones(self.checked.call.data.num_edges).to(self._like)
        if reference.ablation.kind != "delete":
            self.checked.require_messages("gradient of a mask")
            return self._by_message(reference, point, row)
        if point.constant is not None:
            raise InputError(
                "a deleted edge sends nothing to put a constant in the place of: interpolate "
                "activations under zero, mean or counterfactual ablation"
            )
        mask = row.clone().requires_grad_(True)
        with torch.enable_grad():
            out = reference.run(mask[None])[0]
            (gradient,) = torch.autograd.grad(point.objective(out).sum(), mask)
        return PointGradients(gradient[:, None].detach())

    def _by_message(
        self, reference: MessageReference, point: GradientPoint, row: Tensor
    ) -> PointGradients:
        """Each message's gradient times its change, of every propagation in one backward pass."""
        plain = point.gate is None and point.constant is None and not point.neurons
        source, passes, outputs = self.checked.call.data, [], []
        with quiet(self._module), torch.enable_grad():
            for patterns in reference.together(reference.patterns):
                count = len(patterns)
                instead = reference.replaced(patterns, keep=not plain)
                copies = source.make_copies(reference.features.of(patterns), count)
                hooks = MessageHooks(copies.edges, gradients=True, attribute=plain)
                if plain:
                    hooks.replaced = instead
                if point.gate is not None:
                    hooks.mask = row.repeat(count)
                    hooks.replaced = instead
                if point.constant is not None:
                    hooks.constant = point.constant.repeat(count)
                    hooks.clean = reference.clean_of(patterns)
                outputs.append(self.checked.outputs(copies, hooks))
                passes.append((patterns, hooks.seen))
            out = self.checked.read(torch.cat(outputs), reference.batch, reference.pattern_of)
            gradients = torch.autograd.grad(
                point.objective(out).sum(),
                [
                    one.messages if one.weight is None else one.weight
                    for _, seen in passes
                    for one in seen
                ],
                allow_unused=True,
            )
        found = _Products(source, point.neurons)
        for patterns, seen in passes:
            instead = None if plain else reference.replaced(patterns)
            clean = None if point.gate is None else reference.clean_of(patterns)
            for number, one in enumerate(seen):
                gradient, gradients = gradients[0], gradients[1:]
                if one.weight is not None:
                    sums = torch.zeros_like(one.weight) if gradient is None else gradient
                    found.add_sums(number, one, sums.view(len(patterns), -1))
                    continue
                other = None if instead is None else instead[number]
                own = None if clean is None else clean[number]
                found.add(number, one, gradient, own, other, len(patterns))
        return found.gradients(row)

    # ---------------------------------------------------------------- messages

    def _messages(self, batch: Batch) -> Iterator[Messages]:
        """Messages by target node and relation; a position is a propagation over it.

        Narrow ones are padded by zeros; a relation that no layer uses has zeros.
        """
        yield from each_reader(self.reference(batch, Ablation("zero")))

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every propagation over the batches.

        Each edge's own, or (``means="type"``, and not ``per_position``) all edges' of a type.
        """
        self.checked.require_messages("mean ablation")
        whole = self.means == "type" and not per_position
        return Ablation("mean", mean_messages(self.checked, batches, whole), per_position)

    def learned_ablation(self, start: Ablation) -> Ablation:
        """Constants in place of messages, from zero or mean ablation on.

        One for each propagation and edge, or edge type where means are those (``means="type"``).
        Constants of an edge mean something where examples have features of their own: where all
        share them, runs refuse (the best constant would be the message itself).
        """
        self.checked.require_messages("optimal ablation")
        return self._learned(start)

    def _zero_messages(self) -> list[Tensor]:
        source = self.checked.call.data
        seen, _ = self.checked.watched(source.own_features)
        counts = [1 if self.means == "type" else source.edge_counts[one.relation] for one in seen]
        return [
            one.messages.new_zeros(count, *one.messages.shape[1:])
            for one, count in zip(seen, counts, strict=True)
        ]


class _Products:
    """Gradients times changes of messages, summed over patterns, by propagation."""

    def __init__(self, data: GraphData, neurons: bool) -> None:
        self.data, self.neurons = data, neurons
        self.parts: dict[int, tuple[int, Tensor]] = {}  # relation, and [E_r] or [E_r, d]

    def add(
        self,
        number: int,
        seen: Propagation,
        gradient: Tensor | None,
        clean: Tensor | None,
        instead: Tensor | None,
        copies: int,
    ) -> None:
        """One propagation's, of ``copies`` patterns side by side.

        ``clean`` and ``instead`` are ``[k * E_r, ...]``; without ``clean`` the messages seen are.
        """
        if gradient is None:
            gradient = torch.zeros_like(seen.messages)
        change = seen.messages.detach() if clean is None else clean
        at_edges = seen.on_graph_edges(copies, gradient).flatten(0, 1)
        if clean is None:
            change = seen.on_graph_edges(copies, change).flatten(0, 1)
        product = _by_row(change, at_edges, self.neurons).unflatten(0, (copies, -1))
        if instead is not None:
            other = _by_row(instead.to(gradient).view_as(at_edges), at_edges, self.neurons)
            product = product - other.view_as(product)
        self.add_sums(number, seen, product)

    def add_sums(self, number: int, seen: Propagation, product: Tensor) -> None:
        """One propagation's products ``[copies, E_r]`` (or ``[copies, E_r, d]``)."""
        total = product.sum(0).detach()
        if number in self.parts:
            total = total + self.parts[number][1]
        self.parts[number] = seen.relation, total

    def gradients(self, like: Tensor) -> PointGradients:
        """By edge and propagation, and by neuron where asked for."""
        data, steps = self.data, [0] * len(self.data.edge_counts)
        widths = {part.shape[1] for _, part in self.parts.values() if self.neurons}
        if len(widths) > 1:
            raise UnsupportedModelError(
                f"messages have different widths ({sorted(widths)}) in different layers, so there "
                "are no scores by neuron"
            )
        counts = [sum(r == each for r, _ in self.parts.values()) for each in range(len(steps))]
        edge = torch.zeros(data.num_edges, max(counts)).to(like)
        neuron = torch.zeros(data.num_edges, *widths).to(like) if self.neurons else None
        for relation, part in self.parts.values():
            at = slice(data.first_edges[relation], data.first_edges[relation] + len(part))
            edge[at, steps[relation]] = part.sum(1) if neuron is not None else part
            steps[relation] += 1
            if neuron is not None:
                neuron[at] += part
        return PointGradients(edge, neuron)


def _by_row(one: Tensor, other: Tensor, neurons: bool) -> Tensor:
    """``[M]`` products of rows, or ``[M, d]`` before their sum."""
    return one.flatten(1) * other.flatten(1) if neurons else row_products(one, other)


def _beside(module: nn.Module, data: Any) -> Any:
    """The data on the device of the module's weights; a copy, where it is on another."""
    weights = next(module.parameters(), None)
    if weights is None or weights.is_meta:
        return data
    held = [value for store in data.stores for value in store.values()]
    if all(value.device == weights.device for value in held if isinstance(value, Tensor)):
        return data
    return copy.copy(data).to(weights.device)
