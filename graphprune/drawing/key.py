"""The key of a figure: what its colours, widths and boxes mean, in as many lines as it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphprune.drawing.content import Content
from graphprune.drawing.styles import (
    BORDER,
    FILL,
    KIND_WORDS,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    SMALL,
    WIRE,
    shortened,
    text_width,
)

LINE = 0.135
"""Inches from one line of a key to the next."""
SWATCH, GAP = 0.2, 0.12


@dataclass(frozen=True)
class KeyEntry:
    """One thing explained, beside a mark of its colour."""

    shape: Literal["line", "dash", "dots", "widths", "box", "disc", "text"]
    label: str
    colour: str = NEUTRAL
    border: str = NEUTRAL

    def width(self) -> float:
        """Inches that it takes."""
        return (0.0 if self.shape == "text" else SWATCH + 0.05) + text_width(self.label, SMALL)


def edge_width(share: float) -> float:
    """Points: how wide an edge is whose strength is ``share`` of the largest."""
    return 0.45 + 1.9 * math.sqrt(share)


def short_number(value: float) -> str:
    """Three figures at most."""
    return f"{value:.3g}"


def circuit_key(shown: Content) -> list[KeyEntry]:
    """The key of a drawing of a circuit: entries for whatever it shows."""
    edges = [edge for edge in shown.edges if not edge.wire]
    entries: list[KeyEntry] = []
    if not shown.scored:
        entries.append(KeyEntry("line", "kept edge (no scores)"))
    else:
        signs = {edge.score is not None and edge.score < 0 for edge in edges}
        if False in signs:
            entries.append(KeyEntry("line", "positive score", POSITIVE))
        if True in signs:
            entries.append(KeyEntry("line", "negative score", NEGATIVE))
        if edges:
            entries.append(KeyEntry("widths", f"|score|, up to {short_number(shown.largest)}"))
    if any(edge.wire for edge in shown.edges):
        entries.append(KeyEntry("dots", "key/value head to its query heads", WIRE))
    kinds = {node.kind for node in shown.nodes}
    for kind in KIND_WORDS:
        if kind in kinds:
            entries.append(KeyEntry("box", KIND_WORDS[kind], FILL[kind], BORDER.get(kind, "#666")))
    if any({"q", "k", "v"} & set(node.ports) for node in shown.nodes):
        entries.append(KeyEntry("text", "q, k, v: query, key, value input"))
    return [*entries, *(KeyEntry("text", words) for words in _chains_explained(shown))]


def _chains_explained(shown: Content) -> list[str]:
    """Sentences on the chains of MLPs that are drawn: on one without gaps, and on one with some."""
    chains = [node for node in shown.nodes if len(node.members) > 1]
    kinds = {node.name.endswith(")"): node for node in reversed(chains)}  # the first of each
    said: list[str] = []
    if False in kinds:
        said.append(f"{kinds[False].name}: MLPs that read one another, edges summed")
    if True in kinds:
        name, members = kinds[True].name, kinds[True].members
        rest = "" if False in kinds else " that read one another, edges summed"
        said.append(f"{name}: {len(members)} MLPs from {members[0]} to {members[-1]}{rest}")
    return said


def key_lines(entries: Sequence[KeyEntry], width: float) -> list[list[KeyEntry]]:
    """The entries in lines of at most ``width`` inches."""
    lines: list[list[KeyEntry]] = []
    room = 0.0
    for entry in entries:
        need = entry.width()
        if not lines or need > room:
            lines.append([])
            room = width
        lines[-1].append(entry)
        room -= need + GAP
    return lines


def draw_key(
    axes: Any, lines: Sequence[Sequence[KeyEntry]], x: float, top: float, width: float
) -> None:
    """Draws the lines downwards from ``top``; the axes' unit is the inch."""
    from matplotlib.patches import Circle, FancyBboxPatch

    for number, line in enumerate(lines):
        y, left = top - LINE * (number + 0.5), x
        for entry in line:
            ends = [left, left + SWATCH]
            if entry.shape in ("line", "dash", "dots"):
                style = {"line": "-", "dash": (0, (2.5, 1.5)), "dots": (0, (1, 1.2))}[entry.shape]
                axes.plot(ends, [y, y], color=entry.colour, linewidth=1.6, linestyle=style)
            elif entry.shape == "widths":
                for i, share in enumerate((0.02, 0.3, 1.0)):
                    axes.plot(
                        [left + i * SWATCH / 3, left + (i + 0.8) * SWATCH / 3], [y, y],
                        color=NEUTRAL, linewidth=edge_width(share), solid_capstyle="butt",
                    )  # fmt: skip
            elif entry.shape == "box":
                axes.add_patch(
                    FancyBboxPatch(
                        (left + 0.02, y - 0.04), SWATCH - 0.04, 0.08,
                        boxstyle="round,pad=0,rounding_size=0.02", facecolor=entry.colour,
                        edgecolor=entry.border, linewidth=0.6,
                    )
                )  # fmt: skip
            elif entry.shape == "disc":
                axes.add_patch(
                    Circle((left + SWATCH / 2, y), 0.042, facecolor=entry.colour,
                           edgecolor=entry.border, linewidth=0.5)
                )  # fmt: skip
            start = left if entry.shape == "text" else left + SWATCH + 0.05
            label = shortened(entry.label, SMALL, x + width - start + 0.02)
            axes.text(start, y, label, ha="left", va="center", fontsize=SMALL, color="#333333")
            left += entry.width() + GAP
