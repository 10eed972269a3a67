"""The nodes and edges that a picture shows of a circuit, before they have a place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.drawing.subject import CircuitLike
from graphprune.errors import InputError
from graphprune.selection.connected import exact_budget, shortest_path_edges


@dataclass(frozen=True)
class DrawnNode:
    """A node, or a chain of MLPs drawn as one: ``layers`` are its first and last.

    ``ports`` are its separate inputs (q, k, v) that drawn edges use.
    """

    name: str
    kind: str
    layers: tuple[int, int] | None
    index: int | None
    ports: tuple[str, ...]
    members: tuple[str, ...]


@dataclass(frozen=True)
class DrawnEdge:
    """An edge between two places in the list of nodes, or several between two drawn nodes.

    ``score`` is the sum of the edges' scores, ``None`` without scores; ``strength`` that of their
    sizes, or of the mask's values. A ``wire`` is always there and no edge of the circuit.
    """

    names: tuple[str, ...]
    source: int
    target: int
    kind: str
    score: float | None
    strength: float
    wire: bool = False


@dataclass(frozen=True)
class Content:
    """The nodes and edges drawn: ``edge_numbers [n]`` in the graph, chains' inner ones too.

    ``share`` is the part of the circuit's summed strength that they have, ``total`` the number of
    the circuit's edges.
    """

    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    edge_numbers: Tensor
    total: int
    share: float
    scored: bool

    @property
    def largest(self) -> float:
        """The greatest strength of a drawn edge, or 1."""
        return max((edge.strength for edge in self.edges if not edge.wire), default=0.0) or 1.0

    @property
    def statement(self) -> str:
        """A phrase: the number of edges shown, and their part of the circuit's score."""
        count = len(self.edge_numbers)
        if count == self.total:
            return f"{count} edges"
        what = "|score|" if self.scored else "mask values"
        return f"{count} of {self.total} edges, {self.share:.0%} of the circuit's {what}"


def edge_strengths(circuit: CircuitLike) -> Tensor:
    """``[E]``: what an edge's width shows, |score|, or the mask's value without scores."""
    return circuit.mask.values if circuit.scores is None else circuit.scores.values.abs()


def strongest_edges(circuit: CircuitLike, max_edges: int) -> Tensor:
    """Numbers of at most ``max_edges`` kept edges, the strongest without dead ends, in order.

    All of them where the circuit has no more. Edges on no path from an input to an output are
    dropped first; a circuit without such paths gives its strongest edges. A single path from input
    to output is drawn whole, even where it has more edges than asked for.
    """
    if max_edges < 1:
        raise InputError(f"max_edges must be at least 1, got {max_edges}")
    graph, kept = circuit.graph, circuit.mask.kept
    edge_numbers = torch.nonzero(kept)[:, 0]
    if len(edge_numbers) <= max_edges:
        return edge_numbers
    strength = edge_strengths(circuit)
    alive = torch.from_numpy(graph.alive(kept.numpy()))
    if not bool(alive.any()):
        order = torch.sort(strength[edge_numbers], descending=True, stable=True).indices
        return torch.sort(edge_numbers[order[:max_edges]]).values
    edge_numbers = torch.nonzero(alive)[:, 0]
    if len(edge_numbers) <= max_edges:
        return edge_numbers
    part = ComputationalGraph(
        nodes=graph.nodes,
        edge_index=graph.edge_index[:, edge_numbers],
        edge_kind=graph.edge_kind[edge_numbers],
        edge_kinds=graph.edge_kinds,
        ports=graph.ports,
        fixed_edge_index=graph.fixed_edge_index,
        groups=graph.groups,
        inputs=graph.input_nodes,
        outputs=graph.output_nodes,
    )
    count = max(max_edges, shortest_path_edges(part))
    return edge_numbers[exact_budget(part, strength[edge_numbers], count).kept]


