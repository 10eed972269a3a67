"""A drawing of a circuit at the size of a page: SVG, PNG or PDF by matplotlib.

Information flows upwards (portrait) or to the right (landscape), a stripe for each layer. An edge's
width shows \\|score\\|; blue is a positive score, orange a negative one. Edges into a head end at
its q, k or v. Text has at least six points at the figure's own size. Graphs that flow in circles,
as graph networks do, are drawn by :mod:`graphprune.drawing.network`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from graphprune.drawing.content import Content, DrawnEdge, DrawnNode, content, strongest_edges
from graphprune.drawing.key import LINE, circuit_key, draw_key, edge_width, key_lines
from graphprune.drawing.layered import Layered, layered, rows_of
from graphprune.drawing.network import draw_network, flows_one_way
from graphprune.drawing.sheets import MARGIN, draw_heading, new_sheet, save_figure
from graphprune.drawing.styles import (
    BORDER,
    CM,
    FILL,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    SMALL,
    TEXT,
    WIRE,
    drawing_settings,
    shortened,
    text_width,
    wrapped,
)
from graphprune.drawing.subject import CircuitLike
from graphprune.errors import InputError, MissingExtraError
from graphprune.util.checks import require_one_of

Orientation = Literal["portrait", "landscape"]
SUFFIXES = (".svg", ".png", ".pdf")
WIDTHS = {"portrait": 9.0, "landscape": 24.0}
LENGTHS = {"portrait": 19.0 * CM, "landscape": None}
"""Inches that a portrait's rows may take up the page."""
EDGES_THAT_FIT = {"portrait": 60, "landscape": 60}
LAYER_LABEL = 0.42


def plot(
    circuit: CircuitLike,
    path: str | os.PathLike[str] | None = None,
    *,
    orientation: Orientation = "portrait",
    width: float | None = None,
    max_edges: int | None = None,
    title: str | None = None,
    node_colours: Mapping[str, Any] | Sequence[Any] | None = None,
    dpi: int = 200,
) -> Any:
    """A figure of ``circuit`` that fits a page, written to ``path`` if given.

    Args:
        circuit: what to draw.
        path: an SVG, PNG or PDF file; one that stands there is replaced.
        orientation: information flows upwards in a portrait, to the right in a landscape.
        width: of the figure, in centimetres; ``None`` means 9, a journal's column, or 24 in
            landscape.
        max_edges: beyond that many, the strongest by ``|score|`` that leave no dead end are drawn,
            and the figure says which part of the score they have. ``None`` means as many as fit a
            page.
        title: ``None`` names the model and the task where they are known.
        node_colours: for graph networks, a class for each node, by name or in the graph's order;
            ``None`` colours nodes by their degree. A graph without cycles is drawn as a network too
            where they are given, else in rows.
        dpi: dots per inch of a PNG.

    Raises :class:`MissingExtraError` where matplotlib is not installed.

    Example:
        >>> figure = plot(circuit, folder / "circuit.pdf", node_colours=data.y)
        >>> [round(2.54 * float(inches), 1) for inches in figure.get_size_inches()][0]
        9.0
    """
    require_one_of(orientation, WIDTHS, "orientation")
    inches = (WIDTHS[orientation] if width is None else width) * CM
    if not 5 * CM <= inches <= 200 * CM:
        raise InputError(f"width must be from 5 to 200 centimetres, got {width!r}")
    if max_edges is not None and max_edges < 1:
        raise InputError(f"max_edges must be at least 1, got {max_edges}")
    target = None if path is None else figure_path(path)
    heading = circuit.title if title is None else title
    with drawing_settings():
        if node_colours is None and flows_one_way(circuit.graph):
            shown, sheet = _content_that_fits(circuit, orientation, inches, max_edges)
            figure = sheet.figure(shown, heading)
        else:
            figure = draw_network(circuit, inches, heading, node_colours)
        save_figure(figure, target, dpi)
    return figure


