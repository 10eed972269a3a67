"""Cutting edges one after another, recomputing only what a cut changes.

Edges are decided reader by reader from the output backwards, so that while a reader's edges are
tried nothing upstream of it has changed: its inputs are linear in what is cut, and only nodes that
its owner still reaches are computed anew, all tries side by side. Messages and projections of the
circuit as it stands are kept, and replaced by a try's own when its cut is made for good: none is
updated in steps, so errors do not add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.core.trials import EdgeTrials

from ..describe.layout import Plan, dense_plan, sparse_plan
from ..describe.norms import wide
from .sparse import Base, Fixed, Given, SparseRun

__all__ = ["SuffixTrials"]

_TOKENS = {"cpu": 2048, "other": 32768}  # side by side in one call
# Tokens whose computation costs as much as a call's overhead; answers' tokens, where a call
# computes no others and reading the unembedding is most of it.
_LAUNCH = {"cpu": (64, 12), "other": (4096, 768)}
_LOGITS = 2**25  # numbers that a call gives at most


@dataclass(frozen=True, eq=False)
class _Reader:
    """One reader: its layer (L for the output), its attention row or ``None``, its edges."""

    layer: int
    row: int | None
    edges: slice

    @property
    def key(self) -> tuple[int, int | None]:
        return self.layer, self.row


@dataclass(eq=False)
class _Turn:
    """What stays the same while one reader's edges are tried."""

    reader: _Reader
    plan: Plan
    fixed: Fixed
    x: Tensor


