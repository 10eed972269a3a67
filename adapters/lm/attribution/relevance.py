"""Layer-wise relevance propagation inside the user's own layers (RelP, arXiv 2508.21258).

Backward rules that replace gradients while forward values stay: the *identity rule* lets an
activation pass ``act(x) / x``; the *half rule* halves the gradient of a product of two activations
(a gate); the *LN-rule* takes norm scales as constants (here those of q and k; the pass sees to the
others). Attention patterns have their gradient unless the pass makes them constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..describe.architecture import DecoderBlock
from ..describe.module_copies import ACTIVATION_MODULES, Call, replaced, run_between
from ..describe.norms import Norm, describe_norm

__all__ = ["HalfRule", "Rule", "identity_rule", "relevant", "relevant_attention"]

Rule = Literal["gradient", "relp", "relp-frozen"]  # the last: attention patterns are constants

_PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}


def identity_rule(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What an activation gives, with ``act(x) / x`` as its derivative."""
    with torch.no_grad():
        y = activation(x)
        ratio = torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x)).to(x)
    return x * ratio + (y - x * ratio).detach()


class _Ratio(nn.Module):
    """The identity rule around an activation."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return identity_rule(self.inner, x)


class HalfRule(TorchFunctionMode):
    """The half rule for every product of two activations while it is active."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and all(isinstance(a, Tensor) and a.requires_grad for a in args[:2]):
            return 0.5 * out + 0.5 * out.detach()
        return out


def relevant(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
    """The same forward function, differentiated by the rules above."""
    activations = {
        name: _Ratio(m)
        for name, m in mlp.named_modules()
        if type(m).__module__ in ACTIVATION_MODULES
    }
    twin = replaced(mlp, activations)

    def run(x: Tensor) -> Tensor:
        with HalfRule():
            out: Tensor = twin(x)
        return out

    return run


class _Scaled(nn.Module):
    """The LN-rule around a norm."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm.frozen(x)


def relevant_attention(block: DecoderBlock) -> Callable[[Tensor, Call], Tensor]:
    """``Block.attend`` with the scales of q and k norms, where there are any, as constants."""
    norms: dict[str, nn.Module] = {}
    for name in ("q_norm", "k_norm"):
        norm = getattr(block.attention, name, None)
        if isinstance(norm, nn.Module):
            norms[name] = _Scaled(describe_norm(norm, f"layer {block.index}'s {name}"))
    if not norms:
        return block.attend
    core = replaced(block.core, norms)

    def attend(qkv: Tensor, call: Call) -> Tensor:
        return run_between(core, qkv, call)

    return attend
