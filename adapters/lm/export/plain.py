"""Norms and attention in plain torch operations, as modules of their own: weights are copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..describe.norms import Norm, wide

__all__ = ["Attend", "Attending", "PlainNorm", "Rotary", "last_of"]


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotation of the first ``2 * len(frequencies)`` features, halves paired, by position."""

    frequencies: Tensor
    scale: float

    def tables(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[length, features]``."""
        return _tables(self.frequencies, self.scale, length, like)


@dataclass(frozen=True, eq=False)
class Attending:
    """What happens between projections: ``softmax(scale * q k)`` over earlier positions.

    ``window``: how many positions back, the own one included; ``cap``: scores are squashed to
    ``cap * tanh(score / cap)``; ``norms``: of q and of k, over each head's features or, where
    ``wide``, over all heads' together.
    """

    scale: float
    window: int | None = None
    cap: float | None = None
    rotary: Rotary | None = None
    norms: tuple[Norm, Norm] | None = None
    wide: bool = False


class PlainNorm(nn.Module):
    """A LayerNorm (``centred``) or an RMSNorm over the last axis; a bare one has no gain."""

    def __init__(self, norm: Norm, *, bare: bool = False) -> None:
        super().__init__()
        self.centred, self.eps = norm.centred, norm.eps
        self.gain = None if bare else nn.Parameter(norm.gain.detach().clone())
        bias = None if bare else norm.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., F]``, normalised."""
        shape = (x.shape[-1],)
        if self.centred:
            return F.layer_norm(x, shape, self.gain, self.bias, self.eps)
        out = F.rms_norm(x, shape, self.gain, self.eps)
        return out if self.bias is None else out + self.bias


def last_of(x: Tensor, count: int, axis: int = 1) -> Tensor:
    """The last ``count`` places of ``x`` along an axis.

    Taken by number: a slice would be a view that torch.export holds to lengths beyond ``count``.
    """
    length = x.shape[axis]
    return x.index_select(axis, torch.arange(length - count, length, device=x.device))


class Attend(nn.Module):
    """An :class:`Attending` that runs; its tensors move with the module.

    Queries may stand at the last positions alone, keys and values stand at all.
    """

    frequencies: Tensor | None

    def __init__(self, plan: Attending) -> None:
        super().__init__()
        self.scale, self.window, self.cap = plan.scale, plan.window, plan.cap
        rotary = plan.rotary
        self.register_buffer("frequencies", None if rotary is None else rotary.frequencies.clone())
        self.stretch = 1.0 if rotary is None else rotary.scale
        self.norms = nn.ModuleList([PlainNorm(n) for n in plan.norms or ()])
        self.wide = plan.wide

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, share: Tensor | None, last: int | None
    ) -> Tensor:
        """``z [B, Q, h, dh]`` from ``q [B, Q, h, dh]`` and ``k``, ``v [B, T, n, dh]``.

        ``share [h]`` says whose keys and values each head reads; ``None`` means each its own.
        ``last``: Q, where it is not T.
        """
        if self.norms:
            q, k = (self._normed(x, n) for x, n in zip((q, k), self.norms, strict=True))
        length = k.shape[1]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.frequencies is not None:
            cos, sin = _tables(self.frequencies, self.stretch, length, q)
            k = _rotated(k, cos, sin)
            if last is not None:
                cos, sin = last_of(cos, last, 0), last_of(sin, last, 0)
            q = _rotated(q, cos, sin)
        if share is not None:
            k, v = k.index_select(1, share), v.index_select(1, share)
        if self.cap is not None:
            return self._capped(q, k, v, length, last).transpose(1, 2)
        if self.window is None and last is None:
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        else:
            every = self.window is None and last == 1  # the last position reads all
            seen = None if every else self._seen(length, last, q.device)
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        return z.transpose(1, 2)

    def _seen(self, length: int, last: int | None, device: torch.device) -> Tensor:
        """``[Q, T]``: which positions each query reads."""
        positions = torch.arange(length, device=device)
        back = (positions if last is None else last_of(positions, last, 0))[:, None] - positions
        seen = back >= 0
        return seen if self.window is None else seen & (back < self.window)

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, length: int, last: int | None) -> Tensor:
        assert self.cap is not None
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        scores = torch.tanh(scores / self.cap) * self.cap
        scores = scores.masked_fill(~self._seen(length, last, q.device), float("-inf"))
        return torch.matmul(wide(scores).softmax(-1).to(v.dtype), v)

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        out: Tensor = norm(x.flatten(-2)).view(x.shape) if self.wide else norm(x)
        return out


def _tables(frequencies: Tensor, scale: float, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = wide(frequencies)
    positions = torch.arange(length, device=like.device).to(frequencies.dtype)
    angles = positions[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return cos.to(like.dtype), sin.to(like.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x [B, h, T, dh]`` with its first features rotated."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    half = width // 2
    swapped = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    turned = turned * cos + swapped * sin
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
