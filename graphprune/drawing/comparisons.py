"""Figures of comparisons (extra ``plot``): a heat map, profiles, overlap over size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from graphprune.drawing.plots import figure_target, new_figure
from graphprune.drawing.sheets import save_figure

_TITLES = {
    "jaccard": "Jaccard overlap of edges",
    "contained": "share of the row's edges in the column's circuit",
    "shared": "edges in both",
    "nodes": "Jaccard overlap of nodes",
    "weighted": "weighted overlap of scores",
    "spearman": "rank correlation of scores",
    "spearman_abs": "rank correlation of score sizes",
}
_AXES = {
    "source_level": "{level} of the source",
    "target_level": "{level} of the target",
    "distance": "{level}s crossed",
    "source_depth": "relative depth of the source",
    "target_depth": "relative depth of the target",
    "source_kind": "kind of the source",
    "target_kind": "kind of the target",
    "kind": "kind of edge",
}
_NULL_STYLES = {
    "uniform": ("0.45", "any edges"),
    "composition": ("C1", "edges of the same levels and kinds"),
    "degrees": ("C2", "the same degrees"),
}


class _Comparison(Protocol):
    """A matrix as it is drawn: circuits by circuits, and each pair with what chance gives."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def pairs(self) -> Sequence[Any]: ...
    def matrix(self, quantity: str) -> Any: ...


class _Profile(Protocol):
    """A profile as it is drawn: groups of each axis with their shares of kept and of all edges."""

    @property
    def axes(self) -> Any: ...
    @property
    def level(self) -> str | None: ...
    def along(self, axis: str) -> Sequence[Any]: ...


class _Overlap(Protocol):
    """An overlap as it is drawn: the shared edges of two circuits at every size."""

    @property
    def points(self) -> Sequence[Any]: ...
    @property
    def names(self) -> Sequence[str]: ...


def plot_matrix(
    comparison: _Comparison, quantity: str = "jaccard", *, path: Any = None, ax: Any = None
) -> Any:
    """Circuits by circuits; under each overlap of edges, in small print, what chance gives."""
    target = figure_target(path)
    table = comparison.matrix(quantity)
    names = [str(name) for name in table.index]
    values = table.to_numpy(dtype=float)
    correlation = quantity.startswith("spearman")
    if ax is None:
        longest = max(map(len, names))
        side = 0.95 * len(names)
        ax = new_figure((side + 1.6 + 0.08 * longest, side + 0.9 + 0.05 * longest)).add_subplot()
    low, high = (-1.0, 1.0) if correlation else (0.0, 1.0)
    if quantity == "shared":
        high = float(max(np.nanmax(values), 1.0))
    image = ax.imshow(values, cmap="RdBu" if correlation else "Blues", vmin=low, vmax=high)
    chance = _chance(comparison) if quantity == "jaccard" else {}
    for (i, j), value in np.ndenumerate(values):
        shade = abs(value) if correlation else (value - low) / (high - low)
        colour = "white" if shade > 0.6 else "black"
        shown = "–" if np.isnan(value) else f"{value:.0f}" if quantity == "shared" else _two(value)
        ax.text(j, i, shown, ha="center", va="center", color=colour, fontsize=10)
        if (i, j) in chance:
            ax.text(j, i + 0.3, f"chance {_two(chance[i, j])}", ha="center", va="center",
                    color=colour, fontsize=6.5)  # fmt: skip
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(_TITLES[quantity], fontsize=10, loc="left")
    ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03).outline.set_visible(False)
    save_figure(ax.figure, target)
    return ax


