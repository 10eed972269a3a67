"""A circuit as a torch module of its own: only its weights, in plain torch operations.

Writers that the same readers read are one *sender*; readers of a place that keep the same edges
are one *reading*. A reading adds up messages, or takes an earlier reading and adds and subtracts
what differs. Parameters are weights of the circuit, buffers are constants. What does not depend on
tokens has a batch of 1; what outputs need at the last positions alone is computed only there.

A causal model's positions do not read what stands behind them, so right padding needs no mask.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphprune.errors import InputError

from ..describe.module_copies import ACTIVATION_MODULES
from ..describe.norms import Norm, wide
from .plain import Attend, Attending, PlainNorm, last_of

__all__ = ["Attention", "Mlp", "PrunedModel", "ReaderSum", "Terms", "Unembedding"]


@dataclass
class SentMessages:
    """Messages sent and inputs read so far, by number: ``[B or 1, T, D]``, or the last positions.

    ``last``: how many positions outputs are wanted at; ``None`` means all.
    """

    batch: int
    length: int
    last: int | None
    sent: dict[int, Tensor] = field(default_factory=dict)
    read: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """What a reading adds up: numbers of senders and of the earlier reading it starts from.

    ``still`` are senders with a batch of 1. ``cut``: the numbers whose tensors hold all positions
    where the reading wants the last ones (an earlier reading's number stands as ``~number``).
    """

    base: int | None
    plus: Sequence[int]
    minus: Sequence[int]
    still: frozenset[int]
    cut: frozenset[int]


class ReaderSum(nn.Module):
    """Inputs of readers that keep the same edges.

    Args:
        number: what later readings call it.
        terms: messages.
        constant: ``[1 or T, D]`` to add; ``None`` means nothing.
    """

    constant: Tensor | None

    def __init__(self, number: int, terms: Terms, constant: Tensor | None) -> None:
        super().__init__()
        self.number, self.terms = number, terms
        self.register_buffer("constant", constant)
        self.kept = False  # for a later reading
        self.done_sent: list[int] = []  # what no later reading wants
        self.done_read: list[int] = []

    def forward(self, stream: SentMessages) -> Tensor:
        """``[B or 1, T or 1, D]``, or the last positions."""
        terms = self.terms

        def wanted(number: int, x: Tensor) -> Tensor:
            return x if stream.last is None or number not in terms.cut else last_of(x, stream.last)

        total = None if self.constant is None else self.constant[None]
        signs = [(n, 1) for n in terms.plus] + [(n, -1) for n in terms.minus]
        for number, sign in signs:
            if number in terms.still:
                x = wanted(number, stream.sent[number])
                if total is None:
                    total = x if sign > 0 else -x
                else:
                    total = torch.add(total, x, alpha=sign)
        large = [(n, s) for n, s in signs if n not in terms.still]
        if terms.base is not None:
            x = wanted(~terms.base, stream.read[terms.base])
            total = x if total is None else x + total
        own = False  # whether total is a tensor of its own, of a whole batch
        for number, sign in large:
            x = wanted(number, stream.sent[number])
            if own and total is not None:
                total.add_(x, alpha=sign)
            elif total is None:
                total = x if sign > 0 else -x
            else:
                total, own = torch.add(total, x, alpha=sign), True
        assert total is not None
        if self.kept:
            stream.read[self.number] = total
        for number in self.done_sent:
            stream.sent.pop(number)
        for number in self.done_read:
            stream.read.pop(number)
        return total


class PrunedProjection(nn.Module):
    """Rows of a layer's projections at one input: ``weight [r * dh, D]``, ``bias [r * dh]``.

    The norm's gain and bias are folded in. ``rows`` are their numbers.
    """

    def __init__(
        self, reading: ReaderSum, rows: Sequence[int], weight: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.reading, self.rows = reading, list(rows)
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, stream: SentMessages, norm: PlainNorm | None) -> dict[int, Tensor]:
        """``[B or 1, T, dh]`` of each row by its number, or the last positions."""
        x = self.reading(stream)
        out = F.linear(x if norm is None else norm(x), self.weight, self.bias)
        return dict(zip(self.rows, out.chunk(len(self.rows), -1), strict=True))


class Attention(nn.Module):
    """Some heads of a layer.

    Args:
        projections: of rows, numbered q of each head, then k, then v of each key/value head.
        norm: what they read behind, without gain and bias.
        held: projections ``[rows, dh]`` that are constants, numbered by ``held_rows``.
        share: whose keys and values each head reads; ``None`` means each its own.
        outputs: for each sender its heads' output maps ``[c * dh, D]``, heads in order; then, where
            a norm follows, that of heads that are only part of the layer's sum.
        slots: the senders' numbers.
        post: the norm behind the layer's sum.
        varying: whether messages depend on tokens.
        last: whether queries stand at the last positions alone.
    """

    held: Tensor | None
    share: Tensor | None

    def __init__(
        self,
        projections: list[PrunedProjection],
        norm: PlainNorm | None,
        held: Tensor | None,
        held_rows: list[int],
        share: Tensor | None,
        attending: Attending,
        outputs: list[Tensor],
        slots: list[int],
        post: Norm | None,
        *,
        varying: bool,
        last: bool,
        heads: int,
    ) -> None:
        super().__init__()
        self.projections, self.norm = nn.ModuleList(projections), norm
        self.register_buffer("held", held)
        self.register_buffer("share", share)
        self.held_rows = held_rows
        self.attend = Attend(attending)
        self.outputs = nn.ParameterList([nn.Parameter(w) for w in outputs])
        self.slots, self.varying, self.last, self.heads = slots, varying, last, heads
        self.post = None if post is None else PlainNorm(post)

    def forward(self, stream: SentMessages) -> None:
        """Sends the heads' messages."""
        rows: dict[int, Tensor] = {}
        for projection in self.projections:
            rows.update(projection(stream, self.norm))
        if self.held is not None:
            rows.update(zip(self.held_rows, self.held[:, None, None], strict=True))
        batch = stream.batch if self.varying else 1
        last = stream.last if self.last else None
        asked = stream.length if last is None else last

        def side_by_side(first: int, stop: int, length: int) -> Tensor:
            parts = [rows[i].expand(batch, length, -1) for i in range(first, stop)]
            joined: Tensor = torch.cat(parts, -1).unflatten(-1, (stop - first, -1))
            return joined

        heads, count = self.heads, (len(rows) - self.heads) // 2
        z = self.attend(
            side_by_side(0, heads, asked),
            side_by_side(heads, heads + count, stream.length),
            side_by_side(heads + count, heads + 2 * count, stream.length),
            self.share,
            last,
        ).flatten(2)
        codes = z.split([len(weight) for weight in self.outputs], -1)
        sums = [code @ weight for code, weight in zip(codes, self.outputs, strict=True)]
        if self.post is not None:
            total = torch.stack(sums).sum(0)
            scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + self.post.eps)
            sums = [one * scale * self.post.gain for one in sums]
        # Sums beyond the slots are of heads that nothing reads.
        stream.sent.update(zip(self.slots, sums, strict=False))


