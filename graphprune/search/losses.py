"""What a mask optimiser minimises: one value for each example, lower is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.metrics import METRICS, Metric
from graphprune.core.task import Task
from graphprune.errors import InputError, unknown_name

__all__ = ["LOSSES", "Loss", "LossLike", "as_loss", "require_known_loss"]

Loss = Callable[[Tensor, Batch, Tensor], Tensor]
LossLike = str | Metric | Callable[..., Any]


def _squared(outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
    """Mean squared distance to the full model's outputs."""
    gap = (outputs - full.detach()).square().mean(-1)
    if gap.ndim == 1:
        return gap
    if batch.positions is None or batch.positions.ndim == 1:
        return gap.mean(1)
    valid = (batch.positions >= 0).to(gap)
    return (gap * valid).sum(1) / valid.sum(1).clamp(min=1)


LOSSES: dict[str, str] = {
    "auto": "the metric if a distance to the full model, mse of quantities, else kl",
    "kl": "KL divergence from the full model's distribution to the circuit's",
    "mse": "mean squared distance to the full model's outputs",
    "task": "the task's own metric, turned so that lower is better",
    "task_gap": "how far the task's own metric is from the full model's, example by example",
    "mean_gap": "how far the metric's mean over a batch is from the full model's",
}


def _of_metric(metric: Metric) -> Loss:
    if not metric.differentiable:
        raise InputError(
            f"metric {metric.name!r} has no gradient, so no mask can be optimised for it; use "
            "loss='kl', or a metric such as logit_diff or prob_diff"
        )

    def loss(outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
        return -metric.sign * metric(outputs, batch, full)

    return loss


def _gap_of(metric: Metric, *, mean: bool) -> Loss:
    """Overshooting the model costs as falling short: of each example, or of their ``mean``.

    Faithfulness, and so CMD, is of means over examples: one that overshoots makes up for one that
    falls short. The mean is that of the batch; each example is given it.
    """
    if _is_distance(metric):
        return _of_metric(metric)
    value = _of_metric(metric)

    def loss(outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
        gaps = value(outputs, batch, full) - value(full, batch, full).detach()
        return gaps.mean().abs().expand_as(gaps) if mean else gaps.abs()

    return loss


def _is_distance(metric: Metric) -> bool:
    """Whether the metric measures how far outputs are from the full model's."""
    return metric.differentiable and metric.flat_at_full and not metric.higher_is_better


def require_known_loss(loss: LossLike) -> None:
    """Raises :class:`InputError` for the name of a loss that is not known."""
    if isinstance(loss, str) and loss not in LOSSES and loss != "mse":
        raise unknown_name(
            "loss",
            loss,
            LOSSES,
            "a gp.Metric, or a callable (outputs, batch, full) -> one value an example, lower "
            "is better",
        )


def as_loss(loss: LossLike, task: Task) -> Loss:
    """A loss from its name, a :class:`~graphprune.Metric`, or ``(outputs, batch, full) -> [B]``.

    ``outputs`` and ``full`` are ``[B, V]`` or ``[B, P, V]``; a callable gives lower for better.
    Raises :class:`InputError` for an unknown name, a metric without a gradient and, when it runs,
    for a result of another shape or without a gradient.

    Example:
        >>> task = Task.from_tensors(torch.zeros(1, 2, dtype=torch.int64), answer=[1])
        >>> loss = as_loss("kl", task)
        >>> batch = next(iter(task.batches()))
        >>> loss(torch.tensor([[0.0, 1.0]]), batch, torch.tensor([[0.0, 1.0]]))
        tensor([0.])
    """
    require_known_loss(loss)
    if isinstance(loss, str):
        if loss == "mse" or (loss == "auto" and task.metric.quantities):
            return _squared
        if loss in ("task_gap", "mean_gap"):
            return _gap_of(task.metric, mean=loss == "mean_gap")
        own = loss == "task" or (loss == "auto" and _is_distance(task.metric))
        return _of_metric(task.metric if own else METRICS["kl"])
    if isinstance(loss, Metric):
        return _of_metric(loss)
    if not callable(loss):
        raise InputError(f"a loss is a name, a gp.Metric or a callable, got {loss!r}")
    function = loss

    def checked(outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
        values = torch.as_tensor(function(outputs, batch.to(outputs.device), full))
        if values.shape != (batch.size,):
            raise InputError(
                f"the loss must give one value for each of the {batch.size} examples, got the "
                f"shape {list(values.shape)}"
            )
        if outputs.requires_grad and not values.requires_grad:
            raise InputError(
                "the loss gave values without a gradient (does it detach its input, or count?)"
            )
        return values

    return checked
