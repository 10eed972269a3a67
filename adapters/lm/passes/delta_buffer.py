"""Where writers' Deltas stand, and what is summed over them.

Everything large happens here, in three products over whole slots: *mix* (what readers read),
*against* (gradients of mask values) and *spread* (gradients of Deltas). All are written in place.

Axes: ``token``, ``slot`` (0 is the base, 1 + s the s-th computed writer), ``d_model``. A stack of
K masks has C = K copies of all examples; masks for each example have C = K * B copies of one
example. Both order tokens as (K, B, T).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..describe.norms import wide

__all__ = ["Outbox", "Tokens"]

_TOKENS = 32  # how many tokens' products stand side by side before they are summed


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens that are computed: of each example those from ``start`` on, or the ``chosen`` ones.

    ``candidates`` K repeats the batch's ``[B, T]`` tokens; ``chosen [A]`` are flat numbers in
    B*T, each once.
    """

    candidates: int
    batch: int
    length: int
    start: int = 0
    chosen: Tensor | None = None

    @property
    def count(self) -> int:
        """How many, over all candidates."""
        if self.chosen is not None:
            return self.candidates * len(self.chosen)
        return self.candidates * self.batch * (self.length - self.start)

    def split(self, copies: int) -> list[int]:
        """How many tokens each of ``copies`` masks has: K of them, or one for each example."""
        if self.chosen is None or copies == self.candidates:
            return [self.count // copies] * copies
        each = torch.bincount(self.chosen // self.length, minlength=self.batch)
        return each.tolist() * self.candidates

    def take(self, x: Tensor) -> Tensor:
        """``[count, F]`` from ``x [B or 1, T or 1, F]``, the same for all candidates."""
        x = x.expand(self.batch, self.length, x.shape[-1])
        if self.chosen is None:
            rows = x[:, self.start :].reshape(-1, x.shape[-1])
        else:
            rows = x.reshape(-1, x.shape[-1])[self.chosen]
        return rows if self.candidates == 1 else rows.repeat(self.candidates, 1)

    def cut(self, x: Tensor) -> Tensor:
        """``[count, F]`` from ``x [K * B, T, F]``."""
        if self.chosen is None:
            return x[:, self.start :].reshape(-1, x.shape[-1])
        flat = x.reshape(self.candidates, -1, x.shape[-1])
        return flat[:, self.chosen].reshape(-1, x.shape[-1])

    def put(self, x: Tensor, out: Tensor, rows: Tensor | slice) -> None:
        """Writes ``x [count, r, F]`` into ``rows`` of ``out [K * B, T, R, F]``."""
        if self.chosen is None:
            out[:, self.start :, rows] = x.view(len(out), -1, *x.shape[1:])
        elif isinstance(rows, slice):
            whole = out.view(self.candidates, -1, *out.shape[2:])
            whole[:, self.chosen, rows] = x.view(self.candidates, -1, *x.shape[1:])
        else:
            whole = out.view(self.candidates, -1, *out.shape[2:])
            whole[:, self.chosen[:, None], rows] = x.view(self.candidates, -1, *x.shape[1:])

    def spread(self, x: Tensor) -> Tensor:
        """``[K * B, T, F]`` that holds ``x [count, F]`` at these tokens and 0 elsewhere."""
        shape = (self.candidates * self.batch, self.length, x.shape[-1])
        if self.chosen is None and not self.start:
            return x.reshape(shape)
        out = x.new_zeros(shape)
        if self.chosen is None:
            out[:, self.start :] = x.view(shape[0], -1, shape[2])
        else:
            out.view(self.candidates, -1, shape[2])[:, self.chosen] = x.view(
                self.candidates, -1, shape[2]
            )
        return out

    def pick(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        """``[count, r, F]``: ``rows`` of ``x [K * B, T, R, F]``."""
        mine: Tensor = self.cut(x.flatten(2)).unflatten(1, x.shape[2:])
        return mine[:, rows]


class Outbox:
    """Deltas ``[tokens.count, 1 + slots, D]`` of computed writers, and their gradients.

    A token's slots stand together, so that each product works on what fits a cache. Deltas,
    mask values and sums are float32 at least: rounded to half precision, hundreds of Deltas would
    add up to more than the model's own rounding, which is once for each layer. Gradients are in the
    model's dtype.
    """

    def __init__(self, slots: int, copies: int, tokens: Tokens, like: Tensor) -> None:
        self.tokens, self.sizes = tokens, tokens.split(copies)
        shape = (tokens.count, 1 + slots, like.shape[-1])
        self.dtype, self.wide = like.dtype, wide(like[:0]).dtype
        self.delta = torch.empty(shape, dtype=self.wide, device=like.device)
        self.grad: Tensor | None = None
        self._scratch = self.delta.new_empty(0)

    def read(self, weights: Tensor, base: Tensor) -> Tensor:
        """``[count, R, D]``: what readers with ``weights [C, R, 1 + S]`` read over ``base``.

        Stands in one buffer, which the next reading overwrites; in float32 at least.
        """
        self.delta[:, 0] = base
        count, _, width = self.delta.shape
        size = count * weights.shape[1] * width
        if len(self._scratch) < size:
            self._scratch = self.delta.new_empty(size)
        out = self._scratch[:size].view(count, -1, width)
        return torch.bmm(self._each(weights), self.delta[:, : weights.shape[2]], out=out)

    def start_gradients(self) -> Tensor:
        """Deltas' gradients, all 0."""
        self.grad = torch.zeros_like(self.delta, dtype=self.dtype)
        return self.grad

    def add(self, out: Tensor, weights: Tensor, slots: slice) -> None:
        """Adds the Deltas of ``slots``, weighted by ``[C, R, S]``, to ``out [count, R, D]``."""
        out.baddbmm_(self._each(weights), self.delta[:, slots])

    def spread(self, weights: Tensor, grad: Tensor, slots: slice) -> None:
        """Adds to the Deltas' gradients what ``grad [count, R, D]`` at their readers gives."""
        assert self.grad is not None
        each = self._each(weights).transpose(1, 2).to(grad.dtype)
        self.grad[:, slots].baddbmm_(each, grad)

    def against(self, grad: Tensor, slots: slice) -> Tensor:
        """``[C, R, S]``: gradients ``[count, R, D]`` against Deltas, in float32 at least."""
        found = []
        delta = self.delta[:, slots]
        for g, d in zip(grad.split(self.sizes), delta.split(self.sizes), strict=True):
            pairs = zip(g.split(_TOKENS), d.split(_TOKENS), strict=True)
            products = (torch.bmm(wide(a), wide(b).transpose(1, 2)).sum(0) for a, b in pairs)
            found.append(sum(products, grad.new_zeros((), dtype=wide(grad[:0]).dtype)))
        return torch.stack(found)

    def _each(self, weights: Tensor) -> Tensor:
        """``[C, R, S]`` for each token; a view where there is one mask."""
        if len(set(self.sizes)) > 1:
            sizes = torch.tensor(self.sizes, device=weights.device)
            return weights.repeat_interleave(sizes, 0)
        each: Tensor = weights[:, None].expand(-1, self.sizes[0], -1, -1)
        return each.flatten(0, 1)
