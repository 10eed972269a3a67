"""The content of a MIB or EAP-IG file, between its bytes and a graph.

A file knows no key/value heads, so an edge into one stands there once for each query head it feeds
(see :mod:`graphprune.mib.layout`). NaN means "not scored, always kept".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.circuit import Circuit
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.scores import EdgeScores, NodeScores
from graphprune.errors import FormatError, InputError, NumericalError, unknown_name
from graphprune.mib.layout import UngroupedLayout

Writable = Circuit | EdgeScores | EdgeMask | NodeScores
Ungrouped = Literal["require", "sum", "any"]
Unscored = Literal["error", "zero", "keep"]


@dataclass(frozen=True, eq=False)
class MIBNodes:
    """The nodes of a MIB file.

    Args:
        scores: one score for each node, with single neurons where the file has them.
        kept: whether a node is in the graph.
        unscored: nodes without a score; the field always keeps them.
        neurons_kept: ``{node name: bool [d_model]}``.
        neurons_unscored: the same, true for neurons that have none either.

    Example:
        >>> nodes = MIBNodes(gp.NAP().score_nodes(lm, prompts), kept={"a0.h1": True})
        >>> nodes.graph, nodes.kept
        (ComputationalGraph(12 nodes, 110 edges, acyclic), {'a0.h1': True})
    """

    scores: NodeScores
    kept: Mapping[str, bool] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    neurons_kept: Mapping[str, Tensor] = field(default_factory=dict)
    neurons_unscored: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def graph(self) -> ComputationalGraph:
        """The graph of the scores."""
        return self.scores.graph


@dataclass(frozen=True, eq=False)
class MIBContent:
    """A file's content: edges ``[rows, columns]``, nodes ``[rows]``, neurons ``[rows, d_model]``.

    ``path`` is the file that it was read from.
    """

    layout: UngroupedLayout
    scores: NDArray[np.float32]
    kept: NDArray[np.bool_]
    nodes_kept: NDArray[np.bool_]
    node_scores: NDArray[np.float32] | None = None
    neurons_kept: NDArray[np.bool_] | None = None
    neuron_scores: NDArray[np.float32] | None = None
    path: str = ""

    # ---------------------------------------------------------------- from a graph

    @classmethod
    def of(
        cls, source: Writable, mask: EdgeMask | None, nodes: NodeScores | MIBNodes | None
    ) -> MIBContent:
        """The content for what :func:`graphprune.export.to_mib_json` is given."""
        graph = source.graph
        scores = source if isinstance(source, EdgeScores) else None
        if isinstance(source, Circuit):
            scores, mask = source.scores, source.mask if mask is None else mask
        elif isinstance(source, EdgeMask):
            mask = source if mask is None else mask
        elif isinstance(source, NodeScores):
            nodes = source if nodes is None else nodes
        for part in (mask, nodes):
            if part is not None:
                require_same_graph(graph, part.graph, "the parts of a MIB file")
        values = torch.zeros(graph.num_edges)
        if scores is not None:
            values = scores.values
        elif mask is not None and not isinstance(source, NodeScores):
            values = mask.values
        layout = UngroupedLayout.of(graph)
        edge_scores = layout.matrix(values.numpy())
        kept = layout.matrix((EdgeMask.empty(graph) if mask is None else mask).kept.numpy())
        nodes_kept = layout.nodes_in_circuit(kept)
        if nodes is None:
            return cls(layout, edge_scores, kept, nodes_kept)
        return cls(layout, edge_scores, kept, *_node_rows(layout, nodes, nodes_kept))

    # ---------------------------------------------------------------- onto a graph

    def edges(self, ungrouped: Ungrouped, unscored: Unscored) -> tuple[EdgeScores, EdgeMask]:
        """Scores and mask of the layout's graph; see :func:`graphprune.export.from_mib_json`."""
        if ungrouped not in ("require", "sum", "any"):
            raise unknown_name("ungrouped", ungrouped, ("require", "sum", "any"))
        if unscored not in ("error", "zero", "keep"):
            raise unknown_name("unscored", unscored, ("error", "zero", "keep"))
        layout, graph, real = self.layout, self.layout.graph, self.layout.real
        scores, kept, edge = self.scores[real], self.kept[real], layout.edge[real]
        cells = np.argwhere(real)
        empty = np.isnan(scores)
        if np.isinf(scores).any():
            first = layout.name(*cells[int(np.isinf(scores).argmax())])
            raise FormatError(f"{self.path}: the score of {first!r} is infinite")
        if empty.any() and unscored == "error":
            raise FormatError(
                f"{self.path}: {int(empty.sum())} of {len(scores)} edges have no score (NaN), "
                f"first {layout.name(*cells[int(empty.argmax())])!r}; say unscored='zero', or "
                "'keep' to rank them first as the field does"
            )
        largest = float(np.abs(scores[~empty]).max(initial=0.0)) or 1.0
        scores = np.where(empty, np.float32(2 * largest if unscored == "keep" else 0.0), scores)
        any_kept = np.zeros(graph.num_edges, dtype=bool)
        np.logical_or.at(any_kept, edge, kept)
        values = np.zeros(graph.num_edges, dtype=np.float32)
        if ungrouped == "sum":
            sums = np.bincount(edge, scores.astype(np.float64), minlength=graph.num_edges)
            values = sums.astype(np.float32)
        else:
            ascending = np.argsort(np.abs(scores), kind="stable")
            values[edge[ascending]] = scores[ascending]
        differ = (values[edge] != scores) | (any_kept[edge] != kept)
        if ungrouped == "require" and differ.any():
            number = int(edge[int(differ.argmax())])
            shown = ", ".join(
                f"{layout.name(*cells[i])} {scores[i]:.6g} {'in' if kept[i] else 'out'}"
                for i in np.flatnonzero(edge == number).tolist()
            )
            raise FormatError(
                f"{self.path}: the entries for the one edge {graph.edge_names[number]} disagree "
                f"({shown}); say ungrouped='sum' or 'any' to reduce them"
            )
        mask = EdgeMask(graph, torch.from_numpy(any_kept.astype(np.float32)))
        try:
            return EdgeScores(graph, torch.from_numpy(values), method="file"), mask
        except NumericalError as error:
            raise FormatError(f"{self.path}: {error}") from error

    def nodes(self) -> MIBNodes:
        """Nodes of the layout's graph; see :func:`graphprune.export.from_mib_nodes`."""
        rows, graph = self.layout.rows, self.layout.graph
        values = torch.zeros(graph.num_nodes)
        unscored: tuple[str, ...] = rows
        if self.node_scores is not None:
            if np.isinf(self.node_scores).any():
                first = rows[int(np.isinf(self.node_scores).argmax())]
                raise FormatError(f"{self.path}: the score of the node {first!r} is infinite")
            empty = np.isnan(self.node_scores)
            numbers = [graph.node_number[name] for name in rows]
            values[numbers] = torch.from_numpy(np.where(empty, np.float32(0), self.node_scores))
            unscored = tuple(name for name, without in zip(rows, empty, strict=True) if without)
        neurons, neurons_kept, neurons_unscored = {}, {}, {}
        for row, name in enumerate(rows):
            if self.neuron_scores is not None:
                scores = torch.from_numpy(self.neuron_scores[row].copy())
                if bool(torch.isinf(scores).any()):
                    raise FormatError(f"{self.path}: a neuron of the node {name!r} scores infinite")
                neurons_unscored[name] = torch.isnan(scores)
                neurons[name] = torch.where(neurons_unscored[name], torch.zeros(()), scores)
            if self.neurons_kept is not None:
                neurons_kept[name] = torch.from_numpy(self.neurons_kept[row].copy())
        kept = {name: bool(keep) for name, keep in zip(rows, self.nodes_kept, strict=True)}
        scored = NodeScores(graph, values, neurons, method="file")
        return MIBNodes(scored, kept, unscored, neurons_kept, neurons_unscored)


