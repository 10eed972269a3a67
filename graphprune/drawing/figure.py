"""A drawing of a circuit that a person can read: SVG, PNG or PDF by matplotlib.

Layers run upwards, the input at the bottom and the output on top. An edge's width and opacity show
|score|; blue is positive (useful), orange negative, a pair that colour-blind readers can tell
apart. Edges into a head end at its q, k or v. Wires of grouped key/value readers are dotted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.drawing.layout import DrawnEdge, Picture, picture, port_offset
from graphprune.drawing.routing import route
from graphprune.errors import InputError, MissingExtraError
from graphprune.util.files import atomic_path

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit

__all__ = ["draw"]

POSITIVE, NEGATIVE, NEUTRAL, WIRE = "#0072B2", "#D55E00", "#555555", "#9A9A9A"
FILL = {"head": "#EAF3FA", "kv": "#F1EAF7", "mlp": "#FFF4D6", "embed": "#EEE", "output": "#EEE"}
EDGE_OF = {"head": "#5B8DB8", "kv": "#9A7BB5", "mlp": "#C9A227"}
WIDTH, HEIGHT = 0.86, 0.40
SUFFIXES = (".svg", ".png", ".pdf")


def draw(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    max_edges: int = 150,
    title: str | None = None,
    dpi: int = 150,
) -> Path:
    """Draws ``circuit`` into an SVG, PNG or PDF file, by the suffix of ``path``.

    Args:
        circuit: what to draw.
        path: the file; one that stands there is replaced.
        max_edges: beyond that many, the strongest by ``|score|`` are drawn, and the figure says so.
        title: ``None`` names the model and the task where they are known.
        dpi: dots per inch of a PNG.

    Raises :class:`MissingExtraError` where matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"expected a figure's name that ends in {SUFFIXES}, got {target}")
    if max_edges < 1:
        raise InputError(f"max_edges must be at least 1, got {max_edges}")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib, which is not installed: pip install "graphprune[plot]"'
        ) from error
    shown = picture(circuit, max_edges)
    # Ids from a fixed salt and no date: the same circuit gives the same file.
    settings: Any = {
        "svg.hashsalt": "graphprune",
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=_size(shown), layout=None)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        _fill(axes, shown, circuit.title if title is None else title, circuit.scores is not None)
        metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with atomic_path(target) as temporary:
            figure.savefig(
                temporary,
                format=target.suffix.lower()[1:],
                dpi=dpi,
                metadata=metadata.get(target.suffix.lower()),
            )
    return target


# -------------------------------------------------------------------- geometry

LEFT, RIGHT, BOTTOM, TOP = 1.9, 0.9, 1.3, 1.45


def _extent(shown: Picture) -> tuple[float, float]:
    width = max((node.x for node in shown.nodes), default=0.0)
    height = max((node.y for node in shown.nodes), default=0.0)
    wires = any(edge.wire for edge in shown.edges)
    return max(width, 7.4 if wires else 5.6), height


def _size(shown: Picture) -> tuple[float, float]:
    width, height = _extent(shown)
    return (width + LEFT + RIGHT) * 0.82, (height + BOTTOM + TOP) * 0.82


def _fill(axes: Any, shown: Picture, title: str, scored: bool) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    width, height = _extent(shown)
    axes.set_xlim(-LEFT, width + RIGHT)
    axes.set_ylim(-BOTTOM, height + TOP)
    axes.set_aspect("equal")
    axes.axis("off")
    middle = max((node.x for node in shown.nodes), default=0.0)
    shift = (width - middle) / 2
    for i, (layer, low, high) in enumerate(shown.bands):
        if i % 2 == 0:
            band = (-LEFT, low - 0.5), width + LEFT + RIGHT, high - low + 1
            axes.add_patch(Rectangle(*band, facecolor="#F6F6F6", edgecolor="none", zorder=0))
        axes.text(
            -LEFT + 0.15, (low + high) / 2, f"layer {layer}",
            ha="left", va="center", fontsize=8, color="#777777", zorder=1,
        )  # fmt: skip
    _edges(axes, shown, shift, scored)
    for node in shown.nodes:
        box = FancyBboxPatch(
            (node.x + shift - WIDTH / 2, node.y - HEIGHT / 2), WIDTH, HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08", linewidth=0.9,
            facecolor=FILL.get(node.kind, "#FFFFFF"), edgecolor=EDGE_OF.get(node.kind, "#666666"),
            zorder=5,
        )  # fmt: skip
        axes.add_patch(box)
        lift = 0.05 if node.ports else 0.0
        axes.text(
            node.x + shift, node.y + lift, _short(node.name),
            ha="center", va="center", fontsize=8, color="#111111", zorder=6,
        )  # fmt: skip
        for port in node.ports:
            axes.text(
                node.x + shift + port_offset(node, port), node.y - HEIGHT / 2 + 0.025, port,
                ha="center", va="bottom", fontsize=5.5, color="#444444", zorder=6,
            )  # fmt: skip
    _words(axes, shown, title, scored, width, height)


