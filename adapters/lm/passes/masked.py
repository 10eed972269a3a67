"""Masked passes in delta form: exact, differentiable in the mask, and only as much as is needed.

A reader's input is the ablated run's residual stream at its place plus ``mask @ Delta``, where
``Delta`` holds each writer's message minus its ablation value: one product for all readers of a
layer over the prefix of writers. ``Delta`` is one buffer written in layer order; backward walks
the layers in reverse with one buffer of the same shape and reads again what readers read, so
memory grows as layers x heads x width for each token (see ``outbox``).

Only tokens that can matter are computed. Positions before the first at which clean and corrupted
prompts differ have no Delta: their keys and values come from the reference. In the last layer
only answer tokens have queries, messages and an MLP: that layer writes to a *tail*, an outbox of
answer tokens alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..describe.architecture import Block
from ..describe.layout import Layout, Plan, dense_plan, sparse_plan
from ..describe.norms import wide
from .backward import pull_back
from .delta_buffer import Outbox, Tokens
from .reader_inputs import Projected, centre, sender, span
from .saved import Kept, Reading
from .values import LMReference, entry_embeddings

__all__ = ["MaskedPass", "masked_run"]


class MaskedPass:
    """One masked pass over a plan; keeps what backward needs.

    Args:
        layout: where edges and writers stand.
        reference: clean inputs and ablated values.
        mask: ``[K, E]``, or ``[K, B, E]``: one for each example.
        plan: what to compute.
        keep: whether a backward follows that should find the projections and the MLPs' graphs
            (``False`` makes it compute them again).
    """

    def __init__(
        self, layout: Layout, reference: LMReference, mask: Tensor, plan: Plan, *, keep: bool
    ) -> None:
        self.layout, self.reference, self.plan, self.keep = layout, reference, plan, keep
        self.arch, self.mask = reference.arch, mask.reshape(-1, mask.shape[-1])
        self.candidates, self.shape = len(mask), mask.shape
        self.attention, self.mlps, self.final = layout.places()
        self.stream, self.ablated = reference.stream, reference.ablated_values
        entry, answers = reference.glue.entry, reference.inputs.answers
        batch, length, _ = entry.shape
        self.asked, self.where = torch.unique(answers, return_inverse=True)
        trimmed = 2 * len(self.asked) <= batch * (length - reference.start)
        start = reference.start if trimmed else min(reference.start, int((answers % length).min()))
        self.columns = torch.nonzero(plan.computed)[:, 0].to(mask.device)
        self._slots = [0, *torch.cumsum(plan.computed, 0).tolist()]
        tokens = Tokens(self.candidates, batch, length, start)
        stop = layout.head(layout.layers - 1) if trimmed else layout.writers
        self.main = Outbox(self._slots[stop], len(self.mask), tokens, entry)
        self.tail: Outbox | None = None
        if trimmed:
            tokens = Tokens(self.candidates, batch, length, chosen=self.asked)
            self.tail = Outbox(self._slots[-1], len(self.mask), tokens, entry)
        self.kept = [Kept() for _ in self.arch.blocks]

    # -------------------------------------------------------------- what is read where

    @cached_property
    def asked_in_main(self) -> tuple[Tensor, Tensor | None]:
        """Numbers of the tokens asked for among the main outbox's, ``[K * A]``.

        With them, which of them do not stand before its first token (``None``: all).
        """
        tokens = self.main.tokens
        example, position = self.asked // tokens.length, self.asked % tokens.length - tokens.start
        local = example * (tokens.length - tokens.start) + position.clamp(min=0)
        inside = (position >= 0).repeat(self.candidates)
        steps = torch.arange(self.candidates, device=local.device)[:, None]
        local = (steps * (tokens.count // self.candidates) + local).flatten()
        return local, None if bool(inside.all()) else inside

    @property
    def last(self) -> Outbox:
        """The outbox the last layer writes to and the output reads."""
        return self.main if self.tail is None else self.tail

    def slots(self, first: int, count: int = 0) -> slice:
        """Slots of the computed ones among ``count`` writers from ``first`` on."""
        return slice(1 + self._slots[first], 1 + self._slots[first + count])

    def prefix(self, count: int) -> slice:
        """The base's slot and those of the first ``count`` writers."""
        return slice(0, 1 + self._slots[count])

    def readings(self, block: Block) -> list[Reading]:
        """What the layer reads; the last reading's outbox is the one it writes to."""
        rows = self.plan.rows[block.index]
        mlp = bool(self.plan.computed[self.layout.head(block.index) + block.heads])
        if self.tail is None or block.index < self.layout.layers - 1:
            return [Reading(self.main, rows, mlp)]
        queries = rows < block.heads
        return [
            Reading(self.main, rows[~queries], False),
            Reading(self.tail, rows[queries], mlp),
        ]

    def weights(self, block: Block, reading: Reading) -> Tensor:
        """``[C, R, 1 + S]``: mask values of a reading's readers, after a 1 for the base."""
        place = self.attention[block.index]
        parts = []
        if len(reading.rows):
            rows = self.mask[:, place.edges].unflatten(1, (place.rows, -1))
            parts.append(rows if len(reading.rows) == place.rows else rows[:, reading.rows])
        if reading.mlp:
            row = self.mask[:, self.mlps[block.index].edges]
            parts.append(row[:, None, : place.prefix])
        return self._over_slots(torch.cat(parts, 1), 0, based=True)

    def own_weights(self, block: Block) -> Tensor:
        """``[C, 1, H]``: what the layer's MLP reads of the layer's own heads."""
        first, place = self.layout.head(block.index), self.mlps[block.index]
        return self._over_slots(self.mask[:, None, place.edges][..., first:], first, based=False)

    def final_weights(self) -> Tensor:
        """``[C, 1, 1 + S]``: mask values of the output's edges."""
        return self._over_slots(self.mask[:, None, self.final.edges], 0, based=True)

    def _over_slots(self, values: Tensor, first: int, *, based: bool) -> Tensor:
        if not self.plan.dense:
            chosen = self.slots(first, values.shape[-1])
            values = values[..., self.columns[chosen.start - 1 : chosen.stop - 1] - first]
        if based:
            values = torch.cat([values.new_ones(*values.shape[:-1], 1), values], -1)
        return values.to(self.main.wide)

    def base(self, box: Outbox, place: int) -> Tensor:
        """``[count, D]`` in float32 at least: the ablated stream at a place, an outbox's tokens."""
        return centre(box.tokens.take(self.stream[place]), self.arch.centred)

    def read(self, block: Block, reading: Reading) -> Tensor:
        """``[count, R, D]``: what a reading's readers read, without the layer's own heads."""
        base = self.base(reading.box, 2 * block.index)
        return reading.box.read(self.weights(block, reading), base)

    def read_own(self, block: Block, box: Outbox, x: Tensor) -> None:
        """Adds to the MLP's input ``x [count, 1, D]`` what it reads of the layer's own heads."""
        if block.parallel:
            return
        place = 2 * block.index
        x += (self.base(box, place + 1) - self.base(box, place))[:, None]
        own = self.slots(self.layout.head(block.index), block.heads)
        if own.start < own.stop:
            box.add(x, self.own_weights(block), own)

    # -------------------------------------------------------------- forward

    def forward(self) -> Tensor:
        """Outputs ``[K, B, ..., V]``."""
        sent = entry_embeddings(self.reference.glue, self.layout.embeddings)
        for e in range(self.layout.embeddings):
            self._send(self.main, e, sent[e], self.ablated.embed[e])
        for block in self.arch.blocks:
            with block.present():
                self._layer(block)
        return self.read_out(self.final_read()[:, 0])

    def final_read(self) -> Tensor:
        """``[count, 1, D]``: the masked run's final residual at the last outbox's tokens."""
        return self.last.read(self.final_weights(), self.base(self.last, -1))

    def _send(self, box: Outbox, writer: int, new: Tensor, old: Tensor) -> None:
        """Writes a Delta: ``new`` messages of all tokens or of the box's, minus ``old`` of all."""
        if bool(self.plan.computed[writer]):
            new = new if new.ndim == 2 else box.tokens.take(new)
            change = wide(new) - wide(box.tokens.take(old))
            box.delta[:, self.slots(writer).start] = centre(change, self.arch.centred)

    def _layer(self, block: Block) -> None:
        readings, kept = self.readings(block), self.kept[block.index]
        box, first = readings[-1].box, self.layout.head(block.index)
        if box is self.tail:
            self._fill_tail(box)
        heads = self.plan.computed[first : first + block.heads]
        qkv, fed = None, None
        if bool(heads.any()):
            qkv = self.start_qkv(block)
        for reading in readings:
            if not len(reading.rows) and not reading.mlp:
                continue
            x = self.read(block, reading)
            if qkv is not None and len(reading.rows):
                kept.projected.append(self.project(block, reading, x, qkv))
            if reading.mlp:
                fed = x[:, -1:].clone()
            del x
        if qkv is not None:
            self._send_heads(block, box, heads, self.attend(block, qkv))
            kept.qkv = qkv
        if fed is not None:
            self.read_own(block, box, fed)
            message = self.feed(block, fed[:, 0], kept if self.keep else None)
            self._send(box, first + block.heads, message, self.ablated.mlps[block.index])
        if not self.keep:
            self.kept[block.index] = Kept()

    def _fill_tail(self, tail: Outbox) -> None:
        """What the answer tokens have of all writers before the last layer."""
        local, inside = self.asked_in_main
        slots = self.main.delta.shape[1]
        torch.index_select(self.main.delta, 0, local, out=tail.delta[:, :slots])
        if inside is not None:
            tail.delta[:, :slots] *= inside.view(-1, 1, 1)

    def _send_heads(self, block: Block, box: Outbox, heads: Tensor, code: Tensor) -> None:
        first, i = self.layout.head(block.index), block.index
        change = wide(box.tokens.cut(code)) - wide(box.tokens.take(self.ablated.codes[i]))
        change = change.unflatten(-1, (block.heads, block.head_dim))
        weight, fixed = sender(block, self.arch.centred, exact=True), self.ablated.heads
        if not bool(heads.all()):
            chosen = torch.nonzero(heads)[:, 0].to(change.device)
            change, weight = change[:, chosen], weight[chosen]
        out = box.delta[:, self.slots(first, block.heads)]
        torch.bmm(change.transpose(0, 1), weight, out=out.transpose(0, 1))
        if fixed is not None:
            mine = fixed[i] if bool(heads.all()) else fixed[i][chosen]
            out -= centre(wide(mine), self.arch.centred)

    # -------------------------------------------------------------- one layer's parts

    def start_qkv(self, block: Block) -> Tensor:
        """``[K * B, T, rows, dh]``, to be overwritten by what reads for itself at its tokens.

        Elsewhere: keys and values of the ablated run where somebody may attend to them.
        """
        tokens, rows = self.main.tokens, self.plan.rows[block.index]
        shape = (tokens.batch, tokens.length, block.rows, block.head_dim)
        if len(rows) < block.rows:
            # An answer in the prefix has a query of its own, the ablated one where none is read.
            start = tokens.start if self.asked_in_main[1] is None else 0
            base = self.stream[2 * block.index][:, start:].to(self.reference.dtype)
            norm = block.attention_norm
            untouched = block.project(base if norm is None else norm(base))
            qkv = untouched.new_zeros(shape)
            qkv[:, start:] = untouched.unflatten(-1, shape[2:])
        else:
            qkv = self.main.delta.new_zeros(shape, dtype=self.main.dtype)
        if tokens.start:
            qkv[:, : tokens.start, block.heads :] = self.reference.prefix(block.index, tokens.start)
        return qkv if self.candidates == 1 else qkv.repeat(self.candidates, 1, 1, 1)

    def project(self, block: Block, reading: Reading, x: Tensor, qkv: Tensor) -> Projected:
        """Projects a reading's attention inputs into ``qkv``; prepares them in place."""
        x = x[:, : len(reading.rows)]
        projected = Projected.of(block, reading.rows, x)
        projected.prepare(x)
        reading.box.tokens.put(projected.forward(x), qkv, span(reading.rows, x.device))
        return projected

    def attend(self, block: Block, qkv: Tensor) -> Tensor:
        """Head codes ``[K * B, T, H * dh]`` of ``qkv [K * B, T, rows, dh]``."""
        call = self.reference.calls(self.candidates)[block.index]
        z = block.attend(qkv.flatten(2), call)
        return block.code(z) if block.attention_post_norm is None else block.share(z)[1]

    def feed(self, block: Block, x: Tensor, kept: Kept | None) -> Tensor:
        """The MLP's message ``[count, D]`` from its input ``[count, D]``; so with its graph."""
        x = x.to(self.reference.dtype)
        fed = x if block.mlp_norm is None else block.mlp_norm(x)
        with torch.set_grad_enabled(kept is not None):
            if kept is not None:
                fed = _Source.apply(fed, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]
            y: Tensor = block.lean_mlp(fed[None])[0]
            y = y if block.mlp_post_norm is None else block.mlp_post_norm(y)
        if kept is not None:
            kept.mlp = get_gradient_edge(fed), get_gradient_edge(y)
        return y.detach()

    def read_out(self, rows: Tensor) -> Tensor:
        """Outputs ``[K, B, ..., V]`` from final residuals ``[count, D]`` of the last outbox."""
        if self.tail is None:
            rows = rows[self.asked_in_main[0]]
        rows = rows.view(self.candidates, len(self.asked), -1)[:, self.where].flatten(0, 1)
        logits = self.arch.read_out(rows.to(self.reference.dtype))
        return logits.view(self.candidates, *self.reference.inputs.shape, -1)


