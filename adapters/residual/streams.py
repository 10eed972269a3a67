"""What readers read of the streams while one forward goes on.

Without a mask, or with a gate for each node, all readers of a point read the same: the stream is
carried on from group to group once. Under a mask of edges each reader has a stream of its own, from
the embedding on. Groups with no norm between them are added by one product,

    x = x + [1, m] [base; y - ytilde],    base = sum_u ytilde_u + bias,

with the ablated messages as a row that everybody reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graphprune.util.modes import quiet

from ..lm.describe.norms import wide
from .parts import Behind, Parts, Place

__all__ = ["Ablated", "Streams", "Watch", "zeros_for"]

_KEPT = 2**28  # bytes of streams between norms that a pass keeps for its way back


@dataclass(frozen=True, eq=False)
class Ablated:
    """What stands in for each group's messages: ``[w, B, T, D]``, where an axis may be 1."""

    messages: list[Tensor]

    def repeated(self, times: int) -> Ablated:
        """The same for ``times`` copies of the batch, one behind the other."""
        return Ablated([m if m.shape[1] == 1 else m.repeat(1, times, 1, 1) for m in self.messages])


class Watch(Protocol):
    """Looks on while a forward goes on whose readers all read the same."""

    frozen: bool  # whether gradients take norms' scales as constants

    def entering(self, stack: int, x: Tensor) -> Tensor:
        """What a stack begins with; returns what it is to begin with."""
        ...

    def message(self, group: int, messages: Tensor) -> Tensor:
        """What a group sends; returns what it is to send."""
        ...

    def added(self, group: int, x: Tensor) -> None:
        """The stream with a group's messages added, before the norm behind them."""
        ...

    def reading(self, place: Place, rows: Tensor) -> None:
        """What a place's readers read, ``[R, B, T, D]``, before their norm."""
        ...


