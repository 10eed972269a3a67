"""One circuit against the full model and the task.

``faithfulness = (m(circuit) - m(ablated)) / (m(full) - m(ablated))`` with m the mean of the task's
metric: 1 is the full model, 0 the model with every edge ablated, and a circuit may overshoot. Where
full and ablated are not told apart it is absent (see :mod:`graphprune.core.sanity_checks`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphprune.capabilities import module_of
from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.circuit import Circuit
from graphprune.core.mask import EdgeMask, mask_density, mask_of, require_same_graph
from graphprune.core.metrics import Metric, as_metric, kendall_tau
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.overlap import count_overlapping
from graphprune.core.result import Result
from graphprune.core.sanity_checks import IdleAblationCheck, MetricRange, note_rounding
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.notebook import notebook_card
from graphprune.util.numbers import (
    ENOUGH,
    UNBOUNDED,
    ExampleValues,
    bootstrap_interval,
    check_outputs,
    few_examples,
    ratio_interval,
)
from graphprune.util.progress import track

from .cost import measure

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("graphprune.evaluation")

DEFAULT_METRICS = (
    "kl", "logit_diff", "prob_diff", "accuracy", "exact_match", "top1_accuracy", "top1_match",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The result of :func:`evaluate`.

    ``values`` maps a measure to its mean, ``examples`` to its value for every example, ``absent``
    to the reason why a measure is missing, ``notes`` to a sentence on its value (that it is within
    rounding); ``notes["examples"]`` says how many examples found the circuit, if any did.
    ``full`` and ``ablated`` hold the same metrics of the full and of the wholly ablated model,
    ``full_examples`` and ``ablated_examples`` for every example. ``settings["choices"]`` says what
    ``accuracy`` and ``exact_match`` choose among: the answers and distractors, or all outputs
    where there are no distractors. ``bounds`` holds the least and the largest value of measures
    that have them, ``remarks`` sentences on the intervals of all measures.

    Example:
        >>> report = gp.evaluate(model, task, mask)
        >>> report["faithfulness"], report.interval("faithfulness")
        (0.911, (0.527, 1.872))
        >>> report.to_frame().columns.tolist()
        ['measure', 'circuit', 'low', 'high', 'full', 'ablated', 'note']
    """

    values: dict[str, float]
    examples: dict[str, Tensor]
    full: dict[str, float]
    ablated: dict[str, float]
    absent: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    full_examples: dict[str, Tensor] = field(default_factory=dict)
    ablated_examples: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        if name not in self.values:
            measured = f"not measured; there are {', '.join(self.values)}"
            raise KeyError(f"{name}: {self.absent.get(name, measured)}")
        return self.values[name]

    def interval(self, name: str, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """The interval of a measure's mean over examples (see :mod:`graphprune.util.numbers`).

        That of ``"faithfulness"`` is of a ratio: its ends are infinite where the examples do not
        bound it. Both ends are NaN where a single example gives none; a warning is logged then.

        Raises :class:`InputError` for a measure that was not made, or has one value for all
        examples.
        """
        low, high = self._interval(name, level, seed)
        if math.isnan(low):
            log.warning("%s has no interval (nan): there is one example; give more", name)
        return low, high

    def intervals(self, level: float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """:meth:`interval` of every measure that has one; :attr:`remarks` says how far to trust."""
        measured = [n for n in self.values if n in self.examples or n == "faithfulness"]
        return {name: self._interval(name, level, seed) for name in measured}

    def _interval(self, name: str, level: float, seed: int) -> tuple[float, float]:
        if name == "faithfulness" and name in self.values:
            metric = self.settings["metric"]
            sides = (self.examples, self.full_examples, self.ablated_examples)
            circuit, full, ablated = (side[metric] for side in sides)
            return ratio_interval(circuit - ablated, full - ablated, level=level, seed=seed)
        if name not in self.examples:
            why = self.absent.get(name) or (
                "it has one value for all examples" if name in self.values else "not measured"
            )
            raise InputError(f"{name} has no interval: {why}")
        bounds = self.bounds.get(name) or self._seen_bounds(name)
        return bootstrap_interval(self.examples[name], level=level, seed=seed, bounds=bounds)

    def _seen_bounds(self, name: str) -> tuple[float, float]:
        """0 and 1 for a measure that gave both and nothing else on any side: it counts."""
        sides = (self.examples, self.full_examples, self.ablated_examples)
        seen = torch.cat([side[name] for side in sides if name in side]).unique().tolist()
        return (0.0, 1.0) if seen == [0.0, 1.0] else UNBOUNDED

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on all intervals: that there are few examples."""
        remark = few_examples(int(self.settings.get("examples", ENOUGH)))
        return () if remark is None else (remark,)

    def to_dict(self) -> dict[str, Any]:
        """Every measure as a plain number; those left out stand under ``absent`` with a reason."""
        return {
            **self.values,
            "full": dict(self.full),
            "ablated": dict(self.ablated),
            "absent": dict(self.absent),
            "notes": dict(self.notes),
            "remarks": list(self.remarks),
            "settings": dict(self.settings),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each measure: columns measure, circuit, low, high, full, ablated, note."""
        import pandas as pd

        rows = []
        intervals = self.intervals()
        for name, value in self.values.items():
            low, high = intervals.get(name, (np.nan, np.nan))
            rows.append(
                {
                    "measure": name,
                    "circuit": value,
                    "low": low,
                    "high": high,
                    "full": self.full.get(name, np.nan),
                    "ablated": self.ablated.get(name, np.nan),
                    "note": self.notes.get(name, ""),
                }
            )
        rows += [{"measure": name, "note": why} for name, why in self.absent.items()]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """The report in a notebook: a row for each measure, with its interval."""
        frame = self.to_frame().fillna({"note": ""})
        return notebook_card(
            "EvaluationReport",
            columns=[*map(str, frame)],
            rows=frame.values,
            remarks=self.remarks,
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v:.4g}" for k, v in self.values.items())
        return f"EvaluationReport({shown})"


def evaluate(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask,
    *,
    ablation: AblationLike | None = None,
    metrics: Sequence[str | Metric] | None = None,
    batch_size: int | None = None,
    cost: bool = False,
) -> EvaluationReport:
    """Runs the circuit on the task and compares it with the full and the wholly ablated model.

    Args:
        mask: the circuit (an :class:`EdgeMask` or a :class:`Circuit`), run as it is: dead ends are
            not removed, and count as edges.
        ablation: what stands in for edges outside; ``None`` takes what a circuit was found under,
            else counterfactual.
        metrics: names or metrics; ``None`` takes KL, logit and probability difference; accuracy and
            exact match (same choice as the full model), both of answer against distractor where the
            task has distractors; ``top1_accuracy`` and ``top1_match``, the same over all outputs,
            as published circuits are judged; and Kendall's tau with the full model's logits over
            answers and distractors.
        cost: also measure seconds, FLOPs and bytes of weights read by the circuit's and the full
            model's forward passes, for the whole task.

    Raises:
        GraphMismatchError: the mask belongs to another graph.
        NumericalError: NaN or infinite outputs, naming the examples.

    Example:
        >>> report = evaluate(model, task, mask, ablation="delete")
        >>> report["accuracy"], report["top1_match"]
        (1.0, 1.0)
        >>> report.full["accuracy"]
        1.0
    """
    return evaluate_all(
        model,
        task,
        {"": mask},
        ablation=ablation,
        metrics=metrics,
        batch_size=batch_size,
        cost=cost,
    )[""]


def evaluate_all(
    model: MaskedModel,
    task: Task,
    masks: Mapping[str, Any],
    *,
    ablation: AblationLike | None = None,
    metrics: Sequence[str | Metric] | None = None,
    batch_size: int | None = None,
    cost: bool = False,
) -> dict[str, EvaluationReport]:
    """:func:`evaluate` for several circuits, which share the clean and ablated passes.

    Arguments and errors as there; gives a report for each name.

    Example:
        >>> masks = {"best 12": scores.top(12), "best 18": scores.top(18)}
        >>> {name: report["n_edges"] for name, report in evaluate_all(model, task, masks).items()}
        {'best 12': 12, 'best 18': 18}
    """
    chosen_masks = {name: mask_of(mask) for name, mask in masks.items()}
    require_model(model)
    for mask in chosen_masks.values():
        require_same_graph(model.graph, mask.graph, "the model and the mask")
    wanted = _chosen_metrics(metrics, task.metric)
    ranked = metrics is None or "kendall_tau" in metrics
    chosen = resolve_ablation(model, task, ablation, *masks.values())
    circuit_values = {name: ExampleValues(task.example_numbers) for name in chosen_masks}
    full_values, ablated_values = (
        ExampleValues(task.example_numbers),
        ExampleValues(task.example_numbers),
    )
    absent: dict[str, str] = {}
    if cost and module_of(model) is None:
        no_weights = "the model runs no torch module whose weights could be counted"
        absent |= {"bytes_circuit": no_weights, "bytes_full": no_weights}
    idle = IdleAblationCheck(model, f"task {task.name!r}")
    spent: dict[str, dict[str, float]] = {name: {} for name in chosen_masks}
    batches, against = task.batches(batch_size), False
    for batch in track(batches, "evaluate", task.num_batches(batch_size)):
        reference = model.reference(batch, chosen)
        against = batch.answer is not None and batch.distractor is not None
        with torch.no_grad():
            full, ablated = reference.full, reference.ablated
        check_outputs(full, batch.indices, "the full model")
        idle.see(batch, reference)
        present = []
        for metric in wanted:
            why = metric.missing(batch, full)
            if why:
                absent[metric.name] = why
                continue
            present.append(metric)
            full_values.add(metric.name, batch.indices, metric(full, batch, full))
            ablated_values.add(metric.name, batch.indices, metric(ablated, batch, full))
        for name, mask in chosen_masks.items():
            with torch.no_grad():
                outputs = model.run(batch, mask, reference)
                if cost:
                    measure(model, batch, mask, reference, spent[name])
            check_outputs(outputs, batch.indices, f"the circuit {name}".rstrip())
            for metric in present:
                circuit_values[name].add(metric.name, batch.indices, metric(outputs, batch, full))
            if ranked:
                why, taus = _kendall(outputs, full, batch)
                if taus is None:
                    absent["kendall_tau"] = why
                else:
                    circuit_values[name].add("kendall_tau", batch.indices, taus)
    settings = {
        "task": task.name,
        "examples": len(task),
        "metric": task.metric.name,
        "ablation": chosen.name,
        "graph": model.graph.fingerprint,
        "choices": "answers and distractors" if against else "all outputs",
    }
    ends = full_values.columns(absent), ablated_values.columns(absent)
    own = task.metric.name
    gap = None if own in absent else MetricRange.of(ends[0][own], ends[1][own], idle.reason())
    bounds = {metric.name: metric.bounds for metric in wanted if metric.bounds != UNBOUNDED}
    if ranked:
        bounds["kendall_tau"] = (-1.0, 1.0)
    reports = {}
    for name, mask in chosen_masks.items():
        examples = circuit_values[name].columns(absent)
        report = _report(mask, examples, ends, absent, settings, gap, bounds)
        report.values.update(spent[name])
        reports[name] = report
    for name, given in masks.items():
        seen = given.found_on if isinstance(given, Circuit | Result) else None
        own_means = ablation is None and seen is not None and chosen.kind == "mean"
        own_means = own_means and given.ablation is not chosen
        if own_means and seen != frozenset(task.example_fingerprints()):
            reports[name].notes["ablation"] = (
                "means are taken over these examples, the circuit was found under means over "
                "others; ablation= takes the Ablation that it was found under"
            )
        old = 0 if seen is None else count_overlapping(task, seen)
        if old:
            reports[name].notes["examples"] = (
                f"{old} of {len(task)} are old: they, or one that shares a prompt with them, found "
                "the circuit; task.unseen(circuit.found_on) are the others"
            )
    figures = [(report.values, report.notes) for report in reports.values()]
    note_rounding(model, task, chosen, batch_size, 0.0 if gap is None else gap.size, figures)
    return reports


def _report(
    mask: EdgeMask,
    examples: dict[str, Tensor],
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
    absent: Mapping[str, str],
    settings: Mapping[str, Any],
    gap: MetricRange | None,
    bounds: Mapping[str, tuple[float, float]],
) -> EvaluationReport:
    """The report on one circuit; ``gap`` is ``None`` where the task's metric is absent."""
    circuit, full, ablated = ({n: float(v.mean()) for n, v in x.items()} for x in (examples, *ends))
    report = EvaluationReport(
        {"n_edges": mask.num_kept, **mask_density(mask), **circuit}, examples, full, ablated,
        dict(absent), dict(settings), *ends, bounds=dict(bounds),
    )  # fmt: skip
    metric = str(settings["metric"])
    why = absent[metric] if gap is None else gap.why
    if why is not None:
        report.absent["faithfulness"] = why
    elif gap is not None:
        report.values["faithfulness"] = gap.share(report.values[metric])
        if gap.note is not None:
            report.notes["faithfulness"] = gap.note
    return report


def _chosen_metrics(metrics: Sequence[str | Metric] | None, own: Metric) -> list[Metric]:
    """The metrics to compute, the task's own among them; two of one name are refused."""
    default = () if own.quantities else DEFAULT_METRICS
    names = default if metrics is None else metrics
    chosen = [as_metric(m) for m in names if m != "kendall_tau"]
    if own not in chosen:
        chosen.append(own)
    seen = {metric.name: metric for metric in chosen}
    if len(seen) < len(chosen):
        twice = next(m.name for m in chosen if seen[m.name] != m)
        raise InputError(
            f"two different metrics are named {twice!r}; give yours another name: "
            "gp.Metric('my name', function, higher_is_better=...)"
        )
    return chosen


def _kendall(outputs: Tensor, full: Tensor, batch: Batch) -> tuple[str, Tensor | None]:
    """Kendall's tau of each example over its candidate answers, or why there is none."""
    lacking = [name for name in ("answer", "distractor") if getattr(batch, name) is None]
    if batch.answer is None or batch.distractor is None:
        return f"the task has no {' and no '.join(lacking)} to rank", None
    ids = torch.cat([batch.answer, batch.distractor], -1)
    if outputs.ndim != 2 or ids.ndim != 2:
        return "a ranking is made at one answer position an example", None
    if int((ids >= 0).sum(-1).min()) < 3:
        return "a ranking needs at least three candidate answers an example", None
    taus = []
    for row, mine, theirs in zip(ids, outputs, full, strict=True):
        keep = row[row >= 0].to(mine.device)
        taus.append(kendall_tau(mine[keep][None], theirs[keep][None]))
    return "", torch.cat(taus)
