"""The agreement of an exported circuit with the circuit that was found.

A circuit is found under one ablation and may be exported under another, since a model of its own
has no corrupted prompt. Then it is another model, which may do nothing of what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphprune.core.ablation import resolve_ablation
from graphprune.core.metrics import METRICS, Metric
from graphprune.core.model import Ablation, MaskedModel
from graphprune.core.pruned import Pruned, tolerance
from graphprune.errors import InputError, NumericalError

if TYPE_CHECKING:
    from graphprune.core.batch import Batch
    from graphprune.core.circuit import Circuit
    from graphprune.core.task import Task

LIMIT = 0.1  # nats a prompt
SIDES = {
    "found": "circuit as found",
    "masked": "masked run",
    "exported": "exported model",
    "original": "original model",
}
NO_TASK = (
    "no task was given (task=, --task), so it was not compared with the circuit as it was found, "
    "nor with the original model"
)


@torch.no_grad()
def agreement(
    pruned: Pruned, model: MaskedModel, circuit: Circuit, ablation: Ablation, task: Task
) -> tuple[float, dict[str, Any]]:
    """The largest difference of module and masked run at answer positions, and figures of both.

    The figures are means over the task's prompts for the circuit as it was ``found`` (under its
    own ablation), the ``masked`` run under the export's, the ``exported`` model and the
    ``original``: KL from the original (``kl``), accuracies and the task's metric; ``kl_from_found``
    is the KL from the circuit as found. What there cannot be stands under ``absent`` with a reason.

    Raises :class:`NumericalError` if module and masked run differ by more than rounding.
    """
    origin, why = _origin(model, circuit, ablation, task)
    absent = {} if origin is not None else {"found": why}
    metrics = {name: METRICS[name] for name in ("kl", "accuracy", "top1_accuracy")}
    metrics[task.metric.name] = task.metric
    sums: dict[str, dict[str, float]] = {side: {} for side in SIDES}
    gap = 0.0
    for batch in task.batches():
        reference = model.reference(batch, ablation)
        outputs = {"original": reference.full, "exported": pruned.answers(batch)}
        outputs["masked"] = model.run(batch, circuit.mask, reference)
        gap = max(gap, _difference(pruned, outputs["exported"], outputs["masked"], task))
        if origin is ablation:
            outputs["found"] = outputs["masked"]
        elif origin is not None:
            outputs["found"] = model.run(batch, circuit.mask, model.reference(batch, origin))
        half = {torch.float16, torch.bfloat16}  # too coarse for sums over a vocabulary
        outputs = {s: out.float() if out.dtype in half else out for s, out in outputs.items()}
        full, as_found = outputs["original"], outputs.get("found")
        for side, out in outputs.items():
            for name, metric in metrics.items():
                if name == "accuracy" and batch.distractor is None and metric is not task.metric:
                    absent[name] = "the task has no distractors, so it is top1_accuracy"
                    continue
                _add(sums[side], absent, name, metric, (out, batch, full))
            if as_found is not None and side in ("masked", "exported"):
                name = "kl_from_found"
                _add(sums[side], absent, name, METRICS["kl"], (out, batch, as_found))
    count = len(task)
    figures: dict[str, Any] = {
        side: {name: total / count for name, total in named.items() if name not in absent}
        for side, named in sums.items()
    }
    if origin is None:
        del figures["found"]
    else:
        figures["found"]["ablation"] = origin.name
    figures["masked"]["ablation"] = ablation.name
    told = {"task": task.name, "prompts": count, "metric": task.metric.name}
    return gap, {**told, **figures, "absent": absent}


def _add(
    sums: dict[str, float],
    absent: dict[str, str],
    name: str,
    metric: Metric,
    what: tuple[Tensor, Batch, Tensor],
) -> None:
    out, batch, full = what
    reason = metric.missing(batch, full)
    if reason:
        absent[name] = reason
        return
    sums[name] = sums.get(name, 0.0) + float(metric(out, batch, full).double().sum())


def _origin(
    model: MaskedModel, circuit: Circuit, ablation: Ablation, task: Task
) -> tuple[Ablation | None, str]:
    """The ablation the circuit was found under, or why it cannot be run under it."""
    name = circuit.ablation
    if name is None:
        return None, "the circuit does not say under which ablation it was found"
    if name in ("zero", "delete"):
        return (ablation if name == ablation.name else resolve_ablation(model, task, name)), ""
    if name == "optimal":
        return None, "the circuit was found with learned constants, which are not kept with it"
    if name == "counterfactual" and any(batch.corrupt is None for batch in task.batches()):
        return None, "the circuit was found with corrupted prompts, and the task has none"
    own = task
    if name.startswith("mean"):
        same = found_on_part(circuit, task)
        if same is None:
            return None, (
                f"the circuit was found under {name} ablation, whose means were taken over other "
                "examples than these"
            )
        own = same
    try:
        return resolve_ablation(model, own, name), ""
    except InputError as error:  # prompts of several lengths and means for each position
        return (
            None,
            f"the circuit was found under {name} ablation, which the task cannot have: {error}",
        )


def found_on_part(circuit: Circuit, task: Task) -> Task | None:
    """The examples that the circuit was found on, where the task has all of them."""
    own = task.example_fingerprints()
    if circuit.found_on is None or not circuit.found_on <= set(own):
        return None
    return task.subset([number for number, one in enumerate(own) if one in circuit.found_on])


def _difference(pruned: Pruned, exported: Tensor, masked: Tensor, task: Task) -> float:
    want = masked.double()
    gap = float((exported.double() - want).abs().max())
    dtype = next(pruned.module.parameters()).dtype
    size = 1 + float(want.abs().max())
    if not gap <= tolerance(dtype) * size:
        raise NumericalError(
            f"the exported model and the masked run differ by {gap:.3g} at answer positions of "
            f"{task.name!r} (outputs up to {size:.3g}); nothing was written"
        )
    return gap


def agreement_lines(figures: Mapping[str, Any]) -> list[str]:
    """A line for each of the four, as errors show them."""
    names = {
        "kl": "KL from the original",
        "accuracy": "accuracy against the distractor",
        "top1_accuracy": "top-1 accuracy",
        "kl_from_found": "KL from the circuit as found",
    }
    lines = []
    for side, title in SIDES.items():
        values = dict(figures.get(side, {}))
        under = values.pop("ablation", None)
        told = ", ".join(f"{names.get(k, k)} {v:.3g}" for k, v in values.items())
        if told:
            lines.append(f"{title}{f' ({under} ablation)' if under else ''}: {told}")
    return lines


def require_agreement(figures: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` where the exported model is not the circuit that was found."""
    kl = figures["exported"].get("kl_from_found")
    if kl is None or kl <= LIMIT:
        return
    under = {side: figures[side]["ablation"] for side in ("found", "masked")}
    raise InputError(
        f"the circuit was found under {under['found']} ablation; exported under {under['masked']} "
        f"ablation it is another one: KL {kl:.3g} nats a prompt from the circuit as found, more "
        f"than {LIMIT:g}. Nothing was written.\n"
        + "\n".join(f"  {line}" for line in agreement_lines(figures))
        + f"\nFind the circuit under {under['masked']} ablation (ablation={under['masked']!r}, "
        f"graphprune discover --ablation {under['masked']}), or say allow_difference=True "
        "(--allow-difference) to write this one all the same."
    )
