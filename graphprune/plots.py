"""Figures of curves (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphprune.errors import MissingExtraError

if TYPE_CHECKING:
    from graphprune.evaluation.curve import FaithfulnessCurve

__all__ = ["plot_curves"]


def plot_curves(curves: Sequence[FaithfulnessCurve], *, path: Any = None, ax: Any = None) -> Any:
    """F against the kept fraction for several methods; solid signed, dashed absolute ranking."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib: pip install "graphprune[plot]"'
        ) from error
    figure = None
    if ax is None:
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.add_subplot()
    for number, curve in enumerate(curves):
        for by, style in (("signed", "-"), ("abs", "--")):
            if by in curve.f:
                label = f"{curve.method or 'scores'} ({by})"
                ax.plot(
                    curve.sizes,
                    curve.f[by],
                    style,
                    marker="o",
                    ms=3,
                    color=f"C{number}",
                    label=label,
                )
    ax.axhline(1, color="0.6", lw=0.8)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_xscale("log")
    ax.set_xlabel("kept edges (fraction of all)")
    ax.set_ylabel("faithfulness f")
    ax.legend(frameon=False, fontsize=8)
    if path is not None:
        (figure or ax.figure).savefig(path)
    return ax
