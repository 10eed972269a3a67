"""Curves for the edges of a drawing that pass beside the nodes in between, not under them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graphprune.drawing.layout import DrawnNode, Picture

__all__ = ["Points", "route"]

Points = list[tuple[float, float]]
_CLEAR, _SLOT, _SLOTS = 0.07, 0.05, 10


def route(
    shown: Picture, width: float, height: float, port: Callable[[DrawnNode, str], float]
) -> list[Points]:
    """For each edge the points of a chain of cubic Bezier curves (1 + 3n points).

    ``width`` and ``height`` are a node's; ``port(node, kind)`` says how far from the middle of its
    target an edge of that kind ends. Beyond 600 edges the curves run straight through.
    """
    if not shown.layered:
        return [_direct(shown, i, width, height) for i in range(len(shown.edges))]
    rows = _row_table(shown.nodes)
    used: dict[tuple[int, int, bool], int] = defaultdict(int)
    tries = 24 if len(shown.edges) <= 600 else 0
    paths = []
    for edge in shown.edges:
        source, target = shown.nodes[edge.source], shown.nodes[edge.target]
        start = (source.x, source.y + height / 2)
        end = (target.x + port(target, edge.kind), target.y - height / 2)
        stops = [start, end]
        for _ in range(tries):
            hit = _first_hit(stops, rows, width, height, round(source.y), round(target.y))
            if hit is None:
                break
            row, place, x = hit
            middle = float(rows[row, place])
            right = x >= middle
            slot = used[row, place, right] % _SLOTS
            used[row, place, right] += 1
            aside = width / 2 + _CLEAR + _SLOT * slot
            stops.append((middle + (aside if right else -aside), float(row)))
            stops.sort(key=lambda point: point[1])
        paths.append(_curve(stops, height))
    return paths


def _row_table(nodes: tuple[DrawnNode, ...]) -> NDArray[np.float64]:
    """``[rows, most nodes of a row]``: the x of every node, NaN where a row has fewer."""
    rows: dict[int, list[float]] = defaultdict(list)
    for node in nodes:
        rows[round(node.y)].append(node.x)
    longest = max(map(len, rows.values()), default=0)
    table = np.full((max(rows, default=-1) + 1, longest), np.nan)
    for row, xs in rows.items():
        table[row, : len(xs)] = sorted(xs)
    return table


def _curve(stops: Points, height: float) -> Points:
    """Vertical at every stop; straight along the height of a node that it passes."""
    anchors: Points = []
    for i, (x, y) in enumerate(stops):
        if i in (0, len(stops) - 1):
            anchors.append((x, y))
        else:
            anchors += [(x, y - height / 2), (x, y + height / 2)]
    points = anchors[:1]
    for (x0, y0), (x1, y1) in pairwise(anchors):
        reach = (y1 - y0) * 0.45
        points += [(x0, y0 + reach), (x1, y1 - reach), (x1, y1)]
    return points


def _first_hit(
    stops: Points, rows: NDArray[np.float64], width: float, height: float, low: int, high: int
) -> tuple[int, int, float] | None:
    """The lowest node that the curve crosses: its row, its place there, and where it is crossed."""
    samples = _samples(_curve(stops, height))
    row = np.rint(samples[:, 1]).astype(int)
    inside = (row > low) & (row < high) & (np.abs(samples[:, 1] - row) <= height / 2 + 0.03)
    inside &= ~np.isin(row, [round(y) for _, y in stops[1:-1]])
    samples, row = samples[inside], row[inside]
    crossed = np.abs(rows[row] - samples[:, :1]) < width / 2 + _CLEAR / 2
    if not crossed.any():
        return None
    first, place = np.argwhere(crossed)[0].tolist()
    same = crossed[:, place] & (row == row[first])
    return int(row[first]), place, float(samples[same, 0].mean())


def _samples(points: Points, count: int = 40) -> NDArray[np.float64]:
    t = np.linspace(0, 1, count)[:, None]
    pieces = []
    for i in range(0, len(points) - 1, 3):
        a, b, c, d = (np.array(p) for p in points[i : i + 4])
        pieces.append(
            (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        )
    return np.concatenate(pieces)


def _direct(shown: Picture, number: int, width: float, height: float) -> Points:
    """A slightly bent curve from border to border, so that u->v and v->u stay apart."""
    edge = shown.edges[number]
    source, target = shown.nodes[edge.source], shown.nodes[edge.target]
    if edge.source == edge.target:
        x, y = source.x, source.y + height / 2
        return [(x - 0.12, y), (x - 0.45, y + 0.5), (x + 0.45, y + 0.5), (x + 0.12, y)]
    a, d = np.array([source.x, source.y]), np.array([target.x, target.y])
    along = d - a
    across = np.array([-along[1], along[0]]) * 0.12
    b, c = a + along / 3 + across, a + along * 2 / 3 + across

    def border(centre: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
        step = towards - centre
        reach = np.max(np.abs(step) / np.array([width / 2, height / 2]))
        return centre + step / max(float(reach), 1e-9)

    return [(float(p[0]), float(p[1])) for p in (border(a, b), b, c, border(d, c))]
