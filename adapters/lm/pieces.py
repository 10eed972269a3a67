"""Steps taken a piece at a time, so that what they work on stays in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Tall", "by_tokens", "tall"]

_TOKENS = 32
_NUMBERS = 2**19  # of a weight


def by_tokens(step: nn.Module, x: Tensor) -> Tensor:
    """``step(x)`` of ``x [..., T, F]``, where it gives each token as many numbers as it takes.

    Example:
        >>> x = torch.randn(2, 50, 3)
        >>> bool(torch.equal(by_tokens(nn.Tanh(), x), x.tanh()))
        True
    """
    out = x.new_empty(x.shape)
    for mine, found in zip(*(y.flatten(0, -2).split(_TOKENS) for y in (x, out)), strict=True):
        found.copy_(step(mine))
    return out


class Tall(nn.Module):
    """A linear map to many features, some of them after the other; without gradients.

    Example:
        >>> x, inner = torch.ones(3, 700), nn.Linear(700, 1000)
        >>> with torch.no_grad():
        ...     bool(torch.allclose(Tall(inner)(x), inner(x), atol=1e-5))
        True
    """

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``[..., features]`` from ``x [..., F]``; whole where the map's forward was replaced."""
        inner = self.inner
        if "forward" in vars(inner):
            whole: Tensor = inner(x)
            return whole
        weight, bias = inner.weight, inner.bias
        out = x.new_empty(*x.shape[:-1], len(weight))
        for some in torch.arange(len(weight)).split(max(1, _NUMBERS // x.shape[-1])):
            at = slice(int(some[0]), int(some[-1]) + 1)
            out[..., at] = F.linear(x, weight[at], None if bias is None else bias[at])
        return out


def tall(model: Any) -> dict[str, nn.Module]:
    """By name, what may stand for the model's output map; nothing if it is no plain Linear."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return {}
    return {name: Tall(head) for name, module in model.named_modules() if module is head}
