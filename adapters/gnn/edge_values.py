"""Values on edges in a pass: mask values that mix messages, and weights that gather gradients.

As functions of autograd's own they make nothing as large as the messages in a backward pass beside
the messages' gradients: at a million edges the memory of such tensors is what a pass costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Rows", "attributed", "masked", "row_products", "storage_uses"]

Rows = slice | Tensor | None  # which rows are the graph's edges, in order; None: all


def masked(out: Tensor, mask: Tensor, other: Tensor | None, rows: Rows) -> Tensor:
    """``mask * out + (1 - mask) * other`` in ``rows`` of messages ``out [M, ...]``.

    Args:
        out: the messages; other rows than ``rows`` stay as they are.
        mask: ``[M']``: one value for each of the rows.
        other: ``[M', ...]``: what stands in at 0; ``None`` means nothing does.
        rows: which messages the mask is of.
    """
    mixed: Tensor = _Masked.apply(out, mask, other, rows)  # type: ignore[no-untyped-call]
    return mixed


def attributed(out: Tensor, weight: Tensor, other: Tensor | None, rows: Rows) -> Tensor:
    """``out`` itself, such that ``weight [M']`` gets the gradient that a mask would get at 1.

    Args:
        out: the messages ``[M, ...]``.
        weight: requires grad; its values are not read.
        other: as in :func:`masked`; it is overwritten, so it must be the caller's own.
        rows: which messages the weights are of.
    """
    same: Tensor = _Attributed.apply(out, weight, other, rows)  # type: ignore[no-untyped-call]
    return same


def row_products(one: Tensor, other: Tensor) -> Tensor:
    """``[M]``: the sums of the products of two tensors ``[M, ...]``, row by row."""
    if one.ndim == 1:
        return one * other
    return torch.einsum("md,md->m", one.flatten(1), other.flatten(1))


def storage_uses(values: Tensor) -> float:
    """How many tensors and other holders the memory of ``values`` has; infinite if not known."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return float("inf") if count is None else float(count(values.untyped_storage()._cdata))


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, mask: Tensor, other: Tensor | None, rows: Rows) -> Tensor:
        own = out if rows is None else out[rows]
        share = mask.to(out.dtype).view(-1, *[1] * (out.ndim - 1))
        ctx.rows, ctx.kind = rows, mask.dtype
        ctx.save_for_backward(own, share, other)
        if rows is None:
            return _mixed(own, share, other)
        result = torch.empty_like(out)
        if isinstance(rows, slice):  # the graph's edges first, then the layer's own loops
            _mixed(own, share, other, result[rows])
            result[len(own) :] = out[len(own) :]
        else:
            result.copy_(out)
            result[rows] = _mixed(own, share, other)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        own, share, other = ctx.saved_tensors
        at_own = gradient if ctx.rows is None else gradient[ctx.rows]
        by_out = by_mask = by_other = None
        if ctx.needs_input_grad[1]:
            by_mask = row_products(at_own, own)
            if other is not None:
                by_mask = by_mask - row_products(at_own, other)
            by_mask = by_mask.to(ctx.kind)
        if ctx.needs_input_grad[2]:
            by_other = at_own * (1 - share)
        if ctx.needs_input_grad[0]:
            by_out = at_own * share
            if ctx.rows is not None:
                every = gradient.clone()
                every[ctx.rows] = by_out
                by_out = every
        return by_out, by_mask, by_other, None


def _mixed(own: Tensor, share: Tensor, other: Tensor | None, into: Tensor | None = None) -> Tensor:
    if other is None:
        return torch.mul(own, share, out=into)
    return torch.lerp(other.to(own.dtype), own, share, out=into)


class _Attributed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, weight: Tensor, other: Tensor | None, rows: Rows) -> Tensor:
        own = out if rows is None else out[rows]
        ctx.rows, ctx.kind = rows, weight.dtype
        ctx.save_for_backward(own if other is None else torch.sub(own, other, out=other))
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        (change,) = ctx.saved_tensors
        at_own = gradient if ctx.rows is None else gradient[ctx.rows]
        return gradient, row_products(at_own, change).to(ctx.kind), None, None
