"""Masked passes in delta form: exact, differentiable in the mask, and only as much as is needed.

A reader's input is the ablated run's residual stream at its place plus ``mask @ Delta``, where
``Delta`` holds each writer's message minus its ablation value: one matrix product a place over
the prefix of writers, q/k/v together. ``Delta`` is one buffer written in layer order; backward
walks the layers in reverse with one buffer of the same shape, and recomputes each place's inputs,
so memory grows as layers x heads x width for each token.

A :class:`Plan` (pure data) names the writers worth computing: those that reach the output over kept
edges and, where an untouched node sends exactly its ablation value, those that differ from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .architecture import Block
from .layout import Layout, Place
from .norms import Norm
from .surgery import quiet
from .values import LMReference, entry_embeddings

__all__ = ["Plan", "dense_plan", "masked_run", "sparse_plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a masked pass computes.

    ``computed [W]`` bool: writers whose Delta is kept. ``rows``: for each layer, the attention
    readers to read for themselves (the rest take the ablated input). ``dense``: everything.
    """

    computed: Tensor
    rows: list[Tensor]
    dense: bool


def dense_plan(layout: Layout) -> Plan:
    """Every writer and every reader: what gradients with respect to the mask need."""
    every = torch.arange(layout.heads + 2 * layout.kv_heads)
    return Plan(torch.ones(layout.writers, dtype=torch.bool), [every] * layout.layers, True)


def sparse_plan(layout: Layout, mask: Tensor, *, quiescent: bool) -> Plan:
    """The least work for ``mask [K, E]``. ``quiescent``: untouched nodes send ablation values."""
    touched = (mask != 0).any(0)
    attention, mlp, final = layout.places()
    heads, kv = layout.heads, layout.kv_heads

    def block(place: Place) -> Tensor:
        return touched[place.edges].view(place.rows, place.prefix)

    kv_of = torch.arange(heads) // (heads // kv)
    rows_of = torch.stack([torch.arange(heads), heads + kv_of, heads + kv + kv_of], 1)

    def rows_for(some: Tensor) -> Tensor:
        """``[R]`` bool: the readers that ``some`` heads depend on."""
        found = torch.zeros(heads + 2 * kv, dtype=torch.bool)
        if layout.coupled and bool(some.any()):
            found[:] = True
        found[rows_of[some].reshape(-1)] = True
        return found

    varying = torch.zeros(layout.writers, dtype=torch.bool)
    varying[: layout.embeddings] = True
    for layer in range(layout.layers):
        place, first = attention[layer], layout.head(layer)
        moved = (block(place) & varying[: place.prefix]).any(1) | (not quiescent)
        alive = moved[rows_of].any(1)
        varying[first : first + heads] = alive.any() if layout.coupled else alive
        place = mlp[layer]
        moved = (block(place) & varying[: place.prefix]).any(1) | (not quiescent)
        varying[first + heads] = moved[0]

    needed = torch.zeros(layout.writers, dtype=torch.bool)
    needed |= block(final)[0]
    rows = []
    for layer in reversed(range(layout.layers)):
        first = layout.head(layer)
        if needed[first + heads] and varying[first + heads]:
            needed[: mlp[layer].prefix] |= block(mlp[layer])[0]
        wanted = rows_for(needed[first : first + heads] & varying[first : first + heads])
        edges = block(attention[layer])
        prefix = attention[layer].prefix
        needed[:prefix] |= edges[wanted].any(0)
        rows.append(wanted)
    rows.reverse()
    computed = needed & varying
    active = []
    for layer, wanted in enumerate(rows):
        prefix = attention[layer].prefix
        reads = (block(attention[layer]) & computed[:prefix]).any(1)
        active.append(torch.nonzero(wanted & reads)[:, 0])
    return Plan(computed, active, False)


