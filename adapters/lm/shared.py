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

__all__ = ["SharedPass", "contract", "run_shared"]


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

    ``gates [W]`` mixes each writer's message with its ``ablated`` one. ``answers`` are flat token
    numbers whose logits are wanted.
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
        entering = embed
        if gates is not None and ablated is not None:
            entering = torch.stack(
                [gated(e, a, g) for e, a, g in zip(embed, ablated.embed, gates, strict=False)]
            )
        first = entering.sum(0)
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


def contract(
    arch: Architecture,
    layout: Layout,
    done: SharedPass,
    delta: Tensor,
    objective: Objective,
    answers: Tensor,
    edge_scores: Tensor,
    node_scores: Tensor,
    *,
    neurons: Tensor | None = None,
    scale: float = 1.0,
    rule: Rule = "gradient",
) -> None:
    """Adds ``scale * Delta . gradient`` to ``edge_scores [E]`` or ``[E, T]`` and ``node_scores [W]``.

    ``delta [W, B, T, D]`` is clean minus ablated. Sums over examples, in float32 (float64 for a
    float64 model). ``neurons [W, D]`` collects the node scores before the sum over D.
    """
    with torch.enable_grad():
        total = objective(done.outputs).sum()
    targets = [*done.projected, *done.mlp_in, done.final_in, *done.sent]
    grads = torch.autograd.grad(total, targets, allow_unused=True)
    grads = tuple(torch.zeros_like(t) if g is None else g for g, t in zip(grads, targets,
                                                                       strict=True))
    layers = layout.layers
    d_projected, d_mlp, d_final = grads[:layers], grads[layers : 2 * layers], grads[2 * layers]
    d_sent = grads[2 * layers + 1 :]
    attention, mlp, final = layout.places()
    relp = rule == "relp"
    writers, batch, tokens, width = delta.shape
    by_position = edge_scores.ndim == 2

    def add(place: Place, grad: Tensor, delta: Tensor, at: Tensor | None = None) -> None:
        """``grad [R, n, D]`` at a place's readers, ``delta [W, n, D]``; ``at``: token numbers."""
        g, d = _wide(grad) * scale, _wide(delta[: place.prefix])
        if not by_position:
            block = g.reshape(place.rows, -1) @ d.reshape(place.prefix, -1).T
            edge_scores[place.edges] += block.reshape(-1)
            return
        where = torch.arange(batch * tokens, device=g.device) if at is None else at
        each = torch.einsum("rnd,wnd->rwn", g, d).reshape(-1, g.shape[1])
        edge_scores[place.edges].index_add_(1, where % tokens, each)

    flat = delta.view(writers, batch * tokens, width)
    rows = done.stream[-1].reshape(-1, width)[answers]
    add(
        final,
        pull_back(arch.final_norm, rows, d_final[None], frozen=relp),
        flat[:, answers],
        answers,
    )
    for block in reversed(arch.blocks):
        i = block.index
        at_mlp = done.stream[2 * i + 1].reshape(-1, width)
        grad = d_mlp[i].reshape(1, -1, width)
        add(mlp[i], pull_back(block.mlp_norm, at_mlp, grad, frozen=relp), flat)
        at_attention = done.stream[2 * i].reshape(-1, width)
        split = d_projected[i].reshape(-1, block.rows, block.head_dim).transpose(0, 1)
        grad = _pull_projections(block.readers, block.attention_norm, at_attention, split, relp)
        add(attention[i], grad, flat)
    start = 0
    for i, grad in enumerate(d_sent):
        count = layout.embeddings if i == 0 else layout.heads if i % 2 else 1
        part = _wide(delta[start : start + count]) * _wide(grad) * scale
        node_scores[start : start + count] += part.sum((1, 2, 3))
        if neurons is not None:
            neurons[start : start + count] += part.sum((1, 2))
        start += count


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pull_back(norm: Norm | None, x: Tensor, grad: Tensor, *, frozen: bool) -> Tensor:
    """Gradients ``[R, n, D]`` at a norm's output, taken to its input ``x [n, D]``."""
    if norm is None:
        return grad
    x_hat, scale = norm.statistics(x.detach())
    out = grad * (norm.gain * scale)
    return _centre(norm, x_hat, out, frozen)


def _pull_projections(
    readers: tuple[Projection, ...], norm: Norm | None, x: Tensor, grad: Tensor, frozen: bool
) -> Tensor:
    """Gradients ``[R, n, dh]`` at the projections, taken to each reader's own input ``[R, n, D]``."""
    rows, n, _ = grad.shape
    out = grad.new_empty(rows, n, x.shape[-1])
    x_hat = gain = None
    if norm is not None:
        x_hat, scale = norm.statistics(x.detach())
        gain = norm.gain
        grad = grad * scale
    start = 0
    for reader in readers:
        weight = reader.weight if gain is None else reader.weight * gain
        stop = start + weight.shape[0]
        torch.bmm(grad[start:stop], weight, out=out[start:stop])
        start = stop
    if norm is None or x_hat is None:
        return out
    return _centre(norm, x_hat, out, frozen)


def _centre(norm: Norm, x_hat: Tensor, out: Tensor, frozen: bool) -> Tensor:
    """The rest of a norm's Jacobian, in place: minus the mean (LayerNorm), minus along ``x_hat``."""
    width = out.shape[-1]
    if norm.centred:
        out -= out.mean(-1, keepdim=True)
    if not frozen:
        along = torch.matmul(out.transpose(0, 1), x_hat[..., None]).transpose(0, 1)
        out.addcmul_(x_hat, along, value=-1.0 / width)
    return out
