"""Rounding to a precision's grid, and what a layer's attention rounds.

``round_to`` gives the nearest values of the grid, times the scale, in the dtype that came. In
autograd rounding is the identity (straight through), so that gradients at a low-precision model
exist; they are those of the products with rounded operands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.precision import Precision

__all__ = ["LARGEST", "Rounds", "lowered", "mixed", "on_grid", "round_to", "scale_of", "straight"]

# What the largest absolute value is scaled to.
LARGEST: dict[Precision, float] = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}

_BITS = {torch.float32: (torch.int32, 0xFF << 23), torch.float64: (torch.int64, 0x7FF << 52)}


def on_grid(x: Tensor, precision: Precision) -> Tensor:
    """The nearest values of a grid without a scale; what lies beyond its ends goes to them.

    ``x`` is float32 or float64. Ties go to the even code.

    Example:
        >>> on_grid(torch.tensor([500.0, 17.0, 0.0011]), "fp8")
        tensor([4.4800e+02, 1.6000e+01, 1.9531e-03])
        >>> on_grid(torch.tensor([2.6, -9.0]), "int4")
        tensor([ 3., -7.])
    """
    if precision == "fp32":
        return x
    if precision == "bf16":
        return x.to(torch.bfloat16).to(x.dtype)
    top = LARGEST[precision]
    x = x.clamp(-top, top)
    return _e4m3(x) if precision == "fp8" else x.round_()


def _e4m3(x: Tensor) -> Tensor:
    """Writes the nearest E4M3 values over ``x``; several times faster than torch's cast on a CPU.

    Values of one binade stand an eighth of its power of two apart, those below 2^-6 as in the
    lowest one. The power of two is a float's exponent bits alone.
    """
    integers, exponent = _BITS[x.dtype]
    step = (x.view(integers) & exponent).view(x.dtype).clamp_(min=2**-6).mul_(2**-3)
    return x.div_(step).round_().mul_(step)


def scale_of(largest: Tensor, precision: Precision) -> Tensor:
    """What the grid's numbers are multiplied with, from the largest absolute values; never 0."""
    scale = largest / LARGEST[precision]
    return scale.masked_fill(scale == 0, 1.0)


def round_to(x: Tensor, precision: Precision, largest: Tensor | None = None) -> Tensor:
    """``x`` rounded to a grid with scales from ``largest``, which broadcasts against ``x``.

    ``None`` means one scale for each vector along the last axis.

    Example:
        >>> round_to(torch.tensor([[0.5, -7.0, 3.6]]), "int4")
        tensor([[ 0., -7.,  4.]])
    """
    if precision not in LARGEST:
        return on_grid(x, precision)
    if largest is None:
        largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    scale = scale_of(largest, precision)
    return on_grid(x / scale, precision) * scale


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, precision: Precision) -> Tensor:
        return round_to(x, precision)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


def straight(x: Tensor, precision: Precision) -> Tensor:
    """``x [..., F]`` rounded, one scale for each vector; gradients pass unchanged."""
    if precision == "fp32":
        return x
    out: Tensor = _Straight.apply(x, precision)  # type: ignore[no-untyped-call]
    return out


def lowered(precisions: Iterable[Precision]) -> list[Precision]:
    """The precisions below float32 among some, each once, sorted."""
    return sorted({precision for precision in precisions if precision != "fp32"})


def mixed(weight: Tensor, precisions: Sequence[Precision], largest: Tensor) -> Tensor:
    """``weight [n, F, K]`` with its n parts rounded to their precisions.

    ``largest [n or 1, F or 1, 1]``: the absolute values that scales come from. It is the caller's,
    so that a part's values do not depend on the others' precisions.
    """
    largest = largest.expand(len(weight), *largest.shape[1:])
    out = weight.clone()
    for precision in lowered(precisions):
        rows = [i for i, mine in enumerate(precisions) if mine == precision]
        out[rows] = round_to(weight[rows], precision, largest[rows])
    return out


@dataclass(frozen=True)
class Rounds:
    """How a layer's attention rounds what its weights multiply.

    ``rows``: the precision of each attention reader (q of each head, then k and v of each
    key/value head); ``heads``: that of each head's output map.
    """

    rows: tuple[Precision, ...]
    heads: tuple[Precision, ...]

    def reader_input(self, x: Tensor, rows: Tensor) -> Tensor:
        """Normed inputs ``x [..., R, D]`` of the attention readers ``rows [R]``, rounded."""
        return _each(x, [self.rows[i] for i in rows.tolist()])

    def code(self, z: Tensor, heads: Tensor | None = None) -> Tensor:
        """What output maps multiply, rounded: ``z [..., h, dh]`` of ``heads [h]``, or of all.

        Each head's code has scales of its own, so that its message depends on no other head.
        """
        precisions = self.heads if heads is None else [self.heads[i] for i in heads.tolist()]
        return _each(z, precisions)


def _each(x: Tensor, precisions: Sequence[Precision]) -> Tensor:
    """``x [..., n, F]``, rounded part by part along its last but one axis."""
    if len(set(precisions)) == 1:
        return straight(x, precisions[0])
    out = x.clone()
    for precision in lowered(precisions):
        rows = [i for i, mine in enumerate(precisions) if mine == precision]
        out[..., rows, :] = straight(x[..., rows, :], precision)
    return out
