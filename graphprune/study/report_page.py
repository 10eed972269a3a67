"""One page for a study that needs nothing but itself: tables, and curves drawn as inline SVG.

No script, no request: a content security policy in the page forbids both. All names are escaped.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparisons import LOWER
from .report_curves import curves, legend, line_styles

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["study_page"]

SHOWN = {
    "cmd": "CMD",
    "cpr": "CPR",
    "log_area": "log area",
    "cmd_weighted": "CMD, edges kept",
    "cpr_weighted": "CPR, edges kept",
    "cpr_clipped": "CPR, f cut at 1",
    "auroc": "AUROC",
    "passes": "passes, at most",
    "trials": "trials, at most",
    "time_in_passes": "time in passes",
    "seconds": "seconds",
    "mib": "MiB",
}
AT_SIZES = {"kl": "KL", "top1_match": "same top", "top1_accuracy": "top-1"}
_COST = ("passes", "trials", "time_in_passes", "seconds", "mib")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2330; margin: 2rem auto; max-width: 100rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .5rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid #e3e6ec; }
th:first-child, td:first-child { text-align: left; }
td small { color: #697386; display: block; font-size: .72rem; font-weight: 400;
  white-space: nowrap; }
.text th, .text td { text-align: left; }
td.best, td.tied { font-weight: 650; } td.tied small.tie { color: inherit; }
h3 { font-size: 1rem; margin: 1rem 0 0; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.panels > * { max-width: 100%; } svg { height: auto; }
.note { color: #697386; }
.legend span { white-space: nowrap; margin-right: 1.2rem; }
.legend svg { margin-right: .35rem; vertical-align: 2px; }
@media (prefers-color-scheme: dark) {
  body { background: #14171f; color: #e4e8f0; }
  th, td { border-color: #2c3240; } svg text { fill: #e4e8f0; } svg .axis { stroke: #697386; }
}
"""


Record = tuple[Any, dict[str, Any]]  # a job and its record


def study_page(
    name: str,
    records: Sequence[Record],
    aside: Mapping[str, int],
    summary: pd.DataFrame,
    overall: pd.DataFrame,
    overall_note: str,
    ties: pd.DataFrame,
) -> str:
    """The whole page as text; arguments as :class:`~graphprune.study.StudyResults` has them."""
    styles = line_styles(list(dict.fromkeys(job.method.name for job, _ in records)))
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(name)}</h1>",
        f"<p class='note'>{html.escape(_state(records, aside))}</p>",
        _cases_table(records),
    ]
    if len(overall):
        parts.append("<h2>All tasks</h2>" + _overall(overall))
        if overall_note:
            note = f"{overall_note[0].upper()}{overall_note[1:]}."
            parts.append(f"<p class='note'>{html.escape(note)}</p>")
    parts.append(f"<p class='legend'>{legend(styles)}</p>")
    for (system, task), rows in _by_task(records).items():
        parts.append(f"<h2>{html.escape(system)}: {html.escape(task)}</h2>")
        mine = summary
        if len(summary):
            mine = summary[(summary["system"] == system) & (summary["task"] == task)]
        drawn = [row for row in rows if row[1]["state"] == "done"]
        tied = _tied(ties, system, task)
        if len(mine):
            parts += ["<h3>Curve and cost</h3>", _table(mine, SHOWN, tied)]
            parts += ["<h3>Circuits of fixed sizes</h3>", _table(mine, _sizes(mine), tied)]
        if drawn:
            svgs = "".join(curves(drawn, by, styles) for by in ("signed", "abs"))
            parts.append(f"<div class='panels'>{svgs}</div>")
        notes = [*_of_intervals(mine), *_of_sizes(drawn), *_notes(rows)]
        parts += [f"<p class='note'>{html.escape(note)}</p>" for note in notes]
    parts.append("</body></html>\n")
    return "".join(parts)


def _state(records: Sequence[Record], aside: Mapping[str, int]) -> str:
    counts = Counter(record["state"] for _, record in records)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    others = "".join(f" {n} more are not shown: {why}." for why, n in aside.items())
    seeds = sorted({job.seed for job, _ in records})
    made_by = sorted({str(record["made_by"]) for _, record in records if "made_by" in record})
    selectors = sorted({job.selector for job, _ in records if job.selector})
    chosen = (
        f"Circuits of fixed sizes by the selector {', '.join(selectors)}"
        if selectors
        else "Circuits of fixed sizes are the best edges without dead ends"
    )
    return (
        f"{', '.join([*made_by, ''])}seeds {', '.join(map(str, seeds))}. Jobs: {states}.{others} "
        f"{chosen}. Figures are means over seeds with 95 % intervals, of one seed over prompts. "
        "Bold: the best, and what is tied with it: the interval of the difference over the prompts "
        "of common seeds holds 0."
    )


def _cases_table(records: Sequence[Record]) -> str:
    """A row for each task: its model, edges, prompts, and what replaces an ablated message."""
    rows = []
    for (system, task), group in _by_task(records).items():
        job = group[0][0]
        done = [record for _, record in group if record["state"] == "done"]
        edges = sorted({record["edges"] for _, record in group if record.get("edges")})
        ablations = dict.fromkeys(
            str(record["ablation"]) for record in done if "ablation" in record
        )
        cells = [
            f"{system}: {task}",
            _model_name(job.system),
            ", ".join(f"{count:,}" for count in edges),
            f"{job.train} to find, {job.test} to judge",
            ", ".join(ablations),
        ]
        rows.append(cells)
    columns = ("case", "model", "edges", "prompts", "ablation")
    escaped = [[html.escape(cell or "–") for cell in row] for row in rows]
    return f"<div class='text'>{_html_table(columns, escaped)}</div>"


