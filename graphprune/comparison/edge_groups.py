"""Groups of edges: by layer, by kind of component, by kind of edge, by how far they reach.

The words are the graph's own (``node.layer``, ``node.kind``, the edge kinds), so that they are the
same for transformers and graph networks. A node's *level* is its layer where the graph has layers;
else its depth (the longest path from a source) in a graph without cycles; else, in a graph with
cycles and named inputs, the fewest edges from an input. A graph with cycles and no input has none.

Axes: ``kind`` of the edge, ``source_kind`` and ``target_kind`` of the nodes, ``source_level`` and
``target_level``, ``distance`` (target's level minus source's), ``source_depth`` and
``target_depth`` (levels as a share of the whole depth, in ``bins`` equal parts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError, unknown_name

AXES = (
    "source_level",
    "target_level",
    "distance",
    "source_depth",
    "target_depth",
    "source_kind",
    "target_kind",
    "kind",
)
"""All axes; those with a level or depth need a graph that has one."""

_NEEDS_LEVELS = frozenset(AXES[:5])


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """The level of every node.

    ``values [N]`` holds it, -1 for inputs outside all layers, ``highest + 1`` for outputs outside
    them; ``placed [N]`` says which nodes have one. ``inner [N]``: those whose own level is a layer,
    a depth or a number of steps, and not an end. ``how`` is ``"layer"``, ``"depth"`` or
    ``"steps"``.

    Example:
        >>> found = gp.comparison.levels(lm.graph)
        >>> found.how, found.values[:4].tolist()
        ('layer', [-1, 0, 0, 0])
    """

    how: str
    values: NDArray[np.int64]
    placed: NDArray[np.bool_]
    inner: NDArray[np.bool_]

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest level of a node that is no end."""
        own = self.values[self.inner]
        return (int(own.min()), int(own.max())) if len(own) else (0, 0)

    def names(self) -> NDArray[np.object_]:
        """``[N]``: levels as text, ``"input"`` and ``"output"`` for the ends, ``"none"``."""
        named = np.array([str(v) for v in self.values.tolist()], dtype=object)
        named[~self.inner & (self.values < 0)] = "input"
        named[~self.inner & (self.values >= 0)] = "output"
        named[~self.placed] = "none"
        return named


def levels(graph: ComputationalGraph) -> Levels:
    """The level of every node, by layer, by depth or by steps from the inputs.

    Raises :class:`InputError` for a graph that has none of the three.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "b")])
        >>> level = levels(graph)
        >>> level.how, level.names().tolist()
        ('steps', ['0', '1', '2'])
    """
    layer = np.array([-1 if n.layer is None else n.layer for n in graph.nodes], dtype=np.int64)
    inner = np.array([n.layer is not None for n in graph.nodes], dtype=bool)
    if inner.any():
        placed = inner.copy()
        for ends, level in ((graph.input_nodes, -1), (graph.output_nodes, int(layer.max()) + 1)):
            outside = [i for i in ends if not inner[i]]
            layer[outside] = level
            placed[outside] = True
        return Levels(how="layer", values=layer, placed=placed, inner=inner)
    every = np.ones(graph.num_nodes, dtype=bool)
    if graph.is_acyclic:
        return Levels(how="depth", values=graph.depth, placed=every, inner=every)
    if not graph.input_nodes:
        raise InputError(
            "levels need a graph whose nodes have layers, or one without cycles, or one with an "
            f"input to count steps from; {graph!r} has cycles and no input. Compare by the kinds "
            "of its nodes and edges"
        )
    steps = _steps(graph)
    reached = steps >= 0
    return Levels(how="steps", values=steps, placed=reached, inner=reached)


def _steps(graph: ComputationalGraph) -> NDArray[np.int64]:
    """``[N]``: the fewest edges and wires from an input, -1 where none leads."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    wires = graph.fixed_edge_index.numpy()
    pairs = np.concatenate([graph.untied.edge_index.numpy(), wires], 1)
    arcs = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=[graph.num_nodes] * 2)
    steps = dijkstra(arcs.tocsr(), unweighted=True, indices=list(graph.input_nodes), min_only=True)
    return np.where(np.isinf(steps), -1, steps).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeGroups:
    """A division of a graph's edges: edge e belongs to ``names[codes[e]]``.

    Example:
        >>> groups = gp.comparison.edge_groups(lm.graph, "kind")
        >>> groups.names, groups.count().tolist()
        (('q', 'k', 'v', 'mlp', 'resid'), [28, 28, 28, 15, 11])
    """

    axis: str
    names: tuple[str, ...]
    codes: NDArray[np.int64]

    def count(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """``[G]``: how many edges, of those ``chosen``, each group has."""
        codes = self.codes if chosen is None else self.codes[chosen]
        return np.bincount(codes, minlength=len(self.names))


def usable_axes(
    graph: ComputationalGraph, axes: Sequence[str] | None, default: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The axes to use and, of the default ones, those left out with the reason.

    Axes that were requested by name and that the graph does not have raise :class:`InputError`.
    """
    requested = tuple(default if axes is None else axes)
    unknown = [axis for axis in requested if axis not in AXES]
    if unknown or not requested:
        raise unknown_name("axis", unknown[0] if unknown else axes, AXES)
    needing = [axis for axis in requested if axis in _NEEDS_LEVELS]
    try:
        if needing:
            levels(graph)
    except InputError as error:
        if axes is not None:
            raise
        usable = tuple(axis for axis in requested if axis not in _NEEDS_LEVELS)
        return usable, dict.fromkeys(needing, str(error))
    return requested, {}


