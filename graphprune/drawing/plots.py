"""Figures of curves (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphprune.drawing.sheets import save_figure
from graphprune.drawing.styles import OWN, printable, require_matplotlib
from graphprune.errors import InputError
from graphprune.util.checks import usable
from graphprune.util.fetch import model_title


class _Curve(Protocol):
    """A curve as it is drawn: f at every size for each ranking, its intervals, and names."""

    @property
    def sizes(self) -> Sequence[float]: ...
    @property
    def f(self) -> Mapping[str, Sequence[float]]: ...
    @property
    def intervals(self) -> Mapping[str, Sequence[tuple[float, float]]]: ...
    @property
    def method(self) -> str: ...
    @property
    def model(self) -> str: ...


RANKINGS = (("signed", "-", "o"), ("abs", "--", "s"))


def plot_curves(
    curves: Sequence[_Curve], *, path: Any = None, ax: Any = None, title: str | None = None
) -> Any:
    """F against the kept fraction for several methods; solid signed, dashed absolute ranking.

    Bands are 95 % intervals over examples, where a curve has them. Curves of random scores (method
    ``Random``) are one grey baseline: their mean, and all between the least and the greatest.

    Args:
        curves: one for each method; several of random scores, one for each seed.
        path: a figure to write, whole or not at all; its suffix says the format.
        ax: the axes to draw into; ``None`` makes a figure.
        title: ``None`` names the model where all curves have the same.

    Raises :class:`~graphprune.errors.InputError` before anything is drawn where ``path`` has no
    suffix that matplotlib writes or its folder is not there, and
    :class:`~graphprune.errors.MissingExtraError` where matplotlib is not installed.
    """
    target = figure_target(path)
    if ax is None:
        ax = new_figure((6.4, 4.2)).add_subplot()
    random = [curve for curve in curves if curve.method.split("(")[0] == "Random"]
    named = [curve for curve in curves if curve not in random]
    for number, curve in enumerate(named):
        for by, style, marker in RANKINGS:
            if by in curve.f:
                _draw_curve(ax, curve, by, style, marker, OWN[number % len(OWN)])
    for by, style, _ in RANKINGS:
        _draw_baseline(ax, [curve for curve in random if by in curve.f], by, style)
    for level, label in ((1, "full model"), (0, "all ablated")):
        ax.axhline(level, color="0.6", lw=0.8, zorder=1)
        ax.annotate(label.replace(" ", "\n"), (1, level), (3, 0), fontsize=7, color="0.4",
                    xycoords=("axes fraction", "data"), textcoords="offset points", ha="left",
                    va="center")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("kept edges (fraction of all)")
    ax.set_ylabel("faithfulness f")
    models = {curve.model for curve in curves}
    heading = models.pop() if title is None and len(models) == 1 else title
    if heading:
        ax.set_title(printable(model_title(heading)), fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    save_figure(ax.figure, target)
    return ax


def _draw_curve(ax: Any, curve: _Curve, by: str, style: str, marker: str, colour: str) -> None:
    label = f"{curve.method or 'scores'} ({by})"
    ax.plot(curve.sizes, curve.f[by], style, marker=marker, ms=3, color=colour, label=label,
            zorder=3)  # fmt: skip
    ends = np.array(curve.intervals.get(by, ()), dtype=np.float64).reshape(-1, 2)
    bounded = np.isfinite(ends).all(1)
    if bounded.any():
        sizes = np.array(curve.sizes)
        # Unbounded intervals leave a gap in the band, and do not stretch the axis.
        low, high = (np.where(bounded, side, np.nan) for side in ends.T)
        ax.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0, zorder=2)


def _draw_baseline(ax: Any, curves: Sequence[_Curve], by: str, style: str) -> None:
    if not curves:
        return
    if len({tuple(curve.sizes) for curve in curves}) > 1:
        raise InputError("curves of random scores make one baseline: they need the same sizes")
    values = np.array([curve.f[by] for curve in curves], dtype=np.float64)
    several = f", {len(curves)} seeds" if len(curves) > 1 else ""
    ax.plot(curves[0].sizes, values.mean(0), style, color="0.5", lw=1.2, zorder=2,
            label=f"random edges ({by}{several})")  # fmt: skip
    if len(curves) > 1:
        ax.fill_between(curves[0].sizes, values.min(0), values.max(0), color="0.5", alpha=0.2, lw=0,
                        zorder=1)  # fmt: skip


def figure_target(path: Any) -> Path | None:
    """The path to write a figure to; refuses what cannot be, before anything is drawn."""
    require_matplotlib()
    if path is None:
        return None
    from matplotlib.backend_bases import FigureCanvasBase

    target = usable(path)
    known = FigureCanvasBase.get_supported_filetypes()
    if target.suffix.lower()[1:] not in known:
        raise InputError(f"a figure's name must end in one of .{', .'.join(known)}, got {target}")
    if not target.absolute().parent.is_dir():
        raise InputError(f"the folder {target.absolute().parent} is not there")
    return target


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure, in inches, that no window shows."""
    from graphprune.drawing.notebook_figure import NotebookFigure

    return NotebookFigure(*size)
