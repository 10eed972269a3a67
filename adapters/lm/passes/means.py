"""Ablation values that come from no corrupted prompt: zero, means, and learned constants.

A learned constant is a free vector of the stream for each writer (Li and Janson 2024, "Optimal
ablation"), pooled over positions. A head's message lies in the span of its output map; its constant
need not, so that every constant ablation, means included, is one of these.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from graphprune.core.model import Ablation
from graphprune.errors import InputError

from ..describe.architecture import Architecture
from ..describe.layout import EdgeLayout
from .values import LMReference, Values

__all__ = ["ablation_values", "learned_constants", "mean_values"]


def mean_values(
    references: Iterable[LMReference], layout: EdgeLayout, *, per_position: bool
) -> Values:
    """Means of every writer's message over examples and real positions (or for each position).

    They are the clean values of ``references``, padding aside. Sums run in float64.
    """
    total: list[Tensor] | None = None
    count: Tensor | None = None
    length, layers = 0, 0
    for reference in references:
        values, weight = reference.clean, reference.inputs.weight
        layers = len(values.codes)
        parts = [*values.embed, *values.codes, *values.mlps]
        wide = weight.double()
        if per_position:
            if (total is not None and weight.shape[1] != length) or not bool((weight == 1).all()):
                raise InputError(
                    "means for each position need prompts of one length; pool over positions "
                    "(ablation='mean') instead"
                )
            length = weight.shape[1]
            sums = [torch.einsum("btd,bt->td", p.double(), wide)[None] for p in parts]
            n = wide.sum(0)[None, :, None]
        else:
            sums = [torch.einsum("btd,bt->d", p.double(), wide)[None, None] for p in parts]
            n = wide.sum().reshape(1, 1, 1)
        total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
        count = n if count is None else count + n
    if total is None or count is None:
        raise InputError("the mean over an empty reference set is not defined")
    means = [t / count for t in total]
    embeddings = len(means) - 2 * layers
    return Values(
        torch.stack(means[:embeddings]),
        means[embeddings : embeddings + layers],
        means[embeddings + layers :],
        layout=layout,
    )


def ablation_values(reference: LMReference, layout: EdgeLayout) -> Values:
    """Zero or mean values in the shape of the reference's batch."""
    entry, ablation = reference.glue.entry, reference.ablation
    batch, tokens, width = entry.shape
    if ablation.kind == "mean":
        means = Values.means_of(ablation, layout, width)
        if means.mlps[0].shape[1] not in (1, tokens):
            raise InputError(
                f"means were kept for {means.mlps[0].shape[1]} positions; this batch has {tokens}"
            )
        return means.map(lambda x: x.to(entry).expand(batch, tokens, x.shape[-1]))
    codes = [block.heads * block.head_dim for block in reference.arch.blocks]
    if ablation.kind == "optimal":
        return _learned(reference.constants, layout, entry, codes)
    zeros = entry.new_zeros(1, 1, 1)
    return Values(
        zeros.expand(layout.embeddings, batch, tokens, width),
        [zeros.expand(batch, tokens, code) for code in codes],
        [zeros.expand(batch, tokens, width)] * layout.layers,
    )


def _learned(
    constants: Tensor | None, layout: EdgeLayout, entry: Tensor, codes: list[int]
) -> Values:
    batch, tokens, width = entry.shape
    if constants is None or constants.shape != (layout.writers, width):
        got = None if constants is None else list(constants.shape)
        raise InputError(
            f"learned constants of the shape {got} come from another model; this one has "
            f"{layout.writers} writers of width {width}: use model.learned_ablation(start)"
        )
    messages = constants.detach().to(entry)
    layers = range(layout.layers)
    zeros = entry.new_zeros(1, 1, 1)
    return Values(
        messages[: layout.embeddings, None, None].expand(-1, batch, tokens, width),
        [zeros.expand(batch, tokens, code) for code in codes],
        [
            messages[layout.mlp(i)].expand(batch, tokens, width)
            if layout.shapes[i].mlp
            else zeros.expand(batch, tokens, width)
            for i in layers
        ],
        heads=[messages[layout.heads_of(i)] for i in layers],
    )


def learned_constants(start: Ablation, arch: Architecture, layout: EdgeLayout) -> Tensor:
    """``[W, D]``, a leaf that requires grad: what each writer sends under zero or mean ablation.

    float32, or float64 for a float64 model. Raises :class:`InputError` for other ablations.
    """
    dtype = torch.float64 if arch.dtype == torch.float64 else torch.float32
    constants = torch.zeros(layout.writers, arch.width, dtype=dtype, device=arch.device)
    if start.kind == "mean" and not start.per_position:
        values = Values.means_of(start, layout, arch.width)
        constants[: layout.embeddings] = values.embed.to(constants)[:, 0, 0]
        for block, code, mlp in zip(arch.blocks, values.codes, values.mlps, strict=True):
            i = block.index
            weight = block.senders(False).to(constants)
            split = code.to(constants).view(block.heads, 1, block.head_dim)
            constants[layout.heads_of(i)] = torch.bmm(split, weight.detach())[:, 0]
            if layout.shapes[i].mlp:
                constants[layout.mlp(i)] = mlp.to(constants)[0, 0]
    elif start.kind != "zero":
        raise InputError(
            "learned constants start from zero or from means pooled over positions "
            f"(model.mean_ablation(batches)), got {start.name}"
        )
    return constants.requires_grad_(True)
