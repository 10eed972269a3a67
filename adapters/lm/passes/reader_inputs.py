"""What attention readers project, inputs all different, and what some of the heads make of it.

A norm in front of a projection, ``x_hat * gain + bias`` with ``x_hat = x * scale``, is folded into
it: ``q = scale * (W' x) + constant`` with ``W' = W * gain``. No normed copy of the input is made.
The gradient at the input is, with ``g = dq * scale``,

    g W'  -  x * scale * (g . (q - constant)) / D ,

written over the input itself. Where a precision policy rounds what projections read, the norm
cannot be folded: the normed input is made and rounded, and the gradient is the same one, rounding
being the identity there. Nor is it folded in half precision, which would round the folded weights,
where the model itself rounds none. Where the norms are LayerNorms, inputs hold no mean (the base
and all Deltas are centred, see :func:`centre`), and a gradient's mean is left in: it meets only
them.

Between its projections the user's attention runs as it is. For some of its heads a shallow copy of
the module is told that it has fewer heads, each with a key and a value of its own. Whether the copy
then does what the whole module does for these heads is tried on the first inputs that come; where
it does not, the whole module runs (:class:`HeadCores`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..describe.architecture import Block, Call, Projection
from ..describe.norms import Norm, wide
from ..describe.surgery import Interleave, Slice, replaced

__all__ = ["HeadCores", "Projected", "centre", "sender", "span"]


@dataclass(frozen=True, eq=False)
class Projected:
    """What ``rows`` of a layer's attention readers read and project at some tokens.

    ``scale [n, R, 1]`` is the norm's (``None``: no norm). Inputs to be rounded by a policy must be
    ``prepare``d (normalised in place); others are left as they are.
    """

    block: Block
    rows: Tensor
    scale: Tensor | None
    normalised: bool

    @classmethod
    def of(cls, block: Block, rows: Tensor, x: Tensor) -> Projected:
        """Takes the statistics of inputs ``x [n, R, D]``."""
        norm = block.attention_norm
        scale = None if norm is None else norm.scale(x)
        return cls(block, rows, scale, norm is not None and block.rounds is not None)

    def prepare(self, x: Tensor) -> None:
        """What forward and backward expect of inputs just read."""
        if self.normalised:
            assert self.scale is not None
            x.mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, R, dh]`` from ``x [n, R, D]``."""
        kind = self.block.readers[0].weight.dtype
        out = x.new_empty(len(x), len(self.rows), self.block.head_dim, dtype=kind)
        if self.block.rounds is not None or out.dtype in (torch.float16, torch.bfloat16):
            return self._unfolded(x, out)
        for at, weight, constant in self._parts():
            q = torch.bmm(x[:, at].transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            if self.scale is not None:
                q = q * self.scale[:, at]
            out[:, at] = q if constant is None else q + constant
            del weight  # the next part's is made first otherwise
        return out

    def _unfolded(self, x: Tensor, out: Tensor) -> Tensor:
        """The same by weights as they are; normed inputs are rounded to their dtype once."""
        norm, rounds = self.block.attention_norm, self.block.rounds
        for at, weight, constant in self._parts(fold=False):
            read = wide(x[:, at])
            if self.scale is not None and not self.normalised:
                read = read * self.scale[:, at]
            if norm is not None:
                read = read * norm.gain if norm.bias is None else read * norm.gain + norm.bias
            read = read.to(out.dtype)
            if rounds is not None:
                read = rounds.reader_input(read, self.rows[at])
            q = torch.bmm(read.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            out[:, at] = q if constant is None else q + constant
        return out

    def backward(self, x: Tensor, out: Tensor, grad: Tensor) -> None:
        """Writes the gradient at the inputs ``x`` over them; ``grad [n, R, dh]`` at ``out``."""
        for at, weight, constant in self._parts():
            dq, mine = grad[:, at], x[:, at]
            if self.scale is None:
                mine.zero_()
            else:
                scale = self.scale[:, at]
                q = self._linear(mine, weight, out[:, at], constant)
                dq = wide(dq) * scale
                along = (dq * q).sum(-1, keepdim=True) / -x.shape[-1]
                mine.mul_(along if self.normalised else along * scale)
                dq = dq.to(x.dtype)
            mine.transpose(0, 1).baddbmm_(dq.transpose(0, 1), weight)
            del weight

    def _linear(self, x: Tensor, weight: Tensor, out: Tensor, constant: Tensor | None) -> Tensor:
        """``[n, r, dh]``: what the weight makes of ``x``, which ``out`` tells unless rounded."""
        if self.block.rounds is not None:
            return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
        return wide(out) if constant is None else wide(out) - wide(constant)

    def _parts(self, *, fold: bool = True) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """A few rows at a time: where they stand in ``rows``, weight and constant.

        With the norm's gain and bias folded in, unless told not to.
        """
        start = 0
        for reader in self.block.readers:
            stop = start + len(reader.weight)
            first, last = torch.searchsorted(self.rows, torch.tensor([start, stop])).tolist()
            for at in range(first, last, self.block.heads):
                part = slice(at, min(at + self.block.heads, last))
                norm = self.block.attention_norm if fold else None
                yield part, *_folded(norm, reader, self.rows[part] - start)
            start = stop


def _folded(norm: Norm | None, reader: Projection, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """``[r, dh, D]`` and ``[r, dh]``: weight times the norm's gain, and what x = 0 gives."""
    some = span(rows, reader.weight.device)
    weight, bias = reader.weight[some], None if reader.bias is None else reader.bias[some]
    if norm is None:
        return weight, bias
    if norm.bias is not None:
        moved = weight @ norm.bias
        bias = moved if bias is None else bias + moved
    return weight * norm.gain, bias


def span(rows: Tensor, device: torch.device) -> Tensor | slice:
    """Sorted row numbers as an index: a slice, which copies nothing, where they are neighbours."""
    if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows.to(device)


def sender(block: Block, centred: bool, *, exact: bool = False) -> Tensor:
    """``[H, dh, D]``: each head's map from code to message, without its mean if ``centred``.

    ``exact``: in float32 at least, so that neither the gain nor the mean rounds the weights.
    """
    weight = wide(block.output_weight) if exact else block.output_weight
    if block.gain is not None:
        weight = weight * block.gain
    return centre(weight, centred)


def centre(x: Tensor, centred: bool) -> Tensor:
    """``x [..., D]`` without its mean, which LayerNorms do not see, if ``centred``."""
    return x - x.mean(-1, keepdim=True) if centred else x


_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "n_head")
_WIDTHS = ("split_size", "embed_dim", "all_head_size")


class HeadCores:
    """Attention of chosen heads of one layer."""

    def __init__(self, block: Block) -> None:
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
        block, count = self._block, len(heads)
        kv = heads // (block.heads // block.kv_heads)
        rows = torch.cat([heads, block.heads + kv, block.heads + block.kv_heads + kv])
        core = self._cores.get(count) or self._core(count)
        out: Tensor = core(qkv[:, :, rows].flatten(2), *call[0], **call[1])[0]
        return out

    def _core(self, count: int) -> nn.Module:
        block, family = self._block, self._block.family
        width = count * block.head_dim
        if family.fused is None:
            parts: dict[str, nn.Module] = {
                family.query: Slice(0, width),
                family.key: Slice(width, 2 * width),
                family.value: Slice(2 * width, 3 * width),
            }
        else:
            interleaved = family.fused == "interleaved"
            parts = {family.query: Interleave(count) if interleaved else nn.Identity()}
        core: Any = replaced(block.attention, {**parts, family.output: nn.Identity()})
        told = core.__dict__
        for name in _COUNTS:
            if name in told:
                told[name] = count
        for name in _WIDTHS:
            if name in told:
                told[name] = width
        if "num_key_value_groups" in told:
            told["num_key_value_groups"] = 1
        if "config" in told:
            told["config"] = config = copy.copy(told["config"])
            for name in ("num_attention_heads", "num_key_value_heads"):
                if name in config.__dict__:
                    config.__dict__[name] = count
        self._cores[count] = core
        found: nn.Module = core
        return found

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
        loose = 1e-2 if qkv.dtype in (torch.float16, torch.bfloat16) else 1e-5
        return torch.allclose(got, want, rtol=loose, atol=loose)