def edge_groups(graph: ComputationalGraph, axis: str, *, bins: int = 4) -> EdgeGroups:
    """The groups of one axis, in order of level or of first appearance among the graph's kinds.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> groups = edge_groups(graph, "distance")
        >>> groups.names, groups.count().tolist()
        (('1', '2'), [2, 1])
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    if axis not in AXES:
        raise InputError(f"axes are some of {', '.join(AXES)}; got {axis!r}")
    if axis == "kind":
        return _named_groups(axis, graph.edge_kind.numpy(), graph.edge_kinds.__getitem__)
    sources, targets = graph.edge_index.numpy()
    ends = sources if axis.startswith("source") else targets
    if axis.endswith("_kind"):
        kinds = list(dict.fromkeys(node.kind for node in graph.nodes))
        kind_of = np.array([kinds.index(node.kind) for node in graph.nodes], dtype=np.int64)
        return _named_groups(axis, kind_of[ends], kinds.__getitem__)
    level = levels(graph)
    if axis == "distance":
        gap = level.values[targets] - level.values[sources]
        both = level.placed[sources] & level.placed[targets]
        return _named_groups(axis, np.where(both, gap, gap.max(initial=0) + 1), str, both)
    placed = level.placed[ends]
    if axis.endswith("_level"):
        by_level = dict(zip(level.values.tolist(), level.names().tolist(), strict=True))
        last = int(level.values.max(initial=0)) + 1
        values = np.where(level.placed, level.values, last)[ends]
        return _named_groups(axis, values, by_level.__getitem__, placed)
    low, high = level.span
    part = np.clip((level.values - low) * bins // max(high - low, 1), 0, bins - 1)
    part = np.where(level.inner, part, np.where(level.values < 0, -1, bins))
    part = np.where(level.placed, part, bins + 1)
    shares = [f"{100 * i / bins:.0f}-{100 * (i + 1) / bins:.0f}%" for i in range(bins)]
    names = dict(enumerate(["input", *shares, "output"], start=-1))
    return _named_groups(axis, part[ends], names.__getitem__, placed)


def _named_groups(
    axis: str,
    values: NDArray[np.integer],
    named: Callable[[int], str],
    placed: NDArray[np.bool_] | None = None,
) -> EdgeGroups:
    """The groups of edges with equal ``values [E]``; ``"none"`` for edges that are not placed."""
    present, codes = np.unique(values, return_inverse=True)
    missing = set() if placed is None else set(values[~placed].tolist())
    names = tuple("none" if v in missing else named(v) for v in present.tolist())
    return EdgeGroups(axis=axis, names=names, codes=codes)


STRATA = ("source_level", "target_level", "source_kind", "target_kind", "kind")
"""The axes that all edges of a stratum agree in, as far as the graph has them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """Classes of edges: edge e is in ``codes[e]``; ``axes`` are what its edges agree in.

    Example:
        >>> strata = gp.comparison.make_strata(lm.graph)
        >>> strata.axes, strata.count
        (('source_level', 'target_level', 'source_kind', 'target_kind', 'kind'), 23)
    """

    axes: tuple[str, ...]
    codes: NDArray[np.int64]
    left_out: dict[str, str]

    @property
    def count(self) -> int:
        """The number of strata."""
        return int(self.codes.max(initial=-1)) + 1

    @cached_property
    def _in_order(self) -> NDArray[np.int64]:
        return np.argsort(self.codes, kind="stable")

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """``[E]``: a random permutation of the edges that stays within the strata."""
        out = np.empty_like(self._in_order)
        out[self._in_order] = np.argsort(self.codes + rng.random(len(self.codes)))
        return out


def make_strata(graph: ComputationalGraph, axes: Sequence[str] | None = None) -> Strata:
    """The strata by ``axes`` (``None`` means all of level and kind that the graph has).

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
        >>> make_strata(graph).codes
        array([0, 0, 1, 1])
    """
    used, left_out = usable_axes(graph, axes, STRATA)
    codes = np.zeros(graph.num_edges, dtype=np.int64)
    for axis in used:
        groups = edge_groups(graph, axis)
        _, codes = np.unique(codes * len(groups.names) + groups.codes, return_inverse=True)
    return Strata(axes=used, codes=codes, left_out=left_out)