def draw(circuit: CircuitLike, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draws ``circuit`` into an SVG, PNG or PDF file; options as :func:`plot` takes them.

    Example:
        >>> draw(circuit, folder / "circuit.svg", width=9).name
        'circuit.svg'
    """
    plot(circuit, path, **options)
    return Path(path)


def notebook_picture(circuit: CircuitLike) -> bytes:
    """A PNG for a notebook; nothing where matplotlib is not installed."""
    try:
        figure = plot(circuit, max_edges=40)
    except MissingExtraError:
        return b""
    buffer = io.BytesIO()
    with drawing_settings():
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def figure_path(path: str | os.PathLike[str]) -> Path:
    """The path, where its suffix is one that figures are written in."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"expected a figure's name that ends in {SUFFIXES}, got {target}")
    return target


def _content_that_fits(
    circuit: CircuitLike, orientation: Orientation, width: float, max_edges: int | None
) -> tuple[Content, Sheet]:
    sheet = Sheet(orientation, width)
    if max_edges is not None:
        return content(circuit, strongest_edges(circuit, max_edges)), sheet
    kept = circuit.mask.num_kept
    fitting = round(EDGES_THAT_FIT[orientation] * (width / (WIDTHS[orientation] * CM)) ** 0.5)
    shown = content(circuit, strongest_edges(circuit, max(min(kept, fitting), 1)))
    while len(shown.edge_numbers) > 8 and not sheet.fits(shown):
        fewer = strongest_edges(circuit, int(len(shown.edge_numbers) * 0.85))
        if len(fewer) == len(shown.edge_numbers):
            break
        shown = content(circuit, fewer)
    return shown, sheet


class Sheet:
    """A page of one orientation: sizes of boxes on it, and everything drawn on it."""

    def __init__(self, orientation: Orientation, width: float) -> None:
        self.upright = orientation == "portrait"
        self.width = width
        across = width - 2 * MARGIN - LAYER_LABEL if self.upright else 12 * CM
        self.across, self.most = across, LENGTHS[orientation]

    # ------------------------------------------------------------ sizes

    def label(self, node: DrawnNode) -> str:
        """The node's name as it is drawn."""
        return shortened(node.name, TEXT, 0.72)

    def size(self, node: DrawnNode) -> tuple[float, float]:
        """Inches across and along the flow."""
        text = text_width(self.label(node), TEXT) + 0.09
        ports = len(_ports(node))
        if self.upright:
            return max(text, 0.3 if ports else 0.22), 0.235 if ports else 0.155
        return (0.27 if ports else 0.155), max(text, 0.22) + (0.09 if ports else 0.0)

    def fits(self, shown: Content) -> bool:
        """``True`` if the page holds all rows with room between them."""
        sizes = [self.size(node) for node in shown.nodes]
        rows = rows_of(shown, sizes, self.across)
        lengths = [0.0] * (int(rows.max(initial=0)) + 1)
        for row, size in zip(rows.tolist(), sizes, strict=True):
            lengths[row] = max(lengths[row], size[1])
        most = self.most if self.most is not None else self.width - 2 * MARGIN
        return sum(lengths) + 0.14 * (len(lengths) - 1) <= most

    def layout(self, shown: Content) -> Layered:
        """Places for everything."""

        def port_of(node: int, kind: str) -> float | None:
            ports = _ports(shown.nodes[node])
            step = 0.1 if self.upright else 0.085
            return (PORTS.index(kind) - 1) * step if kind in ports else None

        sizes = [self.size(node) for node in shown.nodes]
        most = self.most if self.upright else self.width - 2 * MARGIN
        return layered(shown, sizes, port_of, self.across, most)

    # ------------------------------------------------------------ drawing

    def figure(self, shown: Content, title: str) -> Any:
        """The whole figure."""
        laid = self.layout(shown)
        width = self.width
        if not self.upright:
            laid = laid.trimmed()
            width = max(width, laid.length + 2 * MARGIN)
        inner = width - 2 * MARGIN
        words = f"{shown.statement}, {sum(len(n.members) for n in shown.nodes)} nodes".split()
        heading = wrapped(words, SMALL, inner)
        key = key_lines(circuit_key(shown), inner)
        bottom = LINE * len(key) + 0.16
        top = 0.3 + LINE * len(heading) + (0.0 if self.upright else 0.14)
        height = bottom + (laid.length if self.upright else laid.width) + top
        figure, axes = new_sheet(width, height)
        draw_heading(axes, width, height, title, heading)
        self.fill(axes, shown, laid, self.placed(bottom, laid, width), edge_style(shown))
        draw_key(axes, key, MARGIN, LINE * len(key) + 0.04, inner)
        return figure

    def placed(
        self, bottom: float, laid: Layered, width: float
    ) -> Callable[[float, float], tuple[float, float]]:
        """From places across and along the flow to inches on the page."""
        if self.upright:
            return lambda across, along: (MARGIN + LAYER_LABEL + across, bottom + along)
        left = MARGIN + max(0.0, (width - 2 * MARGIN - laid.length) / 2)
        return lambda across, along: (left + along, bottom + laid.width - across)

    def fill(
        self,
        axes: Any,
        shown: Content,
        laid: Layered,
        place: Callable[[float, float], tuple[float, float]],
        style: Callable[[DrawnEdge], dict[str, Any]],
        faint: frozenset[int] = frozenset(),
    ) -> None:
        """Layers, edges and nodes; nodes numbered in ``faint`` are drawn as outlines."""
        self._bands(axes, laid, place)
        _draw_edges(axes, shown, laid, place, style)
        for i, (node, box) in enumerate(zip(shown.nodes, laid.boxes, strict=True)):
            self._node(axes, node, place(box.across, box.along), i in faint)

    def _bands(
        self, axes: Any, laid: Layered, place: Callable[[float, float], tuple[float, float]]
    ) -> None:
        from matplotlib.patches import Rectangle

        for i, band in enumerate(laid.bands):
            first, last = band.layers
            label = f"layer {first}" if first == last else f"{first} to {last}"
            x0, y0 = place(0.0, band.low - 0.05)
            x1, y1 = place(laid.width, band.high + 0.05)
            if self.upright:
                x0 -= LAYER_LABEL
                at, anchor = (x0 + 0.02, (y0 + y1) / 2), ("left", "center")
            else:
                y0, y1 = y1, y0 + 0.13
                at, anchor = ((x0 + x1) / 2, y1 - 0.02), ("center", "top")
            if i % 2 == 0:
                axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor="#F4F4F4", zorder=0))
            axes.text(*at, label, ha=anchor[0], va=anchor[1], fontsize=SMALL, color="#777777",
                      zorder=1)  # fmt: skip

    def _node(self, axes: Any, node: DrawnNode, at: tuple[float, float], faint: bool) -> None:
        from matplotlib.patches import FancyBboxPatch

        size = self.size(node)
        width, height = size if self.upright else size[::-1]
        x, y = at
        ports = _ports(node)
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height,
                boxstyle="round,pad=0,rounding_size=0.035", linewidth=0.6,
                facecolor="white" if faint else FILL.get(node.kind, "#FFFFFF"),
                edgecolor="#BBBBBB" if faint else BORDER.get(node.kind, "#666666"), zorder=5,
            )
        )  # fmt: skip
        lift = 0.04 if ports and self.upright else 0.0
        right = 0.045 if ports and not self.upright else 0.0
        axes.text(
            x + right, y + lift - 0.005, self.label(node), ha="center", va="center", fontsize=TEXT,
            color="#999999" if faint else "#111111", zorder=6,
        )  # fmt: skip
        for port in ports:
            step = PORTS.index(port) - 1
            place = (x + step * 0.1, y - height / 2 + 0.045)
            if not self.upright:
                place = (x - width / 2 + 0.05, y - step * 0.085)
            axes.text(*place, port, ha="center", va="center", fontsize=SMALL, zorder=6,
                      color="#999999" if faint else "#555555")  # fmt: skip


