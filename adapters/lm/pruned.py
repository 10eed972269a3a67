"""A circuit as a torch module of its own: only its weights, in plain torch operations.

Readers that keep the same edges share one input, a sum of messages sent so far, which stand one
after another in one buffer ``[sender, B, T, D]``; heads of a layer that the same readers read are
one sender. Parameters are weights of the circuit, buffers
constants and 0/1 matrices. Messages that do not depend on the tokens but on
positions have a buffer of their own, ``[sender, 1, T, D]``; constants are part of the inputs.

A causal model's positions do not read what stands behind them, so right padding needs no mask.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphprune.errors import InputError

from .attending import Attending, Rotary
from .norms import Norm

__all__ = ["Attention", "Mlp", "Part", "PlainNorm", "PrunedModel", "Reading", "Unembedding"]


# What adding a message to an input costs, and a multiplication of a 0/1 matrix, next to reading a
# message once (measured on CPUs, float32).
_ADD, _MULTIPLY = 1.5, 0.125


class PlainNorm(nn.Module):
    """A LayerNorm (``centred``) or an RMSNorm over the last axis; a bare one has no gain."""

    def __init__(self, norm: Norm, *, bare: bool = False) -> None:
        super().__init__()
        self.centred, self.eps = norm.centred, norm.eps
        self.gain = None if bare else nn.Parameter(norm.gain.detach().clone())
        bias = None if bare else norm.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., F]``, normalised."""
        shape = (x.shape[-1],)
        if self.centred:
            return F.layer_norm(x, shape, self.gain, self.bias, self.eps)
        out = F.rms_norm(x, shape, self.gain, self.eps)
        return out if self.bias is None else out + self.bias


class Reading(nn.Module):
    """Inputs of G readers: kept messages and constants.

    Readers that keep few messages add them up; where many keep many, one product with a 0/1 matrix
    does it for all.

    Args:
        varying: ``[G, S]`` 0/1, which of the varying senders up to the S-th are read.
        fixed: ``[G, P]`` 0/1, the same for senders that depend on positions alone.
        constant: ``[G, 1 or T, D]``.
    """

    matrix: Tensor | None
    constant: Tensor

    def __init__(self, varying: Tensor, fixed: Tensor, constant: Tensor) -> None:
        super().__init__()
        self.fixed = [torch.nonzero(row)[:, 0].tolist() for row in fixed]
        self.varying = [torch.nonzero(row)[:, 0].tolist() for row in varying]
        self.first, matrix = 0, None
        used = sorted({slot for row in self.varying for slot in row})
        if used:
            self.first, span = used[0], used[-1] + 1 - used[0]
            edges, readers = sum(len(row) for row in self.varying), len(self.varying)
            if _ADD * edges > span + 2 * readers + _MULTIPLY * readers * span:
                matrix = varying[:, used[0] : used[-1] + 1].clone()
        self.register_buffer("matrix", matrix)
        self.register_buffer("constant", constant)
        self.empty = not bool(constant.any())

    def forward(self, sent: Tensor, fixed: Tensor) -> list[Tensor]:
        """``[B, T, D]`` for each reader; a batch of 1 where no varying sender is read."""
        product = None
        if self.matrix is not None:
            some = sent[self.first : self.first + self.matrix.shape[1]]
            product = torch.mm(self.matrix, some.flatten(1)).view(-1, *sent.shape[1:])
        found = []
        for reader, slots in enumerate(self.varying):
            terms = [fixed[slot] for slot in self.fixed[reader]]
            if not self.empty or not (terms or slots):
                terms.append(self.constant[reader][None])
            if product is not None:
                terms.append(product[reader])
            else:
                terms += [sent[slot] for slot in slots]
            found.append(_added(terms))
        return found


def _added(terms: list[Tensor]) -> Tensor:
    """The sum of terms, the smaller ones first; a single term as it is."""
    total = terms[0]
    for number, term in enumerate(terms[1:]):
        if number and total.shape == term.shape:  # from the second sum on, total is our own
            total += term
        else:
            total = total + term
    return total


class Part(nn.Module):
    """Some rows of a layer's projections, each group of rows at an input of its own.

    ``weights[g] [r * dh, D]`` and ``biases[g]`` have the norm's gain and bias folded in.
    """

    def __init__(
        self,
        reading: Reading,
        norm: PlainNorm | None,
        weights: list[Tensor],
        biases: list[Tensor | None],
    ) -> None:
        super().__init__()
        self.reading, self.norm = reading, norm
        self.weights = nn.ParameterList([nn.Parameter(w) for w in weights])
        kept = [b for b in biases if b is not None]
        self.biases = nn.ParameterList([nn.Parameter(b) for b in kept])
        self.biased = bool(kept)

    def forward(self, sent: Tensor, fixed: Tensor) -> Tensor:
        """``[B or 1, T, rows * dh]``."""
        biases = list(self.biases) if self.biased else [None] * len(self.weights)
        found = []
        for x, weight, bias in zip(self.reading(sent, fixed), self.weights, biases, strict=True):
            found.append(F.linear(x if self.norm is None else self.norm(x), weight, bias))
        return torch.cat(found, -1)


