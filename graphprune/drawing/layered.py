"""Places for nodes and edges of a graph that flows one way, in inches on a page.

Information flows along the page (upwards, or to the right) in rows; a row is a layer, or part of
one where its nodes read one another or do not fit beside each other. An edge takes a place of its
own in every row that it passes, so that no edge runs under a node (Sugiyama's method). Within rows,
nodes and edges move towards what they are connected with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graphprune.drawing.content import Content

Points = list[tuple[float, float]]
SWEEPS = 60
NODE_GAP, LANE = 0.09, 0.035
"""Inches between two nodes of a row, and between two edges that pass it."""
ROW_GAP, LEAST_GAP, MOST_GAP = 0.17, 0.11, 0.42


@dataclass(frozen=True)
class Box:
    """A node's middle and size: ``across`` the flow and ``along`` it."""

    across: float
    along: float
    width: float
    length: float


@dataclass(frozen=True)
class Band:
    """A layer's stretch along the flow."""

    layers: tuple[int, int]
    low: float
    high: float


@dataclass(frozen=True)
class Layered:
    """Boxes of the nodes, and for each edge the points of a chain of cubic Bezier curves."""

    boxes: tuple[Box, ...]
    paths: tuple[Points, ...]
    bands: tuple[Band, ...]
    width: float
    length: float

    def trimmed(self) -> Layered:
        """The same without empty margins across the flow."""
        places = [box.across + side * box.width / 2 for box in self.boxes for side in (-1, 1)]
        places += [x for path in self.paths for x, _ in path]
        low, high = min(places, default=0.0) - 0.05, max(places, default=0.0) + 0.05
        boxes = tuple(replace(box, across=box.across - low) for box in self.boxes)
        paths = tuple([(x - low, y) for x, y in path] for path in self.paths)
        return replace(self, boxes=boxes, paths=paths, width=high - low)


# -------------------------------------------------------------------- rows


def rows_of(shown: Content, sizes: Sequence[tuple[float, float]], limit: float) -> NDArray[np.int_]:
    """``[n]``: the row of each node; wide rows are divided so that each fits within ``limit``.

    ``sizes`` are each node's inches across and along the flow.
    """
    keys = _keys(shown)
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    rows = np.zeros(len(keys), dtype=np.int64)
    row = 0
    for key in sorted(members):
        group = sorted(members[key], key=lambda i: (shown.nodes[i].index or 0, i))
        room = sum(sizes[i][0] + NODE_GAP for i in group)
        parts = min(max(1, int(np.ceil(room / limit))), len(group))
        for part in np.array_split(group, parts):
            rows[part] = row
            row += 1
    return rows


def _keys(shown: Content) -> list[tuple[int, int]]:
    """A layer and a depth within it for each node, so that every edge leads to a greater one."""
    count = len(shown.nodes)
    before: dict[int, list[int]] = {node: [] for node in range(count)}
    for edge in shown.edges:
        before[edge.target].append(edge.source)
    order = [*TopologicalSorter(before).static_order()]
    sending = {edge.source for edge in shown.edges}
    layer: list[int] = [0] * count
    for i in order:
        own = shown.nodes[i].layers
        if own is not None:
            # A chain of MLPs stands in the first layer that has all it reads below.
            inner = [layer[j] for j in before[i] if shown.nodes[j].layers is not None]
            layer[i] = max([own[0], *inner]) if own[1] > own[0] else own[0]
    known = [layer[i] for i in range(count) if shown.nodes[i].layers is not None]
    for i in order:
        if shown.nodes[i].layers is None:
            lowest = min(known, default=0) - 1
            layer[i] = max([layer[j] + 1 for j in before[i]], default=lowest) if known else 0
            if known and i not in sending and before[i]:
                layer[i] = max(layer[i], max(known) + 1)
    if any(layer[j] > layer[i] for i in order for j in before[i]):  # layers that are no order
        layer = [0] * count
    depth = [0] * count
    for i in order:
        depth[i] = max((depth[j] + 1 for j in before[i] if layer[j] == layer[i]), default=0)
    return list(zip(layer, depth, strict=True))


# -------------------------------------------------------------------- places


