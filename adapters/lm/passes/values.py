"""The values every writer sends, in compact form, and the ablated residual stream they add up to.

A head's message is kept as its *code* (d_head numbers, see ``Block.share``), so one run costs
``(2 L + 1) D`` numbers for each token instead of ``L H D``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Reference
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError

from ..describe.architecture import Architecture, DecoderBlock
from ..describe.layout import EdgeLayout
from ..describe.module_copies import Call, Glue
from ..describe.norms import wide
from .inputs import Inputs

__all__ = ["LMReference", "Values", "residuals"]


@dataclass(frozen=True, eq=False)
class Values:
    """What each writer sends: ``embed [E, B, T, D]``, ``codes`` and ``mlps`` for each layer.

    Position axes may have length 1 (means pooled over positions), batch axes too. ``heads``
    ``[H, D]`` of each layer is added to what codes give: learned constants are no head's code.
    ``stream`` is the residual stream at the attention, MLP and final places, where known: in
    float32 at least, as every sum of messages is.
    ``layout`` says whose values they are, where they outlive a batch (means).
    """

    embed: Tensor
    codes: list[Tensor]
    mlps: list[Tensor]
    stream: list[Tensor] | None = None
    layout: EdgeLayout | None = None
    heads: Sequence[Tensor] | None = None

    @classmethod
    def means_of(cls, ablation: Ablation, layout: EdgeLayout, width: int) -> Values:
        """The means of an ablation; raises :class:`InputError` for those of another model."""
        means = ablation.values
        if not isinstance(means, cls):
            raise InputError("mean ablation needs the values that model.mean_ablation(...) gives")
        if means.layout != layout or means.mlps[0].shape[-1] != width:
            raise InputError(
                f"these means come from another model: {means.layout}, width "
                f"{means.mlps[0].shape[-1]}; this one is {layout}, width {width}"
            )
        return means

    def map(self, function: Callable[[Tensor], Tensor]) -> Values:
        """Every writer's value through ``function``, one embedding or layer at a time."""
        embed = torch.stack([function(e) for e in self.embed])
        return Values(embed, [function(c) for c in self.codes], [function(m) for m in self.mlps])

    def deltas(self, other: Values, arch: Architecture) -> Tensor:
        """``[W, B, T, D]``: each writer's message minus the ``other``'s, in one buffer."""
        batch, length, width = self.mlps[0].shape
        start = len(self.embed)
        writers = start + sum(block.heads + block.shape.mlp for block in arch.blocks)
        out = self.mlps[0].new_empty(writers, batch * length, width)
        tokens = torch.arange(batch * length, device=out.device)
        self.embedding_deltas(other, tokens, out[:start])
        for block in arch.blocks:
            stop = start + block.heads + block.shape.mlp
            with block.loaded():
                self.block_deltas(other, block, tokens, out[start:stop])
            start = stop
        return out.view(writers, batch, length, width)

    def embedding_deltas(self, other: Values, tokens: Tensor, out: Tensor) -> None:
        """Writes the embeddings' messages minus the ``other``'s into ``out [E, s, D]``.

        ``tokens [s]`` are flat numbers, those of B * T.
        """
        for ours, theirs, target in zip(self.embed, other.embed, out, strict=True):
            target.copy_(self._at(ours, tokens) - self._at(theirs, tokens))

    def block_deltas(self, other: Values, block: DecoderBlock, tokens: Tensor, out: Tensor) -> None:
        """The same of one layer's heads and MLP, into ``out [H + 1, s, D]``.

        Messages are made in the model's dtype, whatever the dtype of ``out``.
        """
        i, heads, weight = block.index, block.heads, block.output_weight
        code = self._at(self.codes[i], tokens) - self._at(other.codes[i], tokens)
        split = code.view(len(tokens), heads, -1).transpose(0, 1)
        if out.dtype == code.dtype:
            torch.bmm(split, weight, out=out[:heads])
        else:  # a head at a time: the copy in the model's dtype is small
            for one, matrix, target in zip(split, weight, out[:heads], strict=True):
                target.copy_(one @ matrix)
        if block.gain is not None:
            out[:heads].mul_(block.gain)
        if other.heads is not None:
            out[:heads].sub_(other.heads[i][:, None])
        if block.shape.mlp:
            out[heads].copy_(self._at(self.mlps[i], tokens) - self._at(other.mlps[i], tokens))

    def _at(self, x: Tensor, tokens: Tensor) -> Tensor:
        """``[s, F]``: tokens of ``x [B or 1, T or 1, F]``, where 1 stands for all."""
        length = self.mlps[0].shape[1]
        example, position = tokens // length, tokens % length
        rows = example if x.shape[0] > 1 else torch.zeros_like(example)
        return x[rows, position if x.shape[1] > 1 else torch.zeros_like(position)]


