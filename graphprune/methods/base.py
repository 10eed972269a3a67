"""What methods share: the objective of a task, and means over its examples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Reference
from graphprune.core.task import Task
from graphprune.errors import InputError

__all__ = ["mean", "objective"]


def objective(task: Task, batch: Batch, reference: Reference) -> Callable[[Tensor], Tensor]:
    """The task's metric, turned so that higher is better, as a function of outputs."""
    metric = task.metric
    if not metric.differentiable:
        raise InputError(
            f"metric {metric.name!r} has no gradient; use a gradient-free scorer "
            "(ExactPatching), or a metric such as logit_diff, prob_diff or kl"
        )
    full = reference.full if "full" in metric.needs else None

    def value(outputs: Tensor) -> Tensor:
        values = metric.sign * metric(outputs, batch, full)
        if outputs.requires_grad and not values.requires_grad:
            raise InputError(
                f"metric {metric.name!r} gave values without a gradient (does it detach its input?)"
            )
        return values

    return value


def mean(total: Tensor | None, count: int, what: str) -> Tensor:
    """A total over examples as their mean, float32; raises where there were none."""
    if total is None:
        raise InputError(f"{what} saw no examples")
    return (total / count).to(torch.float32)
