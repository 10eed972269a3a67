"""The values every writer sends, in compact form, and the ablated residual stream they add up to.

A head's message is kept as its *code* (d_head numbers, see ``Block.share``), so one run costs
``(2 L + 1) D`` numbers for each token instead of ``L H D``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Reference
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError

from ..describe.architecture import Architecture, Call, Glue
from ..describe.layout import Layout
from ..describe.norms import wide
from .inputs import Inputs

__all__ = ["LMReference", "Values", "residuals"]


@dataclass(frozen=True, eq=False)
class Values:
    """What each writer sends: ``embed [E, B, T, D]``, ``codes`` and ``mlps`` for each layer.

    Position axes may have length 1 (means pooled over positions), batch axes too. ``heads``
    ``[L, H, D]`` is added to the messages that codes give: learned constants are no head's code.
    ``stream`` is the residual stream at the attention, MLP and final places, where known: in
    float32 at least, as every sum of messages is.
    ``layout`` says whose values they are, where they outlive a batch (means).
    """

    embed: Tensor
    codes: list[Tensor]
    mlps: list[Tensor]
    stream: list[Tensor] | None = None
    layout: Layout | None = None
    heads: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Values:
        """Every writer's value through ``function``, one embedding or layer at a time."""
        embed = torch.stack([function(e) for e in self.embed])
        return Values(embed, [function(c) for c in self.codes], [function(m) for m in self.mlps])

    def deltas(self, other: Values, arch: Architecture) -> Tensor:
        """``[W, B, T, D]``: each writer's message minus the ``other``'s, in one buffer."""
        batch, tokens, width = self.mlps[0].shape
        heads = arch.blocks[0].heads
        writers = len(self.embed) + len(arch.blocks) * (heads + 1)
        out = self.mlps[0].new_empty(writers, batch, tokens, width)
        start = len(self.embed)
        out[:start] = self.embed - other.embed
        for block, c, c2, m, m2 in zip(
            arch.blocks, self.codes, other.codes, self.mlps, other.mlps, strict=True
        ):
            mine = out[start : start + heads]
            with block.present():
                expand_codes(block.output_weight, c - c2, mine, block.gain)
            if other.heads is not None:
                mine -= other.heads[block.index, :, None, None]
            start += heads
            torch.sub(m, m2, out=out[start])
            start += 1
        return out


def expand_codes(weight: Tensor, code: Tensor, out: Tensor, gain: Tensor | None) -> None:
    """Writes each head's message into ``out [H, B, T, D]`` from codes ``[B, T, H * dh]``."""
    heads, width, _ = weight.shape
    split = code.reshape(-1, heads, width).transpose(0, 1)
    flat = out.view(heads, -1, out.shape[-1])
    torch.bmm(split, weight, out=flat)
    if gain is not None:
        flat.mul_(gain)


def residuals(arch: Architecture, values: Values, position: Tensor, like: Tensor) -> list[Tensor]:
    """The residual stream when every writer sends ``values``: two places a layer, then the final.

    ``position`` is the unmaskable part of the embedding; ``like [B, T, D]`` gives the shape. Sums
    stand in float32 at least: half precision would round the whole stream once for each layer.
    """
    x = (wide(position) + wide(values.embed).sum(0)).expand_as(like)
    places = []
    for block, code, mlp in zip(arch.blocks, values.codes, values.mlps, strict=True):
        places.append(x)
        with block.present():
            middle = x + block.message(code)
        if values.heads is not None:
            middle = middle + values.heads[block.index].sum(0)
        places.append(x if block.parallel else middle)
        x = middle + mlp
    places.append(x)
    return places


