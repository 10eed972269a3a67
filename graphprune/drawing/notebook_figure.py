"""Figures that show themselves in a notebook, whether or not pyplot was imported there."""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["NotebookFigure"]

SCREEN_DPI = 144  # text of 6 points is 12 pixels high


class NotebookFigure(Figure):
    """A figure that no window shows; as a cell's last value a notebook does."""

    def __init__(self, width: float, height: float, layout: Any = "constrained") -> None:
        super().__init__(figsize=(width, height), layout=layout, dpi=SCREEN_DPI)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """The figure in a notebook."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
