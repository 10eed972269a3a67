"""Attention of some heads of a layer, by the user's own module.

A shallow copy of the module is told that it has fewer heads, each with a key and a value of its
own. Whether the copy then does what the whole module does for these heads is tried on the first
inputs that come; where it does not, the whole module runs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Call, DecoderBlock
from .module_copies import attention_stand_ins, replaced
from .norms import HALF

__all__ = ["HeadCores"]

_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "n_head")
_WIDTHS = ("split_size", "embed_dim", "all_head_size")


class HeadCores:
    """Attention of chosen heads of one layer."""

    def __init__(self, block: DecoderBlock) -> None:
        self._block, self._cores = block, dict[int, nn.Module]()
        self._works: bool | None = None

    def __call__(self, qkv: Tensor, heads: Tensor, call: Call) -> Tensor:
        """``[n, T, h * dh]``: codes of ``heads [h]``; ``qkv [n, T, rows, dh]`` holds all rows.

        Rows of other heads may hold anything where the layer's heads are not coupled.
        """
        block = self._block
        if block.coupled:
            z = block.attend(qkv.flatten(2), call)
            code = block.code(z) if block.attention_post_norm is None else block.share(z)[1]
            return self._chosen(code, heads)
        if self._works is None:
            self._works = self._agrees(qkv, call)
        if not self._works or len(heads) == block.heads:
            code = self._chosen(block.attend(qkv.flatten(2), call), heads)
        else:
            code = self._few(qkv, heads, call)
        if block.rounds is None:
            return code
        split = code.unflatten(-1, (len(heads), -1))
        rounded: Tensor = block.rounds.code(split, heads).flatten(-2)
        return rounded

    def _chosen(self, code: Tensor, heads: Tensor) -> Tensor:
        split: Tensor = code.unflatten(-1, (self._block.heads, -1))
        return split[:, :, heads].flatten(2)

    def _few(self, qkv: Tensor, heads: Tensor, call: Call) -> Tensor:
        rows, count = self._block.rows_of(heads).flatten(), len(heads)
        core = self._cores.get(count) or self._core(count)
        out: Tensor = core(qkv[:, :, rows].flatten(2), *call[0], **call[1])[0]
        return out

    def _core(self, count: int) -> nn.Module:
        block, family = self._block, self._block.family
        width = count * block.head_dim
        parts = attention_stand_ins(family, count, count, block.head_dim)
        core: Any = replaced(block.attention, parts)
        attributes = core.__dict__
        sizes = {**dict.fromkeys(_COUNTS, count), **dict.fromkeys(_WIDTHS, width)}
        sizes["num_key_value_groups"] = 1
        attributes.update((name, size) for name, size in sizes.items() if name in attributes)
        if "config" in attributes:
            attributes["config"] = config = copy.copy(attributes["config"])
            for name in ("num_attention_heads", "num_key_value_heads"):
                if name in config.__dict__:
                    config.__dict__[name] = count
        return self._cores.setdefault(count, core)

    def _agrees(self, qkv: Tensor, call: Call) -> bool:
        """Whether two heads alone give what they give among all, on drawn inputs of this shape."""
        block = self._block
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(qkv.shape, generator=generator).to(qkv)
        heads = torch.arange(block.heads, device=qkv.device)[[0, -1]].unique()
        want = self._chosen(block.attend(drawn.flatten(2), call), heads)
        try:
            got = self._few(drawn, heads, call)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return False
        if got.shape != want.shape:
            return False
        loose = 1e-2 if qkv.dtype in HALF else 1e-5
        return torch.allclose(got, want, rtol=loose, atol=loose)
