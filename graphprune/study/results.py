"""A study's tables: a row for each job and density, and means over seeds with intervals."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.core.contents import fingerprint
from graphprune.core.mask import budget
from graphprune.util.files import atomic_path, write_text
from graphprune.util.numbers import UNBOUNDED, bootstrap_interval
from graphprune.util.plain import csv_text

from .comparisons import best_methods, intervals_of_methods, paired_difference
from .job_records import FIGURES
from .jobs import StudyJob
from .paired import AT_A_DENSITY, has_prompt_values, over_prompts
from .report_page import study_page

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Prompts", "StudyResults"]

Prompts = Mapping[tuple[str, str, int], tuple[frozenset[str], frozenset[str]]]

log = logging.getLogger(__name__)

AT_SIZES = ("kl", "faithfulness", "accuracy", "top1_accuracy", "top1_match")


@dataclass(frozen=True, eq=False, repr=False)
class StudyResults:
    """Records of all jobs of a study, in the study's order.

    ``records`` holds ``(job, record)``; a record's ``state`` is ``done``, ``refused`` (the method
    does not serve the model, or the graph is too large), ``failed`` or ``open``. ``prompts`` are
    hashes of the training and the test prompts by system, task and seed. ``aside`` counts
    other finished jobs of the folder by the reason: they are of other prompts, weights, settings
    or versions.

    Example:
        >>> study = gp.Study.from_dict(
        ...     {
        ...         "systems": {"club": {"kind": "gcn-karate", "tasks": ["communities"]}},
        ...         "methods": {"chance": {"method": "random"}},
        ...         "densities": [0.5],
        ...         "seeds": [0, 1],
        ...         "train": 8,
        ...         "test": 8,
        ...     }
        ... )
        >>> study.results(folder)
        StudyResults('study': 2 open)
    """

    name: str
    records: Sequence[tuple[StudyJob, dict[str, Any]]]
    prompts: Prompts = field(default_factory=dict)
    aside: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        return f"StudyResults({self.name!r}: {states or 'no jobs'})"

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        return dict(Counter(record["state"] for _, record in self.records))

    def failures(self) -> list[tuple[StudyJob, str]]:
        """Failed jobs with the reason."""
        return [(job, rec["why"]) for job, rec in self.records if rec["state"] == "failed"]

    def to_frame(self) -> pd.DataFrame:
        """A row for each job and density: labels, state, figures of the job, those of the size."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for job, record in self.records:
            base = {**job.label, "state": record["state"], "edges": record.get("edges")}
            base |= {name: _figure(record.get(name)) for name in FIGURES}
            base["why"] = record.get("why", "")
            for row in record.get("rows") or [{"density": None}]:
                rows.append({**base, **{name: _figure(value) for name, value in row.items()}})
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """Means over seeds by system, task and method, with 95 % intervals.

        Of few seeds these are Student's t or wider (see :mod:`graphprune.util.numbers`).

        Columns ``figure``, ``figure_low`` and ``figure_high``; KL at a density is ``kl@0.01``, of
        circuits that keep an edge alone: ``kept@0.01`` is the mean number of edges really kept,
        ``requested@0.01`` what was asked for, ``empty@0.01`` the number of seeds whose circuit
        keeps none and is left out. ``top1_match@0.01`` is the share of prompts on which circuit and
        model have the same argmax. ``cmd_weighted`` and ``cpr_weighted`` are the areas over the
        share of edges really kept, see :func:`graphprune.mib.curve.kept_shares`. ``passes`` and
        ``trials`` are what the method plans at most (see :mod:`graphprune.core.passes`),
        ``time_in_passes`` is its time over that of one pass on the case.
        ``rank_cpr`` and ``rank_cmd`` are places among the methods of the same task (1 is best).
        ``shared_train`` and ``shared_test`` are the mean shares of a seed's prompts that another
        seed has too, and ``note`` says what that means for the intervals. Of one seed they are over
        its prompts, of figures that have a value for each. There are none (NaN) where all seeds
        have the same prompts and the method draws nothing.
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        import pandas as pd

        groups: dict[tuple[str, str, str], list[tuple[StudyJob, dict[str, Any]]]] = {}
        for job, record in self.records:
            if record["state"] == "done":
                key = (job.system.name, job.task, job.method.name)
                groups.setdefault(key, []).append((job, record))
        rows = []
        for (system, task, method), of_seeds in groups.items():
            figures = [_figures(record) for _, record in of_seeds]
            row: dict[str, Any] = {"system": system, "task": task, "method": method}
            row["seeds"] = len(figures)
            shares, note, usable = self._shared([job for job, _ in of_seeds])
            if len(of_seeds) == 1 and "examples" in of_seeds[0][1]:
                note = "one seed: intervals are over its prompts"
            row |= {**shares, "note": note}
            row |= _edges_kept([record for _, record in of_seeds])
            for name in dict.fromkeys(name for one in figures for name in one):
                values = torch.tensor(
                    [one[name] for one in figures if name in one], dtype=torch.float64
                )
                low, high = (math.nan, math.nan)
                if usable and len(values) > 1:
                    least, most = AT_A_DENSITY.get(name.partition("@")[0], UNBOUNDED)
                    low, high = bootstrap_interval(values)
                    low, high = max(low, least), min(high, most)
                elif len(of_seeds) == 1 and has_prompt_values(name):
                    of_prompts = over_prompts(name, [of_seeds[0][1]])
                    if of_prompts is not None:
                        low, high = of_prompts.low, of_prompts.high
                row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return _with_ranks(pd.DataFrame(rows))

    def _shared(self, jobs: Sequence[StudyJob]) -> tuple[dict[str, float], str, bool]:
        """Shares of common prompts of the jobs of one group, a sentence, and whether to trust them.

        That is, whether an interval over these seeds says anything.
        """
        if len(jobs) < 2:
            return {}, "one seed: no interval", False
        of_seeds = [self.prompts.get((job.system.name, job.task, job.seed)) for job in jobs]
        drawn = [prompts for prompts in of_seeds if prompts is not None]
        if len(drawn) < len(jobs):
            return {}, "", True
        shares = {
            f"shared_{part}": _mean_overlap([prompts[place] for prompts in drawn])
            for place, part in enumerate(("train", "test"))
        }
        pools = {train | test for train, test in drawn}
        test = shares["shared_test"]
        if len(set(drawn)) == 1:
            if len({fingerprint(job.method.build(job.seed)) for job in jobs}) == 1:
                return shares, "all seeds have the same prompts: no interval", False
            note = (
                "all seeds have the same prompts: the interval is of the method's own draws alone"
            )
        elif len(pools) == 1:
            note = (
                f"all seeds draw from the same {len(pools.pop())} prompts and share {test:.0%} of "
                "their test prompts: the interval is too narrow for new prompts"
            )
        elif test >= 0.005:
            note = (
                f"seeds share {test:.0%} of their test prompts: the interval is too narrow for new "
                "prompts"
            )
        else:
            note = ""
        return shares, note, True

    def notes(self) -> list[str]:
        """Sentences about averages, prompts and intervals, each with its system and task, once."""
        frame = self.summary()
        sentences = [self.overall_note()] if len(frame) else []
        for job, record in self.records:
            place = f"{job.system.name}, {job.task}"
            sentences += [f"{place}: {remark}" for remark in record.get("remarks", ())]
        sentences += [
            f"{row['system']}, {row['task']}: {row['note']}"
            for row in (frame.to_dict("records") if len(frame) else [])
            if row["note"]
        ]
        return [sentence for sentence in dict.fromkeys(sentences) if sentence]

    def paired(self, figure: str, first: str, second: str) -> pd.DataFrame:
        """The difference of two methods over the test prompts of the seeds that both have.

        A row for each system and task: ``seeds``, ``prompts``, both means ``first`` and ``second``,
        ``difference`` (first minus second) with its 95 % interval ``low`` to ``high``, and ``tie``:
        whether that holds 0. For one comparison; of many some will miss 0 by chance.

        Args:
            figure: ``"kl@0.05"`` (also ``metric``, the task's own, ``accuracy``, ``top1_accuracy``
                and ``top1_match``) at a density of the study: differences are taken prompt by
                prompt. ``"cmd"``, ``"cpr"``, ``"log_area"``, ``"cpr_clipped"``, ``"cmd_weighted"``
                or ``"cpr_weighted"``: prompts are drawn anew, for both the same ones. Seeds are
                pooled.
            first, second: names of methods in the study.

        Records of earlier versions have no values by prompt and give no rows.

        Example:
            >>> plan = {
            ...     "systems": {"club": {"kind": "gcn-karate", "tasks": ["communities"]}},
            ...     "methods": {"EAP": {"method": "eap"}, "chance": {"method": "random"}},
            ...     "densities": [0.5], "selector": "connected", "seeds": [0],
            ...     "train": 8, "test": 8,
            ... }
            >>> results = gp.Study.from_dict(plan).run(folder)
            >>> results.paired("kl@0.5", "EAP", "chance").columns.tolist()[5:]
            ['first', 'second', 'difference', 'low', 'high', 'tie']
        """
        import pandas as pd

        return pd.DataFrame(paired_difference(self.records, figure, first, second))

    def over_prompts(self, figure: str) -> pd.DataFrame:
        """A figure's ``value`` and its 95 % interval over prompts, by system, task and method.

        ``figure`` as :meth:`paired` takes it; the circuits are those that these seeds found.
        """
        import pandas as pd

        return pd.DataFrame(intervals_of_methods(self.records, figure))

    def ties(self) -> pd.DataFrame:
        """The best method of each task and figure, and the others' :meth:`paired` difference.

        A row for each method: ``best`` names the one with the best mean, ``tie`` says whether a
        method is not told apart from it: the interval of the difference holds 0 (or, where the best
        mean is one of other seeds, lies on the better side). Figures are the areas and, at each
        density, KL, same-top agreement and top-1 accuracy. Made once.
        """
        return self._ties.copy()

    @cached_property
    def _ties(self) -> pd.DataFrame:
        import pandas as pd

        summary = self._summary
        return pd.DataFrame(best_methods(self.records, summary) if len(summary) else [])

    def overall(self) -> pd.DataFrame:
        """By method: means of the figures and ranks over the tasks that all methods have.

        A figure counts on a task if all these methods have it there. The best mean CMD rank stands
        first. :meth:`overall_note` says which tasks and methods are left out.
        """
        frame = self.summary()
        if not len(frame):
            return frame
        cases, left_out = _common(frame)
        in_all = np.array([case in cases for case in _cases(frame)])
        frame = _with_ranks(frame[in_all & ~frame["method"].isin(left_out)])
        names = [n for n in (*FIGURES, "rank_cpr", "rank_cmd") if n in frame]
        for name in names:
            lacking = frame[name].isna().groupby([frame["system"], frame["task"]]).transform("any")
            frame.loc[lacking, name] = math.nan
        mean = frame.groupby("method")[names].mean()
        mean.insert(0, "tasks", len(cases))
        by = "rank_cmd" if "rank_cmd" in mean else names[0]
        return mean.sort_values(by).reset_index()

    def overall_note(self) -> str:
        """A sentence where :meth:`overall` leaves out tasks or methods; ``""``: it has all."""
        frame = self.summary()
        if not len(frame):
            return ""
        cases, left_out = _common(frame)
        every = list(dict.fromkeys(_cases(frame)))
        skipped = [" ".join(case) for case in every if case not in cases]
        parts = []
        if skipped:
            parts.append(
                f"averages are over the {len(cases)} of {len(every)} tasks that all methods have, "
                f"without {', '.join(skipped)}"
            )
        if left_out:
            parts.append(f"no task is common to all: {', '.join(left_out)} left out of averages")
        return "; ".join(parts)

    def write(self, folder: str | Path) -> None:
        """``results``, ``summary`` and ``ties`` as ``.csv``, ``report.html``, each whole."""
        place = Path(folder)
        frame, summary = self.to_frame(), self.summary()
        for name, table in (("results", frame), ("summary", summary), ("ties", self.ties())):
            write_text(place / f"{name}.csv", csv_text(table))
        try:
            with atomic_path(place / "results.parquet") as path:
                frame.to_parquet(path, index=False)
        except ImportError:
            log.warning('results.parquet needs pyarrow: pip install "graphprune[parquet]"')
        page = study_page(
            self.name, self.records, self.aside, summary, self.overall(), self.overall_note(),
            self.ties(),
        )  # fmt: skip
        write_text(place / "report.html", page)


def _figure(value: Any) -> Any:
    """A number; a text stands for what is not finite."""
    return float(value) if isinstance(value, str) else value


def _cases(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """The system and the task of each row."""
    return list(zip(frame["system"], frame["task"], strict=True))


def _common(frame: pd.DataFrame) -> tuple[list[tuple[str, str]], list[str]]:
    """Tasks that all methods have, and methods left out because else there would be none.

    Those with the fewest tasks are left out first, of several the one that stands last.
    """
    of_method: dict[str, dict[tuple[str, str], None]] = {}
    for method, case in zip(frame["method"], _cases(frame), strict=True):
        of_method.setdefault(method, {})[case] = None
    left_out: list[str] = []
    while True:
        cases = [case for case in _cases(frame) if all(case in own for own in of_method.values())]
        if cases:
            return list(dict.fromkeys(cases)), left_out
        fewest = min(reversed(of_method), key=lambda method: len(of_method[method]))
        left_out.append(fewest)
        del of_method[fewest]


def _with_ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with places among the methods of each task, 1 the best."""
    frame = frame.copy()
    for name, ascending in (("cpr", False), ("cmd", True)):
        if name in frame:
            by = frame.groupby(["system", "task"])[name]
            frame[f"rank_{name}"] = by.rank(ascending=ascending)
    return frame


def _mean_overlap(sets: Sequence[frozenset[str]]) -> float:
    """The mean share of one set's members that another has, over all pairs."""
    pairs = list(itertools.permutations(sets, 2))
    return sum(len(a & b) / len(a) for a, b in pairs) / len(pairs)


def _edges_kept(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By density: the mean number of edges kept, the number requested, and of empty circuits."""
    columns: dict[str, float] = {}
    for rows in zip(*(record["rows"] for record in records), strict=True):
        at, kept = f"{rows[0]['density']:g}", [row["kept"] for row in rows]
        columns[f"kept@{at}"] = sum(kept) / len(kept)
        columns[f"requested@{at}"] = budget(rows[0]["density"], records[0]["edges"])
        columns[f"empty@{at}"] = kept.count(0)
    return columns


def _figures(record: dict[str, Any]) -> dict[str, float]:
    """Figures of one job; at a density only those of a circuit that keeps an edge."""
    figures = {name: float(record[name]) for name in FIGURES if _number(record.get(name))}
    for row in record["rows"]:
        for name in AT_SIZES:
            if _number(row.get(name)) and row["kept"]:
                figures[f"{name}@{row['density']:g}"] = float(row[name])
    return figures


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