class Streams:
    """The residual streams of one forward.

    Args:
        parts: the model's.
        mask: of edges, ``[E]`` or ``[B, E]``.
        ablated: what stands in for messages where there is a mask or gates.
        gates: of nodes, ``[N]``, in place of a mask.
        watch: who looks on, where there is no mask.
    """

    def __init__(
        self,
        parts: Parts,
        mask: Tensor | None,
        ablated: Ablated | None,
        gates: Tensor | None,
        watch: Watch | None,
    ) -> None:
        self.parts, self.mask, self.ablated = parts, mask, ablated
        self.gates, self.watch = gates, watch
        self.sent: dict[int, Tensor] = {}
        self._dtype: dict[int, torch.dtype] = {}
        self._x: dict[int, Tensor] = {}  # where all read the same; else the streams' beginnings
        self._rows: dict[int, Tensor] = {}  # base and differences of each group
        self._read: dict[Place, Tensor] = {}

    def enter(self, stack: int, x: Tensor) -> None:
        """Begins a stream with what no edge carries."""
        self._dtype[stack] = x.dtype
        x = wide(x)
        self._x[stack] = x if self.watch is None else self.watch.entering(stack, x)

    def add(self, group: int, messages: Tensor, bias: Tensor | None = None) -> None:
        """Adds a group's messages ``[w, B, T, D]``, and what is added beside them."""
        if self.watch is not None:
            messages = self.watch.message(group, messages)
        self.sent[group] = messages
        stack, norm = self.parts.groups[group].stack, self.parts.groups[group].norm
        if self.mask is not None:
            self._rows[group] = self._with_base(group, messages, bias)
            return
        x = self._x[stack] + self._gated(group, wide(messages))
        if bias is not None:
            x = x + bias
        if self.watch is not None:
            self.watch.added(group, x)
        self._x[stack] = x if norm is None else self._normed(norm, x, stack)

    def forget(self, place: Place) -> None:
        """Lets go of what a place read."""
        self._read.pop(place, None)

    def read(self, place: Place) -> Tensor:
        """``[R, B, T, D]``: what the readers of a place read; one row where all read the same."""
        if place not in self._read:
            self._read[place] = self._shared(place) if self.mask is None else self._own(place)
        return self._read[place]

    # ---------------------------------------------------------------- one stream for all readers

    def _gated(self, group: int, messages: Tensor) -> Tensor:
        if self.gates is None or self.ablated is None:
            return messages.sum(0)
        gates = self.gates[list(self.parts.groups[group].nodes)].to(messages)
        ablated = wide(self.ablated.messages[group])
        mixed: Tensor = torch.tensordot(gates, messages - ablated, 1)
        return mixed + ablated.sum(0)

    def _normed(self, norm: Behind, x: Tensor, stack: int) -> Tensor:
        x = x.to(self._dtype[stack])
        frozen = self.watch is not None and self.watch.frozen
        return wide(norm.frozen(x) if frozen else norm(x))

    def _shared(self, place: Place) -> Tensor:
        x = self._x[place.stack][None]
        if self.watch is not None:
            x = x.expand(len(place.rows), -1, -1, -1)
            self.watch.reading(place, x)
        if place.norm is not None:
            x = self._normed(place.norm, x, place.stack)
        return x.to(self._dtype[place.stack])

    # ---------------------------------------------------------------- a stream for each reader

    def _with_base(self, group: int, messages: Tensor, bias: Tensor | None) -> Tensor:
        """``[1 + w, B, T, D]``, or ``[B, 1 + w, T, D]`` for a mask for each example."""
        assert self.ablated is not None
        assert self.mask is not None
        messages, ablated = wide(messages), wide(self.ablated.messages[group])
        base = ablated.sum(0) if bias is None else ablated.sum(0) + bias
        base = base.expand_as(messages[0])
        rows = torch.cat([base[None], messages - ablated])
        return rows if self.mask.ndim == 1 else rows.transpose(0, 1).contiguous()

    def _own(self, place: Place) -> Tensor:
        """A post-norm stack keeps each reader's stream at every norm, or computes it again."""
        norms = sum(self.parts.groups[i].norm is not None for i in place.groups)
        if norms > 1 and torch.is_grad_enabled():
            size = 8 * self.parts.normed_rows * self._x[place.stack].numel()
            if size > _KEPT:
                out: Tensor = checkpoint(
                    self._again, place, use_reentrant=False, preserve_rng_state=False
                )
                return out
        return self._computed(place)

    def _again(self, place: Place) -> Tensor:
        with quiet(self.parts.model):  # the backward pass comes when the module is the user's again
            return self._computed(place)

    def _computed(self, place: Place) -> Tensor:
        assert self.mask is not None
        mask, start = place.of(self.mask), 0
        x = self._x[place.stack]
        x = x[None] if mask.ndim == 2 else x[:, None]
        segment: list[int] = []
        factors: list[Tensor] = []
        for number in place.groups:
            group = self.parts.groups[number]
            stop = start + len(group.nodes)
            segment.append(number)
            factors += [torch.ones_like(mask[..., :1]), mask[..., start:stop]]
            start = stop
            if group.norm is not None:
                x = self._normed(group.norm, self._mixed(x, factors, segment), place.stack)
                segment, factors = [], []
        if segment:
            x = self._mixed(x, factors, segment)
        x = x if mask.ndim == 2 else x.transpose(0, 1)
        if place.norm is not None:
            x = self._normed(place.norm, x, place.stack)
        return x.to(self._dtype[place.stack])

    def _mixed(self, x: Tensor, factors: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
        """Streams with the messages of some groups added, each times its mask."""
        dim = 0 if factors[0].ndim == 2 else 1
        rows = [self._rows[i] for i in groups]
        added = rows[0] if len(rows) == 1 else torch.cat(rows, dim)
        mask = torch.cat(list(factors), -1).to(added)
        shape = added.shape[dim + 1 :]
        if dim == 0:
            out = torch.addmm(x.flatten(1), mask, added.flatten(1))
        else:
            out = torch.baddbmm(x.flatten(2), mask, added.flatten(2))
        mixed: Tensor = out.unflatten(-1, shape)
        return mixed


def zeros_for(sent: Sequence[Tensor]) -> Ablated:
    """Zero messages in place of those that were sent."""
    return Ablated([messages.new_zeros(len(messages), 1, 1, 1) for messages in sent])
