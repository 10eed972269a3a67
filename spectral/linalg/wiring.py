"""What the spectra are taken of: nodes, weighted edges, and wires that can never be cut.

``A[i, j] = w`` is the edge i -> j. Weights are float64. Parallel edges add up; a self-loop enters
the diagonal of A and both degrees of its node (so that it cancels out of ``D - A`` by out- or
in-degrees). Edges come first, in the graph's order; wires and closures follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError, NumericalError

from .inputs import understood

__all__ = ["Closure", "FloatArray", "IntArray", "Wiring", "close", "finite_number", "wiring"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Closure = Sequence[tuple[str | int, str | int]]


@dataclass(frozen=True, eq=False)
class Wiring:
    """A weighted directed graph as the spectral functions see it.

    Args:
        num_nodes: N.
        sources, targets: ``[E + F]`` node numbers; the first ``num_edges`` can be cut.
        weights: ``[E + F]``, float64, finite.
        present: ``[E + F]``; an absent edge enters neither A nor any degree.
        num_edges: E.
        graph: where it came from, if it was a :class:`~graphprune.ComputationalGraph`.
    """

    num_nodes: int
    sources: IntArray
    targets: IntArray
    weights: FloatArray
    present: BoolArray
    num_edges: int
    graph: ComputationalGraph | None = None

    def keep(self, kept: BoolArray) -> Wiring:
        """The same nodes with the edges ``kept [E]`` alone; wires stay."""
        present = self.present.copy()
        present[: self.num_edges] &= kept
        return replace(self, present=present)

    def reweighted(self, weights: Any) -> Wiring:
        """Other weights ``[E]`` on the edges; wires keep theirs."""
        values = self.weights.copy()
        values[: self.num_edges] = _weights(weights, self.num_edges, self._edge_name)
        return replace(self, weights=values)

    def extended(self, sources: Any, targets: Any, weights: Any) -> Wiring:
        """With further wires, present and never cut."""
        more = np.asarray(sources, dtype=np.int64)
        return replace(
            self,
            sources=np.concatenate([self.sources, more]),
            targets=np.concatenate([self.targets, np.asarray(targets, dtype=np.int64)]),
            weights=np.concatenate([self.weights, np.asarray(weights, dtype=np.float64)]),
            present=np.concatenate([self.present, np.ones(len(more), dtype=bool)]),
        )

    @property
    def mean_weight(self) -> float:
        """Mean size of the edges' weights that are not 0; 1 where there are none."""
        sizes = np.abs(self.weights[: self.num_edges])
        sizes = sizes[sizes > 0]
        return float(sizes.mean()) if len(sizes) else 1.0

    def _edge_name(self, edge: int) -> str:
        if self.graph is not None:
            return f"edge {edge} ({self.graph.edge_names[edge]})"
        return f"edge {edge} ({self.sources[edge]}->{self.targets[edge]})"

    def node(self, name: str | int) -> int:
        """A node's number from its name or number; raises :class:`InputError`."""
        if isinstance(name, str) and self.graph is not None and name in self.graph.node_number:
            return self.graph.node_number[name]
        if isinstance(name, (int, np.integer)) and 0 <= name < self.num_nodes:
            return int(name)
        known = [n.name for n in self.graph.nodes[:8]] if self.graph else f"0..{self.num_nodes - 1}"
        raise InputError(f"no node {name!r}; nodes: {known}{' ...' if self.graph else ''}")

    def node_name(self, node: int) -> str:
        """What a node is called in messages."""
        return self.graph.nodes[node].name if self.graph is not None else str(node)

    def __repr__(self) -> str:
        wires = len(self.sources) - self.num_edges
        return f"Wiring({self.num_nodes} nodes, {self.num_edges} edges, {wires} wires)"