def layered(
    shown: Content,
    sizes: Sequence[tuple[float, float]],
    port_of: Callable[[int, str], float | None],
    width: float,
    most_length: float | None = None,
) -> Layered:
    """Places everything on a page ``width`` inches across.

    Args:
        shown: nodes and edges; no edge may close a cycle.
        sizes: each node's inches across and along the flow.
        port_of: how far from a node's middle, across, an edge of a kind ends; ``None`` means
            anywhere.
        width: inches across that there are.
        most_length: inches along; gaps between rows shrink to fit, down to a least.
    """
    rows = rows_of(shown, sizes, width)
    n_rows = int(rows.max(initial=-1)) + 1
    # Every row that an edge passes has an item for it; items are nodes first, then these.
    item_row, item_width = list(rows), [size[0] for size in sizes]
    chains: list[list[int]] = []
    for edge in shown.edges:
        low, high = int(rows[edge.source]), int(rows[edge.target])
        passed = range(low + 1, high)
        first = len(item_row)
        item_row += passed
        item_width += [0.0] * len(passed)
        chains.append([edge.source, *range(first, first + len(passed)), edge.target])
    across = _across(
        np.array(item_row, dtype=np.int64), np.array(item_width), chains, shown, n_rows, width
    )
    lengths = [
        max((sizes[i][1] for i in np.flatnonzero(rows == row).tolist()), default=0.0)
        for row in range(n_rows)
    ]
    along = _along(lengths, rows, chains, np.array(item_row), across, most_length)
    boxes = tuple(Box(float(across[i]), along[rows[i]], *sizes[i]) for i in range(len(shown.nodes)))
    paths = _paths(shown, boxes, chains, item_row, across, along, lengths, port_of)
    total = along[-1] + lengths[-1] / 2 if n_rows else 0.0
    return Layered(boxes, tuple(paths), _bands(shown, rows, along, lengths), width, total)


def free_places(
    shown: Content, widths: Sequence[float], gap: float
) -> tuple[NDArray[np.float64], NDArray[np.int_]]:
    """``[n]`` places across the flow and rows, for a page of any size whose edges need no lanes.

    ``widths`` and ``gap`` have the unit of the places.
    """
    scale = NODE_GAP / gap
    rows = rows_of(shown, [(0.0, 0.0)] * len(widths), 1e9)
    width = np.array(widths, dtype=np.float64) * scale
    n_rows = int(rows.max(initial=-1)) + 1
    longest = max((float((width[rows == r] + NODE_GAP).sum()) for r in range(n_rows)), default=0.0)
    limit = max(longest, 6 * float(width.max(initial=0.0)))
    chains = [[edge.source, edge.target] for edge in shown.edges]
    return _across(rows, width, chains, shown, n_rows, limit, hold=0.6) / scale, rows


def _across(
    row: NDArray[np.int64],
    width: NDArray[np.float64],
    chains: list[list[int]],
    shown: Content,
    n_rows: int,
    limit: float,
    hold: float = 0.0,
) -> NDArray[np.float64]:
    """``[items]``: each as near to its neighbours as the others of its row allow.

    Heads are drawn towards where their number is on the page, with ``hold`` of their edges' force.
    """
    from scipy.sparse import csr_array

    count, n_nodes = len(row), len(shown.nodes)
    if not count:
        return np.zeros(0)
    pairs = [(a, b) for chain in chains for a, b in pairwise(chain)]
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    # Long edges run straight: their own items pull each other harder than nodes do.
    straight = (ends >= n_nodes).sum(1)
    pull = np.array([1.0, 2.0, 8.0])[straight]
    both = (np.concatenate([ends[:, 0], ends[:, 1]]), np.concatenate([ends[:, 1], ends[:, 0]]))
    near = csr_array((np.concatenate([pull, pull]), both), shape=(count, count))
    total = np.asarray(near.sum(1)).reshape(-1)
    home, held = np.full(count, limit / 2), np.full(count, 0.05)
    most = max((node.index or 0 for node in shown.nodes), default=0)
    for i, node in enumerate(shown.nodes):
        if node.index is not None and most:
            home[i] = limit * (0.1 + 0.8 * node.index / most)
            held[i] = max(0.4, hold * total[i])
    x = home.copy()
    for i, chain in enumerate(chains):
        inner = len(chain) - 2
        for place, item in enumerate(chain[1:-1]):
            share = (place + 1) / (inner + 1)
            x[item] = (1 - share) * x[chain[0]] + share * x[chain[-1]] + 1e-4 * i
    members = [np.flatnonzero(row == number) for number in range(n_rows)]
    for sweep in range(SWEEPS):
        for group in members if sweep % 2 else reversed(members):
            wish = (near[group] @ x + held[group] * home[group]) / (total[group] + held[group])
            order = group[np.argsort(wish, kind="stable")]
            x[order] = _spaced(np.sort(wish), width[order], limit)
    return x