@dataclass(eq=False)
class LMReference(Reference):
    """Clean and ablated values of one batch; each is computed when first asked for, once.

    Ablated values that are learned may change between runs and are made anew each time. ``start``
    is the first position at which a Delta can differ from 0; ``checkpointing`` makes backward
    compute every layer again instead of keeping its activations. ``weights``: the state of the
    model's weights when it was made (``None``: they come and go).
    """

    batch: Batch
    ablation: Ablation
    inputs: Inputs
    arch: Architecture
    glue: Glue
    embeddings: int
    compute: Callable[[LMReference, bool], Values]
    start: int = 0
    checkpointing: bool = False
    weights: tuple[tuple[int, int], ...] | None = None
    _clean: Values | None = None
    _ablated: Values | None = None
    _stream: list[Tensor] | None = None
    _corrupt_embed: Tensor | None = None
    _outputs: dict[bool, Tensor] = field(default_factory=dict)
    _calls: dict[int, tuple[Call, ...]] = field(default_factory=dict)
    _prefix: dict[int, Tensor] = field(default_factory=dict)

    def offer(self, clean: bool, values: Values) -> None:
        """Takes values another computation happened to make."""
        if clean and self._clean is None:
            self._clean = values
        if not clean and self._ablated is None and self.exact_counterfactual:
            self._ablated = values

    def changes_nothing(self) -> bool:
        """Whether every writer's ablated message is its clean one; embeddings are looked at first.

        Padding, which no real position reads, does not count.
        """
        if self.constants is not None:
            return False  # they are still to change
        real = self.inputs.weight[..., None]
        if self.ablation.kind == "counterfactual":
            clean, corrupt = self.inputs.clean, self.inputs.corrupt
            if corrupt is None or clean.shape != corrupt.shape:
                return False
            if not bool(((clean == corrupt) | (self.inputs.weight == 0)).all()):
                return False
            if self.inputs.alignment is None:
                return True
        alike = torch.equal if self.ablation.kind == "zero" else equal_but_for_rounding
        embed = entry_embeddings(self.glue, self.embeddings) * real
        if not alike(embed, self.ablated_embed.expand_as(embed) * real):
            return False
        ours, other = self.clean, self.ablated_values
        pairs = zip([*ours.codes, *ours.mlps], [*other.codes, *other.mlps], strict=True)
        return all(alike(one * real, two.expand_as(one) * real) for one, two in pairs)

    @property
    def exact_counterfactual(self) -> bool:
        """Whether a node whose inputs are all ablated sends exactly its ablation value."""
        return self.ablation.kind == "counterfactual" and self.inputs.alignment is None

    @property
    def constants(self) -> Tensor | None:
        """``[W, D]``: learned ablation values, which an optimiser may change between runs."""
        return self.ablation.parameters[0] if self.ablation.kind == "optimal" else None

    @property
    def clean(self) -> Values:
        """What each writer sends on the clean input."""
        if self._clean is None:
            self._clean = self.compute(self, True)
        return self._clean

    @property
    def ablated_embed(self) -> Tensor:
        """``[E, B, T, D]``: ablated embeddings, which need no pass over the layers."""
        if self._ablated is not None or not self.exact_counterfactual:
            return self.ablated_values.embed
        if self._corrupt_embed is None:
            assert self.inputs.corrupt is not None
            with torch.no_grad():
                glue = self.arch.glue(self.inputs.corrupt)
            self._corrupt_embed = entry_embeddings(glue, self.embeddings)
        return self._corrupt_embed

    @property
    def ablated_values(self) -> Values:
        """What stands in for each writer's message where an edge is ablated."""
        if self.constants is not None:
            return self.compute(self, False)
        if self._ablated is None:
            self._ablated = self.compute(self, False)
        return self._ablated

    def require_same_weights(self) -> None:
        """Raises :class:`InputError` if the model's weights were changed since."""
        if self.weights is not None and self.weights != self.arch.snapshot.weights():
            raise InputError(
                "the model's weights were changed after this reference (or compiled circuit) was "
                "made, and its values are those of the old ones: make it again"
            )

    @property
    def dtype(self) -> torch.dtype:
        """What the model's own modules are called with: sums in float32 are rounded to it once."""
        return self.glue.entry.dtype

    @property
    def unmaskable(self) -> Tensor:
        """The part of the embedding that belongs to no node: positions, or nothing."""
        position = self.glue.position
        return position.new_zeros(()) if self.embeddings == 2 else position

    @property
    def stream(self) -> list[Tensor]:
        """The ablated residual stream at every place."""
        if self._stream is not None:
            return self._stream
        values = self.ablated_values
        with torch.no_grad():
            stream = values.stream or residuals(self.arch, values, self.unmaskable, self.glue.entry)
        if self.constants is None:
            self._stream = stream
        return stream

    def prefix(self, layer: int, stop: int) -> Tensor:
        """``[B, stop, 2 * H_kv, dh]``: keys and values of the positions that have no Delta."""
        if layer not in self._prefix:
            block, x = self.arch.blocks[layer], self.stream[2 * layer][:, : self.start]
            x = x.to(self.dtype)
            norm = block.attention_norm
            with block.present():
                qkv = block.project(x if norm is None else norm(x))
            shape = (block.rows, block.head_dim)
            self._prefix[layer] = qkv.unflatten(-1, shape)[:, :, block.heads :].clone()
        return self._prefix[layer][:, :stop]

    def calls(self, copies: int) -> tuple[Call, ...]:
        """Attention arguments for the batch repeated ``copies`` times."""
        if copies not in self._calls:
            self._calls[copies] = (
                self.glue.calls
                if copies == 1
                else self.arch.glue(self.inputs.clean.repeat(copies, 1)).calls
            )
        return self._calls[copies]

    def read_out(self, final: Tensor) -> Tensor:
        """Outputs ``[B, V]`` or ``[B, P, V]`` from the final residual ``[B, T, D]``."""
        rows = final.reshape(-1, final.shape[-1])[self.inputs.answers]
        logits = self.arch.read_out(rows.to(self.dtype))
        return logits.view(*self.inputs.shape, -1)

    def _output(self, clean: bool) -> Tensor:
        if clean in self._outputs:
            return self._outputs[clean]
        self.require_same_weights()
        if clean:
            # Not kept: the outputs are wanted at every step, the values hardly ever.
            values = self.compute(self, True) if self._clean is None else self._clean
            stream = values.stream or residuals(self.arch, values, self.unmaskable, self.glue.entry)
        else:
            stream = self.stream
        with torch.no_grad(), self.arch.running():
            outputs = self.read_out(stream[-1])
        if clean or self.constants is None:
            self._outputs[clean] = outputs
        return outputs

    @property
    def nbytes(self) -> int:
        """Ablated values and streams, the prefix's keys and values, and the outputs of both ends.

        Clean values count once they were asked for.
        """
        entry, blocks = self.glue.entry, self.arch.blocks
        layers, tokens = len(blocks), entry.shape[0] * entry.shape[1]
        code = blocks[0].heads * blocks[0].head_dim
        each = (layers + 1) * entry.shape[-1] + layers * code
        stream = (2 * layers + 1) * entry.shape[-1] * wide(entry[:0]).element_size()
        prefix = 2 * blocks[0].kv_heads * blocks[0].head_dim * layers
        logits = cast(Tensor, self.arch.embedding.weight).shape[0] * len(self.inputs.answers)
        runs = tokens * (1 if self._clean is None else 2)
        count = each * runs + 2 * logits + prefix * self.start * entry.shape[0]
        return entry.element_size() * count + stream * runs

    @property
    def full(self) -> Tensor:
        """Outputs of the unmasked model, ``[B, V]`` or ``[B, P, V]``."""
        return self._output(True)

    @property
    def ablated(self) -> Tensor:
        """Outputs with every edge ablated, shaped as ``full``."""
        return self._output(False)


def entry_embeddings(glue: Glue, embeddings: int) -> Tensor:
    """``[E, B, T, D]``: what the embedding nodes send."""
    if embeddings == 1:
        return (glue.entry - glue.position)[None]
    position = glue.position.expand_as(glue.entry)
    return torch.stack([glue.entry - position, position])
