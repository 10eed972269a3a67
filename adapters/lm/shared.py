"""Passes in which all readers of a writer see the same message, and attribution on top of them.

At the clean model, or with whole nodes gated, every reader of a place shares one input, so no input
is split: the gradient at a reader is the ordinary gradient at its projection's output, pulled back
through that projection's rows and the norm in closed form, then contracted with the writers'
differences Delta (clean minus ablated).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.model import Objective, Rule

from .architecture import Architecture, Call, Projection
from .layout import Layout, Place
from .norms import Norm
from .relevance import relevant
from .values import Values

__all__ = ["Attribution", "SharedPass", "run_shared"]


@dataclass(frozen=True, eq=False)
class SharedPass:
    """Values of one pass, and the tensors at which gradients are read.

    ``projected``: q/k/v of each layer, ``mlp_in`` and ``final_in``: normed inputs. ``sent``: each
    writer group's message as it enters the stream (embedding, attention and MLP of each layer).
    """

    values: Values
    stream: list[Tensor]
    projected: list[Tensor]
    mlp_in: list[Tensor]
    final_in: Tensor
    sent: list[Tensor]
    outputs: Tensor


def run_shared(
    arch: Architecture,
    layout: Layout,
    embed: Tensor,
    unmaskable: Tensor,
    calls: tuple[Call, ...],
    answers: Tensor,
    shape: tuple[int, ...],
    *,
    gates: Tensor | None = None,
    ablated: Values | None = None,
    rule: Rule = "gradient",
    grad: bool = False,
    outputs: bool = True,
) -> SharedPass:
    """One pass over all layers with embeddings ``embed [E, B, T, D]``.

    ``gates [W]`` mixes each head's and MLP's message with its ``ablated`` one (the caller has mixed
    the embeddings). ``answers`` are flat token numbers whose logits are wanted.
    """
    relp = rule == "relp"
    codes, mlps, stream = [], [], []
    projected, mlp_in, sent = [], [], []

    def gated(x: Tensor, other: Tensor, gate: Tensor) -> Tensor:
        return x if bool((gate == 1).all()) else other + gate.to(x) * (x - other)

    def normed(norm: Norm | None, x: Tensor) -> Tensor:
        if norm is None:
            return x.view_as(x)
        return norm.frozen(x) if relp else norm(x)

    with torch.enable_grad() if grad else torch.no_grad():
        first = embed.sum(0)
        if grad:
            first = first.detach().requires_grad_(True)
        sent.append(first)
        x = first + unmaskable
        for block, call in zip(arch.blocks, calls, strict=True):
            stream.append(x)
            qkv = block.project(normed(block.attention_norm, x))
            projected.append(qkv)
            if relp:
                free = qkv.shape[-1] - block.kv_heads * block.head_dim
                seen = torch.cat([qkv[..., :free].detach(), qkv[..., free:]], -1)
            else:
                seen = qkv
            message, code = block.share(block.attend(seen, call), frozen=relp)
            codes.append(code.detach())
            if gates is not None and ablated is not None:
                place = layout.head(block.index)
                gate = gates[place : place + block.heads]
                if not bool((gate == 1).all()):
                    wide = gate.to(code).repeat_interleave(block.head_dim)
                    old = ablated.codes[block.index]
                    message = block.message(old + wide * (code - old))
            sent.append(message)
            middle = x + message
            reads = x if block.parallel else middle
            stream.append(reads)
            fed = normed(block.mlp_norm, reads)
            mlp_in.append(fed)
            y = relevant(block.mlp)(fed) if relp else block.mlp(fed)
            if block.mlp_post_norm is not None:
                y = block.mlp_post_norm.frozen(y) if relp else block.mlp_post_norm(y)
            mlps.append(y.detach())
            if gates is not None and ablated is not None:
                gate = gates[layout.head(block.index) + block.heads]
                y = gated(y, ablated.mlps[block.index], gate)
            sent.append(y)
            x = middle + y
        stream.append(x)
        final_in, out = x, x
        if outputs:
            rows = x.reshape(-1, x.shape[-1])[answers]
            final_in = normed(arch.final_norm, rows)
            out = arch.unembed(final_in).view(*shape, -1)
    values = Values(embed.detach(), codes, mlps, [s.detach() for s in stream])
    return SharedPass(values, stream, projected, mlp_in, final_in, sent, out)


class Attribution:
    """Sums ``Delta . gradient`` over points, for every edge and every writer.

    Being linear in the gradient, the contraction with ``delta [W, B, T, D]`` (clean minus ablated)
    happens once, at the last point; a single point never holds more than one place's gradients.
    Sums over examples, in float32 (float64 for a float64 model).

    ``edges`` is ``[E]`` or, by position, ``[E, T]``; ``nodes [W]``; ``neurons [W, D]``.
    """

    def __init__(
        self,
        arch: Architecture,
        layout: Layout,
        answers: Tensor,
        *,
        tokens: int | None,
        rule: Rule,
    ) -> None:
        self.arch, self.layout, self.answers = arch, layout, answers
        self.frozen = rule == "relp"
        like = {
            "dtype": torch.float64 if arch.dtype == torch.float64 else torch.float32,
            "device": arch.device,
        }
        count = layout.places()[2].edges.stop
        self.edges = torch.zeros((count,) if tokens is None else (count, tokens), **like)  # type: ignore[call-overload]
        self.neurons = torch.zeros(layout.writers, arch.width, **like)  # type: ignore[call-overload]
        self._held: dict[int, Tensor] = {}

    def add(
        self, done: SharedPass, objective: Objective, scale: float, delta: Tensor | None
    ) -> None:
        """One more point, weighted by ``scale``; ``delta`` is given with the last one."""
        layers, width = self.layout.layers, self.arch.width
        with torch.enable_grad():
            total = objective(done.outputs).sum() * scale
        targets = [*done.projected, *done.mlp_in, done.final_in, *done.sent]
        found = torch.autograd.grad(total, targets, allow_unused=True)
        grads = [
            torch.zeros_like(t) if g is None else g for g, t in zip(found, targets, strict=True)
        ]
        d_projected, d_mlp, d_final = grads[:layers], grads[layers : 2 * layers], grads[2 * layers]
        attention, mlp, final = self.layout.places()
        rows = done.stream[-1].reshape(-1, width)[self.answers]
        back = pull_back(self.arch.final_norm, rows, d_final[None], self.frozen)
        self._place(final, back, delta, self.answers)
        for block in reversed(self.arch.blocks):
            i = block.index
            at = done.stream[2 * i + 1].reshape(-1, width)
            back = pull_back(block.mlp_norm, at, d_mlp[i].reshape(1, -1, width), self.frozen)
            self._place(mlp[i], back, delta)
            at = done.stream[2 * i].reshape(-1, width)
            split = d_projected[i].reshape(-1, block.rows, block.head_dim).transpose(0, 1)
            back = pull_projections(block.readers, block.attention_norm, at, split, self.frozen)
            self._place(attention[i], back, delta)
        self._senders(grads[2 * layers + 1 :], delta)

    def _sum(self, key: int, grad: Tensor, last: bool) -> Tensor:
        held = self._held.pop(key, None)
        grad = grad if held is None else held.add_(grad)
        if not last:
            self._held[key] = grad
        return grad

    def _place(
        self, place: Place, grad: Tensor, delta: Tensor | None, at: Tensor | None = None
    ) -> None:
        """``grad [R, n, D]`` at a place's readers; ``at``: flat token numbers, all if ``None``."""
        grad = self._sum(place.offset, grad, delta is not None)
        if delta is None:
            return
        flat = delta.flatten(1, 2)[: place.prefix]
        g, d = _wide(grad), _wide(flat if at is None else flat[:, at])
        if self.edges.ndim == 1:
            block = g.reshape(place.rows, -1) @ d.reshape(place.prefix, -1).T
            self.edges[place.edges] += block.reshape(-1)
            return
        where = torch.arange(flat.shape[1], device=g.device) if at is None else at
        each = torch.einsum("rnd,wnd->rwn", g, d).reshape(-1, g.shape[1])
        self.edges[place.edges].index_add_(1, where % self.edges.shape[1], each)

    def _senders(self, grads: list[Tensor], delta: Tensor | None) -> None:
        start, layout = 0, self.layout
        for i, grad in enumerate(grads):
            grad = self._sum(-1 - i, grad, delta is not None)
            count = layout.embeddings if i == 0 else layout.heads if i % 2 else 1
            if delta is not None:
                d, g = _wide(delta[start : start + count]), _wide(grad)
                self.neurons[start : start + count] += torch.einsum("wbtd,btd->wd", d, g)
            start += count


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pull_back(norm: Norm | None, x: Tensor, grad: Tensor, frozen: bool) -> Tensor:
    """Gradients ``[R, n, D]`` at a norm's output, taken to its input ``x [n, D]``.

    With ``out = scale * gain * grad``, a norm's Jacobian takes away from it its mean (LayerNorm)
    and its share along ``x_hat`` (unless the scale is ``frozen``).
    """
    if norm is None:
        return grad.clone()
    x_hat, scale = norm.statistics(x.detach())
    out = grad * (norm.gain * scale)
    if norm.centred:
        out -= out.mean(-1, keepdim=True)
    return out if frozen else _off_direction(x_hat, out)


def pull_projections(
    readers: tuple[Projection, ...], norm: Norm | None, x: Tensor, grad: Tensor, frozen: bool
) -> Tensor:
    """Gradients ``[R, n, dh]`` at the projections, taken to each reader's own input ``[R, n, D]``.

    Scale, gain and centring are applied to the smaller factors of the product.
    """
    rows, n, _ = grad.shape
    out = grad.new_empty(rows, n, x.shape[-1])
    if norm is not None:
        x_hat, scale = norm.statistics(x.detach())
        grad = grad * scale
    start = 0
    for reader in readers:
        weight = reader.weight
        if norm is not None:
            weight = weight * norm.gain
            if norm.centred:
                weight -= weight.mean(-1, keepdim=True)
        stop = start + weight.shape[0]
        torch.bmm(grad[start:stop], weight, out=out[start:stop])
        start = stop
    return out if norm is None or frozen else _off_direction(x_hat, out)


def _off_direction(x_hat: Tensor, out: Tensor) -> Tensor:
    along = torch.matmul(out.transpose(0, 1), x_hat[..., None]).transpose(0, 1)
    return out.addcmul_(x_hat, along, value=-1.0 / out.shape[-1])
