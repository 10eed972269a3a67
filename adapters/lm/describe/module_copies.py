"""Running parts of the user's model without touching it, some of them in other ways.

:func:`replaced` makes a shallow copy of a module in which some submodules are others. Parameters
and buffers are shared, the original keeps its own submodules: whatever the copy does, the user's
module is the same before and after. :func:`quiet` is the only change ever made to it (evaluation
mode, frozen weights), and undoes itself in ``finally``.

Steps may be taken a piece at a time, so that what they work on stays in the cache
(:func:`by_tokens`, :func:`output_in_pieces`), and activations may keep only their input for the way
back (:func:`recomputing`): one written as a chain of elementwise steps (GPT-2's tanh-GELU) keeps
every step's result; with frozen weights nothing else of an MLP keeps more. Computed again from its
input, it is cheap.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from graphprune.util.modes import quiet

from .family import Family
from .hooks import uncompiled
from .offloading import is_sharded
from .row_order import Interleave, Reorder

__all__ = [
    "ACTIVATION_MODULES",
    "Call",
    "FixedOutput",
    "Glue",
    "LinearInPieces",
    "Recorder",
    "Slice",
    "Stop",
    "Stopped",
    "Zero",
    "always_there",
    "attention_stand_ins",
    "by_tokens",
    "model_inputs",
    "output_in_pieces",
    "part",
    "quiet",
    "recomputing",
    "replaced",
    "run_between",
]


Call = tuple[tuple[Any, ...], dict[str, Any]]


def always_there(*, lent: bool = False) -> AbstractContextManager[None]:
    """Stands where weights would be brought, for those that never leave."""
    return nullcontext()


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


class Stopped(Exception):
    """Carries what a module would have been called with out of the forward around it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Stop(nn.Module):
    """Stands where an output map stood whose result is not wanted: ends the forward around it."""

    def forward(self, x: Tensor) -> Tensor:
        """Raises :class:`Stopped` with ``x``."""
        raise Stopped(x)


def run_between(core: nn.Module, qkv: Tensor, call: Call) -> Tensor:
    """``[..., H * dh]``: what an attention module, its projections replaced, makes of ``qkv``."""
    try:
        out = core(qkv, *call[0], **call[1])
    except Stopped as stopped:
        return stopped.value
    first: Tensor = out[0]
    return first


def attention_stand_ins(
    family: Family, heads: int, kv_heads: int, dim: int
) -> dict[str, nn.Module]:
    """What stands in for an attention module's projections, so that it runs between them.

    It is then called with all q, k and v side by side, ``[..., (heads + 2 * kv_heads) * dim]``.
    """
    q, kv = heads * dim, kv_heads * dim
    parts: dict[str, nn.Module] = {family.output: nn.Identity() if family.mlp else Stop()}
    plain = family.fused_order == "qkv"
    if family.fused == "interleaved" and heads == kv_heads and plain:
        parts[family.query] = Interleave(heads)
    elif family.fused == "blocks" and plain:
        parts[family.query] = nn.Identity()
    elif family.fused is not None:
        parts[family.query] = Reorder(family.stored_order(heads, kv_heads))
    else:
        parts[family.query] = Slice(0, q)
        parts[family.key] = Slice(q, q + kv)
        parts[family.value] = Slice(q + kv, q + 2 * kv)
    return parts


@cache
def _taken(forward: Any) -> frozenset[str]:
    """Names of a forward's parameters."""
    return frozenset(inspect.signature(forward).parameters)


def model_inputs(module: nn.Module, ids: Tensor) -> dict[str, Any]:
    """What a model is called with: the ids, and of the rest what its forward takes."""
    taken = _taken(type(module).forward)
    more = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    free = "kwargs" in taken
    return {"input_ids": ids, **{k: v for k, v in more.items() if free or k in taken}}


class Zero(nn.Module):
    """Adds nothing to a residual stream, whatever it reads."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A zero that broadcasts to the shape of ``x``."""
        return x.new_zeros((1,) * x.ndim)


