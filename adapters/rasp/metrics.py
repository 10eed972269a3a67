"""Losses of compiled programs, and what counts as the same output.

A categorical program's outputs are near one-hot numbers, not log-probabilities: read as logits they
say "e to 1". Losses multiply them by ``scale`` first, so that the right value has nearly all the
probability and a wrong one costs about ``scale`` nats. The model's outputs themselves stay Tracr's.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.metrics import Metric, everywhere

__all__ = ["cross_entropy", "decode", "output_kl", "squared_error", "stands_out"]

# Below this, two outputs of a categorical program count as equal, and the first of them wins: the
# float noise of an empty output must not choose its value.
_TIE = 1e-6


def decode(outputs: Tensor) -> Tensor:
    """``[...]`` int64 value numbers from ``outputs [..., V]``: the first of the largest, as Tracr.

    Outputs less than 1e-6 below the largest count as equal to it.

    Example:
        >>> decode(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1e-9, 0.0]])).tolist()
        [1, 0]
    """
    near = outputs >= outputs.amax(-1, keepdim=True) - _TIE
    return near.to(torch.uint8).argmax(-1)


def stands_out(outputs: Tensor) -> Tensor:
    """``[...]`` bool: whether one of ``outputs [..., V]`` is the largest by more than 1e-3.

    Where none is, the program has no value (RASP's ``None``), and its argmax is float noise.
    """
    if outputs.shape[-1] < 2:
        return torch.ones(outputs.shape[:-1], dtype=torch.bool, device=outputs.device)
    first, second = outputs.topk(2, -1).values.unbind(-1)
    return first - second > 1e-3


def _positions(values: Tensor, batch: Batch) -> Tensor:
    """``[B]``: means over the real answer positions of ``values [B, P]``."""
    assert batch.positions is not None
    real = (batch.positions >= 0).to(values)
    return (values * real).sum(1) / real.sum(1)


def _same_value(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    assert full is not None
    return everywhere(decode(outputs) == decode(full), batch)


def _same_number(outputs: Tensor, batch: Batch, full: Tensor | None, *, tolerance: float) -> Tensor:
    assert full is not None
    return everywhere(((outputs - full).abs() <= tolerance).all(-1), batch)


def _kl(outputs: Tensor, batch: Batch, full: Tensor | None, *, scale: float) -> Tensor:
    assert full is not None
    target = (full.detach() * scale).log_softmax(-1)
    gap = target - (outputs * scale).log_softmax(-1)
    return _positions((target.exp() * gap).sum(-1), batch)


def _cross_entropy(outputs: Tensor, batch: Batch, full: Tensor | None, *, scale: float) -> Tensor:
    assert batch.answer is not None
    right = batch.answer.to(outputs.device).clamp(min=0)
    log_p = (outputs * scale).log_softmax(-1)
    return _positions(-log_p.gather(-1, right)[..., 0], batch)


def _squared(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    assert full is not None
    return _positions((outputs - full.detach()).square().sum(-1), batch)


def output_kl(scale: float = 10.0) -> Metric:
    """KL divergence from the full program's outputs, both times ``scale``, in nats."""
    return Metric(
        "output_kl",
        partial(_kl, scale=scale),
        higher_is_better=False,
        needs=("full",),
        flat_at_full=True,
        same=_same_value,
        choices=True,
    )


def cross_entropy(scale: float = 10.0) -> Metric:
    """Cross entropy of the outputs times ``scale`` against the program's value, in nats.

    Unlike :func:`output_kl` its gradient at the full model is small but not zero.
    """
    return Metric(
        "cross_entropy",
        partial(_cross_entropy, scale=scale),
        higher_is_better=False,
        needs=("answer",),
        same=_same_value,
        choices=True,
    )


def squared_error(tolerance: float = 1e-3) -> Metric:
    """Squared distance from the full program's number; the same is within ``tolerance``."""
    return Metric(
        "squared_error",
        _squared,
        higher_is_better=False,
        needs=("full",),
        flat_at_full=True,
        same=partial(_same_number, tolerance=tolerance),
    )
