"""Evaluation reports as documents and as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.evaluation import EvaluationReport, FaithfulnessCurve

__all__ = ["curve_document", "report_document", "show_curve", "show_report"]

NAMES = {
    "faithfulness": "faithfulness",
    "kl": "KL to the full model",
    "logit_diff": "logit difference",
    "prob_diff": "probability difference",
    "accuracy": "accuracy vs distractor",
    "exact_match": "match vs distractor",
    "top1_accuracy": "top-1 accuracy",
    "top1_match": "top-1 match",
    "kendall_tau": "Kendall's tau",
}
MEANINGS = {
    "vs distractor": "the answer against the distractor alone",
    "top-1": "the largest of all outputs",
    "match": "the full model's choice",
}
NONE = (None, None)
COUNTS = ("n_edges", "density", "sparsity")


def report_document(report: EvaluationReport, seed: int = 0) -> dict[str, Any]:
    """The report's plain values and ``intervals`` (over prompts, 95 %; ``None``: no bound)."""
    measured = [*report.examples, *(["faithfulness"] if "faithfulness" in report.values else [])]
    intervals = {
        name: [end if math.isfinite(end) else None for end in report.interval(name, seed=seed)]
        for name in measured
    }
    return {**report.to_dict(), "intervals": intervals}


def show_report(console: Console, document: dict[str, Any], title: str) -> None:
    """A row for each measure: the circuit with its interval, the full and the ablated model."""
    from graphprune.cli.job import cells

    full, ablated = document.get("full", {}), document.get("ablated", {})
    intervals = document.get("intervals", {})
    skipped = {*COUNTS, "full", "ablated", "absent", "notes", "settings", "intervals", "remarks"}
    if document.get("settings", {}).get("choices") == "all outputs":
        skipped |= {"accuracy", "exact_match"}  # the same numbers as those of top 1
    names = [n for n in NAMES if n in document and n not in skipped]
    names += [n for n in document if n not in NAMES and n not in skipped]
    rows = []
    for name in names:
        low, high = intervals.get(name, (None, None))
        interval = f"{_end(low, '-inf')} to {_end(high, 'inf')}" if (low, high) != NONE else ""
        ends = ("1", "0") if name == "faithfulness" else (full.get(name), ablated.get(name))
        rows.append((NAMES.get(name, name), _number(document[name]), interval, *map(_number, ends)))
    cells(
        console,
        title,
        ["", "circuit", "95 % interval", "full model", "all ablated"],
        rows,
        numbers=True,
    )
    labels = " ".join(row[0] for row in rows)
    told = [f"{words}: {meaning}" for words, meaning in MEANINGS.items() if words in labels]
    if told:
        console.print("; ".join(told), markup=False)
    why = document.get("absent", {}).get("faithfulness")
    if why:  # the one measure that a reader looks for
        console.print(f"no faithfulness: {why}", markup=False)
    for name, note in document.get("notes", {}).items():
        console.print(f"{NAMES.get(name, name)}: {note}", markup=False)
    for remark in document.get("remarks", ()):
        console.print(remark, markup=False)


def _end(value: float | None, unbounded: str) -> str:
    return unbounded if value is None else f"{value:.3f}"


def _number(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.4g}"


def curve_document(curve: FaithfulnessCurve) -> dict[str, Any]:
    """Sizes, kept edges and f for each ranking, with the areas."""
    return {
        "sizes": list(curve.sizes),
        "faithfulness": curve.f,
        "kept": curve.kept,
        "metric": curve.metric,
        "full": curve.full,
        "ablated": curve.ablated,
        "note": curve.note,
        **curve.summary(),
    }


def show_curve(console: Console, curve: FaithfulnessCurve, title: str) -> None:
    """A row for each size, two columns for each ranking, and the areas below."""
    from graphprune.cli.job import cells

    columns = ["size"]
    for ranking in curve.f:
        columns += [f"edges ({ranking})", f"f ({ranking})"]
    rows: list[Sequence[str]] = []
    for i, size in enumerate(curve.sizes):
        row = [f"{size:g}"]
        for ranking in curve.f:
            row += [f"{curve.kept[ranking][i]}", f"{curve.f[ranking][i]:.3f}"]
        rows.append(row)
    cells(console, title, columns, rows, numbers=True)
    areas = "  ".join(f"{name} {value:.3f}" for name, value in curve.summary().items())
    console.print(areas, markup=False)
    if curve.note:
        console.print(f"f: {curve.note}", markup=False)
