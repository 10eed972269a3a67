"""Streams that layers hand on in several tensors, or with their axes in another order.

Outside of the layers they stand side by side, ``[B, T, W]``: all numbers that a token has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .family import Carried, Family
from .module_copies import Call, Recorder

__all__ = ["GivenStream", "PackedCall", "PackedLayer", "given_below"]


def packed(carried: Carried, x: Tensor) -> Tensor:
    """``[B, T, width]``: a tensor as it stands outside of the layers."""
    if carried.axes == "tokens first":
        x = x.transpose(0, 1)
    elif carried.axes == "vectors first":
        x = x.movedim(0, 2)
    elif carried.axes == "vectors as tokens":
        x = x.unflatten(1, (carried.shape[0], -1)).transpose(1, 2)
    return x.flatten(2)


def unpacked(carried: Carried, x: Tensor) -> Tensor:
    """The tensor as layers hand it on, from ``x [B, T, width]``."""
    x = x.unflatten(-1, carried.shape)
    if carried.axes == "tokens first":
        return x.transpose(0, 1)
    if carried.axes == "vectors first":
        return x.movedim(2, 0)
    return x.transpose(1, 2).flatten(1, 2) if carried.axes == "vectors as tokens" else x


@dataclass(frozen=True, eq=False)
class PackedCall:
    """How one layer is called and what it gives: ``args``, ``kwargs`` and ``output`` of a run."""

    carried: tuple[Carried, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def handed(self, carried: Carried, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call has where a carried tensor stands; ``None`` where it has nothing."""
        key = carried.argument
        if isinstance(key, str):
            return kwargs.get(key)
        return args[key] if key < len(args) else None

    def entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
        """The stream of a call, zeros where nothing is handed on yet, and the call without it."""
        pieces = [self.handed(carried, args, kwargs) for carried in self.carried]
        first = packed(self.carried[0], pieces[0])
        stream = [
            first.new_zeros(*first.shape[:2], prod(carried.shape))
            if x is None
            else packed(carried, x)
            for carried, x in zip(self.carried, pieces, strict=True)
        ]
        own = {carried.argument for carried in self.carried}
        rest = tuple(None if i in own else x for i, x in enumerate(args))
        return torch.cat(stream, -1), (rest, {k: v for k, v in kwargs.items() if k not in own})

    def call(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call with the stream ``x``, and nothing where the plain run's had nothing."""
        positions, named = list(args), dict(kwargs)
        for carried, piece in zip(self.carried, self._pieces(x), strict=True):
            if self.handed(carried, self.args, self.kwargs) is None:
                continue
            if isinstance(carried.argument, str):
                named[carried.argument] = piece
            else:
                positions[carried.argument] = piece
        return tuple(positions), named

    def leaving(self, output: Any) -> Tensor:
        """The stream in what the layer gives."""
        pieces = [output if c.output is None else output[c.output] for c in self.carried]
        return torch.cat([packed(c, x) for c, x in zip(self.carried, pieces, strict=True)], -1)

    def given(self, x: Tensor) -> Any:
        """What the layer gives where the stream behind it is ``x``, and nothing else."""
        pieces = self._pieces(x)
        if self.carried[0].output is None:
            return pieces[0]
        values: list[Any] = [None] * len(self.output)
        for carried, piece in zip(self.carried, pieces, strict=True):
            assert carried.output is not None
            values[carried.output] = piece
        if hasattr(self.output, "_fields"):  # a named tuple
            return type(self.output)(*values)
        return type(self.output)(values)

    def _pieces(self, x: Tensor) -> list[Tensor]:
        parts = x.split([prod(carried.shape) for carried in self.carried], -1)
        return [unpacked(carried, part) for carried, part in zip(self.carried, parts, strict=True)]


class PackedLayer(nn.Module):
    """A layer called with the packed stream ``[B, T, W]`` and giving it."""

    def __init__(self, layer: nn.Module, calls: PackedCall) -> None:
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The stream behind the layer; other arguments are the layer's."""
        args, kwargs = self.calls.call(x, args, kwargs)
        return self.calls.leaving(self.layer(*args, **kwargs))

    def unchanged(self, recorder: Recorder) -> Callable[..., Any]:
        """The forward of a layer that changes nothing and records what it is called with."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            recorder.hidden, recorder.arguments = self.calls.entering(args, kwargs)
            return self.calls.given(recorder.hidden)

        return forward


class GivenStream(nn.Module):
    """Stands for each layer where the base model's code behind the layers is run.

    ``hidden [1, n, W]``: what the last layer gives.
    """

    hidden: Tensor | None = None

    def __init__(self, calls: PackedCall) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stream as the base model has it."""
        assert self.hidden is not None
        return self.calls.given(self.hidden)


def given_below(
    family: Family, mixers: list[nn.Module]
) -> tuple[GivenStream, dict[str, nn.Module]]:
    """What gives a stream to the code behind the layers, and by path what it stands for.

    ``mixers``: of all layers, the last of which knows what a layer gives.
    """
    packed_layer = next(m for m in mixers[-1].modules() if isinstance(m, PackedLayer))
    given = GivenStream(packed_layer.calls)
    return given, {f"{family.base}.{family.layers}": nn.ModuleList([given] * len(mixers))}
