"""Colours, sizes of text and words that all pictures share.

Blue and orange (Okabe and Ito's) are told apart by colour-blind readers. Text is at least 6 points
in a figure's own size: nothing has to be enlarged for print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from graphprune.errors import MissingExtraError

POSITIVE, NEGATIVE, NEUTRAL, WIRE = "#0072B2", "#D55E00", "#555555", "#8A8A8A"
SHARED = "#333333"
OWN = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""A colour for each class of nodes, or each of several circuits."""
FILL = {
    "head": "#E3EFF9",
    "kv": "#EDE4F5",
    "mixer": "#E3EFF9",
    "mlp": "#FFF1C4",
    "embed": "#E8E8E8",
    "output": "#E8E8E8",
}
BORDER = {"head": "#5B8DB8", "kv": "#9A7BB5", "mixer": "#5B8DB8", "mlp": "#B8921A"}
KIND_WORDS = {
    "embed": "input",
    "head": "attention head",
    "kv": "key/value head",
    "mixer": "attention or another mixer, one node",
    "mlp": "MLP",
    "output": "output",
}
CLASSES = (
    "#A8DCC5", "#F2C3DC", "#F8DE88", "#C8B8E6", "#BDE2F4", "#F4B9A2", "#D5D5D5", "#CBE58E",
    "#E0C9A6", "#9CC3C8",
)  # fmt: skip
"""Fills of classes of nodes, light enough for a name on them."""
CUT = "#B9B9B9"
TEXT, SMALL = 6.5, 6.0
"""Points of a node's name and of small print; 6 is the least that is read on paper."""
CM = 1 / 2.54


def require_matplotlib() -> None:
    """Raises :class:`MissingExtraError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib, which is not installed: pip install "graphprune[plot]"'
        ) from error


@contextmanager
def drawing_settings() -> Iterator[None]:
    """Fixed settings within: the same picture gives the same file, and names are no formulas."""
    require_matplotlib()
    import matplotlib as mpl

    settings: Any = {
        "svg.hashsalt": "graphprune",
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    with mpl.rc_context(settings):
        yield


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Inches that a line of text takes at ``size`` points."""
    import warnings

    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is as wide as its stand-in
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return float(width) / 72


def printable(text: str) -> str:
    """The text with every control character replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, size: float, width: float, *, bold: bool = False) -> str:
    """The text, or its two ends around an ellipsis where it is wider than ``width`` inches."""
    text = printable(text)
    if text_width(text, size, bold=bold) <= width:
        return text
    for letters in range(len(text) - 1, 1, -1):
        short = f"{text[: (letters + 1) // 2]}…{text[len(text) - letters // 2 :]}"
        if text_width(short, size, bold=bold) <= width:
            return short
    return "…"


def wrapped(words: Sequence[str], size: float, width: float) -> list[str]:
    """Words as lines of at most ``width`` inches (a longer word has a line of its own)."""
    lines: list[str] = []
    for word in words:
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shortened(word, size, width))
    return lines