PORTS = ("q", "k", "v")


def _ports(node: DrawnNode) -> tuple[str, ...]:
    """The inputs that have a place of their own; others (relations) have no room in a box."""
    return tuple(port for port in node.ports if port in PORTS)


def edge_style(shown: Content) -> Callable[[DrawnEdge], dict[str, Any]]:
    """Colour by the sign of the score, width by its size."""

    def style(edge: DrawnEdge) -> dict[str, Any]:
        share = (edge.strength / shown.largest) ** 0.5
        colour = NEUTRAL
        if edge.score is not None:
            colour = POSITIVE if edge.score >= 0 else NEGATIVE
        return {"color": colour, "linewidth": edge_width(share**2), "alpha": 0.5 + 0.45 * share}

    return style


def _draw_edges(
    axes: Any,
    shown: Content,
    laid: Layered,
    place: Callable[[float, float], tuple[float, float]],
    style: Callable[[DrawnEdge], dict[str, Any]],
) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    for i in sorted(range(len(shown.edges)), key=lambda i: shown.edges[i].strength):
        edge = shown.edges[i]
        points = [place(*point) for point in laid.paths[i]]
        curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * (len(points) - 1)])
        chosen: dict[str, Any] = {"color": WIRE, "linewidth": 0.9, "linestyle": (0, (1, 1.2))}
        if not edge.wire:
            chosen = style(edge)
        axes.add_patch(
            FancyArrowPatch(
                path=curve, arrowstyle="-" if edge.wire else "-|>",
                mutation_scale=3.2 + 1.2 * chosen["linewidth"], shrinkA=0, shrinkB=0,
                joinstyle="miter", capstyle="butt",
                zorder=2 + edge.strength / shown.largest, **chosen,
            )
        )  # fmt: skip