def _spaced(
    wish: NDArray[np.float64], width: NDArray[np.float64], limit: float
) -> NDArray[np.float64]:
    """Places nearest to ``wish``, in this order, with nodes apart and all within the page."""
    from scipy.optimize import isotonic_regression

    wide = width > 0
    gap = np.where(wide[1:] & wide[:-1], NODE_GAP, np.where(wide[1:] | wide[:-1], 0.06, LANE))
    room = float(width.sum())
    gap *= min(1.0, max(limit - room, 0.0) / max(float(gap.sum()), 1e-9))
    steps = np.concatenate([[0.0], np.cumsum((width[1:] + width[:-1]) / 2 + gap)])
    placed = isotonic_regression(wish - steps).x
    low, high = width[0] / 2, limit - width[-1] / 2 - steps[-1]
    return np.asarray(np.clip(placed, low, max(low, high)) + steps)


def _along(
    lengths: list[float],
    rows: NDArray[np.int_],
    chains: list[list[int]],
    item_row: NDArray[np.int_],
    across: NDArray[np.float64],
    most: float | None,
) -> list[float]:
    """The middle of each row: rows stand further apart where more edges turn between them."""
    turning = np.zeros(len(lengths))
    for chain in chains:
        for a, b in pairwise(chain):
            turning[item_row[a]] += min(abs(across[a] - across[b]), 1.0)
    gaps = np.clip(ROW_GAP + 0.018 * turning, ROW_GAP, MOST_GAP)[: max(len(lengths) - 1, 0)]
    if most is not None and len(gaps):
        room = (most - sum(lengths)) / float(gaps.sum())
        gaps = np.maximum(gaps * min(1.0, room), LEAST_GAP)
    middles, edge = [], 0.0
    for i, length in enumerate(lengths):
        middles.append(edge + length / 2)
        edge += length + (float(gaps[i]) if i < len(gaps) else 0.0)
    return middles


# -------------------------------------------------------------------- edges


def _paths(
    shown: Content,
    boxes: tuple[Box, ...],
    chains: list[list[int]],
    item_row: list[int],
    across: NDArray[np.float64],
    along: list[float],
    lengths: list[float],
    port_of: Callable[[int, str], float | None],
) -> list[Points]:
    leaving: dict[int, list[tuple[float, int]]] = defaultdict(list)
    arriving: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for i, chain in enumerate(chains):
        leaving[chain[0]].append((float(across[chain[1]]), i))
        if port_of(chain[-1], shown.edges[i].kind) is None:
            arriving[chain[-1]].append((float(across[chain[-2]]), i))
    starts, ends = _fanned(leaving, boxes), _fanned(arriving, boxes)
    paths = []
    for i, chain in enumerate(chains):
        source, target = boxes[chain[0]], boxes[chain[-1]]
        port = port_of(chain[-1], shown.edges[i].kind)
        end = ends[i] if port is None else target.across + port
        points: Points = [(starts[i], source.along + source.length / 2)]
        stops: Points = []
        for item in chain[1:-1]:
            row = item_row[item]
            half, x = lengths[row] / 2, float(across[item])
            stops += [(x, along[row] - half), (x, along[row] + half)]
        for stop in [*stops, (end, target.along - target.length / 2)]:
            (x0, y0), (x1, y1) = points[-1], stop
            reach = (y1 - y0) * 0.5
            points += [(x0, y0 + reach), (x1, y1 - reach), (x1, y1)]
        paths.append(points)
    return paths


def _fanned(
    touching: dict[int, list[tuple[float, int]]], boxes: tuple[Box, ...]
) -> dict[int, float]:
    """The place at which each edge meets its node: side by side, in the order of where they go."""
    out: dict[int, float] = {}
    for node, edges in touching.items():
        box = boxes[node]
        step = min(0.05, 0.7 * box.width / max(len(edges) - 1, 1))
        for place, (_, edge) in enumerate(sorted(edges)):
            out[edge] = box.across + (place - (len(edges) - 1) / 2) * step
    return out


def _bands(
    shown: Content, rows: NDArray[np.int_], along: list[float], lengths: list[float]
) -> tuple[Band, ...]:
    """The stretch of each layer; one whose nodes all stand in a chain has the chain's layers."""
    of_row: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for node, row in zip(shown.nodes, rows.tolist(), strict=True):
        if node.layers is not None:
            of_row[row].append(node.layers)
    bands: list[Band] = []
    for row in sorted(of_row):
        own = [layers for layers in of_row[row] if layers[0] == layers[1]]
        layers = own[0] if own else of_row[row][0]
        low, high = along[row] - lengths[row] / 2, along[row] + lengths[row] / 2
        if bands and bands[-1].layers == layers:
            low = bands.pop().low
        bands.append(Band(layers, low, high))
    return tuple(bands)
