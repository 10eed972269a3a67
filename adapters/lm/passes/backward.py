"""The way back through a masked pass: gradients of mask values and of learned constants.

Written by hand, since autograd over the same pass takes twice the time and ten times the memory
(GPT-2 small's shape, 8 x 16 tokens): it keeps every input that a reader read, layers^2 x heads of
them, where this reads them again from the one buffer of Deltas.

Walks the layers in reverse. A reader's gradient ``dx`` gives each of its edges ``dx . Delta`` and
each of its writers' Deltas ``mask * dx``. Slot 0 of the gradients sums ``dx`` itself: where a
writer is reached, all its readers' gradients. A constant c stands in its readers' base and, with
the other sign, in its writer's Delta, so its gradient is slot 0 minus its writer's slot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..describe.architecture import DecoderBlock
from ..describe.layout import LayerPlan, PassPlan, Place
from ..describe.norms import centre, span, wide
from .delta_buffer import AblatedRun, DeltaBuffer
from .masked import MaskedPass, ReaderGroup, SavedForBackward

__all__ = ["differentiable_run", "pull_back"]


class _MaskedRun(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor,
        constants: Tensor | None,
        base: AblatedRun,
        plan: PassPlan,
        slot_major: bool,
    ) -> Tensor:
        keep = not base.reference.checkpointing
        ctx.run = MaskedPass(base, plan, mask.detach(), keep=keep, slot_major=slot_major)
        outputs: Tensor = ctx.run.forward()
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        with ctx.run.arch.running():  # backward runs later, when the user may be training
            mask, constants = pull_back(ctx.run, grad, *ctx.needs_input_grad[:2])
        return mask, constants, None, None, None


def differentiable_run(
    base: AblatedRun, plan: PassPlan, mask: Tensor, *, slot_major: bool = False
) -> Tensor:
    """Outputs ``[K, B, ..., V]`` under ``mask [K, E]`` or ``[K, B, E]``.

    Differentiable in the mask and in learned ablation constants, where they ask for it. Edges that
    the plan leaves out have the gradient 0.
    """
    constants = base.reference.constants
    out = _MaskedRun.apply(mask, constants, base, plan, slot_major)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out


def pull_back(
    run: MaskedPass, grad: Tensor, for_mask: bool, for_constants: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients at the mask, shaped as it, and at the constants ``[W, D]``, where asked for."""
    back = _Backward(run, for_mask, for_constants)
    back.walk(grad)
    if back.mask is None:
        return None, back.constants
    mask = back.mask if run.plan.dense else back.mask * (run.mask != 0)
    return mask.view(run.shape), back.constants


