"""The user's MLP with activations that keep only their input for the way back.

An activation written as a chain of elementwise steps (GPT-2's tanh-GELU) keeps every step's result;
with frozen weights nothing else of an MLP keeps more. Computed again from its input, it is cheap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .pieces import by_tokens
from .surgery import replaced

__all__ = ["ACTIVATION_MODULES", "lean"]

ACTIVATION_MODULES = ("transformers.activations", "torch.nn.modules.activation")

_TOKENS = 32  # computed again side by side


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inner = inner
        return by_tokens(inner, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        found = torch.empty_like(grad)
        parts = (y.flatten(0, -2).split(_TOKENS) for y in (x, grad, found))
        for mine, upstream, out in zip(*parts, strict=True):
            with torch.enable_grad():
                leaf = mine.detach().requires_grad_(True)
                y = ctx.inner(leaf)
            out.copy_(torch.autograd.grad(y, leaf, upstream)[0])
        return found, None


class _Lean(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """The same values; backward computes them again."""
        out: Tensor = _Again.apply(x, self.inner)  # type: ignore[no-untyped-call]
        return out


def _keeps(module: nn.Module) -> int:
    """How many tensors of its input's size an activation keeps."""
    sizes: list[int] = []

    def note(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    probe = torch.zeros(5, requires_grad=True)
    with torch.enable_grad(), saved_tensors_hooks(note, lambda x: x):
        module(probe)
    return sum(size == probe.numel() for size in sizes)


def lean(mlp: nn.Module) -> nn.Module:
    """The same function, whose activations keep their input alone."""
    found = {
        name: _Lean(m)
        for name, m in mlp.named_modules()
        if type(m).__module__ in ACTIVATION_MODULES and not list(m.parameters()) and _keeps(m) > 1
    }
    return replaced(mlp, found) if found else mlp
