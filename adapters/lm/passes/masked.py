"""Masked passes in delta form: exact, differentiable in the mask, and only as much as is needed.

A reader's input is the ablated run's residual stream at its place plus ``mask @ Delta``, where
``Delta`` holds each writer's message minus its ablation value: one product for all readers of a
layer over the prefix of writers. ``Delta`` is one buffer written in layer order; backward walks
the layers in reverse with one buffer of the same shape and reads again what readers read, so
memory grows as layers x heads x width for each token (see ``delta_buffer``).

Every run is such a pass: with gradients over a whole model, of a circuit alone, of the nodes that
a cut edge changes. They differ in their :class:`PassPlan`, and in what they start from.

Only tokens that can matter are computed. Positions before the first at which clean and corrupted
prompts differ have no Delta: their keys and values come from the reference. Writers that no
attention reads (the last layer's, and others in a circuit) matter at answer tokens alone: they
write to a *tail*, a buffer of answer tokens, into which the other writers' Deltas are copied when
somebody reads there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..describe.architecture import DecoderBlock
from ..describe.layout import LayerPlan, PassPlan, Place
from ..describe.norms import Projected, centre, project, span, wide
from .delta_buffer import AblatedRun, DeltaBuffer, TokenSelection

__all__ = ["GivenInput", "MaskedPass", "ReaderGroup", "SavedForBackward"]

_ROOM = 2**21  # numbers that readers of one product hold: what fits a cache


@dataclass(frozen=True, eq=False)
class ReaderGroup:
    """Readers of one layer that read the same buffer in one product.

    ``rows``: attention readers; ``mlp``: whether the layer's MLP reads along, as the last row.
    ``at``: where they stand among all the layer's readers of the buffer.
    """

    buffer: DeltaBuffer
    rows: Tensor
    mlp: bool
    at: slice


@dataclass(frozen=True, eq=False)
class GivenInput:
    """Inputs of one reader, handed in: ``x [K, n, D]``; ``row`` is ``None`` for MLP and output."""

    layer: int
    row: int | None
    x: Tensor


@dataclass(eq=False)
class SavedForBackward:
    """What a layer's forward leaves for its backward. What is empty is computed again.

    Attention itself always is: from ``qkv`` it costs little, its insides would take much room.
    ``mlp`` (input, output) are edges of the MLP's graph: unlike tensors they keep no values alive
    beside those the graph needs.
    """

    projected: list[Projected] = field(default_factory=list)
    qkv: Tensor | None = None
    mlp: tuple[GradientEdge, GradientEdge] | None = None


class MaskedPass:
    """One pass over a plan; keeps what backward needs.

    Args:
        base: what it starts from.
        plan: what to compute.
        mask: ``[K, E]``, or ``[K, B, E]``: one for each example.
        keep: whether a backward follows that should find the projections and the MLPs' graphs
            (``False`` makes it compute them again).
        slot_major: the order of the delta buffer (one mask only): for few writers.
        copies: how many copies of the batch run under one mask, where ``given`` tells them apart.
        given: inputs of one reader.
        inputs: by layer and whether at the answers' tokens alone, inputs ``[R, n, D]`` that stand
            in for the ablated stream, one for each reader there.
    """

    def __init__(
        self,
        base: AblatedRun,
        plan: PassPlan,
        mask: Tensor,
        *,
        keep: bool = False,
        slot_major: bool = False,
        copies: int = 1,
        given: GivenInput | None = None,
        inputs: Mapping[tuple[int, bool], Tensor] | None = None,
    ) -> None:
        self.base, self.plan, self.keep, self.arch = base, plan, keep, base.arch
        self.mask, self.shape = mask.reshape(-1, mask.shape[-1]), mask.shape
        self.candidates = copies * len(mask)
        self.given, self.inputs = given, inputs or {}
        computed, wide_ones = plan.computed, plan.computed
        if base.trimmed:
            wide_ones = computed & ~plan.narrow
        # Numbers of computed writers before each: in the main buffer, and in the tail.
        counts = torch.stack([wide_ones, computed]).cumsum(1).tolist()
        self._before = [[0, *each] for each in counts]
        self._columns: list[Tensor] = []
        if not plan.dense:
            self._columns = [torch.nonzero(w)[:, 0].to(mask.device) for w in (wide_ones, computed)]

        def buffer(tokens: TokenSelection, slots: int) -> DeltaBuffer:
            tokens = replace(tokens, candidates=self.candidates)
            return DeltaBuffer(slots, len(self.mask), tokens, base.like, slot_major=slot_major)

        self.main = buffer(base.tokens, self._before[0][-1])
        self.tail = buffer(base.asked, self._before[1][-1]) if base.trimmed else None
        self._uncopied: list[tuple[slice, slice]] = []  # slots of the main buffer and of the tail
        self.saved = [SavedForBackward() for _ in plan.layers]
        self.qkv: dict[int, Tensor] = {}  # for trials, which take them over

    # -------------------------------------------------------------- what is read where

    @property
    def last(self) -> DeltaBuffer:
        """The buffer that the output reads."""
        return self.main if self.tail is None else self.tail

    def home(self, narrow: bool) -> DeltaBuffer:
        """The buffer that writers write to, and those that read at the same tokens read."""
        return self.last if narrow else self.main

    def slots(self, buffer: DeltaBuffer, first: int, count: int) -> slice:
        """A buffer's slots of those it holds among ``count`` writers from ``first`` on."""
        before = self._before[buffer is self.tail]
        return slice(1 + before[first], 1 + before[first + count])

    def columns(self, buffer: DeltaBuffer, first: int, count: int) -> Tensor | slice:
        """Which of ``count`` writers from ``first`` on the buffer holds, counted from ``first``."""
        slots = self.slots(buffer, first, count)
        if self.plan.dense:
            return slice(0, slots.stop - slots.start)
        return self._columns[buffer is self.tail][slots.start - 1 : slots.stop - 1] - first

    def prefix(self, buffer: DeltaBuffer, count: int) -> slice:
        """The base's slot and those of the first ``count`` writers."""
        return slice(0, self.slots(buffer, 0, count).stop)

    def given_at(self, layer: int) -> GivenInput | None:
        """The input that is handed in, if its reader is of this layer (L: the output)."""
        return self.given if self.given is not None and self.given.layer == layer else None

    def groups(self, block: DecoderBlock) -> list[ReaderGroup]:
        """What the layer reads in one product each, the MLP with the last one of its buffer."""
        layer, given, groups = self.plan.layers[block.index], self.given_at(block.index), []
        for narrow, rows, mlp in layer.readers[self.tail is not None]:
            buffer = self.home(narrow)
            mlp = mlp and not (given is not None and given.row is None)
            most = count = len(rows) + mlp
            if buffer.slot_major:
                most = max(1, _ROOM // (buffer.tokens.count * self.base.like.shape[-1]))
            for start in range(0, count, most or 1):
                at = slice(start, min(start + most, count))
                groups.append(ReaderGroup(buffer, rows[at], mlp and at.stop == count, at))
        return groups

    def weights(self, block: DecoderBlock, group: ReaderGroup) -> Tensor:
        """``[masks, R, 1 + S]``: mask values of a group's readers, after a 1 for the base."""
        layer = self.plan.layers[block.index]
        place, parts = layer.attention, []
        columns = self.columns(group.buffer, 0, place.prefix)
        if len(group.rows):
            rows = self._values(place)
            parts.append(rows if len(group.rows) == place.rows else rows[:, group.rows])
        if group.mlp:
            parts.append(self._values(layer.mlp_place)[..., : place.prefix])
        return self._based(torch.cat([part[..., columns] for part in parts], 1))

    def own_weights(self, block: DecoderBlock, buffer: DeltaBuffer) -> Tensor:
        """``[masks, 1, S]``: what the layer's MLP reads of the layer's own heads."""
        layer = self.plan.layers[block.index]
        values = self._values(layer.mlp_place)[..., layer.first :]
        return values[..., self.columns(buffer, layer.first, block.heads)].to(buffer.wide)

    def final_weights(self) -> Tensor:
        """``[masks, 1, 1 + S]``: mask values of the output's edges."""
        final = self.plan.final
        return self._based(self._values(final)[..., self.columns(self.last, 0, final.prefix)])

    def _values(self, place: Place) -> Tensor:
        """``[masks, rows, prefix]``: the mask's values at a place, a view."""
        values: Tensor = self.mask[:, place.edges]
        rows: Tensor = values.unflatten(1, (place.rows, place.prefix))
        return rows

    def _based(self, values: Tensor) -> Tensor:
        return torch.cat([values.new_ones(*values.shape[:-1], 1), values], -1).to(self.main.wide)

    def read(self, block: DecoderBlock, group: ReaderGroup) -> Tensor:
        """``[token, R, D]``: what a group's readers read, without the layer's own heads."""
        narrow = group.buffer is self.tail
        if narrow:
            self._fill_tail()
        base = self.inputs.get((block.index, narrow))
        base = self.base.stream(2 * block.index, narrow)[None] if base is None else base[group.at]
        return group.buffer.read(self.weights(block, group), base)

    def read_own(self, block: DecoderBlock, buffer: DeltaBuffer, x: Tensor) -> None:
        """Adds to the MLP's input ``x [token, 1, D]`` what it reads of the layer's own heads."""
        if block.parallel:
            return
        narrow, first = buffer is self.tail, self.plan.layers[block.index].first
        if narrow:
            self._fill_tail()
        place = 2 * block.index
        moved = self.base.stream(place + 1, narrow) - self.base.stream(place, narrow)
        x.unflatten(0, (self.candidates, -1)).add_(moved[:, None])
        own = self.slots(buffer, first, block.heads)
        if own.start < own.stop:
            buffer.add(x, self.own_weights(block, buffer), own)

    def final_read(self) -> Tensor:
        """``[token, 1, D]``: the masked run's final residual at the last buffer's tokens."""
        layers, narrow = len(self.plan.layers), self.tail is not None
        given = self.given_at(layers)
        if given is not None:
            return given.x.flatten(0, 1)[:, None]
        if narrow:
            self._fill_tail()
        base = self.inputs.get((layers, narrow))
        base = self.base.stream(-1, narrow)[None] if base is None else base
        return self.last.read(self.final_weights(), base)

    # -------------------------------------------------------------- forward

    def forward(self) -> Tensor:
        """Outputs ``[K, B, ..., V]``."""
        plan = self.plan
        if bool(plan.computed[: plan.embeddings].any()):
            sent = self.base.reference.glue.sent(plan.embeddings)
            for e in range(plan.embeddings):
                self._send(self.main, e, sent[e], self.base.values.embed[e])
        for block, layer in zip(self.arch.blocks, plan.layers, strict=True):
            if len(layer.heads) or layer.mlp:
                with block.loaded():
                    self._layer(block, layer)
        return self.read_out(self.final_read()[:, 0])

    def _send(self, buffer: DeltaBuffer, writer: int, new: Tensor, old: Tensor) -> None:
        """Writes a Delta: ``new`` messages of all tokens or of the buffer's, minus ``old``."""
        if not bool(self.plan.computed[writer]):
            return
        take, candidates = buffer.tokens.take, self.candidates
        new = new.unflatten(0, (candidates, -1)) if new.ndim == 2 else take(new)
        change = centre(wide(new) - wide(take(old)), self.arch.centred)
        out = buffer.delta[:, self.slots(buffer, writer, 1).start]
        out.unflatten(0, (candidates, -1)).copy_(change)
        self._note_sent(buffer, writer, 1)

    def _send_heads(self, block: DecoderBlock, layer: LayerPlan, code: Tensor) -> None:
        """Writes Deltas of the computed heads from their codes ``[K * B, T, h * dh]``."""
        i, heads, buffer = block.index, layer.heads, self.home(layer.narrow_heads)
        old = buffer.tokens.take(self.base.values.codes[i]).unflatten(-1, (block.heads, -1))
        weight, fixed = block.senders(self.arch.centred, exact=True), self.base.values.heads
        if len(heads) < block.heads:
            chosen = heads.to(weight.device)
            old, weight = old[:, chosen], weight[chosen]
        change = wide(buffer.tokens.cut(code)).unflatten(-1, old.shape[1:])
        change = (change.unflatten(0, (self.candidates, -1)) - wide(old)).flatten(0, 1)
        out = buffer.delta[:, self.slots(buffer, layer.first, block.heads)]
        torch.bmm(change.transpose(0, 1), weight, out=out.transpose(0, 1))
        if fixed is not None:
            out -= centre(wide(fixed[i][heads.to(out.device)]), self.arch.centred)
        self._note_sent(buffer, layer.first, block.heads)

    def _note_sent(self, buffer: DeltaBuffer, first: int, count: int) -> None:
        if self.tail is None or buffer is self.tail:
            return
        source, target = (self.slots(b, first, count) for b in (self.main, self.tail))
        if self._uncopied and self._uncopied[-1][1].stop == target.start:
            before = self._uncopied.pop()
            source = slice(before[0].start, source.stop)
            target = slice(before[1].start, target.stop)
        self._uncopied.append((source, target))

    def _fill_tail(self) -> None:
        """Copies what the main buffer's writers have sent to the answer tokens."""
        assert self.tail is not None
        for source, target in self._uncopied:
            self.tail.delta[:, target] = self.main.delta[self.local, source]
        self._uncopied = []

    @cached_property
    def local(self) -> Tensor:
        """``[K * A]``: numbers of the answers' tokens among the main buffer's."""
        local, each = self.base.local, self.base.tokens.count
        starts = each * torch.arange(self.candidates, device=local.device)
        numbers: Tensor = (starts[:, None] + local).flatten()
        return numbers

    # -------------------------------------------------------------- one layer

    def _layer(self, block: DecoderBlock, layer: LayerPlan) -> None:
        saved, given, fed = SavedForBackward(), self.given_at(block.index), None
        if len(layer.heads):
            saved.qkv = self.start_qkv(block)
        for group in self.groups(block):
            x = self.read(block, group)
            if saved.qkv is not None and len(group.rows):
                saved.projected.append(self.project(block, group, x, saved.qkv))
            if group.mlp:
                fed = x[:, -1:].clone()
            del x
        if given is not None and given.row is not None and saved.qkv is not None:
            row = torch.tensor([given.row])
            new = project(block.projections, row, given.x.flatten(0, 1)[:, None])
            self.main.tokens.put(new, saved.qkv, span(row, new.device))
        if saved.qkv is not None:
            self._send_heads(block, layer, self.attend(block, saved.qkv))
            if self.main.slot_major:
                self.qkv[block.index] = saved.qkv
        home = self.home(layer.narrow_mlp)
        if fed is not None:
            self.read_own(block, home, fed)
        elif layer.mlp and given is not None:
            fed = given.x.flatten(0, 1)[:, None]
        if fed is not None:
            message = self.feed(block, fed[:, 0], saved if self.keep else None)
            self._send(home, layer.first + block.heads, message, self.base.values.mlps[block.index])
        if self.keep:
            self.saved[block.index] = saved

    def start_qkv(self, block: DecoderBlock) -> Tensor:
        """``[K * B, T, rows, dh]``, to be overwritten by what reads for itself at its tokens."""
        qkv = self.base.projections(block, self.plan.layers[block.index])
        if self.candidates == 1 and not self.base.lasting:
            return qkv
        return qkv.repeat(self.candidates, 1, 1, 1)

    def project(self, block: DecoderBlock, group: ReaderGroup, x: Tensor, qkv: Tensor) -> Projected:
        """Projects a group's attention inputs into ``qkv``; prepares them in place."""
        x = x[:, : len(group.rows)]
        projected = Projected.of(block.projections, group.rows, x)
        projected.prepare(x)
        group.buffer.tokens.put(projected.forward(x), qkv, span(group.rows, x.device))
        return projected

    def attend(self, block: DecoderBlock, qkv: Tensor) -> Tensor:
        """Codes ``[K * B, T, h * dh]`` of the computed heads from ``qkv [K * B, T, rows, dh]``."""
        reference, heads = self.base.reference, self.plan.layers[block.index].heads
        calls = reference.glue.calls if self.candidates == 1 else reference.calls(self.candidates)
        if len(heads) < block.heads:
            return self.base.cores[block.index](qkv, heads.to(qkv.device), calls[block.index])
        z = block.attend(qkv.flatten(2), calls[block.index])
        return block.code(z) if block.attention_post_norm is None else block.share(z)[1]

    def feed(self, block: DecoderBlock, x: Tensor, saved: SavedForBackward | None) -> Tensor:
        """The MLP's message ``[token, D]`` from its input ``[token, D]``.

        Where ``saved`` is given, so is the MLP's graph.
        """
        x = x.to(self.base.dtype)
        fed = x if block.mlp_norm is None else block.mlp_norm(x)
        with torch.set_grad_enabled(saved is not None):
            if saved is not None:
                fed = _Source.apply(fed, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]
            y: Tensor = block.recomputing_mlp(fed[None])[0]
            y = y if block.mlp_post_norm is None else block.mlp_post_norm(y)
        if saved is not None:
            saved.mlp = get_gradient_edge(fed), get_gradient_edge(y)
        return y.detach()

    def read_out(self, rows: Tensor) -> Tensor:
        """Outputs ``[K, B, ..., V]`` from final residuals ``[token, D]`` of the last buffer."""
        if self.tail is None:
            rows = rows[self.local]
        rows = rows.view(self.candidates, -1, rows.shape[-1])[:, self.base.where].flatten(0, 1)
        logits = self.arch.read_out(rows.to(self.base.dtype))
        return logits.view(self.candidates, *self.base.reference.inputs.shape, -1)


class _Source(torch.autograd.Function):
    """Starts a graph at a value without keeping the value: the MLP keeps what it needs itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, live: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None
