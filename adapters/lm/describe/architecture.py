"""A user's model, taken apart along its family's description: blocks, glue, embeddings, head.

Everything here calls the user's own modules. ``Glue`` runs the model's own forward code around
empty layers to learn what each attention module is called with (masks, rotary tables) and what
enters the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..precision.rounding import Rounds
from .carried import GivenStream, given_below
from .experts import Copies, each_copy
from .family import Family
from .hooks import Snapshot, is_plain, uncompiled
from .layout import EdgeLayout
from .linear_maps import made_matrix, rounded_inputs
from .module_copies import (
    Call,
    FixedOutput,
    Glue,
    Recorder,
    Zero,
    always_there,
    attention_stand_ins,
    model_inputs,
    output_in_pieces,
    part,
    quiet,
    recomputing,
    replaced,
    run_between,
)
from .norms import Norm, ReaderProjections, WeightRows, centre, describe_norm, matrix, wide
from .offloading import WeightLoader, main_device
from .one_node import Same, one_node
from .steps import Stage, stages

__all__ = ["Architecture", "DecoderBlock"]


class DecoderBlock:
    """One layer: its readers' projections, its attention between them, its MLP and norms.

    ``coupled``: whether a head's message depends on other heads. ``rounds`` says how inputs of
    attention's products are rounded (``None`` means they are not); the layer's own modules then
    round what they are called with. ``stage`` describes this layer alone, and how it is run if
    whole; ``same``: what a mixer that is one node reads through.
    ``dtype``: what the layer computes in; ``plain``: whether its projections hold their matrices.
    """

    def __init__(
        self,
        stage: Stage,
        layer: nn.Module,
        index: int,
        loader: WeightLoader,
        same: Same | None,
        config: Any,
        dtype: torch.dtype,
        rounds: Rounds | None = None,
    ) -> None:
        family, whole = stage.family, stage.whole
        self.index, self.layer, self.family, self.dtype = index, layer, family, dtype
        self.partial = loader.needed
        self.loaded = loader if self.partial else always_there
        alone = EdgeLayout.of(family, config, layers=1)
        self.shape, self.parallel, self.coupled = alone.shapes[0], alone.parallel, alone.coupled
        self.shape = stage.named(self.shape, index)
        self.heads, self.kv_heads = self.shape.heads, self.shape.kv_heads
        self.rows, self.rows_of = self.shape.rows, self.shape.rows_of
        self.attention = part(layer, family.attention)
        self.mlp = whole.mlp if whole is not None else part(layer, family.mlp or "")
        if same is not None and family.blocks:
            self.attention = one_node(layer, family, same, None if whole is None else whole.mixer)
        self.output = part(self.attention, family.output)
        names = [family.query] if family.fused else [family.query, family.key, family.value]
        self.projecting = {name: part(self.attention, name) for name in names}
        self.plain = all(map(is_plain, (*self.projecting.values(), self.output)))
        self.rounds = rounds if self.plain else rounded_inputs(self.projecting, self.output)
        with self.loaded():
            weight, bias = self._matrix(self.output, family.output)
            like = weight.T[:0]
            self.attention_norm = self._norm(family.attention_norm, like)
            post = None if family.blocks else family.attention_post_norm
            self.attention_post_norm = self._norm(post, like)
            self.mlp_norm = self._norm(family.mlp_norm, like)
            self.mlp_post_norm = self._norm(family.mlp_post_norm, like)
        self.head_dim = weight.shape[1] // (1 if isinstance(self.output, Copies) else self.heads)
        if self.attention_post_norm is not None:
            self.attention_post_norm.require_shares(bias, f"layer {index}'s attention output")
        self.multiplier = family.residual_multiplier
        plain = family.fused_order == "qkv"
        self.triples = family.fused == "interleaved" and plain and self.heads == self.kv_heads
        self.order: list[int] | None = None  # of the stored row blocks, as readers are numbered
        if (family.fused not in (None, "blocks") and not self.triples) or not plain:
            stored = family.stored_order(self.heads, self.kv_heads)
            self.order = sorted(range(len(stored)), key=stored.__getitem__)
        parts = attention_stand_ins(family, self.heads, self.kv_heads, self.head_dim)
        self.core = replaced(self.attention, parts)
        self.recorder = Recorder() if whole is None else whole.recorder
        self.hollow = self._silent() if whole is None else whole.hollow
        self.recomputing_mlp = recomputing(self.mlp)
        self.mlp_size = sum(p.numel() for p in self.mlp.parameters())
        with self.loaded():
            _ = self.readers  # checks the projections' shapes now

    def _silent(self) -> nn.Module:
        """The layer adding nothing, and recording what its attention is called with."""
        family = self.family
        norms = [family.attention_norm, family.attention_post_norm]
        norms += [family.mlp_norm, family.mlp_post_norm]
        parts: dict[str, nn.Module] = {name: nn.Identity() for name in norms if name}
        parts |= {family.attention: self.recorder, family.mlp or "": Zero()}
        return replaced(self.layer, parts)

    def _norm(self, path: str | None, like: Tensor) -> Norm | None:
        if path is None:
            return None
        module = part(self.layer, path)
        return describe_norm(module, f"layer {self.index}'s {path}", self.partial, like)

    def _matrix(self, module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
        """``[out, in]`` weight and bias of a projection: views, or made anew."""
        where = f"layer {self.index}'s {self.family.attention}.{name}"
        return matrix(module, where) if is_plain(module) else made_matrix(module, where, self.dtype)

    @property
    def readers(self) -> tuple[WeightRows, ...]:
        """Row blocks of the projections in reader order: of plain ones views of the weights."""
        width, blocks = self.head_dim, []
        for name, module in self.projecting.items():
            weight, bias = self._matrix(module, name)
            if weight.shape[0] % width:
                raise UnsupportedModelError(
                    f"layer {self.index}'s projection {name} gives {weight.shape[0]} features, no "
                    f"multiple of head width {width}"
                )
            kinds = 3 if self.triples else 1  # rows go q, k, v head by head
            weight = weight.unflatten(0, (-1, kinds, width))
            bias = None if bias is None else bias.unflatten(0, (-1, kinds, width))
            for kind in range(kinds):
                rows = each_copy(module, weight[:, kind])
                blocks.append(WeightRows(rows, None if bias is None else bias[:, kind]))
        if self.order is not None:
            weight, bias = blocks[0].weight, blocks[0].bias
            blocks = [WeightRows(weight[self.order], None if bias is None else bias[self.order])]
        count = sum(len(rows.weight) for rows in blocks)
        if count != self.rows:
            raise UnsupportedModelError(
                f"layer {self.index} projects to {count} heads; expected {self.heads} query and "
                f"twice {self.kv_heads} key/value heads"
            )
        return tuple(blocks)

    @property
    def projections(self) -> ReaderProjections:
        """The readers' weights with the norm in front of them and what is rounded."""
        norm, held = self.attention_norm, self.readers if self.plain else None
        return ReaderProjections(held, lambda: self.readers, norm, self.rounds, self.heads)

    @property
    def output_weight(self) -> Tensor:
        """``[H, dh, D]``: each head's output map, of a plain one a view."""
        weight, _ = self._matrix(self.output, self.family.output)
        split: Tensor = weight.unflatten(1, (-1, self.head_dim))
        return each_copy(self.output, split.permute(1, 2, 0))

    def senders(self, centred: bool, *, exact: bool = False) -> Tensor:
        """``[H, dh, D]``: each head's map from code to message, without its mean if ``centred``.

        ``exact``: in float32 at least, so that neither the gain nor the mean rounds the weights.
        """
        weight = wide(self.output_weight) if exact else self.output_weight
        return centre(weight if self.gain is None else weight * self.gain, centred)

    def project(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., rows * dh]``: all readers at one input, by the user's modules."""
        if len(self.projecting) > 1:
            return torch.cat([module(x) for module in self.projecting.values()], -1)
        out: Tensor = self.projecting[self.family.query](x)
        if self.triples:
            out = out.unflatten(-1, (self.heads, 3, self.head_dim)).transpose(-2, -3).flatten(-3)
        elif self.order is not None:
            out = out.unflatten(-1, (self.rows, -1))[..., self.order, :].flatten(-2)
        return out

    def attend(self, qkv: Tensor, call: Call) -> Tensor:
        """``[B, T, rows * dh] -> z [B, T, H * dh]``: the user's attention between projections."""
        return run_between(self.core, qkv, call)

    def code(self, z: Tensor) -> Tensor:
        """``[..., H * dh]``: what the heads' output maps multiply, ``z`` or ``z`` rounded.

        Times the family's multiplier of what attention adds.
        """
        if self.rounds is not None:
            z = self.rounds.code(z.unflatten(-1, (self.heads, self.head_dim))).flatten(-2)
        return z if self.multiplier == 1 else z * self.multiplier

    def share(self, z: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """The layer's attention message ``[..., D]`` and each head's *code* ``[..., H * dh]``.

        A head's message is linear in its code: ``code_h @ output_weight_h`` (times the post-norm's
        gain). Without a post-norm the code is z; with one it is z times the norm's scale, which
        comes from the sum over all heads. Where a precision policy rounds z, read z rounded.
        """
        out: Tensor = self.output(z)
        z = self.code(z)
        norm = self.attention_post_norm
        if norm is None:
            return out if self.multiplier == 1 else out * self.multiplier, z
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            _, scale = norm.statistics(out)
        out = norm.frozen(out) if frozen else norm(out)
        return out if self.multiplier == 1 else out * self.multiplier, z * scale

    def message(self, code: Tensor) -> Tensor:
        """The attention message of given codes, output bias included."""
        if isinstance(self.output, Copies):
            return cast("Tensor", self.output(code))
        weight, bias = self._matrix(self.output, self.family.output)
        if bias is not None and self.multiplier != 1:
            bias = bias * self.multiplier
        out = nn.functional.linear(code, weight, bias)
        norm = self.attention_post_norm
        return out if norm is None else out * norm.gain

    @property
    def gain(self) -> Tensor | None:
        """``[D]``: what every head's message is multiplied with, if there is a post-norm."""
        return None if self.attention_post_norm is None else self.attention_post_norm.gain


class Architecture:
    """A causal language model resolved along its :class:`Family`; ``rounds``: of each layer."""

    def __init__(
        self, model: nn.Module, family: Family, rounds: tuple[Rounds | None, ...] | None = None
    ) -> None:
        self.model, self.family = model, family
        self.snapshot = Snapshot(model)
        config: Any = model.config
        self.config: Any = getattr(config, "get_text_config", lambda **_: config)(decoder=True)
        try:
            self.base = part(model, family.base)
            stack = part(self.base, family.layers)
            assert isinstance(stack, nn.ModuleList)
            layers = [uncompiled(layer) for layer in stack]
            self.embedding = part(self.base, family.embedding)
            device = main_device(self.embedding)
            loaders = [WeightLoader(model, list(layer.modules()), device) for layer in layers]
            inside = {m for layer in layers for m in layer.modules()}
            ends = WeightLoader(model, [m for m in model.modules() if m not in inside], device)
            self.outer_loaded = ends if ends.needed else always_there
            self.partial = any(p.needed for p in [*loaders, ends])
            self._device = device if self.partial else None
            self.final_norm: Norm | None = None
            if family.final_norm is not None:
                norm, at = part(self.base, family.final_norm), f"the final norm {family.final_norm}"
                with self.outer_loaded():
                    self.final_norm = describe_norm(norm, at, self.partial, self.table)
            each = rounds or (None,) * len(layers)
            uniform = family.mlp and not (family.blocks or family.steps or family.experts)
            same = None if uniform else Same(self.width, self.table.dtype, device)
            self.blocks: list[DecoderBlock] = []
            plain = [Stage(family, n, None) for n in range(len(layers))]
            for i, stage in enumerate(stages(model, layers, family, same) if same else plain):
                n = stage.number
                parts = stage, layers[n], i, loaders[n], same, self.config, self.table.dtype
                self.blocks.append(DecoderBlock(*parts, each[n]))
        except AttributeError as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} lacks a part that its family "
                f"({'/'.join(family.model_types)}) has: {error}"
            ) from error
        readers = [b.attention_norm for b in self.blocks]
        readers += [b.mlp_norm for b in self.blocks if b.shape.mlp]
        self.centred = Norm.centred_alike(readers, self.final_norm, type(model).__name__)
        self._table: Recorder | None = None
        stack = nn.ModuleList([b.hollow for b in self.blocks if b.hollow is not None])
        hollow: dict[str, nn.Module] = {family.layers: stack}
        if family.position is not None:
            self._table = hollow[family.position] = Recorder(part(self.base, family.position))
        self._hollow = replaced(self.base, hollow)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around every computation: modules are quiet, and nothing was put on them meanwhile."""
        with quiet(self.model):
            self.snapshot.check()
            yield

    @cached_property
    def width(self) -> int:
        """Size D of the residual stream."""
        table = int(self.table.shape[-1])
        if self.final_norm is None:  # and tables may be narrower
            return self.family.carries or int(getattr(self.config, "hidden_size", table))
        return int(self.final_norm.gain.shape[-1])

    @property
    def _sample(self) -> Tensor:
        """A tensor of the residual stream's width, dtype and device."""
        return self.table if self.final_norm is None else self.final_norm.gain

    @property
    def table(self) -> Tensor:
        """``[tokens, D]``: the embedding's weight, the user's own."""
        return cast(Tensor, self.embedding.weight)

    @property
    def position_table(self) -> Tensor | None:
        """``[positions, D]``: what is added for positions; ``None`` where no table is."""
        path = self.family.position
        weight = None if path is None else getattr(part(self.base, path), "weight", None)
        return weight if isinstance(weight, Tensor) else None

    @property
    def table_positions(self) -> int | None:
        """How many positions the added table has; ``None`` where none is added."""
        if self.family.position is None:
            return None
        limit = getattr(self.config, "max_position_embeddings", None)
        rows = [] if self.position_table is None else [len(self.position_table)]
        return min([*rows, *([limit] if isinstance(limit, int) else [])], default=None)

    def drawn_ids(self, *shape: int, seed: int = 0) -> Tensor:
        """Random token ids of a shape."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(self.table), shape, generator=generator).to(self.device)

    @cached_property
    def outputs(self) -> int:
        """How many logits the model gives."""
        return int(self.config.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights, told by its final norm (or its embedding)."""
        return self._sample.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes, and every input goes."""
        return self._sample.device if self._device is None else self._device

    def glue(self, ids: Tensor) -> Glue:
        """Runs the model's own code around empty layers. ``ids [B, T]``."""
        recorders = [b.recorder for b in self.blocks]
        try:
            with self.outer_loaded():
                self._hollow(**model_inputs(self._hollow, ids))
            entry = recorders[0].hidden
            assert entry is not None
            position = entry.new_zeros(()) if self._table is None else self._table.output
            assert position is not None
            calls = tuple(r.arguments for r in recorders)
            if any(r.hidden is None for r in recorders):
                raise UnsupportedModelError("a layer never called its attention module")
            return Glue(entry, position.to(entry), calls)
        finally:
            for recorder in recorders:
                recorder.clear()
            if self._table is not None:
                self._table.clear()

    def read_out(self, rows: Tensor) -> Tensor:
        """``[n, V]`` logits of final residuals ``[n, D]``."""
        with self.outer_loaded():
            return self.unembed(rows if self.final_norm is None else self.final_norm(rows))

    def unembed(self, hidden: Tensor) -> Tensor:
        """``[n, V]`` logits of final normed states ``[n, D]``, by the model's own head and caps."""
        in_pieces = not torch.is_grad_enabled() and self.device.type == "cpu"
        base, top = self._tops[in_pieces]
        base.hidden = hidden[None]
        try:
            ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
            logits: Tensor = top(input_ids=ids).logits[0]  # some ask how many there are
        finally:
            base.hidden = None
        return wide(logits)

    @cached_property
    def _tops(self) -> tuple[tuple[FixedOutput | GivenStream, nn.Module], ...]:
        """What stands in for the base model and the model above it; then its output in pieces."""
        tops = []
        for parts in ({}, output_in_pieces(self.model)):
            base: FixedOutput | GivenStream = FixedOutput(self.base)
            below: dict[str, nn.Module] = {self.family.base: base}
            if self.family.carried:
                base, below = given_below(self.family, [b.attention for b in self.blocks])
            tops.append((base, replaced(self.model, below | parts)))
        return tuple(tops)
