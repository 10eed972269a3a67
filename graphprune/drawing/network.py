"""Drawings of graphs that flow in circles, as graph networks do: nodes as discs, every edge drawn.

Kept edges are solid, cut ones pale and dashed; an edge that is kept one way only has an arrow.
Colours of nodes are their classes, or their degrees. A graph too large to be read node by node
gets a summary instead (:mod:`graphprune.drawing.summary`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.core.graph import ComputationalGraph
from graphprune.drawing.content import edge_strengths
from graphprune.drawing.key import LINE, KeyEntry, draw_key, edge_width, key_lines, short_number
from graphprune.drawing.places import network_places, separated
from graphprune.drawing.sheets import MARGIN, draw_heading, new_sheet
from graphprune.drawing.styles import (
    CLASSES,
    CUT,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    SMALL,
    shortened,
    text_width,
    wrapped,
)
from graphprune.drawing.subject import CircuitLike
from graphprune.drawing.summary import draw_summary
from graphprune.errors import InputError

NodeColours = Mapping[str, Any] | Sequence[Any] | None
MOST_NODES, MOST_PAIRS = 250, 1200
"""Beyond either a graph is summarised."""
SMALL_GRAPH = 80
DEGREE_FILLS = ("#F7FBEF", "#D5EBC2", "#A3D39C", "#5FB37A", "#2B8A57")


def flows_one_way(graph: ComputationalGraph) -> bool:
    """``True`` if the graph is drawn in rows: no cycles, and layers or few nodes."""
    layers = any(node.layer is not None for node in graph.nodes)
    return graph.is_acyclic and (layers or graph.num_nodes <= SMALL_GRAPH)


@dataclass(frozen=True)
class Pair:
    """Everything between two nodes: how many edges there are and are kept, there and back."""

    ends: tuple[int, int]
    edges: tuple[int, int]
    kept: tuple[int, int]
    score: float | None
    strength: float


def draw_network(circuit: CircuitLike, width: float, title: str, node_colours: NodeColours) -> Any:
    """The figure, ``width`` inches wide."""
    graph = circuit.graph
    pairs = _pairs(circuit)
    fills, colour_key = node_colouring(graph, node_colours)
    if graph.num_nodes > MOST_NODES or len(pairs) > MOST_PAIRS:
        return draw_summary(circuit, width, title, _classes(graph, node_colours))
    inner = width - 2 * MARGIN
    names = [node.name for node in graph.nodes]
    radius = _radius(names, inner)
    height = inner * (0.85 if graph.num_nodes > 12 else 0.6)
    places = network_places(graph.num_nodes, [pair.ends for pair in pairs])
    places = separated(places, 2 * radius + 0.035, (inner, height))
    height = max(height, float(places[:, 1].max(initial=0.0)) + radius)
    words = _counts(circuit, graph).split()
    heading = wrapped(words, SMALL, inner)
    key = key_lines([*_edge_key(circuit, pairs), *colour_key], inner)
    bottom, top = LINE * len(key) + 0.2, 0.32 + LINE * len(heading)
    figure, axes = new_sheet(width, bottom + height + top)
    draw_heading(axes, width, bottom + height + top, title, heading)
    places = places + np.array([MARGIN, bottom])
    largest = max((pair.strength for pair in pairs), default=0.0) or 1.0
    thin = float(np.clip(3.2 * inner / max(len(pairs), 1) ** 0.5, 0.5, 1.0))
    for pair in sorted(pairs, key=lambda pair: (max(pair.kept) > 0, pair.strength)):
        _draw_pair(axes, pair, places, radius, largest, thin)
    _draw_nodes(axes, names, places, radius, fills)
    draw_key(axes, key, MARGIN, LINE * len(key) + 0.04, inner)
    return figure


def _pairs(circuit: CircuitLike) -> list[Pair]:
    graph = circuit.graph
    kept = circuit.mask.kept.tolist()
    strength = edge_strengths(circuit).tolist()
    scores = None if circuit.scores is None else circuit.scores.values.tolist()
    members: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    edge_of = graph.per_message(torch.arange(graph.num_edges)).tolist()
    for i, (u, v) in zip(edge_of, graph.untied.edge_index.T.tolist(), strict=True):
        members[min(u, v), max(u, v)].append((i, int(u > v)))
    pairs = []
    for ends, between in members.items():
        there, back = ([i for i, way in between if way == side] for side in (0, 1))
        counted = sorted({i for i, _ in between if kept[i]})
        pairs.append(
            Pair(
                ends,
                (len(there), len(back)),
                (sum(kept[i] for i in there), sum(kept[i] for i in back)),
                None if scores is None else sum(scores[i] for i in counted),
                sum(strength[i] for i in counted),
            )
        )
    return pairs


def _counts(circuit: CircuitLike, graph: ComputationalGraph) -> str:
    kept = circuit.mask.num_kept
    share = kept / graph.num_edges if graph.num_edges else 0.0
    total = f"{graph.num_edges} {graph.counted}"
    return f"{kept} of {total} kept ({share:.0%}), {graph.num_nodes} nodes"


def _radius(names: Sequence[str], width: float) -> float:
    """Inches: so that names fit where there are few nodes, smaller where there are many."""
    if len(names) <= 60:
        longest = max((text_width(name, SMALL) for name in names), default=0.0)
        return float(min(max(0.1, longest / 2 + 0.025), 0.24 * min(1.0, 6 / len(names) ** 0.5)))
    return float(np.clip(0.16 * width / len(names) ** 0.5, 0.03, 0.09))


# -------------------------------------------------------------------- colours


def _classes(graph: ComputationalGraph, given: NodeColours) -> list[str] | None:
    """A class for each node, or ``None`` where none are given or told by kinds."""
    if given is None:
        kinds = [node.kind for node in graph.nodes]
        return kinds if len(set(kinds)) > 1 else None
    if isinstance(given, Mapping):
        return [str(given.get(node.name, "none")) for node in graph.nodes]
    values = [getattr(value, "item", lambda value=value: value)() for value in given]
    if len(values) != graph.num_nodes:
        raise InputError(
            f"node_colours needs one class for each of the {graph.num_nodes} nodes, got "
            f"{len(values)}"
        )
    return [str(value) for value in values]


def node_colouring(
    graph: ComputationalGraph, given: NodeColours
) -> tuple[list[str], list[KeyEntry]]:
    """A fill for each node, by class where there are classes, else by degree; and their key."""
    classes = _classes(graph, given)
    if classes is not None:
        known = sorted(set(classes), key=lambda name: (len(name), name))
        fill = {name: CLASSES[i % len(CLASSES)] for i, name in enumerate(known)}
        # Further classes than there are fills share a colour, which the key must not hide.
        shown = known if len(known) <= len(CLASSES) else known[: len(CLASSES) - 1]
        entries = [KeyEntry("disc", f"class {n}" if n.isdigit() else n, fill[n]) for n in shown]
        if len(shown) < len(known):
            entries.append(KeyEntry("text", f"and {len(known) - len(shown)} more classes"))
        return [fill[name] for name in classes], entries
    degree = np.bincount(graph.edge_index.numpy().reshape(-1), minlength=graph.num_nodes)
    low, high = int(degree.min(initial=10**9)) + 1, int(degree.max(initial=1)) + 1
    ranks = np.geomspace(min(low, high), high, len(DEGREE_FILLS) + 1)  # as degrees are spread
    bins = np.clip(np.searchsorted(ranks, degree + 1, "right") - 1, 0, len(DEGREE_FILLS) - 1)
    ends = {int(b): (int(degree[bins == b].min()), int(degree[bins == b].max())) for b in set(bins)}
    entries = [
        KeyEntry("disc", f"{low}" if low == high else f"{low} to {high}", DEGREE_FILLS[b])
        for b, (low, high) in sorted(ends.items())
    ]
    return [DEGREE_FILLS[b] for b in bins], [KeyEntry("text", "degree in the graph:"), *entries]


# -------------------------------------------------------------------- pens


def _edge_key(circuit: CircuitLike, pairs: Sequence[Pair]) -> list[KeyEntry]:
    entries = []
    kept = [pair for pair in pairs if any(pair.kept)]
    if circuit.scores is None:
        entries.append(KeyEntry("line", "kept edge", NEUTRAL))
    else:
        signs = {(pair.score or 0.0) < 0 for pair in kept}
        if False in signs:
            entries.append(KeyEntry("line", "kept, positive score", POSITIVE))
        if True in signs:
            entries.append(KeyEntry("line", "kept, negative score", NEGATIVE))
        largest = max((pair.strength for pair in pairs), default=0.0)
        entries.append(KeyEntry("widths", f"|score|, up to {short_number(largest)}"))
    if len(kept) < len(pairs):
        entries.append(KeyEntry("dash", "cut", CUT))
    if any(_one_way(pair) for pair in kept):
        entries.append(KeyEntry("text", "arrow: kept one way only"))
    return entries


def _one_way(pair: Pair) -> bool:
    return bool(pair.kept[0]) != bool(pair.kept[1]) and pair.ends[0] != pair.ends[1]


def _draw_pair(
    axes: Any,
    pair: Pair,
    places: NDArray[np.float64],
    radius: float,
    largest: float,
    thin: float,
) -> None:
    from matplotlib.patches import Circle, FancyArrowPatch
    from matplotlib.path import Path as Curve

    start, end = places[pair.ends[0]], places[pair.ends[1]]
    share = pair.strength / largest
    colour = NEUTRAL
    if pair.score is not None:
        colour = POSITIVE if pair.score >= 0 else NEGATIVE
    style: dict[str, Any] = {"color": colour, "linewidth": thin * (0.2 + 0.75 * edge_width(share))}
    style |= {"alpha": 0.85, "zorder": 3}
    if not any(pair.kept):
        style = {"color": CUT, "linewidth": 0.6, "linestyle": (0, (2.5, 1.5)), "zorder": 2}
    if pair.ends[0] == pair.ends[1]:
        style["edgecolor"] = style.pop("color")
        ring = Circle((start[0], start[1] + radius * 1.25), radius * 0.75, fill=False, **style)
        axes.add_patch(ring)
        return
    if pair.kept[1] and not pair.kept[0]:
        start, end = end, start
    curve = _around(start, end, np.delete(places, list(pair.ends), axis=0), radius)
    axes.add_patch(
        FancyArrowPatch(
            path=Curve([tuple(p) for p in curve], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]),
            arrowstyle="-|>" if _one_way(pair) else "-",
            mutation_scale=(4.5 + style["linewidth"]) * thin**0.5,
            shrinkA=0, shrinkB=0, joinstyle="miter", capstyle="butt", **style,
        )
    )  # fmt: skip


def _around(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    others: NDArray[np.float64],
    radius: float,
) -> NDArray[np.float64]:
    """``[3, 2]``: a quadratic curve from disc to disc, bent where it would run under a third."""
    step = end - start
    side = np.array([-step[1], step[0]])
    t = np.linspace(0, 1, 33)[:, None]
    best, fewest = None, np.inf
    for bend in (0.0, 0.15, -0.15, 0.35, -0.35, 0.6, -0.6):
        middle = (start + end) / 2 + bend * side
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        gaps = np.hypot(*(points[:, None] - others[None]).transpose(2, 0, 1))
        hits = int((gaps < radius * 1.1).any(0).sum())
        if hits < fewest:
            best, fewest = middle, hits
    assert best is not None
    ends = []
    for centre in (start, end):
        along = best - centre
        ends.append(centre + along / max(float(np.hypot(*along)), 1e-9) * radius)
    return np.array([ends[0], best, ends[1]])


def _draw_nodes(
    axes: Any,
    names: Sequence[str],
    places: NDArray[np.float64],
    radius: float,
    fills: Sequence[str],
) -> None:
    from matplotlib.patches import Circle

    for name, place, fill in zip(names, places, fills, strict=True):
        axes.add_patch(
            Circle(tuple(place), radius, facecolor=fill, edgecolor="#444444", linewidth=0.5,
                   zorder=5)
        )  # fmt: skip
        if len(names) <= 60:
            label = shortened(name, SMALL, 2 * radius)
            axes.text(*place, label, ha="center", va="center_baseline", fontsize=SMALL, zorder=6)
