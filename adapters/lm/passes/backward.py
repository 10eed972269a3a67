"""The way back through a masked pass: gradients of mask values and of learned constants.

Walks the layers in reverse. A reader's gradient ``dx`` gives each of its edges ``dx . Delta`` and
each of its writers' Deltas ``mask * dx``. Slot 0 of the gradients sums ``dx`` itself: where a
writer is reached, all its readers' gradients. A constant c stands in its readers' base and, with
the other sign, in its writer's Delta, so its gradient is slot 0 minus its writer's slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..describe.architecture import Block
from ..describe.norms import wide
from .delta_buffer import Outbox
from .reader_inputs import centre, sender, span
from .saved import Kept, Reading

if TYPE_CHECKING:
    from .masked import MaskedPass

__all__ = ["pull_back"]


def pull_back(
    run: MaskedPass, grad: Tensor, for_mask: bool, for_constants: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients at the mask, shaped as it, and at the constants ``[W, D]``, where asked for."""
    back = _Backward(run, for_mask, for_constants)
    back.walk(grad)
    mask = None if back.mask is None else back.mask.view(run.shape)
    return mask, back.constants


class _Backward:
    def __init__(self, run: MaskedPass, for_mask: bool, for_constants: bool) -> None:
        self.run, self.centred = run, run.arch.centred
        self.mask = torch.zeros_like(run.mask) if for_mask else None
        self.constants: Tensor | None = None
        if for_constants:
            learned = run.reference.constants
            assert learned is not None
            self.constants = torch.zeros_like(learned)

    def walk(self, grad: Tensor) -> None:
        run, last = self.run, self.run.last
        last.start_gradients()
        x = run.final_read()
        with run.arch.ends():
            with torch.enable_grad():
                rows = x[:, 0].requires_grad_(True)
                logits = run.read_out(rows)
            (dx,) = torch.autograd.grad(logits, rows, grad)
        dx = dx.to(last.dtype)
        every = run.prefix(run.layout.writers)
        self._edges(last, dx[:, None], run.final.edges, every)
        last.spread(run.final_weights(), dx[:, None], every)
        for block in reversed(run.arch.blocks):
            with block.present():
                self._layer(block)
            run.kept[block.index] = Kept()
        self._writers(run.main, slice(0, run.layout.embeddings), None)
        run.main.grad = None

    def _edges(self, box: Outbox, dx: Tensor, edges: slice, slots: slice) -> None:
        """Gradients of ``edges``, reader by reader, from their readers' ``dx [count, R, D]``."""
        if self.mask is not None:
            slots = slice(max(slots.start, 1), slots.stop)
            self.mask[:, edges] = box.against(dx, slots).flatten(1).to(self.mask)

    def _empty_tail(self, tail: Outbox) -> None:
        """Hands the tail's gradients on to the tokens they came from."""
        main, (local, inside) = self.run.main, self.run.asked_in_main
        assert tail.grad is not None
        mine = tail.grad[:, : main.delta.shape[1]]
        if inside is not None:
            mine *= inside.view(-1, 1, 1)
        tail.grad = None
        main.start_gradients().index_add_(0, local, mine)

    def _writers(self, box: Outbox, writers: slice, also: Tensor | None) -> None:
        """Gradients of the constants of ``writers``, all of whose readers have been passed.

        ``also [count, D]``: what their readers' gradients hold that is not in slot 0 yet.
        """
        if self.constants is None:
            return
        assert box.grad is not None
        read = wide(box.grad[:, 0]).sum(0)
        if also is not None:
            read = read + wide(also).sum(0)
        slots = self.run.slots(writers.start, writers.stop - writers.start)
        found = read - wide(box.grad[:, slots]).sum(0)
        self.constants[writers] = centre(found, self.centred).to(self.constants)

    def _layer(self, block: Block) -> None:
        run, first = self.run, self.run.layout.head(block.index)
        readings, kept = run.readings(block), run.kept[block.index]
        box = readings[-1].box
        reads = [run.read(block, reading) for reading in readings]
        kept = self._restored(block, readings, reads, kept)
        fed = reads[-1][:, -1:]
        dx = self._mlp(block, box, fed, kept)
        fed[:, 0] = dx
        reads = [x.to(box.dtype) for x in reads]  # gradients are written over them
        heads = slice(first, first + block.heads)
        self._writers(box, heads, None if block.parallel else dx)
        assert kept.qkv is not None
        dqkv = self._attention(block, box, kept.qkv)
        for reading, x, projected in reversed(
            list(zip(readings, reads, kept.projected, strict=True))
        ):
            rows, tokens = span(reading.rows, x.device), reading.box.tokens
            grad, out = (tokens.pick(y, rows) for y in (dqkv, kept.qkv))
            projected.backward(x[:, : len(reading.rows)], out, grad)
            self._readers(block, reading, x)
            if reading.box is run.tail:
                self._empty_tail(reading.box)

    def _readers(self, block: Block, reading: Reading, dx: Tensor) -> None:
        """From the gradients ``dx [count, R, D]`` at a reading's readers to edges and writers."""
        run, place, box = self.run, self.run.attention[block.index], reading.box
        prefix = run.prefix(place.prefix)
        if self.mask is not None:
            found = box.against(dx, slice(1, prefix.stop)).to(self.mask)
            mine = self.mask[:, place.edges].unflatten(1, (place.rows, -1))
            mine[:, span(reading.rows, dx.device)] = found[:, : len(reading.rows)]
            if reading.mlp:
                self.mask[:, run.mlps[block.index].edges][:, : place.prefix] = found[:, -1]
        box.spread(run.weights(block, reading), dx, prefix)

    def _restored(
        self, block: Block, readings: list[Reading], reads: list[Tensor], kept: Kept
    ) -> Kept:
        """What forward did not keep, made again; completes the inputs."""
        run = self.run
        if kept.qkv is None:
            qkv = run.start_qkv(block)
            pairs = zip(readings, reads, strict=True)
            kept = Kept([run.project(block, reading, x, qkv) for reading, x in pairs], qkv)
        else:
            for projected, x in zip(kept.projected, reads, strict=True):
                projected.prepare(x[:, : len(projected.rows)])
        fed = reads[-1][:, -1:]
        run.read_own(block, readings[-1].box, fed)
        if kept.mlp is None:
            run.feed(block, fed[:, 0], kept)
        return kept

    def _mlp(self, block: Block, box: Outbox, fed: Tensor, kept: Kept) -> Tensor:
        """``[count, D]``: the gradient at the MLP's input ``fed [count, 1, D]``."""
        run, mine = self.run, self.run.layout.head(block.index) + block.heads
        assert box.grad is not None
        assert kept.mlp is not None
        self._writers(box, slice(mine, mine + 1), None)
        upstream = centre(box.grad[:, run.slots(mine).start], self.centred)
        (dx,) = torch.autograd.grad([kept.mlp[1]], [kept.mlp[0]], [upstream])
        if block.mlp_norm is not None:
            dx = block.mlp_norm.pull_back(fed[:, 0], dx)
        if not block.parallel:
            edges, own = run.mlps[block.index].edges, run.slots(mine - block.heads, block.heads)
            self._edges(box, dx[:, None], slice(edges.stop - block.heads, edges.stop), own)
            box.spread(run.own_weights(block), dx[:, None], own)
        return dx

    def _attention(self, block: Block, box: Outbox, qkv: Tensor) -> Tensor:
        """``[K * B, T, rows, dh]``: the gradient at all that the projections give."""
        run = self.run
        assert box.grad is not None
        own = run.slots(run.layout.head(block.index), block.heads)
        upstream = box.grad[:, own].transpose(0, 1)
        grad = torch.bmm(upstream, sender(block, self.centred).transpose(1, 2)).transpose(0, 1)
        with torch.enable_grad():
            leaf = qkv.detach().requires_grad_(True)
            code = run.attend(block, leaf)
        (dqkv,) = torch.autograd.grad(code, leaf, box.tokens.spread(grad.flatten(1)))
        return dqkv