def _two(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.095 or value == 0 else f"{value:.2g}"


def _chance(comparison: _Comparison) -> dict[tuple[int, int], float]:
    places = {name: i for i, name in enumerate(comparison.names)}
    out = {}
    for pair in comparison.pairs:
        if "uniform" in pair.nulls:
            i, j = places[pair.first], places[pair.second]
            out[i, j] = out[j, i] = pair.nulls["uniform"].jaccard
    return out


def plot_profiles(
    profiles: Mapping[str, _Profile], *, path: Any = None, enrichment: bool = False
) -> Any:
    """Shares of kept edges by group: a panel an axis, a colour a circuit, a line for the graph.

    The dark line across a bar is the share of all the graph's edges, what random edges would give.
    With ``enrichment``, for circuits of several graphs, each bar is the share over that of its own
    graph, and the line stands at 1.
    """
    target = figure_target(path)
    first = next(iter(profiles.values()))
    axes = [axis for axis in first.axes if all(axis in p.axes for p in profiles.values())]
    columns = 2 if len(axes) > 1 else 1
    rows = -(-len(axes) // columns)
    figure = new_figure((5.2 * columns, 2.5 * rows + 0.4))
    panels = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    width = 0.8 / len(profiles)
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    for ax, axis in zip(panels, axes, strict=False):
        groups = _ordered_groups(profiles, axis)
        for number, profile in enumerate(profiles.values()):
            group_of = {group.group: group for group in profile.along(axis)}
            for place, name in enumerate(groups):
                if name not in group_of:
                    continue
                x = place + (number + 0.5) * width - 0.4
                group = group_of[name]
                height = group.enrichment if enrichment else group.share
                line = 1.0 if enrichment else group.graph_share
                ax.bar(x, height or 0.0, width * 0.92, color=f"C{number}")
                ax.hlines(line, x - width / 2, x + width / 2, color="0.1", lw=1.4)
        every = -(-len(groups) // 18)  # as many names as have room
        shown = [n if i % every == 0 or not n.isdigit() else "" for i, n in enumerate(groups)]
        turned = len(groups) > 8 or max(map(len, groups)) * len(groups) > 44
        ax.set_xticks(range(len(groups)), shown, rotation=45 if turned else 0,
                      ha="right" if turned else "center", rotation_mode="anchor",
                      fontsize=8)  # fmt: skip
        ax.tick_params(axis="y", labelsize=8)
        ax.set_title(_AXES[axis].format(level=_level_word(profiles)), fontsize=9, loc="left")
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(
        "times as often as by chance" if enrichment else "share of kept edges", fontsize=8
    )
    figure.legend(
        handles=_legend(list(profiles), "random edges" if enrichment else "all edges of the graph"),
        loc="outside upper center",
        ncols=min(len(profiles) + 1, 5),
        frameon=False,
        fontsize=8,
    )
    save_figure(figure, target)
    return figure


def _legend(names: list[str], line: str) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    patches: list[Any] = [Patch(color=f"C{i}", label=name) for i, name in enumerate(names)]
    return [*patches, Line2D([], [], color="0.1", lw=1.4, label=line)]


def _level_word(profiles: Mapping[str, _Profile]) -> str:
    words = {profile.level or "level" for profile in profiles.values()}
    word = words.pop() if len(words) == 1 else "level"
    return {"steps": "step"}.get(word, word)


def _ordered_groups(profiles: Mapping[str, _Profile], axis: str) -> list[str]:
    """All groups, in the order of the profile with most of them, ``output`` and ``none`` last."""
    each = [[group.group for group in p.along(axis)] for p in profiles.values()]
    each.sort(key=len, reverse=True)
    merged = list(dict.fromkeys(name for names in each for name in names))
    return sorted(merged, key=lambda name: {"output": 1, "none": 2}.get(name, 0))


def plot_overlap(curve: _Overlap, *, path: Any = None, ax: Any = None) -> Any:
    """The Jaccard overlap over the size, and for each kind of chance its mean and 95 % band."""
    target = figure_target(path)
    if ax is None:
        ax = new_figure((6.4, 4.2)).add_subplot()
    points = [point for point in curve.points if point.kept]
    sizes = [point.size for point in points]
    for name in points[0].nulls if points else ():
        colour, label = _NULL_STYLES[name]
        nulls = [point.nulls[name] for point in points]
        kept = [point.kept for point in points]
        low = [null.low / (2 * k - null.low) for null, k in zip(nulls, kept, strict=True)]
        high = [null.high / (2 * k - null.high) for null, k in zip(nulls, kept, strict=True)]
        ax.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0)
        ax.plot(sizes, [null.jaccard for null in nulls], "--", color=colour, lw=1,
                label=f"chance: {label}, 95 %")  # fmt: skip
    ax.plot(sizes, [point.jaccard for point in points], marker="o", ms=3, color="C0",
            label=" and ".join(curve.names))  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("kept edges (fraction of all)")
    ax.set_ylabel("Jaccard overlap")
    ax.legend(frameon=False, fontsize=8)
    save_figure(ax.figure, target)
    return ax