def residuals(arch: Architecture, values: Values, glue: Glue, embeddings: int) -> list[Tensor]:
    """The residual stream when every writer sends ``values``: two places a layer, then the final.

    Sums stand in float32 at least: half precision would round the whole stream once for each layer.
    """
    x = wide(glue.unmaskable(embeddings)) + wide(values.embed).sum(0)
    x = x.expand_as(glue.entry)
    streams = []
    for block, code, mlp in zip(arch.blocks, values.codes, values.mlps, strict=True):
        streams.append(x)
        with block.loaded():
            middle = x + block.message(code)
        if values.heads is not None:
            middle = middle + values.heads[block.index].sum(0)
        streams.append(x if block.parallel else middle)
        x = middle + mlp
    streams.append(x)
    return streams


@dataclass(eq=False)
class LMReference(Reference):
    """Clean and ablated values of one batch; each is computed when first asked for, once.

    Ablated values that are learned may change between runs and are made anew each time. ``start``
    is the first position at which a Delta can differ from 0; ``checkpointing`` makes backward
    compute every layer again instead of keeping its activations. ``weights``: the state of the
    model's weights when it was made (``None`` means they come and go).
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
    prefixes: dict[int, Tensor] = field(default_factory=dict, init=False)
    constants: Tensor | None = field(init=False)
    exact_counterfactual: bool = field(init=False)
    _outputs: dict[bool, Tensor] = field(default_factory=dict, init=False)
    _calls: dict[int, tuple[Call, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.constants = self.ablation.parameters[0] if self.ablation.kind == "optimal" else None
        counterfactual = self.ablation.kind == "counterfactual"
        self.exact_counterfactual = counterfactual and self.inputs.alignment is None

    def take_over(self, values: Values, *, clean: bool) -> None:
        """Keeps clean (or ablated) values that another computation happened to make."""
        if clean:
            vars(self).setdefault("clean", values)
        elif self.exact_counterfactual:
            vars(self).setdefault("ablated_values", values)

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
        embed = self.glue.sent(self.embeddings) * real
        if not alike(embed, self.ablated_embed.expand_as(embed) * real):
            return False
        ours, other = self.clean, self.ablated_values
        pairs = zip([*ours.codes, *ours.mlps], [*other.codes, *other.mlps], strict=True)
        return all(alike(one * real, two.expand_as(one) * real) for one, two in pairs)

    @cached_property
    def clean(self) -> Values:
        """What each writer sends on the clean input."""
        return self.compute(self, True)

    @property
    def ablated_embed(self) -> Tensor:
        """``[E, B, T, D]``: ablated embeddings, which need no pass over the layers."""
        if "ablated_values" in vars(self) or not self.exact_counterfactual:
            return self.ablated_now().embed
        return self._corrupt_embed

    @cached_property
    def _corrupt_embed(self) -> Tensor:
        assert self.inputs.corrupt is not None
        with torch.no_grad():
            return self.arch.glue(self.inputs.corrupt).sent(self.embeddings)

    @cached_property
    def ablated_values(self) -> Values:
        """What stands in for each writer's message where an edge is ablated.

        Learned ones as they were when first asked for; :meth:`ablated_now` has them as they are.
        """
        return self.compute(self, False)

    def ablated_now(self) -> Values:
        """Ablated values as they are now: an optimiser changes learned ones between runs."""
        return self.ablated_values if self.constants is None else self.compute(self, False)

    @property
    def dtype(self) -> torch.dtype:
        """What the model's own modules are called with: sums in float32 are rounded to it once."""
        return self.glue.entry.dtype

    @cached_property
    def stream(self) -> list[Tensor]:
        """The ablated residual stream at every place."""
        return self.stream_of(self.ablated_values)

    def stream_of(self, values: Values) -> list[Tensor]:
        """The residual stream at every place when every writer sends ``values``."""
        with torch.no_grad():
            return values.stream or residuals(self.arch, values, self.glue, self.embeddings)

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
        self.arch.snapshot.require_same(self.weights)
        if clean:
            # Not kept: the outputs are wanted at every step, the values hardly ever.
            values = vars(self).get("clean") or self.compute(self, True)
            stream = self.stream_of(values)
        else:
            stream = self.stream if self.constants is None else self.stream_of(self.ablated_now())
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
        codes = sum(block.heads * block.head_dim for block in blocks)
        each = (layers + 1) * entry.shape[-1] + codes
        stream = (2 * layers + 1) * entry.shape[-1] * wide(entry[:0]).element_size()
        prefix = sum((block.rows - block.heads) * block.head_dim for block in blocks)
        logits = len(self.arch.table) * len(self.inputs.answers)
        runs = tokens * (2 if "clean" in vars(self) else 1)
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
