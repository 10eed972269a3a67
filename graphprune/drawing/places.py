"""Places for the nodes of a graph that flows in circles: near their neighbours, apart from all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["apart", "network_places"]

Places = NDArray[np.float64]
EXACT = 160
"""Up to that many nodes distances on the page follow those in the graph, all pairs of them."""


def network_places(count: int, pairs: Sequence[tuple[int, int]]) -> Places:
    """``[n, 2]`` places of any scale; parts that no edge joins stand beside each other."""
    import networkx as nx

    if not count:
        return np.zeros((0, 2))
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pair for pair in pairs if pair[0] != pair[1])
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    places = np.zeros((count, 2))
    left, shelf, depth, widest = 0.0, 0.0, 0.0, 0.0
    for part in parts:
        members = sorted(part)
        own = _component(graph.subgraph(members), members)
        size = np.ptp(own, axis=0) if len(members) > 1 else np.zeros(2)
        if left and left + size[0] > widest:  # the next shelf
            left, shelf, depth = 0.0, shelf - depth - 1.0, 0.0
        places[members] = own - own.min(0) + [left, shelf - size[1]]
        left += float(size[0]) + 1.0
        depth, widest = max(depth, float(size[1])), max(widest, left)
    return places


def _component(part: object, members: list[int]) -> Places:
    """Places of one connected part, about one unit from neighbour to neighbour."""
    import networkx as nx

    if len(members) == 1:
        return np.zeros((1, 2))
    if len(members) <= EXACT:
        found = nx.kamada_kawai_layout(part)
    else:
        found = nx.spring_layout(part, seed=0, iterations=120, k=1.6 / len(members) ** 0.5)
    own = np.array([found[number] for number in members], dtype=np.float64)
    spread = float(np.ptp(own, axis=0).max()) or 1.0
    return own / spread * 1.3 * len(members) ** 0.5


def apart(places: Places, distance: float, size: tuple[float, float]) -> Places:
    """The places scaled into a page of ``size`` inches with no two nearer than ``distance``.

    The page grows upwards where it has no room for all.
    """
    count = len(places)
    if not count:
        return places
    width, height = size
    rows = max(int(width / distance), 1)
    height = max(height, 1.6 * distance * np.ceil(count / rows))
    middle = distance / 2
    span, low = np.ptp(places, axis=0), places.min(0)
    flat = span < 1e-9  # a single node, or all in a line: in the middle
    low, span = np.where(flat, low - 0.5, low), np.where(flat, 1.0, span)
    room = np.array([width - distance, height - distance])
    out = (places - low) / span * room + middle
    if np.ptp(places, axis=0).min() < 1e-9:
        out[:, np.ptp(places, axis=0) < 1e-9] = (
            np.array([width, height])[np.ptp(places, axis=0) < 1e-9] / 2
        )
    rng = np.random.default_rng(0)
    out += rng.normal(0, 1e-4, out.shape)
    for _ in range(600):
        step = out[:, None] - out[None]
        gap = np.hypot(step[..., 0], step[..., 1])
        np.fill_diagonal(gap, np.inf)
        close = gap < distance
        if not close.any():
            return out
        push = np.where(close, (distance * 1.02 - gap) / 2, 0.0) / np.maximum(gap, 1e-9)
        out = out + (push[..., None] * step).sum(1)
        out = np.clip(out, middle, np.array([width, height]) - middle)
    return _grid(out, distance, width)


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
