"""Where the nodes of a drawing stand: information flows upwards, row by row.

A node's row is its layer, and within a layer its depth (key/value readers below heads below the
MLP; side by side where a model computes them in parallel). Graphs without layers are laid out by
depth; graphs with cycles by springs. Within a row, nodes move towards their neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit
    from graphprune.core.graph import ComputationalGraph

__all__ = ["DrawnEdge", "DrawnNode", "Picture", "picture", "port_offset"]

COLUMN = 1.5
"""Least distance between two nodes of a row; a row's height is 1."""
SWEEPS = 40


@dataclass(frozen=True)
class DrawnNode:
    """A node with its place. ``ports`` are its separate inputs that edges drawn here use."""

    name: str
    kind: str
    layer: int | None
    x: float
    y: float
    ports: tuple[str, ...]


@dataclass(frozen=True)
class DrawnEdge:
    """An edge between two places in the list of nodes; ``score`` is ``None`` if unknown."""

    name: str
    source: int
    target: int
    kind: str
    score: float | None
    kept: float
    wire: bool

    @property
    def strength(self) -> float:
        """What its width shows: |score|, or the mask's value where there are no scores."""
        return self.kept if self.score is None else abs(self.score)


@dataclass(frozen=True)
class Picture:
    """A drawing before any pen: ``bands`` are ``(layer, lowest y, highest y)``."""

    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    bands: tuple[tuple[int, float, float], ...]
    layered: bool
    total_edges: int

    @property
    def shown_edges(self) -> int:
        """How many edges are drawn, wires aside."""
        return sum(not edge.wire for edge in self.edges)

    @property
    def largest(self) -> float:
        """The greatest strength, or 1."""
        return max((e.strength for e in self.edges if not e.wire), default=0.0) or 1.0


def picture(circuit: Circuit, max_edges: int) -> Picture:
    """Places the circuit's nodes; beyond ``max_edges`` only the strongest edges are taken."""
    graph = circuit.graph
    kept = torch.nonzero(circuit.mask.kept)[:, 0]
    values = circuit.mask.values if circuit.scores is None else circuit.scores.values
    if len(kept) > max_edges:
        order = torch.sort(values[kept].abs(), descending=True, stable=True).indices
        kept = torch.sort(kept[order[:max_edges]]).values
    touched = torch.unique(graph.edge_index[:, kept]).tolist()
    place = {node: i for i, node in enumerate(touched)}
    edges = []
    names = graph.edge_names.at(kept)
    ends = graph.edge_index[:, kept].T.tolist()
    for name, number, (u, v) in zip(names, kept.tolist(), ends, strict=True):
        edges.append(
            DrawnEdge(
                name,
                place[u],
                place[v],
                graph.edge_kinds[int(graph.edge_kind[number])],
                None if circuit.scores is None else float(values[number]),
                float(circuit.mask.values[number]),
                wire=False,
            )
        )
    for u, v in graph.fixed_edge_index.T.tolist():
        if u in place and v in place:
            name = f"{graph.nodes[u].name}->{graph.nodes[v].name}"
            edges.append(DrawnEdge(name, place[u], place[v], "wire", None, 1.0, wire=True))
    pairs = [(edge.source, edge.target) for edge in edges]
    rows = _rows(graph, touched, pairs)
    if rows is None:
        x, y = _springs(len(touched), pairs)
    else:
        x, y = _columns(rows, pairs, _homes(graph, touched)), rows.astype(float)
        x -= x.min(initial=np.inf) if len(x) else 0.0
    ports = defaultdict(set)
    for edge in edges:
        if edge.kind in graph.ports and edge.kind in _PLACES:
            ports[edge.target].add(edge.kind)
    nodes = tuple(
        DrawnNode(
            graph.nodes[number].name,
            graph.nodes[number].kind,
            graph.nodes[number].layer,
            float(x[i]),
            float(y[i]),
            tuple(port for port in graph.ports if port in ports[i]),
        )
        for i, number in enumerate(touched)
    )
    layers: dict[int, list[float]] = defaultdict(list)
    for node in nodes:
        if node.layer is not None and rows is not None:
            layers[node.layer].append(node.y)
    bands = tuple((layer, min(ys), max(ys)) for layer, ys in sorted(layers.items()))
    return Picture(nodes, tuple(edges), bands, rows is not None, circuit.mask.num_kept)


# Other ports (relations of a heterogeneous graph) have no room in a box.
_PLACES = {"q": -0.27, "k": 0.0, "v": 0.27}


def port_offset(node: DrawnNode, kind: str) -> float:
    """How far from the middle of its target an edge of this kind ends: ports stand side by side.

    Every node of a graph has its ports at the same places, whichever of them are in use.
    """
    return _PLACES[kind] if kind in node.ports else 0.0


# -------------------------------------------------------------------- rows


