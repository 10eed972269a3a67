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
    weights, biases, start = [], [], 0
    where: dict[int, tuple[int, int]] = {}
    for number, reader in enumerate(block.readers):
        for at in range(len(reader.weight)):
            where[start + at] = number, at
        start += len(reader.weight)
    some = any(reader.bias is not None for reader in block.readers)
    for row in rows.tolist():
        number, at = where[row]
        reader = block.readers[number]
        weights.append(reader.weight[at].detach())
        bias = None if reader.bias is None else reader.bias[at].detach()
        biases.append(weights[-1].new_zeros(block.head_dim) if bias is None else bias)
    return torch.stack(weights), torch.stack(biases) if some else None


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