def content(circuit: CircuitLike, edge_numbers: Tensor, *, chains: bool = True) -> Content:
    """The nodes and edges of a picture of the edges ``numbers``.

    ``chains`` draws MLPs that read one another in a row as one node, where nothing else stands
    between them.
    """
    graph = circuit.graph
    strength = edge_strengths(circuit)
    ends = graph.edge_index[:, edge_numbers].T.tolist()
    kinds = graph.edge_kind[edge_numbers].tolist()
    touched = torch.unique(graph.edge_index[:, edge_numbers]).tolist()
    wires = [(u, v) for u, v in graph.fixed_edge_index.T.tolist() if {u, v} <= set(touched)]
    pairs = {(u, v) for u, v in ends} | set(wires)
    groups = _chains(graph, touched, pairs) if chains else []
    first_of = {number: group[0] for group in groups for number in group}
    heads = [number for number in touched if first_of.get(number, number) == number]
    box_of = {number: i for i, number in enumerate(heads)}
    box_of |= {number: box_of[first] for number, first in first_of.items()}
    merged: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i, ((u, v), kind) in enumerate(zip(ends, kinds, strict=True)):
        if u == v or box_of[u] != box_of[v]:  # edges inside a chain are counted, not drawn
            merged[box_of[u], box_of[v], kind].append(i)
    names = graph.edge_names.at(edge_numbers)
    scores = None if circuit.scores is None else circuit.scores.values[edge_numbers]
    edges = [
        DrawnEdge(
            tuple(names[i] for i in members),
            u,
            v,
            graph.edge_kinds[kind],
            None if scores is None else float(scores[members].sum()),
            float(strength[edge_numbers[members]].sum()),
        )
        for (u, v, kind), members in merged.items()
    ]
    for u, v in wires:
        name = f"{graph.nodes[u].name}->{graph.nodes[v].name}"
        edges.append(DrawnEdge((name,), box_of[u], box_of[v], "wire", None, 0.0, wire=True))
    ports: dict[int, set[str]] = defaultdict(set)
    for edge in edges:
        if edge.kind in graph.ports:
            ports[edge.target].add(edge.kind)
    members_of = {group[0]: group for group in groups}
    nodes = [
        _node(graph, members_of.get(number, [number]), ports[box_of[number]]) for number in heads
    ]
    kept = circuit.mask.kept
    whole, shown = float(strength[kept].sum()), float(strength[edge_numbers].sum())
    return Content(
        tuple(nodes),
        tuple(edges),
        edge_numbers,
        circuit.mask.num_kept,
        shown / whole if whole else 1.0,
        circuit.scores is not None,
    )


def _node(graph: ComputationalGraph, members: Sequence[int], ports: set[str]) -> DrawnNode:
    nodes = [graph.nodes[number] for number in members]
    layers = [node.layer for node in nodes if node.layer is not None]
    name = nodes[0].name
    if len(nodes) > 1:
        whole = layers[-1] - layers[0] + 1 == len(nodes)
        name = f"{name}–{nodes[-1].name}" if whole else f"{name}…{nodes[-1].name} ({len(nodes)})"
    return DrawnNode(
        name,
        nodes[0].kind,
        (min(layers), max(layers)) if layers else None,
        nodes[0].index,
        tuple(port for port in graph.ports if port in ports),
        tuple(node.name for node in nodes),
    )


def _chains(
    graph: ComputationalGraph, touched: Sequence[int], pairs: set[tuple[int, int]]
) -> list[list[int]]:
    """Runs of MLPs each of which reads the one before, with all others below or above the run."""
    layer_of = {number: graph.nodes[number].layer for number in touched}
    mlps = [n for n in touched if graph.nodes[n].kind == "mlp" and layer_of[n] is not None]
    mlps.sort(key=lambda number: layer_of[number] or 0)
    runs: list[list[int]] = []
    for number in mlps:
        longer = [*runs[-1], number] if runs else []
        if (
            longer
            and (longer[-2], number) in pairs
            and _fits_one_box(longer, layer_of, pairs, graph)
        ):
            runs[-1] = longer
        else:
            runs.append([number])
    return [run for run in runs if len(run) > 1]


def _fits_one_box(
    run: Sequence[int],
    layer_of: dict[int, int | None],
    pairs: set[tuple[int, int]],
    graph: ComputationalGraph,
) -> bool:
    """``True`` if all that the run reads lies below all that reads it: one box fits between."""

    def layer(number: int) -> int:
        own = layer_of[number]
        if own is not None:
            return own
        return 10**9 if number in graph.output_nodes else -1

    inside = set(run)
    below = [layer(u) for u, v in pairs if v in inside and u not in inside]
    above = [layer(v) for u, v in pairs if u in inside and v not in inside]
    return max(below, default=-1) <= layer(run[-1]) and max([*below, layer(run[0])]) < min(
        above, default=10**9
    )
