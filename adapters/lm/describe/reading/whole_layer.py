"""Layers that are run whole: what one does around its MLP is its own code's business.

The MLP's message is what the layer adds to an empty stream while its attention is silent and the
norm in front of the MLP gives what the MLP shall read. So whatever the layer does on the way (a sum
of experts and a shared MLP, multipliers, norms behind, a chain of its own submodules) is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..family import Family
from ..module_copies import Recorder, Stopped, replaced
from .trace import Traced, first_tensor, only_first

__all__ = ["MlpBranch", "NoMlp", "Silent", "WholeLayer", "with_hidden"]


class _Given(nn.Module):
    """Gives what it was handed last, in the shape of what it is called with."""

    value: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.value is not None
        return self.value.view(x.shape)


class Silent(nn.Module):
    """Stands where attention stood: adds nothing, in the shape that the original's output had."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = only_first(output, torch.zeros(()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, and nothing else that the original gave."""
        x = kwargs.get("hidden_states")
        x = first_tensor((*args, *kwargs.values())) if x is None else x
        assert x is not None
        return only_first(self.output, torch.zeros_like(x))


class NoMlp(nn.Module):
    """Stands where a layer has no MLP: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return x * 0  # with a graph, as gradients at it are asked for


class _StopRecorder(Recorder):
    """Keeps what attention is called with and ends the layer's forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        super().forward(*args, **kwargs)
        assert self.hidden is not None
        raise Stopped(self.hidden)


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with ``x`` for the hidden states."""
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": x}
    return (x, *args[1:]), kwargs


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden


class MlpBranch(nn.Module):
    """A layer's MLP and all that the layer does with it: ``[B, T, D]`` to its message."""

    def __init__(self, layer: nn.Module, family: Family, call: Traced, attention: Traced) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {family.attention: Silent(attention.output)}
        for name in (family.attention_norm, family.attention_post_norm):
            if name is not None:
                parts[name] = nn.Identity()
        self.given = _Given()
        assert family.mlp_norm is not None
        parts[family.mlp_norm] = self.given
        self.layer = replaced(layer, parts)
        self.call = call.args, call.kwargs

    def forward(self, x: Tensor) -> Tensor:
        """The message of the normed input ``x``."""
        self.given.value = x
        try:
            args, kwargs = with_hidden(*self.call, torch.zeros_like(x))
            out = first_tensor(self.layer(*args, **kwargs))
        finally:
            self.given.value = None
        assert out is not None
        return out.view_as(x)


class WholeLayer:
    """Stand-ins for one layer: ``hollow`` in the model's own forward, ``mlp`` for its MLP.

    ``recorder`` keeps what its attention is called with when the hollow layer runs, and
    ``entry`` what the layer is called with.
    """

    mixer: nn.Module | None = None  # it is the family's attention

    def __init__(self, layer: nn.Module, family: Family, call: Traced, attention: Traced) -> None:
        self.recorder = _StopRecorder()
        self.mlp = NoMlp() if family.mlp == "" else MlpBranch(layer, family, call, attention)
        self.hollow = replaced(layer, {family.attention: self.recorder})
        self.hollow.__dict__["forward"] = _passing(self.hollow, self.recorder, call.output)


def _passing(hollow: nn.Module, recorder: Recorder, output: Any) -> Callable[..., Any]:
    """The forward of a layer that changes nothing and records what its attention gets."""
    run = type(hollow).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with suppress(Stopped):
            run(hollow, *args, **kwargs)
        recorder.hidden = _hidden(args, kwargs)
        return only_first(output, recorder.hidden)

    return forward
