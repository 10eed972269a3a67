"""What stands in for fused projections whose rows are not all q, all k, all v."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Interleave", "Reorder"]


class Reorder(nn.Module):
    """Stands where a fused projection stood: gives the blocks it is handed in another order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """``[..., blocks * dh]``, each block the one that ``order`` names."""
        blocks: Tensor = x.unflatten(-1, (len(self.order), -1))
        return blocks[..., self.order, :].flatten(-2)


class Interleave(nn.Module):
    """Stands where a fused projection stood whose rows go head by head: q, k, v, q, k, v, ..."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 3 * H * dh]`` from all q, all k, all v to head by head."""
        split: Tensor = x.unflatten(-1, (3, self.heads, -1))
        return split.transpose(-2, -3).flatten(-3)
