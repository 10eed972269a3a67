"""Runs of a part of the model: some writers computed anew, everything else taken as it stands.

What a computed reader reads is a *fixed* part (the ablated stream and what unchanged writers send)
plus its kept edges from the writers computed in this run. A circuit is such a run on top of the
ablated model; the effect of a cut edge is one on top of the circuit without the cut.

Axes: tokens go (copy, example, position), positions from ``start`` on; of the last layer's MLP and
of the output only the tokens that answers are read at. Writers' messages stand one after another,
``[writer, token, d_model]``, so that what readers read is one product. All steps are plain
differentiable operations; without gradients messages share one buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..describe.architecture import Block
from ..describe.layout import Layout, Plan
from ..describe.norms import wide
from .reader_inputs import HeadCores, Projected, centre, sender
from .values import LMReference, entry_embeddings

__all__ = ["Base", "Fixed", "Given", "Sent", "SparseRun", "TokenRange"]

_ROOM = 2**21  # numbers that readers of one product hold: what fits a cache


@dataclass(frozen=True, eq=False)
class TokenRange:
    """Which tokens of ``batch`` examples of ``length`` count: from ``start`` on, and ``asked``.

    ``asked [A]`` are numbers among the counted ones; ``where`` puts them back into answers' order.
    """

    batch: int
    length: int
    start: int
    asked: Tensor
    where: Tensor

    @classmethod
    def of(cls, reference: LMReference) -> TokenRange:
        """Those a reference's runs need."""
        batch, length, _ = reference.glue.entry.shape
        asked, where = torch.unique(reference.inputs.answers, return_inverse=True)
        start = min(reference.start, int((asked % length).min()))
        local = asked // length * (length - start) + asked % length - start
        return cls(batch, length, start, local, where)

    @property
    def count(self) -> int:
        """How many for one copy."""
        return self.batch * (self.length - self.start)

    def take(self, x: Tensor) -> Tensor:
        """``[count, F]`` of ``x [B or 1, T or 1, F]``."""
        every = x.expand(self.batch, self.length, x.shape[-1])
        counted: Tensor = every[:, self.start :].reshape(-1, x.shape[-1])
        return counted


@dataclass(frozen=True, eq=False)
class Given:
    """Inputs of one reader, handed in: ``x [C, n, D]``, its ``row`` (``None``: MLP or output)."""

    layer: int
    row: int | None
    x: Tensor


@dataclass(eq=False)
class Fixed:
    """What computed readers read of everything that this run does not compute.

    ``attention``: for each layer ``[R, n, D]`` of the plan's rows; ``mlps``: ``[n, D]``; ``final``:
    ``[A, D]``. Filled when first asked for.
    """

    attention: dict[int, Tensor] = field(default_factory=dict)
    mlps: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None


class Base:
    """Values that outlive a run: ablated streams and messages, and keys and values by layer.

    Streams and sums of messages are float32 at least; what modules read is rounded to ``dtype``.
    """

    def __init__(self, layout: Layout, reference: LMReference, cores: list[HeadCores]) -> None:
        self.layout, self.reference, self.cores = layout, reference, cores
        self.arch, self.old = reference.arch, reference.ablated_values
        self.attention, self.mlps, self.final = layout.places()
        self.tokens, self.dtype = TokenRange.of(reference), reference.dtype

    def stream(self, place: int, asked: bool = False) -> Tensor:
        """``[n, D]``: the ablated residual stream at a place, without its mean where norms ask."""
        x = centre(self.tokens.take(self.reference.stream[place]), self.arch.centred)
        if not asked:
            return x
        some: Tensor = x[self.tokens.asked]
        return some

    def standing(self, layer: int, rows: Tensor, heads: Tensor) -> Tensor:
        """``[B, T, rows, dh]``: what ``heads`` need of the ablated run when ``rows`` are computed.

        All tokens of the heads' other rows; keys and values of all heads before ``start``.
        """
        block, tokens = self.arch.blocks[layer], self.tokens
        place = self.reference.stream[2 * layer].to(self.dtype)
        out = place.new_zeros(tokens.batch, tokens.length, block.rows, block.head_dim)
        kv = block.heads + heads // (block.heads // block.kv_heads)
        needed = torch.zeros(block.rows, dtype=torch.bool)
        needed[torch.cat([heads, kv, kv + block.kv_heads])] = True
        if block.coupled:
            needed[:] = True
        needed[rows] = False
        others = torch.nonzero(needed)[:, 0]
        if len(others):
            x = centre(place, self.arch.centred).expand(tokens.batch, tokens.length, -1)
            new = project(block, others, x.flatten(0, 1)[None].expand(len(others), -1, -1))
            out[:, :, others.to(out.device)] = new.view(
                len(others), tokens.batch, -1, block.head_dim
            ).permute(1, 2, 0, 3)
        if tokens.start:
            kept = self.reference.prefix(layer, tokens.start)
            out[:, : tokens.start, block.heads :] = kept
        return out

    def embedded(self) -> Tensor:
        """``[E, n, D]``: what embeddings send, minus what stands in for it."""
        sent = entry_embeddings(self.reference.glue, self.layout.embeddings)
        pairs = zip(sent, self.old.embed, strict=True)
        change = [self.tokens.take(wide(s) - wide(a)) for s, a in pairs]
        return centre(torch.stack(change), self.arch.centred)


