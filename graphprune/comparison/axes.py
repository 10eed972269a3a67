"""Where edges lie: by layer, by kind of component, by kind of edge, by how far they reach.

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

import numpy as np
from numpy.typing import NDArray

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError, unknown_name

__all__ = ["AXES", "EdgeGroups", "Levels", "edge_groups", "levels", "usable_axes"]

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
        >>> found = levels(graph)
        >>> found.how, found.names().tolist()
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
    sources = np.concatenate([graph.edge_index[0].numpy(), graph.fixed_edge_index[0].numpy()])
    targets = np.concatenate([graph.edge_index[1].numpy(), graph.fixed_edge_index[1].numpy()])
    steps = np.full(graph.num_nodes, -1, dtype=np.int64)
    steps[list(graph.input_nodes)] = 0
    at = 0
    while True:
        new = np.zeros(graph.num_nodes, dtype=bool)
        new[targets[steps[sources] == at]] = True
        new &= steps < 0
        if not new.any():
            return steps
        at += 1
        steps[new] = at


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeGroups:
    """A division of a graph's edges: edge e belongs to ``names[codes[e]]``."""

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

    Axes that were asked for by name and that the graph does not have raise :class:`InputError`.
    """
    asked = tuple(default if axes is None else axes)
    unknown = [axis for axis in asked if axis not in AXES]
    if unknown or not asked:
        raise unknown_name("axis", unknown[0] if unknown else axes, AXES)
    needing = [axis for axis in asked if axis in _NEEDS_LEVELS]
    if not needing:
        return asked, {}
    try:
        levels(graph)
    except InputError as error:
        if axes is not None:
            raise
        kept = tuple(axis for axis in asked if axis not in _NEEDS_LEVELS)
        return kept, dict.fromkeys(needing, str(error))
    return asked, {}


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
    if axis == "kind":
        return _packed(axis, graph.edge_kind.numpy().astype(np.int64), list(graph.edge_kinds))
    if axis not in AXES:
        raise InputError(f"axes are some of {', '.join(AXES)}; got {axis!r}")
    sources, targets = graph.edge_index.numpy()
    ends = sources if axis.startswith("source") else targets
    if axis.endswith("_kind"):
        kinds = list(dict.fromkeys(node.kind for node in graph.nodes))
        of = np.array([kinds.index(node.kind) for node in graph.nodes], dtype=np.int64)
        return _packed(axis, of[ends], kinds)
    found = levels(graph)
    if axis == "distance":
        gap = found.values[targets] - found.values[sources]
        both = found.placed[sources] & found.placed[targets]
        return _ordered(axis, np.where(both, gap, gap.max(initial=0) + 1), both, str)
    if axis.endswith("_level"):
        names = found.names()
        by_level = dict(zip(found.values.tolist(), names.tolist(), strict=True))
        last = int(found.values.max(initial=0)) + 1
        values = np.where(found.placed, found.values, last)[ends]
        return _ordered(axis, values, found.placed[ends], lambda v: by_level[v])
    low, high = found.span
    part = (found.values - low) * bins // max(high - low, 1)
    part = np.clip(part, 0, bins - 1)
    part = np.where(found.inner, part, np.where(found.values < 0, -1, bins))
    part = np.where(found.placed, part, bins + 1)

    def named(value: int) -> str:
        if value < 0:
            return "input"
        return (
            "output"
            if value == bins
            else f"{100 * value / bins:.0f}-{100 * (value + 1) / bins:.0f}%"
        )

    return _ordered(axis, part[ends], found.placed[ends], named)


def _packed(axis: str, codes: NDArray[np.int64], names: list[str]) -> EdgeGroups:
    present, packed = np.unique(codes, return_inverse=True)
    return EdgeGroups(axis=axis, names=tuple(names[i] for i in present.tolist()), codes=packed)


def _ordered(
    axis: str, values: NDArray[np.int64], placed: NDArray[np.bool_], named: Callable[[int], str]
) -> EdgeGroups:
    present, codes = np.unique(values, return_inverse=True)
    missing = set(values[~placed].tolist())
    names = tuple("none" if v in missing else named(v) for v in present.tolist())
    return EdgeGroups(axis=axis, names=names, codes=codes)