def _node_rows(
    layout: UngroupedLayout, nodes: NodeScores | MIBNodes, nodes_kept: NDArray[np.bool_]
) -> tuple[
    NDArray[np.bool_], NDArray[np.float32], NDArray[np.bool_] | None, NDArray[np.float32] | None
]:
    """Nodes in the graph, their scores, and the same of neurons, ``None`` where none are scored.

    Nodes that send nothing and those that were never scored are NaN.
    """
    given = nodes if isinstance(nodes, MIBNodes) else MIBNodes(nodes)
    scores, number = given.scores, given.scores.graph.node_number
    scored = set(scores.senders.tolist()) - {number[name] for name in given.unscored}
    values = scores.values.tolist()
    numbers = [number[name] for name in layout.rows]
    node_scores = np.array([values[n] if n in scored else np.nan for n in numbers], np.float32)
    for name, keep in given.kept.items():
        if name in layout.row_number:
            nodes_kept[layout.row_number[name]] = keep
    if not scores.neurons:
        return nodes_kept, node_scores, None, None
    widths = {int(v.numel()) for v in scores.neurons.values()}
    unknown = sorted(set(scores.neurons) - set(layout.rows))
    if len(widths) != 1 or unknown:
        raise InputError(
            "neurons need one score for each component of the residual stream at nodes that "
            f"send; got lengths {sorted(widths)} and the nodes {unknown}"
        )
    shape = (len(layout.rows), widths.pop())
    neuron_scores = np.full(shape, np.nan, dtype=np.float32)
    neurons_kept = np.repeat(nodes_kept[:, None], shape[1], axis=1)
    for name, row in layout.row_number.items():
        if name in scores.neurons:
            neuron_scores[row] = scores.neurons[name].numpy()
        if name in given.neurons_unscored:
            neuron_scores[row, given.neurons_unscored[name].numpy()] = np.nan
        if name in given.neurons_kept:
            neurons_kept[row] = given.neurons_kept[name].bool().numpy()
    return nodes_kept, node_scores, neurons_kept, neuron_scores