class Mlp(nn.Module):
    """One MLP: a copy of the user's own module between its norms."""

    def __init__(
        self, reading: ReaderSum, norm: Norm | None, mlp: nn.Module, post: Norm | None, slot: int
    ) -> None:
        super().__init__()
        self.reading = reading
        self.norm = None if norm is None else PlainNorm(norm)
        self.mlp = fused(copy.deepcopy(mlp))
        self.post = None if post is None else PlainNorm(post)
        self.slot = slot

    def forward(self, stream: SentMessages) -> None:
        """Sends the MLP's message."""
        x = self.reading(stream)
        y: Tensor = self.mlp(x if self.norm is None else self.norm(x))
        stream.sent[self.slot] = y if self.post is None else self.post(y)


def fused(mlp: nn.Module) -> nn.Module:
    """``mlp`` with a tanh GELU that is written as a chain of steps made one operation."""
    probe = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    one = nn.GELU(approximate="tanh")
    for name, module in list(mlp.named_modules()):
        known = type(module).__module__ in ACTIVATION_MODULES and not list(module.parameters())
        if known and name and bool((module(probe) - one(probe)).abs().max() < 1e-8):
            mlp.set_submodule(name, nn.GELU(approximate="tanh"))
    return mlp


class Unembedding(nn.Module):
    """Final norm, output map and its cap; float32 logits of models in half precision."""

    def __init__(
        self, norm: Norm | None, weight: nn.Parameter, bias: Tensor | None, cap: float | None
    ) -> None:
        super().__init__()
        self.norm = None if norm is None else PlainNorm(norm)
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        """``[..., V]`` from final residuals ``[..., D]``."""
        logits = F.linear(x if self.norm is None else self.norm(x), self.weight, self.bias)
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return wide(logits)


class PrunedModel(nn.Module):
    """A circuit of a causal language model, alone.

    ``forward(input_ids [B, T] int64) -> logits [B, T, V]``, or ``[B, last, V]`` of the last
    positions. Prompts are padded on the right, if at all. ``longest``: the most positions;
    ``exact``: the only number of them (means were kept for each position).
    """

    def __init__(
        self,
        *,
        table: nn.Parameter | None,
        scale: float,
        table_last: bool,
        position: tuple[int, Tensor] | None,
        stages: list[nn.Module],
        final: ReaderSum,
        unembedding: Unembedding,
        last: int | None,
        longest: int | None,
        exact: int | None,
    ) -> None:
        super().__init__()
        self.table, self.scale, self.table_last = table, scale, table_last
        self.position = None if position is None else nn.Parameter(position[1])
        self.position_slot = None if position is None else position[0]
        self.stages = nn.ModuleList(stages)
        self.final, self.unembedding = final, unembedding
        self.last, self.longest, self.exact = last, longest, exact

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` at all positions, or ``[B, last, V]`` at the last ones."""
        if input_ids.ndim != 2:
            raise InputError(
                f"expected token ids [batch, positions], got {input_ids.ndim} dimensions"
            )
        batch, length = input_ids.shape
        if self.exact is not None and length != self.exact:
            raise InputError(
                f"this circuit's means were kept for {self.exact} positions, got {length}"
            )
        if self.longest is not None and length > self.longest:
            raise InputError(f"expected at most {self.longest} positions, got {length}")
        if self.last is not None and length < self.last:
            raise InputError(
                f"logits are wanted at the last {self.last} positions, got {length} positions"
            )
        stream = SentMessages(batch, length, self.last)
        if self.table is not None:
            ids = input_ids
            if self.table_last and self.last is not None:
                ids = last_of(ids, self.last)
            x = F.embedding(ids, self.table)
            stream.sent[0] = x if self.scale == 1 else x * self.scale
        if self.position is not None and self.position_slot is not None:
            stream.sent[self.position_slot] = self.position[None, :length]
        for stage in self.stages:
            stage(stream)
        logits: Tensor = self.unembedding(self.final(stream))
        return logits.expand(batch, length if self.last is None else self.last, -1)
