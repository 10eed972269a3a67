"""Curves of a study's page, drawn as inline SVG, and the legend of their lines."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["LineStyle", "curves", "legend", "line_styles"]

COLOURS = (
    "#4269d0", "#d98200", "#e4553f", "#2f9a45", "#9a4ff0", "#8a5a3c", "#e0559a", "#12a39a",
)  # fmt: skip
DASHES = ("", "7 3", "2 3", "9 3 2 3")

_W, _H, _LEFT, _BOTTOM, _TOP = 400, 260, 42, 38, 24
_RANGE = (-0.5, 2.0)


class LineStyle(NamedTuple):
    """The colour and the dashes (SVG's, ``""``: none) of a method's lines."""

    colour: str
    dashes: str


def line_styles(methods: Sequence[str]) -> dict[str, LineStyle]:
    """A style for each method, no two alike: colours first, then dashes."""
    styles = {}
    for number, name in enumerate(methods):
        again = number // len(COLOURS)
        dashes = DASHES[again] if again < len(DASHES) else f"{6 + 4 * again} 3 1 3"
        styles[name] = LineStyle(COLOURS[number % len(COLOURS)], dashes)
    return styles


def legend(styles: Mapping[str, LineStyle]) -> str:
    """The line of each method beside its name."""
    return " ".join(
        "<span><svg width='34' height='6' aria-hidden='true'>"
        f"<line x1='0' x2='34' y1='3' y2='3' stroke-width='3' {_stroke(style)}/></svg>"
        f"{html.escape(name)}</span>"
        for name, style in styles.items()
    )


def _stroke(style: LineStyle) -> str:
    dashes = f" stroke-dasharray='{style.dashes}'" if style.dashes else ""
    return f"stroke='{style.colour}'{dashes}"


def curves(
    rows: Sequence[tuple[Any, dict[str, Any]]], by: str, styles: Mapping[str, LineStyle]
) -> str:
    """F against the kept share (logarithmic): a thin line a seed, a thick one for the mean."""
    lines_of: dict[str, list[list[float]]] = {}
    sizes: list[float] = []
    for job, record in rows:
        if "curve" not in record:  # faithfulness is not defined there
            continue
        sizes = record["curve"]["sizes"]
        lines_of.setdefault(job.method.name, []).append(record["curve"]["f"][by])
    title = "signed ranking (CPR)" if by == "signed" else "absolute ranking (CMD)"
    parts = [
        f"<svg width='{_W}' height='{_H}' viewBox='0 0 {_W} {_H}' role='img' "
        f"aria-label='faithfulness, {title}' font-size='11' font-family='inherit'>",
        f"<text x='{_LEFT}' y='14'>f, {title}</text>",
    ]
    for level in (0.0, 0.5, 1.0, 1.5):
        y = _y(level)
        parts.append(
            f"<line class='axis' x1='{_LEFT}' x2='{_W - 8}' y1='{y:.1f}' y2='{y:.1f}' "
            f"stroke='#c3c9d5' stroke-width='{1.2 if level == 1 else 0.6}'/>"
            f"<text x='{_LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{level:g}</text>"
        )
    for size in sizes:
        shown = f"{size * 100:g} %"
        if shown in ("0.1 %", "1 %", "10 %", "100 %"):
            parts.append(
                f"<text x='{_x(size, sizes):.1f}' y='{_H - 20}' text-anchor='middle'>{shown}</text>"
            )
    parts.append(
        f"<text x='{(_W + _LEFT) / 2}' y='{_H - 4}' text-anchor='middle'>kept edges</text>"
    )
    for name, lines in lines_of.items():
        mean = np.mean(lines, axis=0).tolist()
        for line, width, opacity in [*((one, 0.8, 0.35) for one in lines), (mean, 2.0, 1.0)]:
            points = " ".join(
                f"{_x(s, sizes):.1f},{_y(v):.1f}" for s, v in zip(sizes, line, strict=True)
            )
            parts.append(
                f"<polyline points='{points}' fill='none' {_stroke(styles[name])} "
                f"stroke-width='{width}' stroke-opacity='{opacity}'/>"
            )
    return "".join(parts) + "</svg>"


def _x(size: float, sizes: Sequence[float]) -> float:
    low, high = math.log(sizes[0]), math.log(sizes[-1])
    return _LEFT + (math.log(size) - low) / (high - low) * (_W - 20 - _LEFT)


def _y(f: float) -> float:
    low, high = _RANGE
    share = (min(max(f, low), high) - low) / (high - low)
    return _H - _BOTTOM - share * (_H - _BOTTOM - _TOP)
