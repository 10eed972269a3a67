"""A summary of a pruned graph too large to draw: counts, degrees, and which nodes it joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.drawing.styles import NEUTRAL, POSITIVE, SMALL, TEXT, printable, wrapped
from graphprune.drawing.subject import CircuitLike
from graphprune.util.paths import components

MOST_CLASSES = 10


def draw_summary(
    circuit: CircuitLike, width: float, title: str, classes: Sequence[str] | None
) -> Any:
    """Degrees before and after, and the share kept between classes (or ranges of degree)."""
    from graphprune.drawing.notebook_figure import NotebookFigure

    beside = width > 5.5
    scored = circuit.scores is not None
    panels = 3 if scored else 2
    lines = wrapped(_counts(circuit).split(), SMALL, width - 0.2)
    head = 0.35 + 0.135 * len(lines)
    height = (2.5 if beside else 2.3 * panels) + head
    figure = NotebookFigure(width, height)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.01, 0.01, 0.98, 1 - head / height - 0.01), h_pad=0.06, w_pad=0.06)
    figure.text(0.08 / width, 1 - 0.05 / height, printable(title), fontsize=8, weight="bold",
                ha="left", va="top")  # fmt: skip
    for i, line in enumerate(lines):
        y = 1 - (0.2 + 0.135 * i) / height
        figure.text(0.08 / width, y, line, fontsize=SMALL, color="#333333", ha="left", va="top")
    shape = (1, panels) if beside else (panels, 1)
    axes = list(np.atleast_1d(figure.subplots(*shape)))
    _degrees(axes[0], circuit)
    _between(axes[1], circuit, classes)
    if scored:
        _scores(axes[2], circuit)
    for ax in axes:
        ax.tick_params(which="both", labelsize=SMALL)
    return figure


def _counts(circuit: CircuitLike) -> str:
    graph, kept = circuit.graph, circuit.mask.kept.numpy()
    wires = graph.fixed_edge_index.numpy()

    def connected_parts(chosen: NDArray[np.bool_]) -> int:
        ends = np.concatenate([graph.edge_index.numpy()[:, chosen], wires], axis=1)
        return len(np.unique(components(graph.num_nodes, ends, "weak")))

    touched = np.unique(graph.edge_index.numpy()[:, kept])
    parts = [connected_parts(chosen) for chosen in (np.ones_like(kept), kept)]
    share = kept.mean() if len(kept) else 0.0
    return (
        f"{int(kept.sum()):,} of {graph.num_edges:,} edges kept ({share:.0%}). "
        f"{graph.num_nodes - len(touched):,} of {graph.num_nodes:,} nodes have no kept edge. "
        f"Connected parts: {parts[0]:,} before, {parts[1]:,} after."
    )


def _degrees(ax: Any, circuit: CircuitLike) -> None:
    graph, kept = circuit.graph, circuit.mask.kept.numpy()
    index = graph.edge_index.numpy()
    for chosen, colour, style, label in (
        (np.ones_like(kept), NEUTRAL, "--", "all edges"),
        (kept, POSITIVE, "-", "kept edges"),
    ):
        degree = np.sort(np.bincount(index[:, chosen].reshape(-1), minlength=graph.num_nodes))
        values, first = np.unique(degree, return_index=True)
        share = 1 - first / len(degree)
        positive = values > 0
        ax.plot(values[positive], share[positive], style, color=colour, linewidth=1.2, marker="o",
                markersize=1.8, label=label)  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        # Degrees that span less than a decade have hardly a major tick.
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    ax.set_xlabel("degree d (in and out)", fontsize=TEXT)
    ax.set_ylabel("share of nodes with ≥ d", fontsize=TEXT)
    ax.legend(frameon=False, fontsize=SMALL, loc="lower left")
    ax.spines[["top", "right"]].set_visible(False)


def _between(ax: Any, circuit: CircuitLike, classes: Sequence[str] | None) -> None:
    graph, kept = circuit.graph, circuit.mask.kept.numpy()
    index = graph.edge_index.numpy()
    if classes is None:
        number, names = _degree_ranges(index, graph.num_nodes)
        what = "degree"
    else:
        number, names = _common_classes(classes)
        what = "class"
    table = np.zeros((len(names), len(names)))
    total = np.zeros_like(table)
    np.add.at(total, (number[index[0]], number[index[1]]), 1)
    np.add.at(table, (number[index[0]], number[index[1]]), kept)
    share = np.divide(table, total, out=np.full_like(table, np.nan), where=total > 0)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    if len(names) <= 6:
        for (i, j), value in np.ndenumerate(share):
            if not np.isnan(value):
                colour = "white" if value > 0.6 else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=SMALL,
                        color=colour)  # fmt: skip
    turned = max(map(len, names)) > 6
    ax.set_xticks(range(len(names)), names, rotation=45 if turned else 0,
                  ha="right" if turned else "center", rotation_mode="anchor")  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel(f"{what} of the target", fontsize=TEXT)
    ax.set_ylabel(f"{what} of the source", fontsize=TEXT)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
    bar.set_label("share of edges kept", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def _degree_ranges(index: NDArray[Any], nodes: int) -> tuple[NDArray[Any], list[str]]:
    """Each node's range of degrees (1, 2 to 3, 4 to 7, ...), those that occur."""
    degree = np.bincount(index.reshape(-1), minlength=nodes)
    power = np.floor(np.log2(np.maximum(degree, 1))).astype(int)
    known, number = np.unique(power, return_inverse=True)
    return number, [f"{2**p}–{2 ** (p + 1) - 1}" if p else "0–1" for p in known.tolist()]


def _common_classes(classes: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    """Each node's class; the rare ones beyond :data:`MOST_CLASSES` are one."""
    known, number, count = np.unique(np.array(classes), return_inverse=True, return_counts=True)
    names = [printable(str(name)) for name in known]
    if len(names) <= MOST_CLASSES:
        return number, names
    largest = np.sort(np.argsort(-count, kind="stable")[: MOST_CLASSES - 1])
    place = np.full(len(names), MOST_CLASSES - 1)
    place[largest] = np.arange(len(largest))
    return place[number], [*(names[i] for i in largest), "others"]


def _scores(ax: Any, circuit: CircuitLike) -> None:
    assert circuit.scores is not None
    values, kept = circuit.scores.values.numpy(), circuit.mask.kept.numpy()
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    bins = np.linspace(low, high if high > low else low + 1, 31)
    ax.hist([values[kept], values[~kept]], bins=bins, stacked=True, color=[POSITIVE, "#CFCFCF"],
            label=["kept", "cut"])  # fmt: skip
    ax.set_xlabel("score", fontsize=TEXT)
    ax.set_ylabel("edges", fontsize=TEXT)
    ax.legend(frameon=False, fontsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
