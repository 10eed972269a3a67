"""Both ends of a model, as tables and numbers that are tried against the user's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..export.module import Unembedding
from .architecture import Architecture
from .attention import rope_limit
from .norms import HALF, largest_gap, matrix

__all__ = ["embedding", "max_positions", "unembedding"]


def max_positions(arch: Architecture) -> int | None:
    """The most positions a module of the model reads; ``None`` means any number."""
    limits = (arch.table_positions, rope_limit(arch.model))
    return min((limit for limit in limits if limit is not None), default=None)


def embedding(arch: Architecture) -> tuple[float, Tensor]:
    """What embedded tokens are multiplied with, and the table, tried on some tokens."""
    table, length = arch.table, min(8, arch.table_positions or 8)
    ids = torch.linspace(0, table.shape[0] - 1, length).long()[None].to(arch.device)
    glue = arch.glue(ids)
    want, plain = (glue.entry - glue.position).double(), table[ids].double()
    scale = float((want * plain).sum() / plain.square().sum().clamp(min=1e-30))
    scale = float(torch.tensor(scale, dtype=torch.float64).to(arch.dtype))
    scale = 1.0 if abs(scale - 1) < 1e-4 else scale
    _same(plain * scale, want, arch.dtype, "the embedding is no table times a number")
    return scale, table


def unembedding(arch: Architecture) -> tuple[Unembedding, Tensor]:
    """The final norm and the output map, tried on some residuals, and the user's own weight."""
    model: Any = arch.model
    head = model.get_output_embeddings()
    weight, bias = matrix(head, "the output map")
    own: Tensor = head.weight
    cap = getattr(arch.config, "final_logit_softcapping", None)
    output = Unembedding(arch.final_norm, nn.Parameter(weight.detach().clone()), bias, cap)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, arch.width, generator=generator).to(arch.device, arch.dtype)
    _same(output(x), arch.read_out(x), arch.dtype, "the output is not linear in the final norm")
    return output, own


def _same(got: Tensor, want: Tensor, dtype: torch.dtype, what: str) -> None:
    gap, loose = largest_gap(got, want), 3e-2 if dtype in HALF else 1e-4
    if not gap <= loose * (1 + float(want.abs().max())):
        raise UnsupportedModelError(
            f"{what}: it differs by {gap:.3g} on drawn inputs, so no module of its own can be made"
        )
