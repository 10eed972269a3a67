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

from ..describe.layout import EdgeLayout, PassPlan, Place, dense_plan, sparse_plan
from .delta_buffer import AblatedRun
from .masked import GivenInput, MaskedPass

__all__ = ["SuffixTrials", "rows_at_once"]

_TOKENS = {"cpu": 2048, "other": 32768}  # side by side in one call
# Tokens whose computation costs as much as a call's overhead; answers' tokens, where a call
# computes no others and reading the unembedding is most of it.
_LAUNCH = {"cpu": (64, 12), "other": (4096, 768)}
_LOGITS = 2**25  # numbers that a call gives at most
_DELTAS = 2**28  # numbers that its delta buffer holds at most, unless one row's are more


def rows_at_once(device_kind: str, tokens: int, numbers: int, logits: int) -> int:
    """How many tries a call takes: of so many ``tokens``, ``numbers`` of Deltas each, ``logits``.

    ``device_kind`` is ``"cpu"`` or another.
    """
    side_by_side = _TOKENS.get(device_kind, _TOKENS["other"])
    return max(1, min(side_by_side // tokens, _LOGITS // logits, _DELTAS // (tokens * numbers)))


@dataclass(frozen=True, eq=False)
class _Reader:
    """One reader: its layer (L for the output), its attention row or ``None``, its edges.

    ``moved [W]`` bool: the writers that it feeds.
    """

    layer: int
    row: int | None
    edges: slice
    moved: Tensor


@dataclass(eq=False)
class _Turn:
    """What stays the same while one reader's edges are tried.

    ``narrow``: whether the reader is wanted at the answers' tokens alone; ``inputs``: what readers
    that are computed anew read of all that stays as it is; ``x [n, D]``: what the reader reads.
    """

    reader: _Reader
    plan: PassPlan
    narrow: bool
    inputs: dict[tuple[int, bool], Tensor]
    x: Tensor


class SuffixTrials(EdgeTrials):
    """See the module. ``kept [E]`` bool; the order must be reverse topological."""

    spans = False

    def __init__(self, base: AblatedRun, layout: EdgeLayout, kept: Tensor) -> None:
        self.base, self.layout, self.kept = base, layout, kept.clone()
        self.attention, self.mlps, self.final = layout.places()
        self._device = base.like.device
        self._turn: _Turn | None = None
        # One pass that computes everything; its buffers stay, and follow the circuit.
        plan = dense_plan(layout)
        self._whole = MaskedPass(base, plan, self._mask()[None], slot_major=True)
        with base.arch.running():
            self._outputs = self._whole.forward()[0]
        base.qkv.update(self._whole.qkv)
        self._set_width(narrow=False)

    # ---------------------------------------------------------------- the circuit as it stands

    def _set_width(self, *, narrow: bool) -> None:
        """How many rows pay: ``narrow`` where a call computes answers' tokens alone."""
        device_kind, base = "cpu" if self._device.type == "cpu" else "other", self.base
        count = base.asked.count if narrow else base.tokens.count
        numbers = self.layout.writers * base.like.shape[-1]
        logits = len(base.where) * self._outputs.shape[-1]
        self.most = rows_at_once(device_kind, count, numbers, logits)
        self.overhead = _LAUNCH[device_kind][narrow] / count

    def _mask(self) -> Tensor:
        dtype = torch.float64 if self.base.dtype == torch.float64 else torch.float32
        return self.kept.to(self._device, dtype)

    def _standing(self, mask: Tensor, place: int, narrow: bool) -> Tensor:
        """``[R, n, D]``: what readers ``mask [R, prefix]`` read of the circuit as it stands."""
        whole = self._whole
        buffer = whole.home(narrow)
        weights = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        base = self.base.stream(place, buffer is whole.tail)[None]
        return buffer.read(weights[None], base).transpose(0, 1)

    # ---------------------------------------------------------------- one reader's turn

    def _reader(self, edge: int) -> _Reader:
        layout, moved = self.layout, torch.zeros(self.layout.writers, dtype=torch.bool)
        if edge >= self.final.edges.start:
            return _Reader(layout.layers, None, self.final.edges, moved)
        layer = next(i for i, place in enumerate(self.mlps) if edge < place.edges.stop)
        place, shape = self.mlps[layer], layout.shapes[layer]
        if edge >= place.edges.start:
            moved[layout.mlp(layer)] = True
            return _Reader(layer, None, place.edges, moved)
        place = self.attention[layer]
        row = (edge - place.edges.start) // place.prefix
        start = place.edges.start + row * place.prefix
        read = (shape.rows_of(torch.arange(shape.heads)) == row).any(0)
        moved[layout.heads_of(layer)] = read | layout.coupled
        return _Reader(layer, row, slice(start, start + place.prefix), moved)

    def _take_turn(self, edge: int) -> _Turn:
        if self._turn is not None:
            edges = self._turn.reader.edges
            if edges.start <= edge < edges.stop:
                return self._turn
        reader, layout, mask = self._reader(edge), self.layout, self._mask()
        plan = sparse_plan(layout, self.kept[None], quiescent=True, moved=reader.moved)
        output = reader.layer == layout.layers
        narrow = output or (reader.row is None and plan.layers[reader.layer].narrow_mlp)
        place = 2 * reader.layer + (reader.row is None and not output)
        x = self._standing(mask[reader.edges][None], place, narrow)[0]
        inputs = self._inputs(plan, mask, reader)
        self._turn = _Turn(reader, plan, narrow, inputs, x)
        alone = not bool((plan.computed & ~plan.narrow).any())
        self._set_width(narrow=narrow and alone)
        return self._turn

    def _inputs(
        self, plan: PassPlan, mask: Tensor, reader: _Reader
    ) -> dict[tuple[int, bool], Tensor]:
        """What the turn's computed readers read of all that stays as it is.

        By layer and buffer, as :class:`MaskedPass` takes them: the MLP with the attention's rows.
        """
        still, inputs = (~plan.computed).to(mask), dict[tuple[int, bool], Tensor]()

        def standing(place: Place, rows: Tensor | slice, number: int, narrow: bool) -> Tensor:
            kept = place.of(mask)[rows] * still[: place.prefix]
            return self._standing(kept, number, narrow)

        for i, layer in enumerate(plan.layers):
            given = reader.layer == i and reader.row is None
            for narrow, rows, mlp in layer.readers[self.base.trimmed]:
                parts = []
                if len(rows):
                    parts.append(standing(layer.attention, rows.to(mask.device), 2 * i, narrow))
                if mlp and not given:
                    # At the attention's place: the pass adds what lies between.
                    parts.append(standing(layer.mlp_place, slice(None), 2 * i, narrow))
                if parts:
                    inputs[i, narrow] = torch.cat(parts)
        last = standing(plan.final, slice(None), -1, True)
        return inputs | {(len(plan.layers), self.base.trimmed): last}

    # ---------------------------------------------------------------- trials

    def outputs(self) -> Tensor:
        """``[B, ..., V]`` of the circuit; computed when it last changed."""
        return self._outputs

    def without(self, edges: Tensor, cuts: Tensor) -> Tensor:
        """Rows side by side; the edges must have one reader."""
        turn = self._take_turn(int(edges[0]))
        reader = turn.reader
        self._edges, self._cuts = edges, cuts
        senders = edges - reader.edges.start
        order = senders.argsort()
        sent = self._whole.home(turn.narrow).of(1 + senders[order].to(self._device)).flatten(1)
        weights = cuts[:, order].to(sent)
        x = torch.addmm(turn.x.flatten(), weights, sent, alpha=-1).view(-1, *turn.x.shape)
        self._run = MaskedPass(
            self.base,
            turn.plan,
            self._mask()[None],
            slot_major=True,
            copies=len(cuts),
            given=GivenInput(reader.layer, reader.row, x),
            inputs=turn.inputs,
        )
        with self.base.arch.running():
            self._rows: Tensor = self._run.forward()
        return self._rows

    def cut(self, row: int) -> None:
        """Takes over a row's messages and projections."""
        turn, run, whole = self._turn, self._run, self._whole
        assert turn is not None
        assert run.given is not None
        self.kept[self._edges[self._cuts[row]]] = False
        turn.x = run.given.x[row].clone()
        self._outputs = self._rows[row].clone()
        for shape, layer in zip(self.layout.shapes, turn.plan.layers, strict=True):
            heads = shape.heads
            mlp = torch.arange(int(layer.mlp)) + heads
            for mine, start, count, narrow in (
                (layer.heads, 0, heads, layer.narrow_heads),
                (mlp, heads, int(shape.mlp), layer.narrow_mlp),
            ):
                buffer = run.home(narrow)
                new = buffer.of(run.slots(buffer, layer.first + start, count))
                new = new.unflatten(1, (run.candidates, -1))[:, row]
                slots = 1 + layer.first + mine.to(self._device)
                # What a narrow writer's other tokens hold is out of date, and nothing will read
                # it: cuts only take readers away.
                if whole.tail is not None:
                    seen = new if buffer is run.tail else new[:, self.base.local]
                    whole.tail.of(slice(None))[slots] = seen
                if buffer is run.main:
                    whole.main.of(slice(None))[slots] = new
        for i, qkv in run.qkv.items():
            self.base.qkv[i] = qkv.unflatten(0, (run.candidates, -1))[row].clone()

    def drop(self, edges: Tensor) -> None:
        """Cuts edges into nodes that lead nowhere: nothing that is read changes."""
        self.kept[edges] = False
        self._turn = None
