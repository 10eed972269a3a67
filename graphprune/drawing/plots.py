"""Figures of curves (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from graphprune.errors import InputError, MissingExtraError

__all__ = ["figure_target", "new_figure", "plot_curves", "write_figure"]


class Curve(Protocol):
    """What a curve is drawn of: f at every size for each ranking, and the method's name."""

    @property
    def sizes(self) -> Sequence[float]: ...
    @property
    def f(self) -> Mapping[str, Sequence[float]]: ...
    @property
    def method(self) -> str: ...


def plot_curves(curves: Sequence[Curve], *, path: Any = None, ax: Any = None) -> Any:
    """F against the kept fraction for several methods; solid signed, dashed absolute ranking.

    Args:
        curves: one for each method.
        path: a figure to write, whole or not at all; its suffix says the format.
        ax: the axes to draw into; ``None`` makes a figure.

    Raises :class:`~graphprune.errors.InputError` before anything is drawn where ``path`` has no
    suffix that matplotlib writes or its folder is not there, and
    :class:`~graphprune.errors.MissingExtraError` where matplotlib is not installed.
    """
    target = figure_target(path)
    if ax is None:
        ax = new_figure((6.4, 4.2)).add_subplot()
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
    write_figure(ax.figure, target)
    return ax


def figure_target(path: Any) -> Path | None:
    """Where a figure is to be written; refuses what cannot be, before anything is drawn."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib: pip install "graphprune[plot]"'
        ) from error
    if path is None:
        return None
    target = Path(path)
    known = FigureCanvasBase.get_supported_filetypes()
    if target.suffix.lower()[1:] not in known:
        raise InputError(f"a figure's name must end in one of .{', .'.join(known)}, got {target}")
    if not target.absolute().parent.is_dir():
        raise InputError(f"the folder {target.absolute().parent} is not there")
    return target


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure, in inches, that no window shows."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def write_figure(figure: Any, target: Path | None) -> None:
    """Writes the figure, whole or not at all; nothing for ``None``."""
    if target is None:
        return
    from graphprune.util.files import atomic_path

    with atomic_path(target) as temporary:
        figure.savefig(temporary, format=target.suffix.lower()[1:])
