"""Figures of spectra in the complex plane (extra ``plot``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import MissingExtraError

from .linalg.eigensolver import DENSE_LIMIT
from .linalg.spectra import spectrum
from .linalg.weighted_graph import Degrees, Laplacian, WeightedGraph, weighted_graph

__all__ = ["plot"]


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
    try:
        from graphprune.drawing.notebook_figure import NotebookFigure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib: pip install "graphprune[plot]"'
        ) from error
    given = weighted_graph(graph, weights)
    sets = [("all edges", given, "o", "#4269d0", {"facecolors": "none"})]
    if mask is not None:
        if given.graph is not None:
            require_same_graph(given.graph, mask.graph, "the graph and the mask")
        named = f"{mask.num_kept} of {given.num_edges} edges"
        sets.append((named, given.keep(mask.kept.numpy()), "x", "#ff725c", {}))
    figure = None
    if ax is None:
        figure = NotebookFigure(5.6, 4.4)
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
    if path is not None:
        from graphprune.util.files import atomic_path

        with atomic_path(path) as temporary:
            (figure or ax.figure).savefig(temporary, format=Path(path).suffix.lower()[1:] or "png")
    return ax
