"""How far rounding alone carries a circuit's figures: those of the whole model run as a circuit.

The open mask is the model, up to the rounding of its dtype. A figure no larger than the one it
gets says nothing of a circuit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from graphprune.capabilities import module_of
from graphprune.mask import EdgeMask
from graphprune.metrics import METRICS
from graphprune.model import Ablation, MaskedModel
from graphprune.task import Task

__all__ = ["notes", "rounding", "suspect"]

# Below these no figure of a float32 model is looked at; half precision is always looked at.
_KL, _FAITHFULNESS = 1e-9, 1e-5


def rounding(
    model: MaskedModel, task: Task, ablation: Ablation, batch_size: int | None
) -> dict[str, float]:
    """The open mask's mean KL, and what the mean of the task's metric is off by, on one batch."""
    batch = next(iter(task.batches(batch_size)))
    reference = model.reference(batch, ablation)
    found = {}
    with torch.no_grad():
        full = reference.full
        outputs = model.run(batch, EdgeMask.full(model.graph), reference)
        kl = METRICS["kl"]
        if kl.missing(batch, full) is None:
            found["kl"] = float(kl(outputs, batch, full).double().mean())
        if task.metric.missing(batch, full) is None:
            gap = task.metric(outputs, batch, full) - task.metric(full, batch, full)
            gap = gap.double()
            found["metric"] = max(
                float(gap.mean().abs()), float(gap.square().mean().sqrt()) / math.sqrt(len(task))
            )
    return found


def _dtypes(model: MaskedModel) -> set[torch.dtype]:
    module = module_of(model)
    return set() if module is None else {p.dtype for p in module.parameters()}


def suspect(model: MaskedModel, values: Mapping[str, float]) -> bool:
    """Whether a figure may be one of rounding alone."""
    if _dtypes(model) & {torch.float16, torch.bfloat16}:
        return True
    off = abs(1 - values["faithfulness"]) if "faithfulness" in values else math.inf
    return values.get("kl", math.inf) < _KL or off < _FAITHFULNESS


def notes(
    model: MaskedModel, values: Mapping[str, float], gap: float, noise: Mapping[str, float]
) -> dict[str, str]:
    """A sentence for each of KL and faithfulness that is of the size of the noise.

    ``gap``: the metric of the full model minus that of the wholly ablated one.
    """
    kinds = sorted(str(kind).removeprefix("torch.") for kind in _dtypes(model))
    found = {}
    for name, off, limit in (
        ("kl", values.get("kl"), noise.get("kl")),
        (
            "faithfulness",
            abs(1 - values["faithfulness"]) if "faithfulness" in values else None,
            noise["metric"] / abs(gap) if "metric" in noise and gap else None,
        ),
    ):
        # The open mask's figure is a draw of the noise too, so up to twice it counts.
        if off is None or limit is None or off > 2 * limit or limit == 0:
            continue
        what = f"{off:.2g}" if name == "kl" else f"{off:.2g} from 1"
        found[name] = (
            f"{what} is within rounding ({', '.join(kinds) or 'unknown dtype'}): the whole model "
            f"run as a circuit is {limit:.2g} off"
        )
    return found
