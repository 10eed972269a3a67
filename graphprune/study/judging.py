"""A ranking on the test examples of a case: circuits at the densities, and MIB's curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike
from graphprune.core.mask import EdgeMask, budget
from graphprune.core.method import ablation_of
from graphprune.core.scores import EdgeScores
from graphprune.errors import unknown_name
from graphprune.evaluation.curve import FaithfulnessCurve, area, circuits_of, curve_of_reports
from graphprune.evaluation.recovery import auroc
from graphprune.evaluation.report import EvaluationReport, evaluate_all
from graphprune.mib.curve import kept_shares
from graphprune.selection.connected import shortest_path_edges
from graphprune.selection.selectors import (
    SELECTORS,
    Candidates,
    circuit_of_size,
    cut_off_nodes_differ,
)

from .case_contents import prompt_hashes
from .cases import Case
from .paired import AT_A_DENSITY

__all__ = ["METRICS", "STUDY_SELECTORS", "judge", "require_selector"]

METRICS = ("kl", "faithfulness", "accuracy", "exact_match", "top1_accuracy", "top1_match")
STUDY_SELECTORS = tuple(
    name for name in SELECTORS if name not in ("threshold", "nodes", "bootstrap")
)
"""Selectors that need nothing but a ranking and a size."""
_ANY_EDGES = ("top", "greedy")  # may leave no path from an input to an output
_PROMPT_LETTERS = 8


def require_selector(name: str | None) -> None:
    """Raises :class:`InputError` for a selector that a study cannot use."""
    if name is not None and name not in STUDY_SELECTORS:
        raise unknown_name("selector", name, STUDY_SELECTORS)


def judge(
    case: Case,
    scores: EdgeScores,
    method: Any,
    densities: Sequence[float],
    selector: str | None = None,
) -> dict[str, Any]:
    """Everything that is measured of a ranking on the test examples; equal circuits run once.

    Args:
        scores: what ``method`` found on the training examples.
        densities: of circuits judged one by one.
        selector: chooses these; ``None``: the best edges without dead ends, of which fewer may be
            left. The curve's circuits are always those.
    """
    under = ablation_of(method)
    fractions, masks, ablation = circuits_of(case.model, case.test, scores, found_under=under)
    dense = {d: _circuit(case, scores, method, d, selector, under) for d in densities}
    ends = (0, case.model.graph.num_edges)  # of the curve's scale: no run needed
    inner = [m for named in masks.values() for m in named if m.num_kept not in ends]
    circuits = list(dict.fromkeys([*dense.values(), *(inner or masks["abs"][-1:])]))
    evaluated = evaluate_all(
        case.model, case.test, {str(i): m for i, m in enumerate(circuits)}, ablation=ablation
    )
    reports = dict(zip(circuits, evaluated.values(), strict=True))
    rows, by_prompt = [], []
    for density, mask in dense.items():
        values = reports[mask].to_dict()
        row = {"density": float(density), "kept": int(values["n_edges"])}
        row |= {name: values[name] for name in METRICS if isinstance(values.get(name), float)}
        if case.measure is not None:
            row |= dict(case.measure(mask))
        rows.append(row)
        by_prompt.append(_by_prompt(reports[mask]))
    record: dict[str, Any] = {"ablation": ablation.name, "rows": rows}
    prompts = [name[:_PROMPT_LETTERS] for name in prompt_hashes(case.test)]
    examples: dict[str, Any] = {"prompts": prompts, "rows": by_prompt}
    any_report = next(iter(reports.values()))
    if "faithfulness" in any_report.values:
        curve = curve_of_reports(masks, fractions, reports, scores.method)
        weighted = {by: kept_shares(named) for by, named in masks.items()}
        record |= curve.summary() | _weighted_areas(curve, weighted)
        record["curve"] = {
            "sizes": list(curve.sizes), "f": curve.f, "kept": curve.kept, "weighted": weighted,
        }  # fmt: skip
        examples["curve"] = _curve_by_prompt(masks, reports)
        note = curve.note
    else:
        note = any_report.absent["faithfulness"]
    if note:
        record["faithfulness_note"] = note
    if case.truth is not None:
        record["auroc"] = auroc(scores, case.truth)
    return {**record, "examples": examples}


def _circuit(
    case: Case,
    scores: EdgeScores,
    method: Any,
    density: float,
    selector: str | None,
    under: AblationLike,
) -> EdgeMask:
    """The circuit of a density; one of less than a path needs has the edges of the shortest."""
    if selector is None:
        return circuit_of_size(scores, density, ablation=under, task=case.test)
    edges = scores.graph.num_edges
    count = budget(density, edges)
    if not count:
        return EdgeMask(scores.graph, torch.zeros(edges))
    if selector not in _ANY_EDGES:
        count = max(count, shortest_path_edges(scores.graph))
    from_inputs = not cut_off_nodes_differ(under, case.test)
    candidates = Candidates(method, case.model, case.train, scores, count, from_inputs=from_inputs)
    return SELECTORS[selector].choose(candidates)


def _by_prompt(report: EvaluationReport) -> dict[str, list[float]]:
    """The values of each prompt, ``metric`` being the task's own."""
    metric = str(report.settings["metric"])
    columns = {name: report.examples.get(metric if name == "metric" else name)
               for name in AT_A_DENSITY}  # fmt: skip
    return {name: _short(values) for name, values in columns.items() if values is not None}


def _curve_by_prompt(
    masks: Mapping[Any, Sequence[EdgeMask]], reports: Mapping[EdgeMask, EvaluationReport]
) -> dict[str, Any]:
    """The task's metric by prompt: ``values`` of the ablated model, the full one and the circuits.

    ``at[ranking]``: where those of each size stand among them.
    """
    report = next(iter(reports.values()))
    metric = str(report.settings["metric"])
    values = [_short(report.ablated_examples[metric]), _short(report.full_examples[metric])]
    place: dict[EdgeMask, int] = {}
    at: dict[str, list[int]] = {by: [] for by in masks}
    for by, named in masks.items():
        for mask in named:
            if mask.num_kept in (0, mask.graph.num_edges):
                at[by].append(int(mask.num_kept > 0))
                continue
            if mask not in place:
                place[mask] = len(values)
                values.append(_short(reports[mask].examples[metric]))
            at[by].append(place[mask])
    return {"values": values, "at": at}


def _short(values: Tensor) -> list[float]:
    """Six significant digits; whole numbers without a point."""
    rounded = (float(f"{value:.6g}") for value in values.tolist())
    return [int(value) if value.is_integer() else value for value in rounded]


def _weighted_areas(
    curve: FaithfulnessCurve, shares: Mapping[Any, Sequence[float]]
) -> dict[str, float]:
    """CPR and CMD over the shares of edges really kept, as MIB counts them."""
    return {
        "cpr_weighted": area(shares["signed"], curve.f["signed"]),
        "cmd_weighted": area(shares["abs"], [abs(1 - f) for f in curve.f["abs"]]),
    }