def _model_name(system: Any) -> str:
    """A model's id or the last part of its folder; of other systems the kind."""
    model = system.options.get("model")
    if not isinstance(model, str):
        return str(system.kind)
    is_path = model.startswith((".", "~", "/")) or model.count("/") > 1
    return PurePath(model).name if is_path else model


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML; a cell may bring its own ``<td>``."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _by_task(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for job, record in records:
        groups.setdefault((job.system.name, job.task), []).append((job, record))
    return groups


def _overall(frame: pd.DataFrame) -> str:
    titles = {"tasks": "tasks", **SHOWN, "rank_cpr": "CPR rank", "rank_cmd": "CMD rank"}
    names = [name for name in titles if name in frame and frame[name].notna().any()]
    rows = [
        [html.escape(str(row["method"])), *(_text(row[name]) for name in names)]
        for _, row in frame.iterrows()
    ]
    return _html_table(["method", *(titles[name] for name in names)], rows)


def _sizes(frame: pd.DataFrame) -> dict[str, str]:
    """Columns of the figures at each density, with titles."""
    sizes = [str(name).removeprefix("kept@") for name in frame if str(name).startswith("kept@")]
    return {
        f"{figure}@{size}": f"{title} at {float(size) * 100:g} %"
        for size in sizes
        for figure, title in AT_SIZES.items()
    }


def _tied(ties: pd.DataFrame, system: str, task: str) -> set[tuple[str, str]]:
    """The figures and methods of a task that are not told apart from another, best one."""
    if not len(ties):
        return set()
    mine = ties[(ties["system"] == system) & (ties["task"] == task) & ties["tie"]]
    mine = mine[mine["method"] != mine["best"]]
    return set(zip(mine["figure"], mine["method"], strict=True))


def _table(frame: pd.DataFrame, titles: Mapping[str, str], tied: set[tuple[str, str]]) -> str:
    """A row for each method; the best of a figure is bold, and so are those tied with it."""
    names = [n for n in titles if n in frame and frame[n].notna().any()]
    names += [n for n in titles if n.startswith("kl@") and n not in names]
    names.sort(key=list(titles).index)
    best = {
        name: frame[name].min() if name.partition("@")[0] in LOWER else frame[name].max()
        for name in names
        if name in frame and name not in _COST
    }
    rows = []
    for _, row in frame.sort_values("cmd" if "cmd" in frame else "method").iterrows():
        method = str(row["method"])
        cells = [html.escape(method), str(row["seeds"])]
        for name in names:
            cell = _cell(row, name)
            if (name, method) in tied:
                cells.append(f"<td class='tied'>{cell}<small class='tie'>tied</small></td>")
            else:
                mark = " class='best'" if name in best and row[name] == best[name] else ""
                cells.append(f"<td{mark}>{cell}</td>")
        rows.append(cells)
    return _html_table(["method", "seeds", *(titles[name] for name in names)], rows)


def _cell(row: Any, name: str) -> str:
    """A figure with its interval; at a density also the edges really kept."""
    low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
    interval = f"<small>{_text(low)} – {_text(high)}</small>" if low < high else ""
    size = name.partition("@")[2]
    if not size:
        return f"{_text(row[name])}{interval}"
    if not name.startswith("kl@"):  # once for each size
        return f"{_text(row.get(name))}{interval}"
    empty, seeds = row[f"empty@{size}"], row["seeds"]
    kept, requested = row[f"kept@{size}"], row[f"requested@{size}"]
    kept_text = f"{kept:.0f}" if float(kept).is_integer() else f"{kept:.1f}"
    edges = f"<small>{kept_text} of {requested:.0f} edges</small>"
    if 0 < empty < seeds:
        edges += f"<small>{empty:.0f} of {seeds} seeds keep none: left out</small>"
    return f"{_text(row.get(name))}{interval}{edges}"


def _of_sizes(rows: Sequence[Record]) -> list[str]:
    """What curves have at sizes where no circuit keeps an edge."""
    curves = [record["curve"] for _, record in rows if "curve" in record]
    if not curves:
        return []
    kept = [counts for curve in curves for counts in curve["kept"].values()]
    none = [s for s, counts in zip(curves[0]["sizes"], zip(*kept, strict=True), strict=True)
            if not any(counts)]  # fmt: skip
    if not none:
        return []
    return [
        f"Up to {max(none) * 100:g} % no circuit of any method keeps an edge: there the curves "
        "have the f of the wholly ablated model."
    ]


def _of_intervals(frame: pd.DataFrame) -> list[str]:
    """What the intervals of a task's methods say, and do not."""
    if not len(frame):
        return []
    by_note = frame.groupby("note", sort=False)["method"].agg(list)
    return [
        str(note) if len(methods) == len(frame) else f"{', '.join(map(str, methods))}: {note}"
        for note, methods in by_note.items()
        if note
    ]


def _notes(rows: Sequence[Record]) -> list[str]:
    """Refusals, failures and remarks, each with the number of its jobs."""
    lines: list[str] = []
    for job, record in rows:
        lines += record.get("remarks", ())
        if record["state"] in ("refused", "failed"):
            lines.append(f"{job.method.name} {record['state']}: {record['why']}")
        elif "faithfulness_note" in record:
            lines.append(f"faithfulness, seed {job.seed}: {record['faithfulness_note']}")
    return [f"{line} ({count} jobs)" for line, count in Counter(lines).items()]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int | np.integer):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