class _Source(torch.autograd.Function):
    """Starts a graph at a value without keeping the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, live: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mask: Tensor, constants: Tensor | None, layout: Layout, reference: LMReference
    ) -> Tensor:
        plan, keep = dense_plan(layout), not reference.checkpointing
        run = MaskedPass(layout, reference, mask.detach(), plan, keep=keep)
        ctx.run = run
        return run.forward()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        with ctx.run.arch.running():  # backward runs later, when the user may be training
            mask, constants = pull_back(ctx.run, grad, *ctx.needs_input_grad[:2])
        return mask, constants, None, None


def masked_run(layout: Layout, reference: LMReference, mask: Tensor) -> Tensor:
    """Outputs ``[K, B, ..., V]`` under ``mask [K, E]`` or ``[K, B, E]``.

    Differentiable in the mask and in learned ablation constants, where they ask for it.
    """
    constants = reference.constants
    asked = mask.requires_grad or (constants is not None and constants.requires_grad)
    if asked and torch.is_grad_enabled():
        out = _Differentiable.apply(mask, constants, layout, reference)  # type: ignore[no-untyped-call]
        assert isinstance(out, Tensor)
        return out
    with torch.no_grad():
        flat = mask.detach().reshape(-1, mask.shape[-1])
        plan = sparse_plan(layout, flat.cpu(), quiescent=reference.exact_counterfactual)
        return MaskedPass(layout, reference, mask.detach(), plan, keep=False).forward()
