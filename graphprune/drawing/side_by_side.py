"""Several circuits of one graph side by side: each node at one place in all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.scores import EdgeScores
from graphprune.drawing.content import Content, DrawnEdge, content, edge_strengths, strongest_edges
from graphprune.drawing.figure import Sheet, figure_path
from graphprune.drawing.key import LINE, KeyEntry, circuit_key, draw_key, edge_width, key_lines
from graphprune.drawing.network import flows_one_way
from graphprune.drawing.sheets import MARGIN, draw_heading, new_sheet, save_figure
from graphprune.drawing.styles import CM, OWN, SHARED, SMALL, drawing_settings, shortened, wrapped
from graphprune.drawing.subject import CircuitLike
from graphprune.errors import InputError

SOME = "#9A9A9A"
EDGES_THAT_FIT = 40


def plot_circuits(
    circuits: Mapping[str, CircuitLike],
    path: str | os.PathLike[str] | None = None,
    *,
    width: float = 18.0,
    max_edges: int | None = None,
    title: str = "",
    dpi: int = 200,
) -> Any:
    """A figure with a panel for each circuit: edges of all are dark, its own have its colour.

    Args:
        circuits: of one graph that flows one way, by the names that stand over the panels.
        path: an SVG, PNG or PDF file; one that stands there is replaced.
        width: of the whole figure, in centimetres.
        max_edges: of each circuit; beyond that many the strongest that leave no dead end, and those
            of its edges that are drawn of another circuit, unless they would be dead ends here.
        title: over all panels.
        dpi: dots per inch of a PNG.

    Example:
        >>> masks = {
        ...     "EAP": gp.EAP().score(lm, prompts).top(20),
        ...     "random": gp.Random().score(lm, prompts).top(20),
        ... }
        >>> figure = plot_circuits(
        ...     {name: gp.Circuit.from_mask(m) for name, m in masks.items()}, folder / "two.svg"
        ... )
        >>> [file.name for file in folder.iterdir()]
        ['two.svg']
    """
    named = list(circuits.values())
    if not 2 <= len(named) <= len(OWN):
        raise InputError(f"2 to {len(OWN)} circuits stand side by side, got {len(named)}")
    for circuit in named[1:]:
        require_same_graph(named[0].graph, circuit.graph, "circuits side by side")
    if not flows_one_way(named[0].graph):
        raise InputError(
            "circuits of a graph with cycles are not drawn side by side; draw each by circuit.plot"
        )
    target = None if path is None else figure_path(path)
    inches = width * CM
    with drawing_settings():
        sheet = Sheet("portrait", (inches - MARGIN) / len(named) - MARGIN)
        edges_each = EDGES_THAT_FIT if max_edges is None else max_edges
        shown, chosen = _union(named, edges_each)
        while max_edges is None and edges_each > 8 and not sheet.fits(shown):
            edges_each = int(edges_each * 0.85)
            shown, chosen = _union(named, edges_each)
        figure = _figure(
            dict(zip(circuits, named, strict=True)), shown, chosen, sheet, inches, title
        )
        save_figure(figure, target, dpi)
    return figure


@dataclass(frozen=True)
class _Edges:
    """A mask as something to be drawn."""

    graph: ComputationalGraph
    mask: EdgeMask
    scores: EdgeScores | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    def report_dict(self) -> dict[str, Any]:
        return {}


def _union(circuits: list[CircuitLike], max_edges: int) -> tuple[Content, list[Tensor]]:
    """Everything that some panel shows, and the edges that each does."""
    graph = circuits[0].graph
    shown = torch.zeros(graph.num_edges, dtype=torch.bool)
    for circuit in circuits:
        shown[strongest_edges(circuit, max_edges)] = True
    chosen = []
    for circuit in circuits:
        own = (shown & circuit.mask.kept).numpy()
        alive = graph.alive(own)  # what another circuit's edges would leave hanging is left out
        chosen.append(torch.from_numpy(np.flatnonzero(alive if alive.any() else own)))
    whole = _Edges(graph, EdgeMask(graph, shown.float()))
    return content(whole, torch.nonzero(shown)[:, 0], chains=False), chosen


def _figure(
    circuits: Mapping[str, CircuitLike],
    shown: Content,
    chosen: list[Tensor],
    sheet: Sheet,
    width: float,
    title: str,
) -> Any:
    laid = sheet.layout(shown)
    graph = next(iter(circuits.values())).graph
    having = sum(circuit.mask.kept.long() for circuit in circuits.values())
    assert isinstance(having, Tensor)
    inner = width - 2 * MARGIN
    entries = [KeyEntry("line", "in every circuit", SHARED)]
    if bool(((having > 1) & (having < len(circuits))).any()):
        entries.append(KeyEntry("line", "in some others", SOME))
    entries += [
        KeyEntry("line", f"in {name} alone", colour)
        for name, colour in zip(circuits, OWN, strict=False)
    ]
    entries += [entry for entry in circuit_key(shown) if entry.shape != "line"]
    entries.append(KeyEntry("text", "pale outline: a node of another circuit"))
    key = key_lines(entries, inner)
    statements = [
        wrapped(_statement(circuit, numbers, having, len(circuits)).split(), SMALL, sheet.width)
        for circuit, numbers in zip(circuits.values(), chosen, strict=True)
    ]
    bottom = LINE * len(key) + 0.16
    lines = max(map(len, statements))
    top = 0.3 + LINE * lines + (0.22 if title else 0.0)
    height = bottom + laid.length + top
    figure, axes = new_sheet(width, height)
    if title:
        draw_heading(axes, width, height, title, [])
    names = list(graph.edge_names.at(torch.cat(chosen).unique()))
    count = dict(zip(names, having[torch.cat(chosen).unique()].tolist(), strict=True))
    for i, (name, circuit) in enumerate(circuits.items()):
        left = MARGIN + i * (sheet.width + MARGIN)
        y = height - (0.24 if title else 0.03)
        axes.text(left, y, shortened(name, 8, sheet.width, bold=True), ha="left", va="top",
                  fontsize=8, weight="bold", color=OWN[i])  # fmt: skip
        for number, line in enumerate(statements[i]):
            axes.text(left, y - 0.16 - LINE * number, line, ha="left", va="top", fontsize=SMALL,
                      color="#333333")  # fmt: skip
        part, touched = _panel(shown, laid, circuit, chosen[i])
        place = _shifted(sheet.placed(bottom, laid, sheet.width), left - MARGIN)
        faint = frozenset(range(len(shown.nodes))) - touched
        sheet.fill(axes, part[0], part[1], place, _style(circuit, count, len(circuits), OWN[i]),
                   frozenset(faint))  # fmt: skip
    draw_key(axes, key, MARGIN, LINE * len(key) + 0.04, inner)
    return figure


def _statement(circuit: CircuitLike, numbers: Tensor, having: Tensor, circuits: int) -> str:
    """A sentence: what is shown of one circuit, and how many of its edges the others have too."""
    own = having[circuit.mask.kept]
    shared, alone = int((own == circuits).sum()), int((own == 1).sum())
    shown = content(circuit, numbers, chains=False).statement
    return f"{shown}. Of all: {shared} in every circuit, {alone} in this alone."


def _shifted(
    place: Callable[[float, float], tuple[float, float]], by: float
) -> Callable[[float, float], tuple[float, float]]:
    def shifted(across: float, along: float) -> tuple[float, float]:
        x, y = place(across, along)
        return x + by, y

    return shifted


def _panel(
    shown: Content, laid: Any, circuit: CircuitLike, numbers: Tensor
) -> tuple[tuple[Content, Any], set[int]]:
    """One circuit's share of the union, at the union's places."""
    from dataclasses import replace

    names = set(circuit.graph.edge_names.at(numbers))
    strength = dict(
        zip(
            circuit.graph.edge_names.at(numbers), edge_strengths(circuit)[numbers].tolist(),
            strict=True,
        )
    )  # fmt: skip
    own = [i for i, e in enumerate(shown.edges) if not e.wire and names & set(e.names)]
    touched = {end for i in own for end in (shown.edges[i].source, shown.edges[i].target)}
    own += [i for i, e in enumerate(shown.edges) if e.wire and {e.source, e.target} <= touched]
    edges = tuple(
        replace(shown.edges[i], strength=sum(strength.get(n, 0.0) for n in shown.edges[i].names))
        for i in own
    )
    part = replace(shown, edges=edges)
    return (part, replace(laid, paths=tuple(laid.paths[i] for i in own))), touched


def _style(
    circuit: CircuitLike, count: Mapping[str, int], circuits: int, colour: str
) -> Callable[[DrawnEdge], dict[str, Any]]:
    strengths = edge_strengths(circuit)[circuit.mask.kept]
    largest = float(strengths.max()) or 1.0 if len(strengths) else 1.0

    def style(edge: DrawnEdge) -> dict[str, Any]:
        share = min(edge.strength / largest, 1.0)
        having = max(count.get(name, 0) for name in edge.names)
        chosen = SHARED if having == circuits else colour if having == 1 else SOME
        return {"color": chosen, "linewidth": edge_width(share), "alpha": 0.9}

    return style
