"""Running parts of the user's model without touching it.

:func:`replaced` makes a shallow copy of a module in which some submodules are others. Parameters
and buffers are shared, the original keeps its own submodules: whatever the copy does, the user's
module is the same before and after. :func:`quiet` is the only change ever made to it (evaluation
mode, frozen weights), and undoes itself in ``finally``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..modes import quiet
from .presence import is_sharded

__all__ = ["Given", "Recorder", "Slice", "Zero", "part", "quiet", "replaced", "uncompiled"]


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, or what ``torch.compile`` was given where it is what that gave.

    A compiled module hands everything written to it on to the original: no copy of it can be made.
    """
    while type(module).__module__.startswith("torch._dynamo."):
        module = module._modules["_orig_mod"]  # type: ignore[assignment]
    return module


def part(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted ``path`` (``""``: the module itself), uncompiled."""
    return uncompiled(module.get_submodule(path) if path else module)


def replaced(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy of ``module`` with the submodules at the dotted paths replaced."""
    module = uncompiled(module)
    sharded = is_sharded(module)
    twin = _plain(module) if sharded else copy.copy(module)
    twin.training = False  # whatever mode the original is in, the copy evaluates
    twin.__dict__.pop("forward", None)  # an instance-level forward would call the original
    twin._modules = dict(module._modules)
    # The original's hooks are for the original's calls (FSDP's would gather its weights).
    twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
    nested: dict[str, dict[str, nn.Module]] = {}
    for path, new in parts.items():
        head, _, rest = path.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = new
        else:
            twin._modules[head] = new
    for head, inner in nested.items():
        twin._modules[head] = replaced(part(module, head), inner)
    return twin


def _plain(module: nn.Module) -> nn.Module:
    """A shallow copy of a module that FSDP2 manages, as the class it was before."""
    kind = next(c for c in type(module).__mro__[2:] if issubclass(c, nn.Module))
    twin: nn.Module = kind.__new__(kind)
    twin.__dict__.update(module.__dict__)
    return twin


class Slice(nn.Module):
    """Stands where a projection stood: gives a range of the features it is handed."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """Features ``start`` to ``stop`` of ``x [..., F]``."""
        return x[..., self.start : self.stop]


class Interleave(nn.Module):
    """Stands where a fused projection stood whose rows go head by head: q, k, v, q, k, v, ..."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 3 * H * dh]`` from all q, all k, all v to head by head."""
        split: Tensor = x.unflatten(-1, (3, self.heads, -1))
        return split.transpose(-2, -3).flatten(-3)


class Zero(nn.Module):
    """Adds nothing to a residual stream, whatever it reads."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A zero that broadcasts to the shape of ``x``."""
        return x.new_zeros((1,) * x.ndim)


class Given(nn.Module):
    """Stands where a base model stood: returns the hidden states it was built with."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's output type around the hidden states, whatever is asked."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)


class Recorder(nn.Module):
    """Stands where a module stood and keeps the call: its input and all other arguments.

    With ``inner`` it passes the call on and keeps the ``output`` too; without, it gives what an
    attention module gives, a pair, that adds nothing.
    """

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.clear()

    def clear(self) -> None:
        """Forgets the call."""
        self.hidden: Tensor | None = None
        self.output: Tensor | None = None
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Keeps the call; gives the inner module's output, or ``(0, None)`` without one."""
        if self.inner is not None:
            self.output = self.inner(*args, **kwargs)
            return self.output
        if "hidden_states" in kwargs:
            self.hidden = kwargs.pop("hidden_states")
        else:
            self.hidden, *rest = args
            args = tuple(rest)
        self.arguments = (args, kwargs)
        assert self.hidden is not None
        return self.hidden.new_zeros((1,) * self.hidden.ndim), None
