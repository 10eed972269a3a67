"""Figures of curves (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from graphprune.evaluation.curve import FaithfulnessCurve

__all__ = ["plot_curves"]


def plot_curves(curves: Sequence[FaithfulnessCurve], *, path: Any = None, ax: Any = None) -> Any:
    """F against the kept fraction for several methods; solid signed, dashed absolute ranking.

    Args:
        curves: one for each method.
        path: a figure to write, whole or not at all; its suffix says the format.
        ax: the axes to draw into; ``None`` makes a figure.

    Raises :class:`~graphprune.errors.InputError` before anything is drawn where ``path`` has no
    suffix that matplotlib writes or its folder is not there, and
    :class:`~graphprune.errors.MissingExtraError` where matplotlib is not installed.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib: pip install "graphprune[plot]"'
        ) from error
    figure = None
    target = None if path is None else Path(path)
    if target is not None:
        _check_target(target, FigureCanvasBase.get_supported_filetypes())
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
    if target is not None:
        from graphprune.export.files import atomic_path

        with atomic_path(target) as temporary:
            (figure or ax.figure).savefig(temporary, format=target.suffix.lower()[1:])
    return ax


def _check_target(target: Path, known: Collection[str]) -> None:
    if target.suffix.lower()[1:] not in known:
        raise InputError(f"a figure's name must end in one of .{', .'.join(known)}, got {target}")
    if not target.absolute().parent.is_dir():
        raise InputError(f"the folder {target.absolute().parent} is not there")
