"""Methods of a study beside each other, over the test prompts that both were judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphprune.errors import unknown_name

from .jobs import StudyJob
from .paired import AREAS, difference_over_prompts, over_prompts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LOWER", "best_methods", "intervals_of_methods", "paired_difference"]

JobRecords = Sequence[tuple[StudyJob, dict[str, Any]]]
BySeed = Mapping[int, dict[str, Any]]
LOWER = (
    "cmd", "cmd_weighted", "seconds", "cpu_seconds", "time_in_passes", "passes", "trials", "mib",
    "kl",
)  # fmt: skip
"""Figures of which the lower is the better."""


def paired_difference(
    records: JobRecords, figure: str, first: str, second: str
) -> list[dict[str, Any]]:
    """A row for each task that both methods have; see :meth:`StudyResults.paired`."""
    names = list(dict.fromkeys(job.method.name for job, _ in records))
    for name in (first, second):
        if name not in names:
            raise unknown_name("method", name, names, "which the study has")
    density = figure.partition("@")[2]
    known = dict.fromkeys(f"{density:g}" for job, _ in records for density in job.densities)
    if density and density not in known:
        raise unknown_name("density", density, known, "which the study has")
    rows = []
    for (system, task), methods in _by_case(records).items():
        if first not in methods or second not in methods:
            continue
        row = _compared(figure, methods[first], methods[second])
        if row is not None:
            rows.append({"system": system, "task": task, "figure": figure, **row})
    return rows


def _compared(figure: str, first: BySeed, second: BySeed) -> dict[str, Any] | None:
    """Both means over the common seeds and their difference; ``None`` without values by prompt."""
    seeds = [seed for seed in first if seed in second]
    sides = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
    if not seeds:
        return None
    found = difference_over_prompts(figure, *sides)
    if found is None:
        return None
    return {
        "seeds": found.seeds,
        "prompts": found.prompts,
        "first": found.sides[0],
        "second": found.sides[1],
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "tie": not (found.low > 0 or found.high < 0),
    }


def intervals_of_methods(records: JobRecords, figure: str) -> list[dict[str, Any]]:
    """A row for each task and method; see :meth:`StudyResults.over_prompts`."""
    rows = []
    for (system, task), methods in _by_case(records).items():
        for method, by_seed in methods.items():
            found = over_prompts(figure, list(by_seed.values()))
            if found is not None:
                where = {"system": system, "task": task, "method": method, "figure": figure}
                values = found._asdict()
                del values["sides"]
                rows.append({**where, **values})
    return rows


def best_methods(records: JobRecords, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """The best method of each task and figure, and every other's difference from it.

    See :meth:`StudyResults.ties`; the best is that of the ``summary``.
    """
    rows = []
    by_case = _by_case(records)
    for (system, task), methods in by_case.items():
        mine = summary[(summary["system"] == system) & (summary["task"] == task)]
        means = mine.set_index("method")
        figures = [name for name in map(str, means) if _is_compared(name)]
        for figure in figures:
            known = means[figure].dropna()
            if not len(known):
                continue
            lower = figure.partition("@")[0] in LOWER
            best = str(known.idxmin() if lower else known.idxmax())
            for method in map(str, known.index):
                row = {"system": system, "task": task, "figure": figure, "method": method}
                found = _compared(figure, methods[method], methods[best])
                if found is not None:
                    names = ("seeds", "prompts", "difference", "low", "high")
                    worse = found["low"] > 0 if lower else found["high"] < 0
                    rows.append({**row, "best": best, **{name: found[name] for name in names},
                                 "tie": not worse})  # fmt: skip
    return rows


def _is_compared(name: str) -> bool:
    figure, at, _ = name.partition("@")
    return name in AREAS or (bool(at) and figure in ("kl", "top1_match", "top1_accuracy"))


def _by_case(
    records: JobRecords,
) -> dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]]:
    """Finished records by system and task, method and seed."""
    cases: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for job, record in records:
        if record["state"] == "done":
            methods = cases.setdefault((job.system.name, job.task), {})
            methods.setdefault(job.method.name, {})[job.seed] = record
    return cases