def _short(name: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if len(text) <= 11 else f"{text[:5]}…{text[-5:]}"


def _edges(axes: Any, shown: Picture, shift: float, scored: bool) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    paths = route(shown, WIDTH, HEIGHT, port_offset)
    order = sorted(range(len(shown.edges)), key=lambda i: shown.edges[i].strength)
    for i in order:
        edge = shown.edges[i]
        points = [(x + shift, y) for x, y in paths[i]]
        curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * (len(points) - 1)])
        share = (edge.strength / shown.largest) ** 0.5
        style: dict[str, Any] = {
            "linewidth": 0.5 + 2.7 * share,
            "alpha": 0.30 + 0.60 * share,
            "color": _colour(edge, scored),
        }
        if edge.wire:
            style = {"linewidth": 1.3, "alpha": 1.0, "color": WIRE, "linestyle": (0, (1, 1.2))}
        axes.add_patch(
            FancyArrowPatch(
                path=curve, arrowstyle="-" if edge.wire else "-|>",
                mutation_scale=4 + 4 * share, shrinkA=0, shrinkB=0,
                joinstyle="miter", capstyle="butt", zorder=2 + share, **style,
            )
        )  # fmt: skip


def _colour(edge: DrawnEdge, scored: bool) -> str:
    if not scored or edge.score is None:
        return NEUTRAL
    return POSITIVE if edge.score >= 0 else NEGATIVE


def _words(
    axes: Any, shown: Picture, title: str, scored: bool, width: float, height: float
) -> None:
    """Title, what is shown, and the legend."""
    edges = f"{shown.total_edges} edges"
    if shown.shown_edges < shown.total_edges:
        ranking = "|score|" if scored else "mask value"
        edges = f"the {shown.shown_edges} strongest of {shown.total_edges} edges by {ranking}"
    top = height + TOP
    axes.text(
        -LEFT + 0.15, top - 0.2, title, ha="left", va="top", fontsize=11, weight="bold", zorder=7
    )
    axes.text(
        -LEFT + 0.15, top - 0.62, f"{edges}, {len(shown.nodes)} nodes", ha="left", va="top",
        fontsize=8.5, color="#333333", zorder=7,
    )  # fmt: skip
    y = -BOTTOM + 0.36
    entries = [(POSITIVE, "useful (positive score)"), (NEGATIVE, "harmful (negative score)")]
    if not scored:
        entries = [(NEUTRAL, "kept (no scores)")]
    x = -LEFT + 0.2
    for colour, label in entries:
        axes.plot([x, x + 0.45], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.text(x + 0.55, y, label, ha="left", va="center", fontsize=7.5, color="#333333")
        x += 0.8 + 0.072 * len(label)
    if scored:
        for i, share in enumerate((0.05, 0.35, 1.0)):
            axes.plot(
                [x, x + 0.3], [y - 0.12 + 0.12 * i] * 2, color=NEUTRAL,
                linewidth=0.5 + 2.7 * share**0.5, solid_capstyle="butt",
            )  # fmt: skip
        label = f"|score|, up to {shown.largest:.3g}"
        axes.text(x + 0.4, y, label, ha="left", va="center", fontsize=7.5, color="#333333")
        x += 0.7 + 0.072 * len(label)
    if any(edge.wire for edge in shown.edges):
        axes.plot([x, x + 0.45], [y, y], color=WIRE, linewidth=1.3, linestyle=(0, (1, 1.2)))
        axes.text(
            x + 0.55, y, "key/value head", ha="left", va="center", fontsize=7.5, color="#333333"
        )
