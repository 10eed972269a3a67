"""Figures of spectra and of pruning while a network trains (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import MissingExtraError
from graphprune.util.files import atomic_path

from .linalg.eigensolver import DENSE_LIMIT
from .linalg.spectra import spectrum
from .linalg.weighted_graph import Degrees, Laplacian, WeightedGraph, weighted_graph

if TYPE_CHECKING:
    import pandas as pd

COLOURS = ("#4269d0", "#ff725c", "#3ca951", "#a463f2", "#9c6b4e", "#97bbf5")

__all__ = ["plot", "plot_training"]


def plot(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    mask: EdgeMask | None = None,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
    path: str | Path | None = None,
    ax: Any = None,
) -> Any:
    """Draws the eigenvalues, and those after a mask's cuts beside them; gives the axes.

    Args:
        graph, weights, laplacian, degrees, dense_limit: as for
            :func:`~graphprune.spectral.spectrum`.
        mask: the edges that are kept; ``None`` draws the whole graph's spectrum only.
        path: a figure to write, whole or not at all.
        ax: axes to draw into; ``None`` makes a figure.

    Raises :class:`MissingExtraError` where matplotlib is not installed.

    Example:
        >>> axes = plot(model.graph, mask=mask, path=folder / "spectrum.svg")
        >>> axes.get_xlabel()
        'real part'
    """
    given = weighted_graph(graph, weights)
    sets = [("all edges", given, "o", "#4269d0", {"facecolors": "none"})]
    if mask is not None:
        if given.graph is not None:
            require_same_graph(given.graph, mask.graph, "the graph and the mask")
        named = f"{mask.num_kept} of {given.num_edges} edges"
        sets.append((named, given.keep(mask.kept.numpy()), "x", "#ff725c", {}))
    figure = None
    if ax is None:
        figure = _figure(5.6, 4.4)
        ax = figure.add_subplot()
    for label, one, marker, colour, options in sets:
        values = spectrum(one, None, laplacian, degrees=degrees, dense_limit=dense_limit)
        extra = {"edgecolors": colour, **options} if options else {"color": colour}
        ax.scatter(values.real, values.imag, s=22, marker=marker, label=label, **extra)
    ax.axhline(0, color="0.7", lw=0.8)
    ax.set_xlabel("real part")
    ax.set_ylabel("imaginary part")
    ax.set_title(f"spectrum ({laplacian})", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    _write(figure or ax.figure, path)
    return ax


def plot_training(
    frames: Mapping[str, pd.DataFrame], path: str | Path | None = None, x: str = "count"
) -> Any:
    """Draws what :meth:`DynamicPruning.to_frame` gives of one or several runs; gives the figure.

    A panel for each column: edges, rotation, seconds, and what was measured. Where a frame has
    several rows of one count, as of several seeds, lines are means and bands 95 % intervals.

    Args:
        frames: by the name that the key shows.
        path: a figure to write, whole or not at all.
        x: the column along which they are drawn.
    """
    from scipy.stats import t as student_t

    columns = [c for c in next(iter(frames.values())).columns if c not in (x, "seed")]
    across = 2 if len(columns) > 1 else 1
    down = -(-len(columns) // across)
    figure = _figure(3.6 * across, 2.4 * down + 0.4)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, column in zip(axes, columns, strict=False):
        for number, (name, frame) in enumerate(frames.items()):
            groups = frame.groupby(x)[column]
            mean, colour = groups.mean(), COLOURS[number % len(COLOURS)]
            ax.plot(mean.index, mean, color=colour, lw=1.4, label=name)
            if groups.size().min() > 2:
                half = groups.sem() * student_t.ppf(0.975, groups.size() - 1)
                low, high = mean - half, mean + half
                ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, lw=0)
        ax.set_xlabel(x)
        ax.locator_params(axis="x", nbins=4)
        ax.xaxis.set_major_formatter("{x:,.6g}")
        ax.set_ylabel("edges kept" if column == "kept" else column)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(columns) :]:
        ax.remove()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    _write(figure, path)
    return figure


def _figure(width: float, height: float) -> Any:
    try:
        from graphprune.drawing.notebook_figure import NotebookFigure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib: pip install "graphprune[plot]"'
        ) from error
    return NotebookFigure(width, height)


def _write(figure: Any, path: str | Path | None) -> None:
    if path is None:
        return
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lower()[1:] or "png")