def _rows(
    graph: ComputationalGraph, touched: list[int], pairs: list[tuple[int, int]]
) -> NDArray[np.int64] | None:
    """``[n]``: the row of each touched node, empty rows left out; ``None`` if cycles forbid it."""
    keys = _layer_keys(graph, touched)
    if keys is not None:
        row_of = {key: i for i, key in enumerate(sorted(set(keys)))}
        rows = np.array([row_of[key] for key in keys], dtype=np.int64)
        if all(rows[u] < rows[v] for u, v in pairs):
            return rows
    import networkx as nx

    flow: Any = nx.DiGraph(pairs)
    flow.add_nodes_from(range(len(touched)))
    if not nx.is_directed_acyclic_graph(flow):
        return None
    rows = np.zeros(len(touched), dtype=np.int64)
    for depth, generation in enumerate(nx.topological_generations(flow)):
        rows[list(generation)] = depth
    return rows


def _layer_keys(graph: ComputationalGraph, touched: list[int]) -> list[tuple[int, int]] | None:
    ends = {**dict.fromkeys(graph.input_nodes, -1), **dict.fromkeys(graph.output_nodes, 10**9)}
    layers = [
        ends[number] if graph.nodes[number].layer is None and number in ends else node_layer
        for number in touched
        for node_layer in [graph.nodes[number].layer]
    ]
    if any(layer is None for layer in layers):
        return None
    depth = _depth_of_kinds(graph)
    return [
        (layer, depth.get(graph.nodes[number].kind, 0))
        for layer, number in zip(layers, touched, strict=True)
        if layer is not None
    ]


def _depth_of_kinds(graph: ComputationalGraph) -> dict[str, int]:
    """How deep each kind of node stands within its layer, by the edges that stay in a layer."""
    kinds = sorted({node.kind for node in graph.nodes})
    kind = np.array([kinds.index(node.kind) for node in graph.nodes])
    layer = np.array([-1 if node.layer is None else node.layer for node in graph.nodes])
    index = np.concatenate([graph.edge_index.numpy(), graph.fixed_edge_index.numpy()], axis=1)
    inside = (layer[index[0]] == layer[index[1]]) & (layer[index[0]] >= 0)
    above = {tuple(p) for p in np.unique(kind[index[:, inside]], axis=1).T.tolist()}
    depth = dict.fromkeys(range(len(kinds)), 0)
    for _ in kinds:
        for u, v in above:
            if u != v:
                depth[v] = min(max(depth[v], depth[u] + 1), len(kinds))
    return {kinds[i]: value for i, value in depth.items()}


# -------------------------------------------------------------------- columns


def _homes(graph: ComputationalGraph, touched: list[int]) -> NDArray[np.float64]:
    """``[n]``: where a node would stand by its index alone, which spreads heads over the page."""
    most: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        most[node.kind] = max(most[node.kind], node.index or 0)
    spread = COLUMN * min(max(1.1 * len(touched) ** 0.5, 2.0), 9.0)
    homes = []
    for number in touched:
        node = graph.nodes[number]
        share = 0.5 if node.index is None else node.index / max(most[node.kind], 1)
        homes.append((share - 0.5) * spread)
    return np.array(homes)


def _columns(
    rows: NDArray[np.int64], pairs: list[tuple[int, int]], homes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``[n]``: each node as near to its neighbours as its home and the others of its row allow."""
    from scipy.optimize import isotonic_regression

    members = [np.flatnonzero(rows == row) for row in range(int(rows.max(initial=-1)) + 1)]
    x = homes.copy()
    weights = np.zeros((len(rows), len(rows)))
    for u, v in pairs:
        # Short edges pull harder: they are the ones a bad order would tangle.
        weights[u, v] += 1 / (rows[v] - rows[u])
        weights[v, u] = weights[u, v]
    for sweep in range(SWEEPS):
        for group in members if sweep % 2 else reversed(members):
            near = weights[group]
            pull = 0.3 + 0.3 * near.sum(1)
            wish = (near @ x + pull * homes[group]) / (near.sum(1) + pull)
            order = np.argsort(wish, kind="stable")
            steps = np.arange(len(group)) * COLUMN
            x[group[order]] = isotonic_regression(wish[order] - steps).x + steps
    return x


def _springs(
    count: int, pairs: list[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import networkx as nx

    flow: Any = nx.DiGraph(pairs)
    flow.add_nodes_from(range(count))
    spread = COLUMN * max(1.0, np.sqrt(count))
    places = nx.spring_layout(flow, seed=0, iterations=200, k=1.5 / np.sqrt(max(count, 1)))
    xy = np.array([places[i] for i in range(count)]).reshape(-1, 2)
    xy = (xy - xy.min(0, initial=0.0)) * spread
    return xy[:, 0], xy[:, 1]