class FixedOutput(nn.Module):
    """Stands where a base model stood: returns the ``hidden`` states it was given last.

    Anything else that the model above asks of it is the ``original``'s.
    """

    hidden: Tensor | None = None

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original  # no submodule

    def __getattr__(self, name: str) -> Any:
        """The original's attribute."""
        return getattr(vars(self)["original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's output type around the hidden states, whatever is asked."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        out: Any = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)
        for name in ("cache_params", "router_logits", "shared_kv_states", "state"):
            setattr(out, name, None)  # which some models ask for
        return out


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


@dataclass(frozen=True, eq=False)
class Glue:
    """What the model's own code does around its layers for one batch of token ids.

    ``entry [B, T, D]`` is what enters layer 0; ``position [B or 1, T, D]`` its share that is a
    position table (0 where there is none); ``calls`` the attention arguments of each layer.
    """

    entry: Tensor
    position: Tensor
    calls: tuple[Call, ...]

    def sent(self, embeddings: int) -> Tensor:
        """``[E, B, T, D]``: what the 1 or 2 embedding nodes send."""
        if embeddings == 1:
            return (self.entry - self.position)[None]
        position = self.position.expand_as(self.entry)
        return torch.stack([self.entry - position, position])

    def unmaskable(self, embeddings: int) -> Tensor:
        """The part of the entry that belongs to no node: positions, or nothing."""
        return self.position if embeddings == 1 else self.position.new_zeros(())


_TOKENS = 32  # computed side by side, here and on the way back
_NUMBERS = 2**19  # of a weight


def by_tokens(step: nn.Module, x: Tensor) -> Tensor:
    """``step(x)`` of ``x [..., T, F]``, where it gives each token as many numbers as it takes.

    Example:
        >>> x = torch.randn(2, 50, 3)
        >>> bool(torch.equal(by_tokens(nn.Tanh(), x), x.tanh()))
        True
    """
    out = x.new_empty(x.shape)
    for mine, target in zip(*(y.flatten(0, -2).split(_TOKENS) for y in (x, out)), strict=True):
        target.copy_(step(mine))
    return out


class LinearInPieces(nn.Module):
    """A linear map to many features, some of them after the other; without gradients.

    Example:
        >>> x, inner = torch.ones(3, 700), nn.Linear(700, 1000)
        >>> with torch.no_grad():
        ...     bool(torch.allclose(LinearInPieces(inner)(x), inner(x), atol=1e-5))
        True
    """

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight  # some look at the weight's dtype

    def forward(self, x: Tensor) -> Tensor:
        """``[..., features]`` from ``x [..., F]``; whole where the map's forward was replaced."""
        inner = self.inner
        if "forward" in vars(inner):
            whole: Tensor = inner(x)
            return whole
        weight, bias = inner.weight, inner.bias
        out = x.new_empty(*x.shape[:-1], len(weight))
        for features in torch.arange(len(weight)).split(max(1, _NUMBERS // x.shape[-1])):
            at = slice(int(features[0]), int(features[-1]) + 1)
            some = None if bias is None else bias[at].to(x.dtype)
            out[..., at] = F.linear(x, weight[at].to(x.dtype), some)
        return out


def output_in_pieces(model: Any) -> dict[str, nn.Module]:
    """By name, what may stand for the model's output map; nothing if it is no plain Linear."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return {}
    return {name: LinearInPieces(head) for name, module in model.named_modules() if module is head}


ACTIVATION_MODULES = ("transformers.activations", "torch.nn.modules.activation")


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inner = inner
        return by_tokens(inner, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        gradient = torch.empty_like(grad)
        parts = (y.flatten(0, -2).split(_TOKENS) for y in (x, grad, gradient))
        for mine, upstream, out in zip(*parts, strict=True):
            with torch.enable_grad():
                leaf = mine.detach().requires_grad_(True)
                y = ctx.inner(leaf)
            out.copy_(torch.autograd.grad(y, leaf, upstream)[0])
        return gradient, None


class _Recomputed(nn.Module):
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


def recomputing(mlp: nn.Module) -> nn.Module:
    """The same function, whose activations keep their input alone."""
    activations = {
        name: _Recomputed(m)
        for name, m in mlp.named_modules()
        if type(m).__module__ in ACTIVATION_MODULES and not list(m.parameters()) and _keeps(m) > 1
    }
    return replaced(mlp, activations) if activations else mlp
