"""2-D positions of the nodes of a graph with cycles: neighbours close, no two nodes overlapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import networkx as nx

Places = NDArray[np.float64]
MOST_EXACT = 160
"""Nodes up to which distances on the page follow those in the graph for all pairs of nodes."""


def network_places(count: int, pairs: Sequence[tuple[int, int]]) -> Places:
    """``[n, 2]`` places of any scale; parts that no edge joins stand beside each other."""
    import networkx as nx

    if not count:
        return np.zeros((0, 2))
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pair for pair in pairs if pair[0] != pair[1])
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    layouts = [_component(graph.subgraph(part), sorted(part)) for part in parts]
    sizes = np.array([np.ptp(own, axis=0) + 1.0 for own in layouts])  # with a gap of one unit
    # Parts fill shelves from the left, in a block about as wide as high.
    widest = max(float(sizes[:, 0].max()), float(sizes.prod(1).sum()) ** 0.5)
    places = np.zeros((count, 2))
    left, shelf, depth = 0.0, 0.0, 0.0
    for part, own, (width, height) in zip(parts, layouts, sizes.tolist(), strict=True):
        if left + width > widest + 1e-9:
            left, shelf, depth = 0.0, shelf - depth, 0.0
        places[sorted(part)] = own - own.min(0) + [left, shelf - height]
        left, depth = left + width, max(depth, height)
    return places


def _component(part: nx.Graph[int], members: list[int]) -> Places:
    """Places of one connected part, about one unit from neighbour to neighbour."""
    import networkx as nx

    if len(members) == 1:
        return np.zeros((1, 2))
    if len(members) <= MOST_EXACT:
        layout = nx.kamada_kawai_layout(part)
        own = np.array([layout[number] for number in members], dtype=np.float64)
    else:
        own = _pivoted(nx.to_scipy_sparse_array(part, nodelist=members))
    spread = float(np.ptp(own, axis=0).max()) or 1.0
    return np.asarray(own / spread * 1.3 * len(members) ** 0.5)


def _pivoted(adjacency: Any) -> Places:
    """Places whose distances follow those to 50 pivots, each far from those before (pivot MDS).

    Source: Brandes and Pich, "Eigensolver methods for progressive multidimensional scaling of large
    data", 2006.
    """
    from scipy.sparse.csgraph import shortest_path

    nearest = np.full(adjacency.shape[0], np.inf)
    columns, pivot = [], 0
    for _ in range(min(50, adjacency.shape[0])):
        columns.append(shortest_path(adjacency, unweighted=True, indices=pivot))
        nearest = np.minimum(nearest, columns[-1])
        pivot = int(nearest.argmax())
    squares = np.array(columns).T ** 2
    centred = squares - squares.mean(0) - squares.mean(1, keepdims=True) + squares.mean()
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:2].T
    # Leaves of one node have one place: a little noise lets them be pushed apart.
    noise = np.random.default_rng(0).normal(0, 1e-2, projected.shape)
    projected = projected + noise * projected.std(0)
    # Halfway to even spacing: a dense middle and a few long arms both stay readable.
    even = projected.argsort(0).argsort(0) / len(projected)
    return np.asarray((projected - projected.min(0)) / np.ptp(projected, axis=0) + even)


def separated(
    places: Places, distance: float, size: tuple[float, float], *, grow: bool = False
) -> Places:
    """The places scaled into a page of ``size`` with no two nearer than ``distance``.

    Where there is no room for all, the page grows: with ``grow`` in both directions, else upwards,
    into rows of a grid.
    """
    count = len(places)
    if not count:
        return places
    width, height = size
    height = max(height, 1.6 * distance * float(np.ceil(count / max(int(width / distance), 1))))
    span, low = np.ptp(places, axis=0), places.min(0)
    flat = span < 1e-9  # a single node, or all in a line: in the middle
    shares = (places - np.where(flat, low - 0.5, low)) / np.where(flat, 1.0, span)
    for factor in (1.0, 1.5, 2.25, 3.4) if grow else (1.0,):
        room = factor * np.array([width, height])
        pushed = _pushed(shares * (room - distance) + distance / 2, distance, room)
        if pushed is not None:
            return pushed
    return _grid(shares, distance, width)


def _pushed(places: Places, distance: float, room: Places) -> Places | None:
    """The places once all that were too near have pushed each other; ``None`` without an end."""
    from scipy.spatial import KDTree

    out = places + np.random.default_rng(0).normal(0, 1e-3 * distance, places.shape)
    for _ in range(300):
        close = KDTree(out).query_pairs(distance, output_type="ndarray")
        if not len(close):
            return out
        step = out[close[:, 0]] - out[close[:, 1]]
        gap = np.hypot(*step.T)
        push = step * ((distance * 1.02 - gap) / 2 / np.maximum(gap, 1e-9))[:, None]
        np.add.at(out, close[:, 0], push)
        np.add.at(out, close[:, 1], -push)
        out = np.clip(out, distance / 2, room - distance / 2)
    return None


def _grid(places: Places, distance: float, width: float) -> Places:
    """Rows of a grid in the order of the places, where pushing found no room."""
    columns = max(int(width / distance), 1)
    out = np.zeros_like(places)
    order = np.argsort(places[:, 1], kind="stable")
    for row, start in enumerate(range(0, len(order), columns)):
        members = order[start : start + columns]
        members = members[np.argsort(places[members, 0], kind="stable")]
        out[members, 0] = distance * (np.arange(len(members)) + 0.5)
        out[members, 1] = distance * (row + 0.5)
    return out
