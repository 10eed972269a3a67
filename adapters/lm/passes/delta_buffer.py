"""What masked passes work on: tokens, the ablated run, and the buffer of Deltas over it.

A Delta is what a computed writer sends minus its ablation value.

Everything large of a masked pass happens here, in three products: *read* (what readers read),
*mask_gradients* (gradients of mask values) and *spread* (gradients of Deltas). All work in place.

Axes: ``token``, ``slot`` (0 is the readers' base, 1 + s the s-th computed writer), ``d_model``. A
stack of K masks has K copies of all examples; masks for each example have K * B copies of one
example. Both order tokens as (K, B, T).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..describe.architecture import DecoderBlock
from ..describe.layout import LayerPlan
from ..describe.module_copies import Call, attention_stand_ins, replaced, run_between
from ..describe.norms import HALF, centre, project, wide
from .values import LMReference

__all__ = ["AblatedRun", "DeltaBuffer", "HeadCores", "TokenSelection"]

_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "n_head")
_WIDTHS = ("split_size", "embed_dim", "all_head_size")
_TOKENS = 32  # how many tokens' products stand side by side before they are summed


@dataclass(frozen=True, eq=False)
class TokenSelection:
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
        each = self.batch * (self.length - self.start) if self.chosen is None else len(self.chosen)
        return self.candidates * each

    def split(self, masks: int) -> list[int]:
        """How many tokens each of ``masks`` has: K of them, or one for each example."""
        if self.chosen is None or masks in (1, self.candidates):
            return [self.count // masks] * masks
        each = torch.bincount(self.chosen // self.length, minlength=self.batch)
        return each.tolist() * self.candidates

    def take(self, x: Tensor) -> Tensor:
        """``[count / K, F]`` from ``x [B or 1, T or 1, F]``: one candidate's, the same for all."""
        x = x.expand(self.batch, self.length, x.shape[-1])
        if self.chosen is None:
            return x[:, self.start :].reshape(-1, x.shape[-1])
        return x.reshape(-1, x.shape[-1])[self.chosen]

    def cut(self, x: Tensor) -> Tensor:
        """``[count, F]`` from ``x [K * B, T, F]``."""
        if self.chosen is None:
            return x[:, self.start :].reshape(-1, x.shape[-1])
        flat = x.reshape(self.candidates, -1, x.shape[-1])
        return flat[:, self.chosen].reshape(-1, x.shape[-1])

    def put(self, x: Tensor, out: Tensor, rows: Tensor | slice) -> None:
        """Writes ``x [count, r, F]`` into ``rows`` of ``out [K * B, T, R, F]``."""
        if self.chosen is None:
            out[:, self.start :, rows] = x.unflatten(0, (len(out), -1))
            return
        whole = out.view(self.candidates, -1, *out.shape[2:])
        at = self.chosen if isinstance(rows, slice) else self.chosen[:, None]
        whole[:, at, rows] = x.unflatten(0, (self.candidates, -1))

    def spread(self, x: Tensor) -> Tensor:
        """``[K * B, T, F]`` that holds ``x [count, F]`` at these tokens and 0 elsewhere."""
        shape = (self.candidates * self.batch, self.length, x.shape[-1])
        if self.chosen is None and not self.start:
            return x.reshape(shape)
        out = x.new_zeros(shape)
        self.put(x[:, None], out[:, :, None], slice(None))
        return out

    def pick(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        """``[count, r, F]``: ``rows`` of ``x [K * B, T, R, F]``."""
        chosen: Tensor = self.cut(x.flatten(2)).unflatten(1, x.shape[2:])
        return chosen[:, rows]


class HeadCores:
    """Attention of chosen heads of one layer, by the user's own module.

    A shallow copy of the module is told that it has fewer heads, each with a key and a value of its
    own. Whether the copy then does what the whole module does for these heads is tried on the first
    inputs that come; where it does not, the whole module runs.
    """

    def __init__(self, block: DecoderBlock) -> None:
        self._block, self._cores = block, dict[int, nn.Module]()
        # Heads of a layer whose projection is stored in chunks are not as many as one likes.
        self._works: bool | None = False if isinstance(block.family.fused, int) else None

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
        if block.rounds is not None:
            split = code.unflatten(-1, (len(heads), -1))
            code = block.rounds.code(split, heads).flatten(-2)
        return code if block.multiplier == 1 else code * block.multiplier

    def _chosen(self, code: Tensor, heads: Tensor) -> Tensor:
        split: Tensor = code.unflatten(-1, (self._block.heads, -1))
        return split[:, :, heads].flatten(2)

    def _few(self, qkv: Tensor, heads: Tensor, call: Call) -> Tensor:
        rows, count = self._block.rows_of(heads).flatten(), len(heads)
        core = self._cores.get(count) or self._core(count)
        return run_between(core, qkv[:, :, rows].flatten(2), call)

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


class AblatedRun:
    """What masked passes over one batch start from: the ablated streams, and which tokens count.

    Args:
        reference: clean inputs and ablated values.
        cores: each layer's attention of chosen heads.
        lasting: whether streams without their means and projections of readers that no pass
            computes are kept, for passes over one plan.
    """

    def __init__(
        self, reference: LMReference, cores: list[HeadCores], *, lasting: bool = False
    ) -> None:
        self.reference, self.arch, self.cores = reference, reference.arch, cores
        self.values, self.places = reference.ablated_values, reference.stream
        if reference.constants is not None:  # they may have changed since the last run
            self.values = reference.ablated_now()
            self.places = reference.stream_of(self.values)
        entry, inputs = reference.glue.entry, reference.inputs
        batch, length, _ = entry.shape
        self.dtype, self.like = entry.dtype, entry
        asked, self.where = inputs.asked, inputs.which
        start = min(reference.start, inputs.first)
        self.tokens = TokenSelection(1, batch, length, start)
        self.asked = TokenSelection(1, batch, length, chosen=asked)
        # Numbers of the tokens asked for among the counted ones.
        self.local = asked // length * (length - start) + asked % length - start
        self.trimmed = 2 * len(asked) <= self.tokens.count
        self.lasting, self.qkv = lasting, dict[int, Tensor]()
        self._streams: dict[tuple[int, bool], Tensor] = {}

    def stream(self, place: int, narrow: bool = False) -> Tensor:
        """``[n, D]`` in float32 at least: the ablated residual stream at a place.

        At the tokens that count, or at those asked for. Without its mean where norms ask.
        """
        if (place, narrow) in self._streams:
            return self._streams[place, narrow]
        tokens = self.asked if narrow else self.tokens
        x = centre(tokens.take(self.places[place]), self.arch.centred)
        if self.lasting:
            self._streams[place, narrow] = x
        return x

    def projections(self, block: DecoderBlock, layer: LayerPlan) -> Tensor:
        """``[B, T, rows, dh]`` to be overwritten by what reads for itself at its tokens.

        Elsewhere: what the computed heads need of the ablated run; keys and values of all heads
        before ``start``.
        """
        if block.index in self.qkv:
            return self.qkv[block.index]
        tokens, heads = self.tokens, layer.heads
        out = self.like.new_zeros(tokens.batch, tokens.length, block.rows, block.head_dim)
        if len(layer.rows) < block.rows:
            needed = torch.zeros(block.rows, dtype=torch.bool)
            needed[block.rows_of(heads).flatten()] = True
            needed |= block.coupled
            needed[layer.rows] = False
            rows = torch.nonzero(needed)[:, 0]
            if len(rows):
                x = self.places[2 * block.index].to(self.dtype)
                x = centre(x, self.arch.centred).expand(tokens.batch, tokens.length, -1)
                x = x.flatten(0, 1)[:, None].expand(-1, len(rows), -1)
                new = project(block.projections, rows, x)
                out[:, :, rows.to(out.device)] = new.unflatten(0, out.shape[:2])
        if tokens.start:
            first = 0 if block.shape.block else block.heads
            out[:, : tokens.start, first:] = self._prefix(block)
        if self.lasting:
            self.qkv[block.index] = out
        return out

    def _prefix(self, block: DecoderBlock) -> Tensor:
        """``[B, start, 2 * H_kv, dh]``: keys and values of the positions that have no Delta.

        Of a mixer that is one node: what it reads there, ``[B, start, 1, D]``.
        """
        known = self.reference.prefixes
        if block.index not in known:
            x = self.places[2 * block.index][:, : self.reference.start].to(self.dtype)
            norm = block.attention_norm
            qkv = block.project(x if norm is None else norm(x))
            qkv = qkv.unflatten(-1, (block.rows, block.head_dim))
            known[block.index] = qkv[:, :, 0 if block.shape.block else block.heads :].clone()
        return known[block.index][:, : self.tokens.start]


class DeltaBuffer:
    """Deltas ``[token, 1 + slots, d_model]`` of computed writers, and their gradients.

    Where most writers are computed, a token's slots stand together in memory: each token's
    products then work on what fits a cache. Where few are (``slot_major``, for one mask), a slot's
    tokens stand together: products skip the slots that nobody reads, and run over all tokens.

    Deltas, mask values and sums are float32 at least: rounded to half precision, hundreds of
    Deltas would add up to more than the model's own rounding, which is once for each layer.
    Gradients are in the model's dtype.
    """

    def __init__(
        self, slots: int, masks: int, tokens: TokenSelection, like: Tensor, *, slot_major: bool
    ) -> None:
        self.tokens, self.sizes, self.slot_major = tokens, tokens.split(masks), slot_major
        self.dtype, self.wide = like.dtype, wide(like[:0]).dtype
        shape = [tokens.count, 1 + slots, like.shape[-1]]
        if slot_major:
            shape[:2] = shape[1::-1]
        delta = torch.empty(shape, dtype=self.wide, device=like.device)
        self.delta = delta.transpose(0, 1) if slot_major else delta
        self.grad: Tensor | None = None
        self._scratch = self.delta.new_empty(0)

    def of(self, slots: Tensor | slice) -> Tensor:
        """``[s, token, D]``: Deltas of some slots."""
        return self.delta.transpose(0, 1)[slots]

    def read(self, weights: Tensor, base: Tensor) -> Tensor:
        """``[token, R, D]``: what readers with ``weights [masks, R, 1 + S]`` read over ``base``.

        ``base`` is ``[R or 1, n, D]`` for one candidate's n tokens; in slot-major order each
        reader may have its own. The sum is in float32 at least. In token-major order it stands in
        one buffer, which the next reading overwrites.
        """
        if self.slot_major:
            return self._read_few(weights[0, :, 1:], base)
        # The base rides along as slot 0 with the weight 1: no pass over the result of its own.
        self.delta[:, 0].unflatten(0, (self.tokens.candidates, -1)).copy_(base)
        count, _, width = self.delta.shape
        size = count * weights.shape[1] * width
        if len(self._scratch) < size:
            self._scratch = self.delta.new_empty(size)
        out = self._scratch[:size].view(count, -1, width)
        return torch.bmm(self._each(weights), self.delta[:, : weights.shape[2]], out=out)

    def _read_few(self, weights: Tensor, base: Tensor) -> Tensor:
        candidates = self.tokens.candidates
        shape = (len(weights), candidates, *base.shape[1:])
        used = torch.nonzero((weights != 0).any(0).cpu())[:, 0]
        weights = weights[:, used.to(weights.device)]
        together = len(used) and len(used) == int(used[-1]) - int(used[0]) + 1
        links = torch.nonzero(weights).tolist() if weights.device.type == "cpu" else None
        if not len(used) or (not together and links and len(links) <= 2 * len(used)):
            # Each link alone: gathering the slots for one product would cost a copy of each.
            out = base[:, None].expand(shape).clone()
            for row, column in links or ():
                one = self.of(1 + used[column]).view(shape[1:])
                out[row].add_(one, alpha=float(weights[row, column]))
        else:
            first = 1 + int(used[0])
            slots = slice(first, first + len(used)) if together else 1 + used
            out = torch.mm(weights, self.of(slots).flatten(1)).view(shape)
            out += base[:, None]
        return out.flatten(1, 2).transpose(0, 1)

    def add(self, out: Tensor, weights: Tensor, slots: slice) -> None:
        """Adds the Deltas of ``slots``, weighted by ``[masks, R, S]``, to ``out [token, R, D]``."""
        if self.slot_major:
            sums = torch.mm(weights[0], self.of(slots).flatten(1))
            out += sums.view(-1, *self.delta.shape[::2]).transpose(0, 1)
        else:
            out.baddbmm_(self._each(weights), self.delta[:, slots])

    def start_gradients(self) -> None:
        """Makes the Deltas' gradients 0."""
        self.grad = torch.zeros_like(self.delta, dtype=self.dtype)

    def spread(self, weights: Tensor, grad: Tensor, slots: slice) -> None:
        """Adds to the Deltas' gradients what ``grad [token, R, D]`` at their readers gives."""
        assert self.grad is not None
        if self.slot_major:
            target = self.grad.transpose(0, 1)[slots]
            target.view(len(target), -1).addmm_(
                weights[0].T.to(grad.dtype), grad.transpose(0, 1).flatten(1)
            )
        else:
            each = self._each(weights).transpose(1, 2).to(grad.dtype)
            self.grad[:, slots].baddbmm_(each, grad)

    def mask_gradients(self, grad: Tensor, slots: slice) -> Tensor:
        """``[masks, R, S]``: gradients ``[token, R, D]`` against Deltas, in float32 at least."""
        if self.slot_major:
            grad = wide(grad.transpose(0, 1).flatten(1))
            return torch.mm(grad, self.of(slots).flatten(1).T)[None]
        gradients = []
        delta = self.delta[:, slots]
        for g, d in zip(grad.split(self.sizes), delta.split(self.sizes), strict=True):
            pairs = zip(g.split(_TOKENS), d.split(_TOKENS), strict=True)
            products = (torch.bmm(wide(a), wide(b).transpose(1, 2)).sum(0) for a, b in pairs)
            gradients.append(sum(products, grad.new_zeros((), dtype=wide(grad[:0]).dtype)))
        return torch.stack(gradients)

    def _each(self, weights: Tensor) -> Tensor:
        """``[token, R, S]`` from ``[masks, R, S]``; a view where there is one mask."""
        if len(set(self.sizes)) > 1:
            sizes = torch.tensor(self.sizes, device=weights.device)
            return weights.repeat_interleave(sizes, 0)
        each: Tensor = weights[:, None].expand(-1, self.sizes[0], -1, -1)
        return each.flatten(0, 1)
