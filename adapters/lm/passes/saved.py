"""What a masked pass reads at a layer, and what it keeps there for the way back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd.graph import GradientEdge

from .delta_buffer import Outbox
from .reader_inputs import Projected

__all__ = ["Kept", "Reading"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Readers of one layer that read the same outbox in one product.

    ``rows``: attention readers; ``mlp``: whether the layer's MLP reads along, as the last row.
    """

    box: Outbox
    rows: Tensor
    mlp: bool


@dataclass(eq=False)
class Kept:
    """What a layer's forward leaves for its backward. What is empty is computed again.

    Attention itself always is: from ``qkv`` it costs little, its insides would take much room.
    ``mlp`` (input, output) are edges of the MLP's graph: unlike tensors they keep no values alive
    beside those the graph needs.
    """

    projected: list[Projected] = field(default_factory=list)
    qkv: Tensor | None = None
    mlp: tuple[GradientEdge, GradientEdge] | None = None