class _Run:
    """One masked pass over a plan; keeps what backward needs."""

    def __init__(self, layout: Layout, reference: LMReference, mask: Tensor, plan: Plan) -> None:
        self.layout, self.reference, self.plan, self.mask = layout, reference, plan, mask
        self.arch = reference.arch
        self.copies = mask.shape[0]
        entry = reference.glue.entry
        self.batch, self.tokens, self.width = entry.shape
        self.n = self.batch * self.tokens
        self.attention, self.mlp, self.final = layout.places()
        self.columns = torch.nonzero(plan.computed)[:, 0].to(mask.device)
        self.slot = torch.cumsum(plan.computed, 0).tolist()
        self.ablated = reference.ablated_values
        self.stream = reference.stream
        shape = (self.copies, len(self.columns), self.n, self.width)
        self.delta = torch.empty(shape, dtype=entry.dtype, device=entry.device)

    # -------------------------------------------------------------- reading

    def slots(self, prefix: int) -> int:
        """How many of the first ``prefix`` writers are computed."""
        return int(self.slot[prefix - 1]) if prefix else 0

    def weights(self, place: Place, rows: Tensor | None = None) -> Tensor:
        """``[K, R, S]``: the place's mask over computed writers."""
        block = self.mask[:, place.edges].view(self.copies, place.rows, place.prefix)
        if rows is not None and len(rows) < place.rows:
            block = block[:, rows]
        if not self.plan.dense:
            block = block[:, :, self.columns[: self.slots(place.prefix)]]
        return block.to(self.delta.dtype)

    def read(self, weights: Tensor, base: Tensor, tokens: Tensor | None = None) -> Tensor:
        """``[K, R, n, D]``: what readers with ``weights [K, R, S]`` read over ``base``."""
        rows, slots = weights.shape[1:]
        delta = self.delta[:, :slots]
        base = base.expand(self.batch, self.tokens, self.width).reshape(self.n, self.width)
        if tokens is not None:
            base, delta = base[tokens], delta[:, :, tokens]
        count = base.shape[0]
        start = base.reshape(1, 1, -1).expand(self.copies, rows, -1)
        if not slots:
            return start.reshape(self.copies, rows, count, self.width)
        flat = delta.reshape(self.copies, slots, -1)
        return torch.baddbmm(start, weights, flat).view(self.copies, rows, count, self.width)

    # -------------------------------------------------------------- forward

    def forward(self) -> Tensor:
        self._embed()
        for block in self.arch.blocks:
            first = self.layout.head(block.index)
            heads = self.plan.computed[first : first + block.heads]
            if bool(heads.any()):
                self._attend(block, heads)
            if bool(self.plan.computed[first + block.heads]):
                read = self.read(
                    self.weights(self.mlp[block.index]), self.stream[2 * block.index + 1]
                )
                message = self.feed(block, read[:, 0])
                old = self._flat(self.ablated.mlps[block.index])
                slot = self.slots(first + block.heads)
                torch.sub(message.view(self.copies, self.n, -1), old, out=self.delta[:, slot])
        read = self.read(self.weights(self.final), self.stream[-1], self.reference.inputs.answers)
        return self.read_out(read[:, 0])

    def _flat(self, x: Tensor) -> Tensor:
        return x.expand(self.batch, self.tokens, x.shape[-1]).reshape(self.n, -1)

    def _embed(self) -> None:
        sent = entry_embeddings(self.reference.glue, self.layout.embeddings)
        for e in range(self.layout.embeddings):
            if bool(self.plan.computed[e]):
                self.delta[:, self.slots(e)] = self._flat(sent[e] - self.ablated.embed[e])

    def _attend(self, block: Block, heads: Tensor) -> None:
        place, rows = self.attention[block.index], self.plan.rows[block.index]
        base = self.stream[2 * block.index]
        if len(rows) == place.rows:
            read = self.read(self.weights(place), base)
            code = self.codes(block, read)
        else:
            code = self._some_codes(block, place, rows, heads, base)
        code = code.view(self.copies, self.n, block.heads, block.head_dim)
        old = self._flat(self.ablated.codes[block.index])
        change = code - old.view(self.n, block.heads, block.head_dim)
        weight = block.output_weight
        if not bool(heads.all()):
            chosen = torch.nonzero(heads)[:, 0].to(change.device)
            change, weight = change[:, :, chosen], weight[chosen]
        start = self.slots(self.layout.head(block.index))
        for k in range(self.copies):
            out = self.delta[k, start : start + weight.shape[0]]
            torch.bmm(change[k].transpose(0, 1), weight, out=out)
            if block.gain is not None:
                out.mul_(block.gain)

    def _some_codes(
        self, block: Block, place: Place, rows: Tensor, heads: Tensor, base: Tensor
    ) -> Tensor:
        """Codes where only ``rows`` read for themselves and the rest read the ablated stream."""
        shape = (self.copies, self.n, block.rows, block.head_dim)
        norm = block.attention_norm
        untouched = block.project(base if norm is None else norm(base))
        qkv = self._flat(untouched).view(1, *shape[1:]).expand(shape)
        if len(rows):
            qkv = qkv.clone()
            read = self.read(self.weights(place, rows), base)
            where = rows.to(read.device)
            qkv[:, :, where] = project_rows(block, norm, read, rows).transpose(1, 2)
        return self._finish(block, qkv)

    def codes(self, block: Block, read: Tensor) -> Tensor:
        """``[K * B, T, H * dh]`` head codes from every reader's own input ``[K, R, n, D]``."""
        qkv = project_rows(block, block.attention_norm, read, None).transpose(1, 2)
        return self._finish(block, qkv)

    def _finish(self, block: Block, qkv: Tensor) -> Tensor:
        flat = qkv.reshape(self.copies * self.batch, self.tokens, -1)
        z = block.attend(flat, self.reference.calls(self.copies)[block.index])
        return z if block.attention_post_norm is None else block.share(z)[1]

    def feed(self, block: Block, read: Tensor) -> Tensor:
        """The MLP's message ``[K * B, T, D]`` from its input ``[K, n, D]``."""
        x = read.reshape(self.copies * self.batch, self.tokens, self.width)
        y: Tensor = block.mlp(x if block.mlp_norm is None else block.mlp_norm(x))
        return y if block.mlp_post_norm is None else block.mlp_post_norm(y)

    def read_out(self, rows: Tensor) -> Tensor:
        """Outputs ``[K, B, ..., V]`` from final residuals ``[K, answers, D]``."""
        logits = self.arch.read_out(rows.flatten(0, 1))
        return logits.view(self.copies, *self.reference.inputs.shape, -1)

    # -------------------------------------------------------------- backward

    def backward(self, grad: Tensor) -> Tensor:
        """``[K, E]`` from ``grad`` at the outputs; walks the layers in reverse."""
        out = torch.zeros(self.mask.shape, dtype=self.mask.dtype, device=self.mask.device)
        d_delta = torch.zeros_like(self.delta)
        answers = self.reference.inputs.answers
        weights = self.weights(self.final)
        read = self.read(weights, self.stream[-1], answers)
        with torch.enable_grad():
            x = read[:, 0].detach().requires_grad_(True)
            logits = self.read_out(x)
        (dx,) = torch.autograd.grad(logits, x, grad)
        dx = dx[:, None]
        seen = self.delta[:, :, answers]
        out[:, self.final.edges] = _against(dx, seen).reshape(self.copies, -1)
        spread = torch.matmul(weights.transpose(1, 2), dx.flatten(2)).view_as(seen)
        d_delta.index_add_(2, answers, spread)
        for block in reversed(self.arch.blocks):
            slot = self.layout.head(block.index) + block.heads
            place = self.mlp[block.index]
            weights = self.weights(place)
            read = self.read(weights, self.stream[2 * block.index + 1])
            with torch.enable_grad():
                x = read[:, 0].detach().requires_grad_(True)
                message = self.feed(block, x)
            (dx,) = torch.autograd.grad(message, x, d_delta[:, slot].reshape(message.shape))
            self._absorb(place, weights, dx[:, None], out, d_delta)
            place = self.attention[block.index]
            weights = self.weights(place)
            x = self.read(weights, self.stream[2 * block.index])
            with torch.enable_grad():
                x.requires_grad_(True)
                code = self.codes(block, x)
            (dx,) = torch.autograd.grad(code, x, self._to_codes(block, d_delta, code))
            self._absorb(place, weights, dx, out, d_delta)
        return out

    def _to_codes(self, block: Block, d_delta: Tensor, code: Tensor) -> Tensor:
        start = self.layout.head(block.index)
        upstream = d_delta[:, start : start + block.heads]
        weight = block.output_weight
        if block.gain is not None:
            weight = weight * block.gain
        back = [torch.bmm(upstream[k], weight.transpose(1, 2)) for k in range(self.copies)]
        return torch.stack(back).transpose(1, 2).reshape(code.shape)

    def _absorb(
        self, place: Place, weights: Tensor, dx: Tensor, out: Tensor, d_delta: Tensor
    ) -> None:
        delta = self.delta[:, : place.prefix]
        out[:, place.edges] = _against(dx, delta).reshape(self.copies, -1)
        target = d_delta[:, : place.prefix].flatten(2)
        for k in range(self.copies):
            target[k].addmm_(weights[k].T, dx[k].flatten(1))