class Sent:
    """Deltas of computed writers: of wide ones ``[s, n, D]``, of narrow ones ``[s, A, D]``.

    In float32 at least.

    ``slots [W]`` says where a writer stands among its kind (-1: not computed).
    """

    def __init__(self, plan: Plan, keeps_graph: bool) -> None:
        self.narrow, self.graph = plan.narrow, keeps_graph
        self.slots = torch.full((len(plan.computed),), -1)
        self._count = {}
        for kind in (False, True):
            mine = plan.computed & (plan.narrow == kind)
            self._count[kind] = int(mine.sum())
            self.slots[mine] = torch.arange(self._count[kind])
        self._parts: dict[bool, list[Tensor]] = {False: [], True: []}
        self._buffers: dict[bool, Tensor] = {}

    def order(self, writers: Tensor) -> Tensor:
        """The writers as :meth:`of` gives them: wide ones first."""
        narrow = self.narrow[writers]
        return torch.cat([writers[~narrow], writers[narrow]])

    def send(self, writers: Tensor, change: Tensor) -> None:
        """Keeps ``change`` of ``writers [s]``: of one kind, one after another."""
        if not len(writers):
            return
        kind, change = bool(self.narrow[writers[0]]), wide(change)
        if self.graph:
            self._parts[kind].extend(change)
            return
        if kind not in self._buffers:
            self._buffers[kind] = change.new_empty(self._count[kind], *change.shape[1:])
        first = int(self.slots[writers[0]])
        self._buffers[kind][first : first + len(writers)] = change

    def of(self, writers: Tensor, asked: Tensor | None, copies: int) -> Tensor:
        """``[s, n, D]`` of computed ``writers [s]``, wide ones first.

        Only at ``asked`` tokens, if there are any: there narrow writers count too.
        """
        narrow = self.narrow[writers]
        parts = []
        if not bool(narrow.all()):
            x = self._pick(self.slots[writers[~narrow]], False)
            if asked is not None:
                x = x.unflatten(1, (copies, -1))[:, :, asked].flatten(1, 2)
            parts.append(x)
        if bool(narrow.any()):
            parts.append(self._pick(self.slots[writers[narrow]], True))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _pick(self, slots: Tensor, kind: bool) -> Tensor:
        if self.graph:
            return torch.stack([self._parts[kind][i] for i in slots.tolist()])
        buffer = self._buffers[kind]
        if _neighbours(slots):
            return buffer[int(slots[0]) : int(slots[-1]) + 1]
        return buffer[slots.to(buffer.device)]

    def scattered(self, writers: Tensor) -> list[Tensor] | None:
        """``[n, D]`` of each of the wide ``writers``, where :meth:`of` would copy them first.

        ``None`` elsewhere, where many small steps are slow.
        """
        slots = self.slots[writers]
        if self.graph or _neighbours(slots):
            return None
        buffer = self._buffers[False]
        if buffer.device.type != "cpu":
            return None
        return [buffer[slot] for slot in slots.tolist()]


def _neighbours(slots: Tensor) -> bool:
    return len(slots) == int(slots[-1]) - int(slots[0]) + 1


