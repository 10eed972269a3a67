"""The KL divergence, exact to rounding also where two distributions are nearly one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SERIES_LIMIT = 0.02  # |log p - log q| up to which a Taylor series is the more exact way
_SERIES = (1 / 2, -1 / 6, 1 / 24, -1 / 120, 1 / 720)
_CACHED = 2**16  # numbers that are worked on at a time, so that they stay in a CPU's cache


def divergence(log_q: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
    """``[...]``: how far q is from p, from ``log_q``, ``log_p`` and ``p [..., V]``.

    Only ``log_q`` gets a gradient.

    Example:
        >>> p = torch.tensor([0.5, 0.5])
        >>> divergence(torch.tensor([0.25, 0.75]).log(), p.log(), p)
        tensor(0.1438)
    """
    sums: Tensor = _Sum.apply(log_q, log_p, p)  # type: ignore[no-untyped-call]
    return sums


class _Sum(torch.autograd.Function):
    """Sums ``p (log p - log q) - p + q``, the divergence of p from q, whose terms are all >= 0.

    ``p (log p - log q)`` alone has both signs, and what is left of the sum of two near
    distributions is rounding: below 0 as often as above. With t = log p - log q a term is
    ``p (exp(-t) - 1 + t)``, near t = 0 the series ``p t^2 (1/2 - t/6 + t^2/24 - ...)``.
    """

    @staticmethod
    def forward(ctx: Any, log_q: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(log_q, p)
        size = log_q.shape[-1]
        rows = max(1, _CACHED // size) if log_q.device.type == "cpu" else max(1, log_q.numel())
        parts = (x.reshape(-1, size).split(rows) for x in (log_q, log_p, p))
        sums = [_terms(*some) for some in zip(*parts, strict=True)]
        return torch.cat(sums).view(log_q.shape[:-1]) if sums else log_q.sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        log_q, p = ctx.saved_tensors
        return gradients[0][..., None] * (log_q.exp() - p), None, None


def _terms(log_q: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
    t = log_p - log_q
    far = log_q.exp().sub_(p).addcmul_(p, t)
    last, *rest = reversed(_SERIES if t.dtype == torch.float64 else _SERIES[:3])
    near = t * last
    for coefficient in rest:
        near = near.add_(coefficient).mul_(t)
    near.mul_(t).mul_(p)
    return torch.where(t.abs() < _SERIES_LIMIT, near, far).sum(-1)
