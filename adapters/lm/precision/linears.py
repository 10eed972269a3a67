"""Linear maps with rounded weights that round what they are called with.

They stand in a copy of the user's model where its projections stood, as ``nn.Linear`` whatever the
original was, so that both the model's own code and the engine run on them. Weights never learn.
Native ones keep their weight in its low-precision form and multiply by the device's kernels;
everything else multiplies rounded values in the model's own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.precision import Precision

from .rounding import LARGEST, on_grid, scale_of, straight

__all__ = ["NativeLinear", "RoundedLinear", "RoundedRows", "native_kernel"]


class RoundedLinear(nn.Linear):
    """``weight [out, in]`` as it comes (rounded by the caller); ``before`` rounds the input."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, before: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        out, wide = weight.shape
        super().__init__(wide, out, bias=False, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            assert isinstance(bias, nn.Parameter)
            self.bias = bias
        self.before = before

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        x = input if self.before is None else self.before(input)
        return nn.functional.linear(x, self.weight, self.bias)


class RoundedRows(RoundedLinear):
    """Rows that read one input in several precisions: ``precisions [out]``, row by row."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precisions: list[Precision]) -> None:
        super().__init__(weight, bias)
        device = weight.device
        kinds: list[Precision] = sorted(set(precisions))
        self.groups: list[tuple[Precision, Tensor]] = [
            (kind, torch.tensor([i for i, p in enumerate(precisions) if p == kind], device=device))
            for kind in kinds
        ]
        self.order = torch.argsort(torch.cat([rows for _, rows in self.groups]))

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        parts = [
            nn.functional.linear(
                straight(input, kind),
                self.weight[rows],
                None if self.bias is None else self.bias[rows],
            )
            for kind, rows in self.groups
        ]
        return torch.cat(parts, -1)[..., self.order]


class NativeLinear(RoundedLinear):
    """bf16 or int8 operands multiplied by the device's own kernels; the bias is added after.

    bf16 kernels round their sums to bf16 once more; int8 sums are exact.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, precision: Precision, scale: Tensor | None
    ) -> None:
        if scale is not None:
            weight = (weight / scale).round()
        super().__init__(weight.to(torch.bfloat16 if precision == "bf16" else torch.int8), bias)
        self.precision: Precision = precision
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        out: Tensor = _Product.apply(input, self.weight, self.scale, self.precision)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, precision: Precision
    ) -> Tensor:
        ctx.weight, ctx.scale = weight, scale
        if scale is None:
            return (x.to(weight.dtype) @ weight.T).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        input_scale = scale_of(flat.abs().amax(-1, keepdim=True), precision)
        numbers = on_grid(flat / input_scale, precision).to(torch.int8)
        product = torch._int_mm(numbers, weight.T)  # pyright: ignore[reportPrivateImportUsage]
        out = product.to(x.dtype) * input_scale * scale.flatten()
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        weight = ctx.weight.to(grad.dtype)
        if ctx.scale is not None:
            weight *= ctx.scale
        return grad @ weight, None, None, None


def native_kernel(precision: Precision, device: torch.device) -> str | None:
    """``None`` if this library multiplies ``precision`` by the device's own kernels, or why not."""
    if device.type == "cpu" and precision == "bf16":
        if torch.cpu._is_avx512_bf16_supported():
            return None
        return "this CPU has no bf16 instructions (AVX512-BF16)"
    if device.type == "cpu" and precision == "int8":
        if torch.cpu._is_vnni_supported():
            return None
        return "this CPU has no int8 instructions (VNNI)"
    if device.type == "cuda" and precision == "bf16":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        return "this GPU has no bf16 instructions"
    assert precision in LARGEST or precision == "bf16"
    return f"there is no {precision} kernel for {device.type}"
