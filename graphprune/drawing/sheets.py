"""Empty pages whose unit is the inch, their headings, and the files they become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphprune.drawing.key import LINE
from graphprune.drawing.styles import SMALL, shortened
from graphprune.util.files import atomic_path

MARGIN = 0.08


def save_figure(figure: Any, target: Path | None, dpi: int | None = None) -> None:
    """Writes the figure (nothing for ``None``), whole or not at all.

    It has no date, so that the same figure gives the same file; ``dpi=None`` takes its own dots.
    """
    if target is None:
        return
    suffix = target.suffix.lower()
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with atomic_path(target) as temporary:
        figure.savefig(
            temporary, format=suffix[1:], dpi=dpi or "figure", metadata=metadata.get(suffix)
        )


def new_sheet(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure and its axes, whose unit is the inch."""
    from graphprune.drawing.notebook_figure import NotebookFigure

    figure = NotebookFigure(width, height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def draw_heading(axes: Any, width: float, top: float, title: str, lines: Sequence[str]) -> None:
    """The title in bold and the lines below it, from ``top`` downwards."""
    bold = shortened(title, 8, width - 2 * MARGIN, bold=True)
    axes.text(MARGIN, top - 0.03, bold, ha="left", va="top", fontsize=8, weight="bold")
    for i, line in enumerate(lines):
        y = top - 0.18 - LINE * i
        axes.text(MARGIN, y, line, ha="left", va="top", fontsize=SMALL, color="#333333")
