"""Passes in which all readers of a place share one input: the clean one, and those of attribution.

They run the user's own modules layer by layer, and keep what every writer sends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attribution.relevance import Rule, relevant, relevant_attention
from ..describe.architecture import Architecture
from ..describe.layout import EdgeLayout
from ..describe.module_copies import Glue
from ..describe.norms import Norm, wide
from .inputs import Inputs
from .means import ablation_values
from .values import LMReference, Values

__all__ = ["MixedMessages", "SharedPass", "compute_values", "run_shared"]


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


@dataclass(frozen=True, eq=False)
class MixedMessages:
    """What heads and MLPs send in a pass instead of their own messages.

    ``gates [W]``: the share of a writer's own message, the rest is its ``ablated`` one. Writers
    marked in ``constant [W]`` send their ``clean`` message, which no gradient passes through.
    """

    gates: Tensor
    ablated: Values
    constant: Tensor
    clean: Values | None


def run_shared(
    arch: Architecture,
    layout: EdgeLayout,
    glue: Glue,
    inputs: Inputs,
    *,
    embed: Tensor | None = None,
    mixed: MixedMessages | None = None,
    rule: Rule = "gradient",
    grad: bool = False,
    outputs: bool = True,
) -> SharedPass:
    """One pass over all layers.

    ``embed [E, B, T, D]`` is what the embeddings send, if not their own messages; ``mixed`` says it
    of heads and MLPs. The residual stream stands in float32 at least; what modules read of it is
    rounded to the model's own dtype.
    """
    relp, dtype = rule != "gradient", glue.entry.dtype
    frozen = rule == "relp-frozen"
    codes, mlps, stream = [], [], []
    projected, mlp_in, sent = [], [], []
    embed = glue.sent(layout.embeddings) if embed is None else embed

    def gated(x: Tensor, ablated: Tensor, gate: Tensor) -> Tensor:
        if bool((gate == 1).all()):
            return x
        x, ablated = wide(x), wide(ablated)
        return ablated + gate.to(x) * (x - ablated)

    def with_constants(x: Tensor, clean: Tensor, constant: Tensor) -> Tensor:
        """``x [..., writers * d]`` with the part of the ``constant [writers]`` ones clean."""
        each = constant.to(x.device).repeat_interleave(x.shape[-1] // len(constant))
        return torch.where(each, clean, x)

    def normed(norm: Norm | None, x: Tensor) -> Tensor:
        x = x.to(dtype)
        if norm is None:
            return x.view_as(x)
        return norm.frozen(x) if relp else norm(x)

    with torch.enable_grad() if grad else torch.no_grad():
        first = wide(embed).sum(0)
        if grad:
            first = first.detach().requires_grad_(True)
        sent.append(first)
        x = first + glue.unmaskable(layout.embeddings)
        for block, call in zip(arch.blocks, glue.calls, strict=True):
            i, heads = block.index, layout.heads_of(block.index)
            mlp = slice(heads.stop, heads.stop + block.shape.mlp)
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
                if mixed is not None:
                    gate, constant = mixed.gates[heads], mixed.constant[heads]
                    if mixed.clean is not None and bool(constant.any()):
                        code = with_constants(code, mixed.clean.codes[i], constant)
                        message = block.message(code)
                    if not bool((gate == 1).all()):
                        each = gate.to(first).repeat_interleave(block.head_dim)
                        code = gated(code, mixed.ablated.codes[i], each)
                        message = block.message(code.to(dtype))
                        if mixed.ablated.heads is not None:
                            share = (1 - gate).to(first)[:, None] * mixed.ablated.heads[i]
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
                if mixed is not None:
                    if mixed.clean is not None and bool(mixed.constant[mlp].any()):
                        y = with_constants(y, mixed.clean.mlps[i], mixed.constant[mlp])
                    y = gated(y, mixed.ablated.mlps[i], mixed.gates[mlp])
                sent.append(y)
                x = middle + y
        stream.append(x)
        final_in, out = x, x
        if outputs:
            rows = x.reshape(-1, x.shape[-1])[inputs.answers]
            with arch.outer_loaded(lent=grad):
                final_in = normed(arch.final_norm, rows)
                out = arch.unembed(final_in).view(*inputs.shape, -1)
    values = Values(embed.detach().to(dtype), codes, mlps, [s.detach() for s in stream])
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
        values = run_shared(arch, layout, glue, inputs, outputs=False).values
        alignment = inputs.alignment
        if clean or alignment is None:
            return values
        return values.map(lambda x: torch.bmm(alignment, x))