def wiring(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    *,
    wire_weight: Literal["mean"] | float = "mean",
) -> Wiring:
    """A :class:`Wiring` from what users have.

    Args:
        graph: a :class:`~graphprune.ComputationalGraph`; ``(edge_index [2, E], num_nodes)``; a
            :class:`Wiring` (then ``weights=None`` keeps its own); or what
            :mod:`.inputs` lists: networkx, PyG, scipy.sparse, ``(edge_index,
            weights)``.
        weights: ``[E]`` numbers, signed; ``None``: those that the graph carries, else 1 each.
        wire_weight: what the graph's fixed wires weigh: ``"mean"``, the mean size of the edges'
            weights, or a number.

    Raises:
        InputError: no directed graph, or another number of weights than edges.
        NumericalError: a weight is NaN or infinite; names the first.

    Example:
        >>> wiring(([[0, 1], [1, 0]], 3), [0.5, -1.0])
        Wiring(3 nodes, 2 edges, 0 wires)
    """
    if isinstance(graph, Wiring):
        return graph if weights is None else graph.reweighted(weights)
    graph, weights = understood(graph, weights)
    if isinstance(graph, ComputationalGraph):
        sources, targets = graph.edge_index.numpy()
        made = _plain(sources, targets, graph.num_nodes, weights, graph)
        if graph.fixed_edge_index.numel():
            size = (
                made.mean_weight
                if wire_weight == "mean"
                else finite_number(wire_weight, "wire_weight")
            )
            index = graph.fixed_edge_index.numpy()
            made = made.extended(index[0], index[1], np.full(index.shape[1], size))
        return made
    if not isinstance(graph, tuple) or len(graph) != 2:
        raise InputError(
            "expected a ComputationalGraph, a directed networkx graph, a PyG Data, a scipy.sparse "
            "matrix, or a pair (edge_index [2, E], num_nodes or weights), got "
            f"{type(graph).__name__}"
        )
    index, nodes = graph
    pairs = np.asarray(torch.as_tensor(index).detach().cpu().numpy())
    if pairs.ndim != 2 or pairs.shape[0] != 2 or (pairs.size and pairs.dtype.kind not in "iu"):
        raise InputError(
            f"edge_index must be [2, E] whole numbers, got {list(pairs.shape)} {pairs.dtype}"
        )
    if isinstance(nodes, bool) or not isinstance(nodes, (int, np.integer)) or nodes < 0:
        raise InputError(f"num_nodes must be a whole number of at least 0, got {nodes!r}")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < nodes:
        raise InputError(
            f"edge_index names a node outside 0..{nodes - 1}: {pairs.min()} to {pairs.max()}"
        )
    return _plain(pairs[0], pairs[1], int(nodes), weights, None)


def _plain(
    sources: Any, targets: Any, nodes: int, weights: Any, graph: ComputationalGraph | None
) -> Wiring:
    count = len(sources)
    made = Wiring(
        num_nodes=nodes,
        sources=np.asarray(sources, dtype=np.int64),
        targets=np.asarray(targets, dtype=np.int64),
        weights=np.ones(count),
        present=np.ones(count, dtype=bool),
        num_edges=count,
        graph=graph,
    )
    return made if weights is None else made.reweighted(weights)


def _weights(weights: Any, edges: int, name: Any) -> FloatArray:
    try:
        given = torch.as_tensor(weights).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"edge weights must be numbers: {error}") from None
    if given.is_complex():
        raise InputError(f"edge weights must be real numbers, got {given.dtype}")
    if given.shape != (edges,):
        raise InputError(
            f"expected a weight for each of the {edges} edges, got {list(given.shape)}"
        )
    values: FloatArray = given.to(torch.float64).numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise NumericalError(
            f"{len(bad)} of {edges} edge weights are NaN or infinite, first at {name(int(bad[0]))}"
        )
    return values


def close(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    *,
    feedback: Closure = (),
    feedback_weight: Literal["mean"] | float = "mean",
    wire_weight: Literal["mean"] | float = "mean",
) -> Wiring:
    """The graph closed by feedback edges, for the spectrum only: never cut, never counted.

    Args:
        feedback: pairs (source, target) of node names or numbers, such as
            ``[("logits", "input")]``.
        feedback_weight: ``"mean"``, the mean size of the edges' weights, or a number.

    Example:
        >>> chain = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
        >>> close(chain, [1.0, 3.0], feedback=[("c", "a")]).weights.tolist()
        [1.0, 3.0, 2.0]
    """
    made = wiring(graph, weights, wire_weight=wire_weight)
    given: object = feedback
    if isinstance(given, str) or any(
        isinstance(pair, str) or len(tuple(pair)) != 2 for pair in feedback
    ):
        raise InputError(f"feedback is a list of pairs (source, target), got {feedback!r}")
    if not feedback:
        return made
    ends = [(made.node(u), made.node(v)) for u, v in feedback]
    mean = feedback_weight == "mean"
    size = made.mean_weight if mean else finite_number(feedback_weight, "feedback_weight")
    return made.extended([u for u, _ in ends], [v for _, v in ends], [size] * len(ends))


def finite_number(value: Any, what: str) -> float:
    """``value`` as a float; raises :class:`InputError` for what is no finite number."""
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not good or not np.isfinite(value):
        raise InputError(f"{what} must be 'mean' or a finite number, got {value!r}")
    return float(value)
