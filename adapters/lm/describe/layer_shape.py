"""How many heads, readers and nodes one layer has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LayerShape"]


@dataclass(frozen=True)
class LayerShape:
    """How many ``heads`` and ``kv_heads`` a layer has, or that its mixer is one node.

    ``block``: the letter of that node, ``"a"`` (attention), ``"s"`` (any other mixer) or ``"m"``
    (an MLP that mixes tokens). It counts as one head, and has one reader. ``mlp``: whether there is
    an MLP behind it. ``number``: the layer's in names, where it is not its own place. ``experts``:
    names of the nodes that the mixer's heads are, behind which their router reads.
    """

    heads: int
    kv_heads: int
    block: str | None = None
    mlp: bool = True
    number: int | None = None
    experts: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Readers of the mixer: q of each head, then k and v of each key/value head."""
        return self.heads + 2 * self.kv_heads + bool(self.experts)

    @property
    def own_kv(self) -> int:
        """Nodes that only read: key/value heads that several heads share, or a router."""
        return bool(self.experts) or (0 if self.kv_heads == self.heads else self.kv_heads)

    def rows_of(self, heads: Tensor) -> Tensor:
        """``[3, h]``: the q, k and v rows that ``heads [h]`` read; of a block ``[1, h]``."""
        if self.experts:
            return torch.stack([heads, torch.full_like(heads, self.heads)])
        if self.block is not None:
            return heads[None]
        kv = self.heads + heads // (self.heads // self.kv_heads)
        return torch.stack([heads, kv, kv + self.kv_heads])
