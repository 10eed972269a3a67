"""Figures that show themselves in a notebook, whether or not pyplot was imported there."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["NotebookAxes", "NotebookFigure"]

SCREEN_DPI = 144  # text of 6 points is 12 pixels high


class NotebookAxes(Axes):
    """Axes that a notebook shows as a cell's last value, by the figure that they stand in."""

    def _repr_png_(self) -> bytes:
        """The whole figure in a notebook."""
        buffer = io.BytesIO()
        figure: Any = self.figure
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


class NotebookFigure(Figure):
    """A figure that no window shows; as a cell's last value a notebook does."""

    def __init__(self, width: float, height: float, layout: Any = "constrained") -> None:
        super().__init__(figsize=(width, height), layout=layout, dpi=SCREEN_DPI)
        FigureCanvasAgg(self)

    def add_subplot(self, *place: Any, **options: Any) -> Any:
        """Axes as matplotlib's, which a notebook shows."""
        if not options.keys() & {"projection", "polar", "axes_class"}:
            options["axes_class"] = NotebookAxes
        return super().add_subplot(*place, **options)

    def _repr_png_(self) -> bytes:
        """The figure in a notebook."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
