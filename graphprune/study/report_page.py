"""One page for a study that needs nothing but itself: tables, and curves drawn as inline SVG.

No script, no request: a content security policy in the page forbids both. All names are escaped.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["study_page"]

COLOURS = (
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e", "#ff8ab7",
    "#6cc5b0", "#9498a0", "#b2182b", "#1b7837",
)  # fmt: skip
LOWER = ("cmd", "seconds", "cpu_seconds", "mib", "kl")
"""Figures of which the lower is the better."""
SHOWN = {
    "cpr": "CPR",
    "cpr_clipped": "CPR, f cut at 1",
    "cmd": "CMD",
    "log_area": "log area",
    "auroc": "AUROC",
    "seconds": "seconds",
    "mib": "MiB",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2330; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ec; }
th:first-child, td:first-child { text-align: left; }
td small { color: #697386; display: block; }
td.best { font-weight: 650; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.note { color: #697386; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .35rem; vertical-align: -1px; }
@media (prefers-color-scheme: dark) {
  body { background: #14171f; color: #e4e8f0; }
  th, td { border-color: #2c3240; } svg text { fill: #e4e8f0; } svg .axis { stroke: #697386; }
}
"""


def study_page(
    name: str,
    records: Sequence[tuple[Any, dict[str, Any]]],
    aside: Mapping[str, int],
    summary: pd.DataFrame,
    overall: pd.DataFrame,
) -> str:
    """The whole page as text; arguments as :class:`~graphprune.study.StudyResults` has them."""
    methods = list(dict.fromkeys(job.method.name for job, _ in records))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(name)}</h1>",
        f"<p class='note'>{html.escape(_state(records, aside))}</p>",
    ]
    if len(summary):
        parts.append("<h2>All tasks</h2>" + _overall(overall))
    parts.append(f"<p>{_legend(colours)}</p>")
    for (system, task), rows in _by_task(records).items():
        parts.append(f"<h2>{html.escape(system)}: {html.escape(task)}</h2>")
        mine = summary
        if len(summary):
            mine = summary[(summary["system"] == system) & (summary["task"] == task)]
        drawn = [row for row in rows if row[1]["state"] == "done"]
        parts.append("<div class='panels'>")
        if len(mine):
            parts.append(_table(mine))
        if drawn:
            parts += [_curves(drawn, by, colours) for by in ("signed", "abs")]
        parts.append("</div>")
        parts += [f"<p class='note'>{html.escape(note)}</p>" for note in _of_intervals(mine)]
        parts += _notes(rows)
    parts.append("</body></html>\n")
    return "".join(parts)


def _state(records: Sequence[tuple[Any, dict[str, Any]]], aside: Mapping[str, int]) -> str:
    counts = Counter(record["state"] for _, record in records)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    others = "".join(f" {n} more are not shown: {why}." for why, n in aside.items())
    return f"Jobs: {states}.{others} Figures are means over seeds with 95 % intervals."


def _by_task(
    records: Sequence[tuple[Any, dict[str, Any]]],
) -> dict[tuple[str, str], list[tuple[Any, dict[str, Any]]]]:
    groups: dict[tuple[str, str], list[tuple[Any, dict[str, Any]]]] = {}
    for job, record in records:
        groups.setdefault((job.system.name, job.task), []).append((job, record))
    return groups


def _legend(colours: dict[str, str]) -> str:
    return " &ensp; ".join(
        f"<span style='white-space:nowrap'><span class='key' style='background:{colour}'></span>"
        f"{html.escape(name)}</span>"
        for name, colour in colours.items()
    )


def _overall(frame: pd.DataFrame) -> str:
    named = {"tasks": "tasks", **SHOWN, "rank_cpr": "CPR rank", "rank_cmd": "CMD rank"}
    names = [name for name in named if name in frame and frame[name].notna().any()]
    head = "".join(f"<th>{named[name]}</th>" for name in names)
    rows = [
        f"<tr><td>{html.escape(str(row['method']))}</td>"
        + "".join(f"<td>{_text(row[name])}</td>" for name in names)
        + "</tr>"
        for _, row in frame.iterrows()
    ]
    return f"<div class='wide'><table><tr><th>method</th>{head}</tr>{''.join(rows)}</table></div>"


def _table(frame: pd.DataFrame) -> str:
    columns = [str(name) for name in frame]
    sized = [n for n in columns if n.startswith("kl@") and not n.endswith(("_low", "_high"))]
    named = {**SHOWN, **{name: name.replace("kl@", "KL at ") for name in sized}}
    names = [name for name in named if name in frame and frame[name].notna().any()]
    head = "".join(f"<th>{named[name]}</th>" for name in names)
    best = {
        name: frame[name].min() if name.split("@")[0] in LOWER else frame[name].max()
        for name in names
    }
    rows = []
    for _, row in frame.sort_values("cmd" if "cmd" in frame else "method").iterrows():
        cells = [f"<td>{html.escape(str(row['method']))}</td>"]
        for name in names:
            mark = " class='best'" if row[name] == best[name] else ""
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            shown = f"<small>{_text(low)} – {_text(high)}</small>" if low < high else ""
            cells.append(f"<td{mark}>{_text(row[name])}{shown}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class='wide'><table><tr><th>method</th>{head}</tr>{''.join(rows)}</table></div>"


def _of_intervals(frame: pd.DataFrame) -> list[str]:
    """What the intervals of a task's methods say, and do not."""
    if not len(frame):
        return []
    named = frame.groupby("note", sort=False)["method"].agg(list)
    every = len(frame)
    return [
        str(note) if len(methods) == every else f"{', '.join(map(str, methods))}: {note}"
        for note, methods in named.items()
        if note
    ]


def _notes(rows: Sequence[tuple[Any, dict[str, Any]]]) -> list[str]:
    told: dict[str, int] = {}
    for job, record in rows:
        if record["state"] in ("refused", "failed"):
            line = f"{job.method.name} {record['state']}: {record['why']}"
        elif "faithfulness_note" in record:
            line = f"faithfulness, seed {job.seed}: {record['faithfulness_note']}"
        else:
            continue
        told[line] = told.get(line, 0) + 1
    return [f"<p class='note'>{html.escape(line)} ({n} jobs)</p>" for line, n in told.items()]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int | np.integer):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


# -------------------------------------------------------------------- curves

_W, _H, _LEFT, _BOTTOM, _TOP = 400, 260, 42, 38, 24
_RANGE = (-0.5, 2.0)


def _curves(rows: Sequence[tuple[Any, dict[str, Any]]], by: str, colours: dict[str, str]) -> str:
    """F against the kept share (logarithmic): a thin line a seed, a thick one for the mean."""
    named: dict[str, list[list[float]]] = {}
    sizes: list[float] = []
    for job, record in rows:
        if "curve" not in record:  # faithfulness is not defined there
            continue
        sizes = record["curve"]["sizes"]
        named.setdefault(job.method.name, []).append(record["curve"]["f"][by])
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
    for name, lines in named.items():
        mean = np.mean(lines, axis=0).tolist()
        for line, width, opacity in [*((one, 0.8, 0.35) for one in lines), (mean, 2.0, 1.0)]:
            points = " ".join(
                f"{_x(s, sizes):.1f},{_y(v):.1f}" for s, v in zip(sizes, line, strict=True)
            )
            parts.append(
                f"<polyline points='{points}' fill='none' stroke='{colours[name]}' "
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