class Attention(nn.Module):
    """Some heads of a layer.

    Args:
        parts: projections of rows; the rows of all parts, then ``held``, one after another.
        held: ``[rows, dh]``: projections that are constants.
        order: where, among those rows, q of each head, then k, then v of each key/value head are.
        share: whose keys and values each head reads; ``None``: each its own.
        outputs: for each sender its heads' output maps ``[c * dh, D]``, heads in order; then, where
            a norm follows, that of heads that are only part of the layer's sum.
        slots: the senders' places among the varying ones, or among the fixed ones.
        post: the norm behind the layer's sum.
    """

    held: Tensor | None
    order: Tensor
    share: Tensor | None

    def __init__(
        self,
        parts: list[Part],
        held: Tensor | None,
        order: Tensor,
        share: Tensor | None,
        attending: Attending,
        outputs: list[Tensor],
        slots: list[int],
        post: Norm | None,
        *,
        varying: bool,
        heads: int,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.register_buffer("held", held)
        self.register_buffer("order", order)
        self.register_buffer("share", share)
        self.attending = _Attending(attending)
        self.outputs = nn.ParameterList([nn.Parameter(w) for w in outputs])
        self.slots, self.varying, self.heads = slots, varying, heads
        self.post = None if post is None else PlainNorm(post)

    def forward(self, sent: Tensor, fixed: Tensor) -> None:
        """Writes the heads' messages into their places."""
        box = sent if self.varying else fixed
        batch, length = box.shape[1], box.shape[2]
        parts = [part(sent, fixed).expand(batch, -1, -1) for part in self.parts]
        if parts and parts[0].shape[1] != length:  # inputs that are the same at every position
            parts = [part.expand(-1, length, -1) for part in parts]
        if self.held is not None:
            parts.append(self.held.flatten().expand(batch, length, -1))
        rows = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        rows = rows.unflatten(-1, (len(self.order), -1)).index_select(2, self.order)
        count = (len(self.order) - self.heads) // 2
        q, k, v = rows.split([self.heads, count, count], 2)
        z = self.attending(q, k, v, self.share).flatten(2)
        codes = z.split([len(weight) for weight in self.outputs], -1)
        sums = [code @ weight for code, weight in zip(codes, self.outputs, strict=True)]
        if self.post is not None:
            total = torch.stack(sums).sum(0)
            scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + self.post.eps)
            sums = [one * scale * self.post.gain for one in sums]
        for slot, message in zip(self.slots, sums, strict=False):
            box[slot] = message


class _Attending(nn.Module):
    """An :class:`Attending` whose tensors are buffers, so that they move with the module."""

    def __init__(self, attending: Attending) -> None:
        super().__init__()
        self.plan = attending
        rotary = attending.rotary
        self.register_buffer("frequencies", None if rotary is None else rotary.frequencies)
        self.norms = nn.ModuleList([PlainNorm(n) for n in attending.norms or ()])

    frequencies: Tensor | None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, share: Tensor | None) -> Tensor:
        plan = self.plan
        if self.norms:
            q, k = (self._normed(x, n) for x, n in zip((q, k), self.norms, strict=True))
        rotary = plan.rotary
        if rotary is not None and self.frequencies is not None:
            rotary = Rotary(self.frequencies, rotary.scale)
        bare = Attending(plan.scale, plan.window, plan.cap, rotary)
        return bare(q, k, v, share)

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        out: Tensor = norm(x.flatten(-2)).view(x.shape) if self.plan.wide else norm(x)
        return out


class Mlp(nn.Module):
    """One MLP: a copy of the user's own module between its norms."""

    def __init__(
        self,
        reading: Reading,
        norm: Norm | None,
        mlp: nn.Module,
        post: Norm | None,
        slot: int,
        *,
        varying: bool,
    ) -> None:
        super().__init__()
        self.reading = reading
        self.norm = None if norm is None else PlainNorm(norm)
        self.mlp = copy.deepcopy(mlp)
        self.post = None if post is None else PlainNorm(post)
        self.slot, self.varying = slot, varying

    def forward(self, sent: Tensor, fixed: Tensor) -> None:
        """Writes the MLP's message into its place."""
        x = self.reading(sent, fixed)[0]
        y = self.mlp(x if self.norm is None else self.norm(x))
        (sent if self.varying else fixed)[self.slot] = y if self.post is None else self.post(y)


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
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class PrunedModel(nn.Module):
    """A circuit of a causal language model, alone.

    ``forward(input_ids [B, T] int64) -> logits [B, T, V]``. Prompts are padded on the right, if at
    all. ``longest``: the most positions; ``exact``: the only number of them (means were kept for
    each position).
    """

    positions: Tensor | None

    def __init__(
        self,
        *,
        table: nn.Parameter | None,
        scale: float,
        position: Tensor | None,
        stages: list[nn.Module],
        final: Reading,
        unembedding: Unembedding,
        senders: tuple[int, int],
        longest: int | None,
        exact: int | None,
    ) -> None:
        super().__init__()
        self.table, self.scale = table, scale
        self.position = None if position is None else nn.Parameter(position)
        self.stages = nn.ModuleList(stages)
        self.final, self.unembedding = final, unembedding
        self.senders, self.longest, self.exact = senders, longest, exact

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` at all positions."""
        batch, length = input_ids.shape
        if self.exact is not None and length != self.exact:
            raise InputError(
                f"this circuit's means were kept for {self.exact} positions, got {length}"
            )
        if self.longest is not None and length > self.longest:
            raise InputError(f"expected at most {self.longest} positions, got {length}")
        like = self.final.constant
        varying, fixed = self.senders
        sent = like.new_empty(varying, batch, length, like.shape[-1])
        still = like.new_empty(fixed, 1, length, like.shape[-1])
        if self.table is not None:
            x = F.embedding(input_ids, self.table)
            sent[0] = x if self.scale == 1 else x * self.scale
        if self.position is not None:
            still[0] = self.position[:length]
        for stage in self.stages:
            stage(sent, still)
        logits: Tensor = self.unembedding(self.final(sent, still)[0])
        return logits.expand(batch, length, -1)