class SparseRun:
    """One run of a plan under ``mask [E]``, ``copies`` of the batch side by side.

    Args:
        held: ``layer -> [B, T, rows, dh]``, projections of rows that are not computed here.
        given: inputs of one reader that copies differ in.
        keeps_graph: whether gradients with respect to the mask are wanted.
    """

    def __init__(
        self,
        base: Base,
        plan: Plan,
        mask: Tensor,
        held: dict[int, Tensor],
        fixed: Fixed,
        *,
        copies: int = 1,
        given: Given | None = None,
        keeps_graph: bool = False,
    ) -> None:
        self.base, self.plan, self.mask, self.held = base, plan, mask, held
        self.fixed, self.copies, self.given = fixed, copies, given
        self.layout, self.arch = base.layout, base.arch
        self.messages = Sent(plan, keeps_graph)
        self.projected: dict[int, tuple[Tensor, Tensor]] = {}

    # -------------------------------------------------------------- reading

    def _linked(self, mask: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Computed writers that rows ``mask [R, prefix]`` read, and the mask's columns for them."""
        columns = self.plan.computed[:prefix] & (mask.detach() != 0).any(0).cpu()
        writers = self.messages.order(torch.nonzero(columns)[:, 0])
        return writers, mask[:, writers.to(mask.device)]

    def _read(self, fixed: Tensor, mask: Tensor, prefix: int, asked: Tensor | None) -> Tensor:
        """``[R, C * n, D]``: ``fixed [R, n, D]`` plus what comes from computed writers."""
        writers, weights = self._linked(mask, prefix)
        if not len(writers):
            return fixed[:, None].expand(-1, self.copies, -1, -1).flatten(1, 2)
        few = asked is None and int((weights != 0).sum()) <= 2 * len(writers)
        alone = self.messages.scattered(writers) if few else None
        if alone is not None:
            read = fixed[:, None].repeat(1, self.copies, 1, 1)
            for row, column in torch.nonzero(weights).tolist():
                weight = float(weights[row, column])
                read[row].add_(alone[column].view_as(read[row]), alpha=weight)
            return read.flatten(1, 2)
        sent = self.messages.of(writers, asked, self.copies)
        read = torch.mm(weights.to(sent.dtype), sent.flatten(1))
        read = read.view(len(mask), self.copies, *fixed.shape[1:])
        read = read + fixed[:, None] if read.requires_grad else read.add_(fixed[:, None])
        return read.flatten(1, 2)

    def _row_masks(self, layer: int) -> Tensor:
        place = self.base.attention[layer]
        rows = self.mask[place.edges].view(place.rows, place.prefix)
        return rows[self.plan.rows[layer].to(rows.device)]

    # -------------------------------------------------------------- running

    def run(self) -> Tensor:
        """Outputs ``[C, B, ..., V]``."""
        layout, computed = self.layout, self.plan.computed
        sources = torch.nonzero(computed[: layout.embeddings])[:, 0]
        if len(sources):
            self.messages.send(sources, self.base.embedded()[sources])
        for block in self.arch.blocks:
            heads = torch.nonzero(computed[layout.head(block.index) :][: block.heads])[:, 0]
            mlp = bool(computed[layout.head(block.index) + block.heads])
            if not len(heads) and not mlp:
                continue
            with block.present():
                if len(heads):
                    self._heads(block, heads)
                if mlp:
                    self._mlp(block)
        return self.read_out(self._final())

    def _final(self) -> Tensor:
        """``[C * A, D]``."""
        if self.given is not None and self.given.layer == self.layout.layers:
            return self.given.x.flatten(0, 1)
        if self.fixed.final is None:
            self.fixed.final = self.base.stream(-1, asked=True)
        mask = self.mask[None, self.base.final.edges]
        asked = self.base.tokens.asked
        return self._read(self.fixed.final[None], mask, self.layout.writers, asked)[0]

    def read_out(self, rows: Tensor) -> Tensor:
        """``[C, B, ..., V]`` from final residuals ``[C * A, D]``."""
        tokens = self.base.tokens
        rows = rows.view(-1, len(tokens.asked), rows.shape[-1])[:, tokens.where].flatten(0, 1)
        logits = self.arch.read_out(rows.to(self.base.dtype), graph=self.messages.graph)
        return logits.view(-1, *self.base.reference.inputs.shape, logits.shape[-1])

    def _heads(self, block: Block, heads: Tensor) -> None:
        base, i = self.base, block.index
        qkv = self._qkv(block, heads)
        call = base.reference.calls(self.copies)[i]
        code = base.cores[i](qkv, heads.to(qkv.device), call)
        tokens, first = base.tokens, self.layout.head(i)
        code = code[:, tokens.start :].reshape(self.copies, tokens.count, len(heads), -1)
        old = tokens.take(base.old.codes[i]).unflatten(-1, (block.heads, -1))[:, heads]
        change = wide(code) - wide(old)
        weight = sender(block, self.arch.centred, exact=True)[heads.to(qkv.device)]
        narrow = self.plan.narrow[heads + first]
        for kind in (False, True):
            some = torch.nonzero(narrow == kind)[:, 0]
            if not len(some):
                continue
            mine = change if len(some) == len(heads) else change[:, :, some]
            mine = mine[:, tokens.asked] if kind else mine
            sent = torch.bmm(mine.flatten(0, 1).transpose(0, 1), weight[some])
            if base.old.heads is not None:
                fixed = centre(wide(base.old.heads[i][heads[some]]), self.arch.centred)
                sent = sent - fixed[:, None]
            self.messages.send(heads[some] + first, sent)

    def _qkv(self, block: Block, heads: Tensor) -> Tensor:
        """``[C * B, T, rows, dh]`` with what the heads need in place."""
        base, i, rows = self.base, block.index, self.plan.rows[block.index]
        tokens = base.tokens
        if i not in self.held:
            self.held[i] = base.standing(i, rows, heads)
        qkv = self.held[i].repeat(self.copies, 1, 1, 1)
        found, numbers = [], []
        if len(rows):
            if i not in self.fixed.attention:
                self.fixed.attention[i] = base.stream(2 * i)[None].expand(len(rows), -1, -1)
            fixed, masks = self.fixed.attention[i], self._row_masks(i)
            few = max(1, _ROOM // (self.copies * fixed[0].numel()))
            for some in torch.arange(len(rows)).split(few):
                at = slice(int(some[0]), int(some[-1]) + 1)
                x = self._read(fixed[at], masks[at], base.attention[i].prefix, None)
                found.append(project(block, rows[at], x))
            numbers.append(rows)
        given = self.given
        if given is not None and given.layer == i and given.row is not None:
            row = torch.tensor([given.row])
            found.append(project(block, row, given.x.flatten(0, 1)[None]))
            numbers.append(row)
        if not found:
            return qkv
        new, which = torch.cat(found), torch.cat(numbers)
        self.projected[i] = which, new
        put = new.view(len(which), self.copies * tokens.batch, -1, block.head_dim)
        qkv[:, tokens.start :, which.to(qkv.device)] = put.permute(1, 2, 0, 3)
        return qkv

    def _mlp(self, block: Block) -> None:
        base, i = self.base, block.index
        writer = self.layout.head(i) + block.heads
        asked = base.tokens.asked if self.plan.narrow[writer] else None
        given = self.given
        if given is not None and given.layer == i and given.row is None:
            x = given.x.flatten(0, 1)
        else:
            place = base.mlps[i]
            if i not in self.fixed.mlps:
                self.fixed.mlps[i] = base.stream(2 * i + 1, asked is not None)
            mask = self.mask[None, place.edges]
            x = self._read(self.fixed.mlps[i][None], mask, place.prefix, asked)[0]
        x = x.to(base.dtype)
        fed = x if block.mlp_norm is None else block.mlp_norm(x)
        mlp = block.mlp if self.messages.graph else block.lean_mlp
        y: Tensor = mlp(fed[None])[0]
        y = y if block.mlp_post_norm is None else block.mlp_post_norm(y)
        old = base.tokens.take(base.old.mlps[i])
        old = old if asked is None else old[asked]
        change = wide(y.view(self.copies, *old.shape)) - wide(old)
        change = centre(change.flatten(0, 1), self.arch.centred)
        self.messages.send(torch.tensor([writer]), change[None])


def project(block: Block, rows: Tensor, x: Tensor) -> Tensor:
    """``[R, n, dh]``: attention readers ``rows`` at their own inputs ``x [R, n, D]``."""
    x = x.transpose(0, 1)
    projected = Projected.of(block, rows, x)
    if projected.normalised:
        assert projected.scale is not None
        x = (x * projected.scale).to(x.dtype)
    return projected.forward(x).transpose(0, 1)
