"""Both ends of a model, as tables and numbers that are tried against the user's modules."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..export.module import Unembedding
from .architecture import Architecture
from .attention import rope_limit
from .norms import matrix

__all__ = ["embedding", "longest_of", "unembedding"]


def longest_of(arch: Architecture) -> int | None:
    """The most positions a module of the model reads; ``None``: any number."""
    limits = [n for n in (arch.longest, rope_limit(arch.model)) if n is not None]
    return min(limits) if limits else None


def embedding(arch: Architecture) -> tuple[float, Tensor]:
    """What embedded tokens are multiplied with, and the table, tried on some tokens."""
    table = cast(Tensor, arch.embedding.weight)
    length = min(8, arch.longest or 8)
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
    made = Unembedding(arch.final_norm, nn.Parameter(weight.detach().clone()), bias, cap)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, arch.width, generator=generator).to(arch.device, arch.dtype)
    _same(made(x), arch.read_out(x), arch.dtype, "the output is not linear in the final norm")
    return made, own


def _same(found: Tensor, want: Tensor, dtype: torch.dtype, what: str) -> None:
    gap = float((found.double() - want.double()).abs().max())
    loose = 3e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    if not gap <= loose * (1 + float(want.abs().max())):
        raise UnsupportedModelError(
            f"{what}: it differs by {gap:.3g} on drawn inputs, so no module of its own can be made"
        )