def _against(dx: Tensor, delta: Tensor) -> Tensor:
    """``[K, R, S]``: each reader's gradient against each writer's Delta, in float32 at least."""
    if dx.dtype in (torch.float16, torch.bfloat16):
        dx, delta = dx.float(), delta.float()
    return torch.matmul(dx.flatten(2), delta.flatten(2).transpose(1, 2))


def project_rows(block: Block, norm: Norm | None, read: Tensor, rows: Tensor | None) -> Tensor:
    """``[K, R, n, D]`` inputs of ``rows`` to their projections ``[K, R, n, dh]``."""
    normed = read if norm is None else norm(read)
    parts, start = [], 0
    for reader in block.readers:
        stop = start + reader.weight.shape[0]
        weight, bias = reader.weight, reader.bias
        if rows is None:
            mine = normed[:, start:stop]
        else:
            chosen = torch.nonzero((rows >= start) & (rows < stop))[:, 0].to(read.device)
            mine = normed[:, chosen]
            pick = rows.to(read.device)[chosen] - start
            weight, bias = weight[pick], None if bias is None else bias[pick]
        out = torch.stack([torch.bmm(x, weight.transpose(1, 2)) for x in mine])
        parts.append(out if bias is None else out + bias[:, None])
        start = stop
    return torch.cat(parts, 1)


class _MaskedPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mask: Tensor, layout: Layout, reference: LMReference) -> Tensor:
        ctx.run = _Run(layout, reference, mask.detach(), dense_plan(layout))
        out: Tensor = ctx.run.forward()
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with quiet(ctx.run.arch.model):  # backward runs later, when the user may be training
            return ctx.run.backward(grad), None, None


def masked_run(layout: Layout, reference: LMReference, mask: Tensor) -> Tensor:
    """Outputs ``[K, B, ..., V]`` under ``mask [K, E]``; differentiable if the mask asks for it."""
    if mask.requires_grad and torch.is_grad_enabled():
        out = _MaskedPass.apply(mask, layout, reference)  # type: ignore[no-untyped-call]
        assert isinstance(out, Tensor)
        return out
    with torch.no_grad():
        plan = sparse_plan(layout, mask.cpu(), quiescent=reference.exact_counterfactual)
        return _Run(layout, reference, mask.detach(), plan).forward()