class SuffixTrials(EdgeTrials):
    """See the module. ``kept [E]`` bool; the order must be reverse topological."""

    spans = False

    def __init__(self, base: Base, kept: Tensor) -> None:
        self.base, self.layout, self.kept = base, base.layout, kept.clone()
        self._device = base.reference.glue.entry.device
        self._turn: _Turn | None = None
        self._begin()
        self._set_width(narrow=False)

    # ---------------------------------------------------------------- the circuit as it stands

    def _begin(self) -> None:
        """One pass that computes everything."""
        layout, base = self.layout, self.base
        plan = dense_plan(layout)
        run = SparseRun(base, plan, self._mask(), {}, Fixed())
        with base.arch.running():
            self._outputs = run.run()[0]
        last = layout.head(layout.layers - 1)
        every = torch.arange(layout.writers)
        self.main = run.messages.of(every[:last], None, 1)
        self.tail = run.messages.of(every[last:], None, 1)
        self.qkv = run.held
        for layer, (rows, new) in run.projected.items():
            self._put(layer, rows, new)

    def _set_width(self, *, narrow: bool) -> None:
        """How many rows pay: ``narrow`` where a call computes answers' tokens alone."""
        kind, tokens = "cpu" if self._device.type == "cpu" else "other", self.base.tokens
        count = len(tokens.asked) if narrow else tokens.count
        each = len(tokens.where) * self._outputs.shape[-1]
        self.most = max(1, min(_TOKENS[kind] // count, _LOGITS // each))
        self.overhead = _LAUNCH[kind][narrow] / count

    def _mask(self) -> Tensor:
        entry = self.base.reference.glue.entry
        return self.kept.to(self._device, wide(entry[:0]).dtype)

    def _put(self, layer: int, rows: Tensor, new: Tensor) -> None:
        tokens = self.base.tokens
        put = new.view(len(rows), tokens.batch, -1, new.shape[-1]).permute(1, 2, 0, 3)
        self.qkv[layer][:, tokens.start :, rows.to(new.device)] = put

    def _deltas(self, writers: Tensor, asked: bool) -> Tensor:
        """``[s, n, D]`` of ``writers [s]``, ascending; at the asked tokens alone if ``asked``."""
        last = self.layout.head(self.layout.layers - 1)
        early, late = writers[writers < last], writers[writers >= last] - last
        main = self.main if len(early) == last else self.main[early.to(self._device)]
        if not asked:
            return main
        main = main[:, self.base.tokens.asked]
        return torch.cat([main, self.tail[late.to(self._device)]]) if len(late) else main

    # ---------------------------------------------------------------- one reader's turn

    def _reader(self, edge: int) -> _Reader:
        layout, base = self.layout, self.base
        if edge >= base.final.offset:
            return _Reader(layout.layers, None, base.final.edges)
        for layer in range(layout.layers):
            place = base.mlps[layer]
            if edge >= place.edges.stop:
                continue
            if edge >= place.offset:
                return _Reader(layer, None, place.edges)
            place = base.attention[layer]
            row = (edge - place.offset) // place.prefix
            start = place.offset + row * place.prefix
            return _Reader(layer, row, slice(start, start + place.prefix))
        raise AssertionError(edge)

    def _moved(self, reader: _Reader) -> Tensor:
        """``[W]`` bool: the writers that the reader feeds."""
        layout, moved = self.layout, torch.zeros(self.layout.writers, dtype=torch.bool)
        if reader.layer == layout.layers:
            return moved
        first = layout.head(reader.layer)
        if reader.row is None:
            moved[first + layout.heads] = True
        elif layout.coupled:
            moved[first : first + layout.heads] = True
        elif reader.row < layout.heads:
            moved[first + reader.row] = True
        else:
            share = layout.heads // layout.kv_heads
            group = (reader.row - layout.heads) % layout.kv_heads
            moved[first + group * share : first + (group + 1) * share] = True
        return moved

    def _take_turn(self, edge: int) -> _Turn:
        if self._turn is not None:
            edges = self._turn.reader.edges
            if edges.start <= edge < edges.stop:
                return self._turn
        reader = self._reader(edge)
        mask = self._mask()
        plan = sparse_plan(
            self.layout, self.kept[None].float(), quiescent=True, moved=self._moved(reader)
        )
        asked = self._narrow(plan, reader)
        place = 2 * reader.layer + (reader.row is None and reader.layer < self.layout.layers)
        senders = mask[reader.edges]
        x = self._standing(senders[None], self.base.stream(place, asked)[None], asked)[0]
        self._turn = _Turn(reader, plan, self._fixed(plan, mask, reader), x)
        self._set_width(narrow=asked and not bool((plan.computed & ~plan.narrow).any()))
        return self._turn

    def _narrow(self, plan: Plan, reader: _Reader) -> bool:
        """Whether the reader is wanted at the asked tokens alone."""
        layout = self.layout
        if reader.layer == layout.layers:
            return True
        return reader.row is None and bool(plan.narrow[layout.head(reader.layer) + layout.heads])

    def _standing(self, mask: Tensor, stream: Tensor, asked: bool) -> Tensor:
        """``[R, n, D]``: what readers ``mask [R, prefix]`` read of the circuit as it stands."""
        writers = torch.nonzero((mask != 0).any(0).cpu())[:, 0]
        if not len(writers):
            return stream.expand(len(mask), -1, -1).clone()
        sent = self._deltas(writers, asked).flatten(1)
        weights = mask[:, writers.to(mask.device)]
        base = stream.expand(len(mask), -1, -1).flatten(1)
        return torch.addmm(base, weights, sent).view(len(mask), *stream.shape[1:])

    def _fixed(self, plan: Plan, mask: Tensor, reader: _Reader) -> Fixed:
        """What the turn's computed readers read of all that stays as it is."""
        layout, base, fixed = self.layout, self.base, Fixed()
        still = (~plan.computed).to(mask)
        for layer in range(layout.layers):
            rows, place = plan.rows[layer], base.attention[layer]
            if len(rows):
                mine = mask[place.edges].view(place.rows, -1)[rows.to(mask.device)]
                stream = base.stream(2 * layer)[None]
                fixed.attention[layer] = self._standing(mine * still[: place.prefix], stream, False)
            writer = layout.head(layer) + layout.heads
            if plan.computed[writer] and (layer, None) != reader.key:
                place, asked = base.mlps[layer], bool(plan.narrow[writer])
                mine = mask[None, place.edges] * still[: place.prefix]
                stream = base.stream(2 * layer + 1, asked)[None]
                fixed.mlps[layer] = self._standing(mine, stream, asked)[0]
        mine = mask[None, base.final.edges] * still
        fixed.final = self._standing(mine, base.stream(-1, asked=True)[None], True)[0]
        return fixed

    # ---------------------------------------------------------------- trials

    def outputs(self) -> Tensor:
        """``[B, ..., V]`` of the circuit; computed when it last changed."""
        return self._outputs

    def without(self, edges: Tensor, cuts: Tensor) -> Tensor:
        """Rows side by side; the edges must have one reader."""
        turn = self._take_turn(int(edges[0]))
        reader, asked = turn.reader, self._narrow(turn.plan, turn.reader)
        self._edges, self._cuts = edges, cuts
        senders = edges - reader.edges.start
        order = senders.argsort()
        sent = self._deltas(senders[order], asked).flatten(1)
        weights = cuts[:, order].to(sent)
        x = torch.addmm(turn.x.flatten(), weights, sent, alpha=-1).view(-1, *turn.x.shape)
        given = Given(reader.layer, reader.row, x)
        self._run = SparseRun(
            self.base,
            turn.plan,
            self._mask(),
            self.qkv,
            turn.fixed,
            copies=len(cuts),
            given=given,
        )
        with self.base.arch.running():
            self._rows: Tensor = self._run.run()
        return self._rows

    def cut(self, row: int) -> None:
        """Takes over a row's messages and projections."""
        turn, run = self._turn, self._run
        assert turn is not None
        self.kept[self._edges[self._cuts[row]]] = False
        assert run.given is not None
        turn.x = run.given.x[row].clone()
        self._outputs = self._rows[row].clone()
        last = self.layout.head(self.layout.layers - 1)
        writers = torch.nonzero(turn.plan.computed)[:, 0]
        narrow, late = turn.plan.narrow[writers], writers >= last
        for some in (writers[~narrow], writers[narrow & ~late], writers[late]):
            if not len(some):
                continue
            new = run.messages.of(some, None, run.copies).unflatten(1, (run.copies, -1))[:, row]
            if some[0] >= last:
                self.tail[(some - last).to(self._device)] = new
            elif turn.plan.narrow[some[0]]:
                # What other tokens hold is out of date, and nothing will read it: cuts only
                # take readers away.
                self.main[some.to(self._device)[:, None], self.base.tokens.asked] = new
            else:
                self.main[some.to(self._device)] = new
        for layer, (rows, new) in run.projected.items():
            self._put(layer, rows, new.unflatten(1, (run.copies, -1))[:, row])

    def drop(self, edges: Tensor) -> None:
        """Cuts edges into nodes that lead nowhere: nothing that is read changes."""
        self.kept[edges] = False
        self._turn = None
