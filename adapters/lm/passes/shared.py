"""Passes in which all readers of a place share one input: the clean one, and those of attribution.

They run the user's own modules layer by layer, and keep what every writer sends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attribution.relevance import Rule, relevant, relevant_attention
from ..describe.architecture import Architecture, Call
from ..describe.layout import EdgeLayout
from ..describe.norms import Norm, wide
from .means import ablation_values
from .values import LMReference, Values

__all__ = ["SharedPass", "compute_values", "run_shared"]


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
    layout: EdgeLayout,
    embed: Tensor,
    unmaskable: Tensor,
    calls: tuple[Call, ...],
    answers: Tensor,
    shape: tuple[int, ...],
    *,
    gates: Tensor | None = None,
    ablated: Values | None = None,
    constant: Tensor | None = None,
    clean: Values | None = None,
    rule: Rule = "gradient",
    grad: bool = False,
    outputs: bool = True,
) -> SharedPass:
    """One pass over all layers with embeddings ``embed [E, B, T, D]``.

    ``gates [W]`` mixes each head's and MLP's message with its ``ablated`` one (the caller has mixed
    the embeddings). Writers marked in ``constant [W]`` send their ``clean`` message instead of this
    pass's, which no gradient passes through. ``answers`` are flat token numbers whose logits are
    wanted. The residual stream stands in float32 at least; what modules read of it is rounded to
    ``unmaskable``'s dtype, the model's own.
    """
    relp, kind = rule != "gradient", unmaskable.dtype
    frozen = rule == "relp-frozen"
    codes, mlps, stream = [], [], []
    projected, mlp_in, sent = [], [], []

    def gated(x: Tensor, other: Tensor, gate: Tensor) -> Tensor:
        if bool((gate == 1).all()):
            return x
        x, other = wide(x), wide(other)
        return other + gate.to(x) * (x - other)

    def held(x: Tensor, own: Tensor | None, writers: slice) -> Tensor:
        """``x [..., writers * d]`` with the constant ones' part from the clean run."""
        stays = None if constant is None else constant[writers]
        if stays is None or own is None or not bool(stays.any()):
            return x
        each = stays.to(x.device).repeat_interleave(x.shape[-1] // len(stays))
        return torch.where(each, own, x)

    def normed(norm: Norm | None, x: Tensor) -> Tensor:
        x = x.to(kind)
        if norm is None:
            return x.view_as(x)
        return norm.frozen(x) if relp else norm(x)

    with torch.enable_grad() if grad else torch.no_grad():
        first = wide(embed).sum(0)
        if grad:
            first = first.detach().requires_grad_(True)
        sent.append(first)
        x = first + unmaskable
        for block, call in zip(arch.blocks, calls, strict=True):
            with block.loaded(lent=grad):
                stream.append(x)
                qkv = block.project(normed(block.attention_norm, x))
                projected.append(qkv)
                if frozen:
                    free = qkv.shape[-1] - block.kv_heads * block.head_dim
                    seen = torch.cat([qkv[..., :free].detach(), qkv[..., free:]], -1)
                else:
                    seen = qkv
                attend = relevant_attention(block) if relp else block.attend
                message, code = block.share(attend(seen, call), frozen=relp)
                codes.append(code.detach())
                if gates is not None and ablated is not None:
                    place = layout.head(block.index)
                    mine = slice(place, place + block.heads)
                    gate = gates[mine]
                    own = code
                    code = held(code, None if clean is None else clean.codes[block.index], mine)
                    if code is not own:
                        message = block.message(code)
                    if not bool((gate == 1).all()):
                        each = gate.to(first).repeat_interleave(block.head_dim)
                        mixed = gated(code, ablated.codes[block.index], each)
                        message = block.message(mixed.to(kind))
                        if ablated.heads is not None:
                            share = (1 - gate).to(first)[:, None] * ablated.heads[block.index]
                            message = message + share.sum(0)
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
                    last = layout.head(block.index) + block.heads
                    alone = slice(last, last + 1)
                    y = held(y, None if clean is None else clean.mlps[block.index], alone)
                    gate = gates[alone]
                    y = gated(y, ablated.mlps[block.index], gate)
                sent.append(y)
                x = middle + y
        stream.append(x)
        final_in, out = x, x
        if outputs:
            rows = x.reshape(-1, x.shape[-1])[answers]
            with arch.outer_loaded(lent=grad):
                final_in = normed(arch.final_norm, rows)
                out = arch.unembed(final_in).view(*shape, -1)
    values = Values(embed.detach().to(kind), codes, mlps, [s.detach() for s in stream])
    return SharedPass(values, stream, projected, mlp_in, final_in, sent, out)


def compute_values(layout: EdgeLayout, reference: LMReference, clean: bool) -> Values:
    """What every writer sends on the clean input, or what stands in for it where it is ablated."""
    arch, inputs, glue = reference.arch, reference.inputs, reference.glue
    with arch.running(), torch.no_grad():
        if not clean and reference.ablation.kind != "counterfactual":
            return ablation_values(reference, layout)
        if not clean:
            assert inputs.corrupt is not None
            glue = arch.glue(inputs.corrupt)
        embed = glue.sent(layout.embeddings)
        unmaskable = glue.position if layout.embeddings == 1 else embed.new_zeros(())
        values = run_shared(
            arch,
            layout,
            embed,
            unmaskable,
            glue.calls,
            inputs.answers,
            inputs.shape,
            outputs=False,
        ).values
        alignment = inputs.alignment
        if clean or alignment is None:
            return values
        return values.map(lambda x: torch.bmm(alignment, x))
