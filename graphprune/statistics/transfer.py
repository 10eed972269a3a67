"""Distribution shift: circuits found on some tasks or templates, tested on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphprune.comparison.p_values import holm, sign_flip_p
from graphprune.core.ablation import AblationLike
from graphprune.core.mask import binary_mask
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.evaluation.report import evaluate_all
from graphprune.util.checks import at_least, share
from graphprune.util.numbers import few_examples, ratio_interval

from .finding import Finding


def transfer(
    model: MaskedModel,
    circuits: Mapping[str, Any],
    tasks: Mapping[str, Task],
    *,
    ablation: AblationLike | None = None,
    level: float = 0.95,
    draws: int = 2000,
    alpha: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
) -> Finding:
    """Every circuit on every task: faithfulness with intervals over examples.

    Where the tested task has a circuit of its own (of the same name), the table also has what a
    foreign circuit loses against it, with an interval from the same examples, and the p-value of
    "example by example, neither is better" by random flips of signs, Holm-corrected over all of
    them.

    Args:
        circuits: by the name of what they were found on.
        tasks: by name, held-out examples best.
        level: of the intervals.
        draws: resamples of the examples, and sign flips.

    ``to_frame()`` has a row for each cell (``found_on``, ``tested_on``);
    ``values["faithfulness"]`` is the table itself.

    Raises:
        InputError: no circuits or tasks; a task on which faithfulness is not defined.

    Example:
        >>> transfer(model, {"EAP": circuit}, {"nodes": task}, draws=100)
        Finding('transfer: the least faithful pair is EAP on nodes (0.91, 0.53 to 1.76)')
    """
    share(alpha, "alpha")
    share(level, "level")
    at_least(draws, 1, "draws")
    at_least(seed, 0, "seed")
    require_model(model)
    if not circuits or not tasks:
        raise InputError("transfer needs at least one circuit and one task")
    masks = {name: binary_mask(model.graph, mask) for name, mask in circuits.items()}
    rows: list[dict[str, Any]] = []
    remarks: list[str] = []
    table: dict[str, dict[str, float]] = {name: {} for name in masks}
    for number, (where, task) in enumerate(tasks.items()):
        name = task.metric.name
        reports = evaluate_all(
            model, task, masks, ablation=ablation, metrics=[task.metric], batch_size=batch_size
        )
        remarks += [f"on {where}: {few}" for few in filter(None, [few_examples(len(task))])]
        resampling: dict[str, Any] = {"level": level, "draws": draws, "seed": seed + number}
        own = reports.get(where)
        for source, report in reports.items():
            if "faithfulness" not in report.values:
                raise InputError(f"on {where}: {report.absent['faithfulness']}")
            table[source][where] = report["faithfulness"]
            ours, ablated = report.examples[name], report.ablated_examples[name]
            gap = report.full_examples[name] - ablated
            low, high = ratio_interval(ours - ablated, gap, **resampling)
            row: dict[str, Any] = {
                "found_on": source,
                "tested_on": where,
                "edges": masks[source].num_kept,
                "faithfulness": report["faithfulness"],
                "low": low,
                "high": high,
                "metric": report[name],
                **dict.fromkeys(("loss", "loss_low", "loss_high", "p_value", "p_corrected")),
            }
            if own is not None and source != where:
                row["loss"] = own["faithfulness"] - report["faithfulness"]
                better = own.examples[name] - ours
                row["loss_low"], row["loss_high"] = ratio_interval(better, gap, **resampling)
                row["p_value"] = sign_flip_p(task.metric.sign * better, draws=draws, seed=seed)
            rows.append(row)
    tested = [row for row in rows if row["p_value"] is not None]
    corrected = holm([float(row["p_value"]) for row in tested])
    for row, p in zip(tested, corrected, strict=True):
        row["p_corrected"] = p
    # Of the 2^n ways to flip n signs two give the largest mean difference that there is.
    leasts = [max(2.0 ** (1 - len(tasks[row["tested_on"]])), 1 / (1 + draws)) for row in tested]
    least = holm(leasts)
    remarks += [
        f"{row['found_on']} on {row['tested_on']}: {len(tasks[row['tested_on']])} examples and "
        f"{draws} flips are too few to reject at {alpha:g} over {len(tested)} pairs"
        for row, p in zip(tested, leasts, strict=True)
        if p * len(tested) > alpha
    ]
    worse = [r for r in tested if r["p_corrected"] <= alpha and r["loss"] > 0]
    return Finding(
        name="transfer",
        null="a circuit found elsewhere does as well as the task's own" if tested else None,
        said=_sentence(tested, worse, rows),
        p_value=min(corrected) if tested else None,
        alpha=alpha,
        passed=not worse if tested else None,
        least_p=min(least) if tested else None,
        correction=f"Holm over {len(tested)} pairs" if tested else "none",
        values={
            "faithfulness": table,
            "worse": [[row["found_on"], row["tested_on"]] for row in worse],
        },
        rows=rows,
        settings={
            "tasks": {name: len(task) for name, task in tasks.items()},
            "level": level,
            "draws": draws,
            "seed": seed,
            "graph": model.graph.fingerprint,
        },
        remarks=remarks,
    )


def _sentence(
    tested: list[dict[str, Any]], worse: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> str:
    least = min(rows, key=lambda row: row["faithfulness"])
    low = (
        f"the least faithful pair is {least['found_on']} on {least['tested_on']} "
        f"({least['faithfulness']:.2f}, {least['low']:.2f} to {least['high']:.2f})"
    )
    if not tested:
        return low
    return (
        f"of {len(tested)} circuits tested on another task than their own, {len(worse)} do worse "
        f"than the task's own; {low}"
    )