class _Backward:
    def __init__(self, run: MaskedPass, for_mask: bool, for_constants: bool) -> None:
        self.run, self.centred = run, run.arch.centred
        self.mask = torch.zeros_like(run.mask) if for_mask else None
        self.constants: Tensor | None = None
        if for_constants:
            learned = run.base.reference.constants
            assert learned is not None
            self.constants = torch.zeros_like(learned)

    def walk(self, grad: Tensor) -> None:
        run, last, plan = self.run, self.run.last, self.run.plan
        run.main.start_gradients()
        last.start_gradients()
        x = run.final_read()
        with run.arch.outer_loaded():
            with torch.enable_grad():
                rows = x[:, 0].requires_grad_(True)
                logits = run.read_out(rows)
            (dx,) = torch.autograd.grad(logits, rows, grad)
        dx = dx.to(last.dtype)[:, None]
        self._edges(last, dx, [(plan.final, slice(None))], 0, plan.final.prefix)
        last.spread(run.final_weights(), dx, run.prefix(last, plan.final.prefix))
        for block, layer in reversed(list(zip(run.arch.blocks, plan.layers, strict=True))):
            if len(layer.heads) or layer.mlp:
                with block.loaded():
                    self._layer(block, layer)
            run.saved[block.index] = SavedForBackward()
        self._from_tail(run.main, 0, plan.embeddings)
        self._constants(run.main, 0, plan.embeddings, None)
        run.main.grad = last.grad = None

    def _edges(
        self,
        buffer: DeltaBuffer,
        dx: Tensor,
        readers: list[tuple[Place, Tensor | slice]],
        first: int,
        count: int,
    ) -> None:
        """Gradients of edges from ``count`` writers to readers whose ``dx`` is ``[token, R, D]``.

        ``readers`` names places and the rows of them, one after another as in ``dx``.
        """
        if self.mask is None:
            return
        gradients = buffer.mask_gradients(dx, self.run.slots(buffer, first, count)).to(self.mask)
        columns, start = self.run.columns(buffer, first, count), 0
        for place, rows in readers:
            target = place.of(self.mask)[..., first : first + count]
            every = torch.arange(place.rows, device=dx.device)[rows]
            part = gradients[:, start : start + len(every)]
            start += len(every)
            if isinstance(columns, slice):
                target[:, rows] = part
            else:
                target[:, every[:, None], columns] = part

    def _from_tail(self, home: DeltaBuffer, first: int, count: int) -> None:
        """Hands gradients at writers' copies in the tail on, once all readers there are passed."""
        main, tail = self.run.main, self.run.tail
        if tail is None or home is tail:
            return
        source, target = (self.run.slots(b, first, count) for b in (tail, main))
        if source.start < source.stop:
            assert main.grad is not None
            assert tail.grad is not None
            main.grad[:, target].index_add_(0, self.run.local, tail.grad[:, source])

    def _constants(self, home: DeltaBuffer, first: int, count: int, also: Tensor | None) -> None:
        """Gradients of writers' constants, all of whose readers have been passed.

        ``also [token, D]``: what their readers' gradients hold that is not in slot 0 yet.
        """
        if self.constants is None:
            return
        assert home.grad is not None
        gradient = -wide(home.grad[:, self.run.slots(home, first, count)]).sum(0)
        for buffer in {self.run.main, self.run.last}:
            assert buffer.grad is not None
            gradient += wide(buffer.grad[:, 0]).sum(0)
        if also is not None:
            gradient += wide(also).sum(0)
        self.constants[first : first + count] = centre(gradient, self.centred).to(self.constants)

    def _layer(self, block: DecoderBlock, layer: LayerPlan) -> None:
        run = self.run
        groups, saved = run.groups(block), run.saved[block.index]
        reads = [run.read(block, group) for group in groups]
        self._restore(block, groups, reads, saved)
        dx: Tensor | None = None
        for group, x in zip(groups, reads, strict=True):
            if group.mlp:
                dx = self._mlp(block, layer, x[:, -1:], saved)
                x[:, -1] = dx
        reads = [x.to(run.main.dtype) for x in reads]  # gradients are written over them
        dqkv: Tensor | None = None
        if len(layer.heads):
            home = run.home(layer.narrow_heads)
            self._from_tail(home, layer.first, block.heads)
            self._constants(home, layer.first, block.heads, None if block.parallel else dx)
            dqkv = self._attention(block, layer, home, saved.qkv)
        projected = list(saved.projected)
        for group, x in reversed(list(zip(groups, reads, strict=True))):
            readers: list[tuple[Place, Tensor | slice]] = []
            if len(group.rows):
                rows, tokens = span(group.rows, x.device), group.buffer.tokens
                assert dqkv is not None
                assert saved.qkv is not None
                grad, out = (tokens.pick(y, rows) for y in (dqkv, saved.qkv))
                projected.pop().backward(x[:, : len(group.rows)], out, grad)
                readers.append((layer.attention, rows))
            if group.mlp:
                readers.append((layer.mlp_place, slice(None)))
            prefix = layer.attention.prefix
            self._edges(group.buffer, x, readers, 0, prefix)
            group.buffer.spread(run.weights(block, group), x, run.prefix(group.buffer, prefix))

    def _restore(
        self,
        block: DecoderBlock,
        groups: list[ReaderGroup],
        reads: list[Tensor],
        saved: SavedForBackward,
    ) -> None:
        """Makes again what forward did not keep; completes the inputs."""
        run = self.run
        pairs = [(g, x) for g, x in zip(groups, reads, strict=True) if len(g.rows)]
        if saved.qkv is not None:
            for (group, x), projected in zip(pairs, saved.projected, strict=True):
                projected.prepare(x[:, : len(group.rows)])
        elif len(run.plan.layers[block.index].heads):
            saved.qkv = qkv = run.start_qkv(block)
            saved.projected = [run.project(block, group, x, qkv) for group, x in pairs]
        for group, x in zip(groups, reads, strict=True):
            if group.mlp:
                run.read_own(block, group.buffer, x[:, -1:])
                if saved.mlp is None:
                    run.feed(block, x[:, -1], saved)

    def _mlp(
        self, block: DecoderBlock, layer: LayerPlan, fed: Tensor, saved: SavedForBackward
    ) -> Tensor:
        """``[token, D]``: the gradient at the MLP's input ``fed [token, 1, D]``."""
        run, home, writer = self.run, self.run.home(layer.narrow_mlp), layer.first + block.heads
        self._from_tail(home, writer, 1)
        self._constants(home, writer, 1, None)
        assert home.grad is not None
        assert saved.mlp is not None
        upstream = centre(home.grad[:, run.slots(home, writer, 1).start], self.centred)
        (dx,) = torch.autograd.grad([saved.mlp[1]], [saved.mlp[0]], [upstream])
        if block.mlp_norm is not None:
            dx = block.mlp_norm.pull_back(fed[:, 0], dx)
        own = run.slots(home, layer.first, block.heads)
        if not block.parallel and own.start < own.stop:
            readers: list[tuple[Place, Tensor | slice]] = [(layer.mlp_place, slice(None))]
            self._edges(home, dx[:, None], readers, layer.first, block.heads)
            home.spread(run.own_weights(block, home), dx[:, None], own)
        return dx

    def _attention(
        self, block: DecoderBlock, layer: LayerPlan, home: DeltaBuffer, qkv: Tensor | None
    ) -> Tensor:
        """``[K * B, T, rows, dh]``: the gradient at all that the projections give."""
        run, weight = self.run, block.senders(self.centred)
        assert home.grad is not None
        assert qkv is not None
        if len(layer.heads) < block.heads:
            weight = weight[layer.heads.to(weight.device)]
        upstream = home.grad[:, run.slots(home, layer.first, block.heads)].transpose(0, 1)
        grad = torch.bmm(upstream, weight.transpose(1, 2)).transpose(0, 1)
        with torch.enable_grad():
            leaf = qkv.detach().requires_grad_(True)
            code = run.attend(block, leaf)
        (dqkv,) = torch.autograd.grad(code, leaf, home.tokens.spread(grad.flatten(1)))
        return dqkv
