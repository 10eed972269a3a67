"""Single rows of a layer's projections, copied, with or without the norm in front folded in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..describe.architecture import DecoderBlock
from ..describe.norms import Norm, wide

__all__ = ["folded_rows", "plain_rows", "reordered"]


def plain_rows(block: DecoderBlock, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """``[R, dh, D]`` and ``[R, dh]``: the user's projections of ``rows``, copied."""
    readers = block.readers
    weight = torch.cat([reader.weight for reader in readers]).detach()[rows]
    if all(reader.bias is None for reader in readers):
        return weight, None
    biases = [weight.new_zeros(r.weight.shape[:2]) if r.bias is None else r.bias for r in readers]
    return weight, torch.cat(biases).detach()[rows]


def folded_rows(block: DecoderBlock, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same with the gain and bias of the norm in front."""
    weight, bias = plain_rows(block, rows)
    norm = block.attention_norm
    if norm is None:
        return weight, bias
    if norm.bias is not None:
        moved = wide(weight) @ wide(norm.bias)
        bias = (moved if bias is None else wide(bias) + moved).to(weight.dtype)
    return (wide(weight) * wide(norm.gain)).to(weight.dtype), bias


def reordered(norms: tuple[Norm, Norm], heads: Tensor, width: int) -> tuple[Norm, Norm]:
    """Norms over all heads' features, with the queries' heads in another order."""
    q, k = norms
    gain, bias = q.gain, q.bias
    gain = gain.unflatten(0, (-1, width))[heads].flatten()
    bias = None if bias is None else bias.unflatten(0, (-1, width))[heads].flatten()
    return replace(q, kept=(gain, bias)), k
