"""A language model in a policy's precisions: a copy of the user's module with rounded projections.

The copy shares everything but what is rounded. A layer's tensors are q, k, v and the output map of
its attention, whichever way its family stores them, and each linear map of its MLP; q rows and
columns of the output map follow their head, k and v rows their key/value head, MLPs their node.
``output`` is the unembedding (weight and input), ``embed`` the tables (weights alone). Norms,
biases, attention scores and the residual stream stay in the model's own dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import UnsupportedModelError, unknown_name
from graphprune.precision import BITS, Lowered, Precision, PrecisionDefaults, PrecisionPolicy

from ..describe.architecture import Architecture, DecoderBlock
from ..describe.layout import EdgeLayout
from ..describe.linear_maps import require_plain
from ..describe.module_copies import replaced
from ..describe.norms import matrix
from .linears import NativeLinear, RoundedLinear, RoundedRows, native_kernel
from .rounding import LARGEST, Rounds, lowered, mixed, round_to, scale_of, straight

__all__ = ["DEFAULTS", "Lowering", "lower"]

KINDS = ("embed", "head", "kv", "mlp", "output")
DEFAULTS = PrecisionDefaults(
    PrecisionPolicy({"head": "fp8", "mlp": "bf16"}), rounded=("head", "mlp"), raised=("head", "kv")
)
"""PAHQ's and RTN-Q's as described: heads in fp8 with scales, MLPs in bf16, all else float32.

Heads under investigation are raised, a grouped key/value head with its query heads.
"""

_SHARED = (
    "a reader's or a head's share of a layer's product is exact in the model's own dtype alone; "
    "native kernels serve MLPs"
)

_WEIGHTS = "weights alone are rounded, so products are the model's own"


@dataclass(frozen=True, eq=False)
class Lowering:
    """A copy of ``source`` in lower precision, what its attention rounds, and what came of it.

    ``places`` holds the rounded modules of each layer's attention and MLP, and of the ends.
    """

    source: nn.Module
    module: nn.Module
    rounds: tuple[Rounds | None, ...]
    report: Lowered
    places: dict[tuple[str, int], _RoundedPart]


def lower(
    arch: Architecture,
    layout: EdgeLayout,
    graph: ComputationalGraph,
    policy: PrecisionPolicy,
    like: Lowering | None = None,
) -> Lowering:
    """The architecture's model in the policy's precisions.

    Places that ``like``, of the same source, rounds in the same way are shared with it.
    Raises :class:`InputError` for kinds and nodes that the graph cannot have, and
    :class:`UnsupportedModelError` for a model of another dtype than float32 or float64, weights
    that come and go, and a precision that is not native where the policy refuses emulation.
    """
    _check(arch, graph, policy)
    places: dict[tuple[str, int], _RoundedPart] = {}
    last = len(arch.blocks)
    for block in arch.blocks:
        for what in ("attention", "mlp"):
            places[what, block.index] = _RoundedPart(arch, layout, policy, block)
    places["ends", last] = _RoundedPart(arch, layout, policy, None)
    for (what, layer), place in places.items():
        old = None if like is None else like.places[what, layer]
        if old is not None and place.key(what) == old.key(what):
            places[what, layer] = old
        else:
            getattr(place, what)()
    emulated: dict[Precision, str] = {}
    for place in places.values():
        emulated = place.emulated | emulated
    if policy.emulate is False and emulated:
        why = "; ".join(f"{p}: {reason}" for p, reason in sorted(emulated.items()))
        raise UnsupportedModelError(
            f"the policy refuses emulation and native kernels are lacking for {why}. "
            "Use emulate='auto' or True"
        )
    source = arch.model
    parts = {path: module for place in places.values() for path, module in place.parts.items()}
    full = sum(p.numel() * p.element_size() for p in source.parameters())
    used: list[Precision] = sorted({p for place in places.values() for p in place.used})
    report = Lowered(
        policy,
        native={p: p not in emulated for p in used},
        emulated_because={p: emulated[p] for p in used if p in emulated},
        weight_bytes=full - sum(place.saved for place in places.values()),
        full_weight_bytes=full,
    )
    return Lowering(
        source,
        replaced(source, parts) if parts else source,
        tuple(places["attention", block.index].rounds for block in arch.blocks),
        report,
        places,
    )


def _check(arch: Architecture, graph: ComputationalGraph, policy: PrecisionPolicy) -> None:
    names = {node.name for node in graph.nodes}
    for what, named, known in (
        ("kind", policy.kinds, set(KINDS)),
        ("node", policy.nodes, names),
    ):
        unknown = sorted(set(named) - known)
        if unknown:
            some = KINDS if what == "kind" else sorted(known)
            raise unknown_name(what, unknown[0], some, where="the precision policy")
    if arch.dtype not in (torch.float32, torch.float64):
        raise UnsupportedModelError(
            f"a precision policy lowers a float32 (or float64) model; this one is "
            f"{str(arch.dtype).removeprefix('torch.')}: load it with dtype=torch.float32"
        )
    require_plain(arch.model, arch.blocks, "a precision policy rounds plain weights")
    if arch.partial:
        raise UnsupportedModelError(
            "a precision policy needs all weights at hand; this model's are offloaded or sharded"
        )


@dataclass(eq=False)
class _RoundedPart:
    """A layer's attention, its MLP or the ends (no ``block``): rounded modules by path.

    ``rounds``: what the attention rounds beside its weights. ``saved``: bytes.
    """

    arch: Architecture
    layout: EdgeLayout
    policy: PrecisionPolicy
    block: DecoderBlock | None
    parts: dict[str, nn.Module] = field(default_factory=dict)
    rounds: Rounds | None = None
    used: set[Precision] = field(default_factory=set)
    emulated: dict[Precision, str] = field(default_factory=dict)
    saved: int = 0

    def key(self, what: str) -> tuple[object, ...]:
        """Places with equal keys are rounded in the same way."""
        policy = self.policy
        precisions: tuple[object, ...]
        if what == "attention":
            precisions = self._attention_precisions()
        elif what == "mlp":
            precisions = (self._mlp_precision(),)
        else:
            nodes = (("logits", "output"), ("input", "embed"), ("position", "embed"))
            precisions = tuple(policy.of(*node) for node in nodes)
        return precisions, policy.weight_scale, policy.activations, policy.emulate

    # -------------------------------------------------------------- attention

    def _attention_precisions(self) -> tuple[tuple[Precision, ...], tuple[Precision, ...]]:
        """Of q of each head, then k and v of each key/value head; and of each head's output map."""
        assert self.block is not None
        layer, shape = self.block.index, self.layout.shapes[self.block.index]
        names = [f"a{layer}.h{h}" for h in range(shape.heads)]
        heads: tuple[Precision, ...] = tuple(self.policy.of(name, "head") for name in names)
        kvs: tuple[Precision, ...] = heads
        if shape.own_kv:
            names = [f"a{layer}.kv{j}" for j in range(shape.kv_heads)]
            kvs = tuple(self.policy.of(name, "kv", "head") for name in names)
        return (*heads, *kvs, *kvs), heads

    def attention(self) -> None:
        """Replaces the layer's projections and output map."""
        assert self.block is not None
        block, family = self.block, self.arch.family
        rows, heads = self._attention_precisions()
        if set(rows) == {"fp32"}:
            return
        rounds = Rounds(rows, heads)
        for precision in lowered(rows):
            self._emulates(precision, _SHARED if self.policy.activations else _WEIGHTS)
        at = _join(family.base, family.layers, str(block.index), family.attention)
        for name, own in _stored_rows(block):
            self._projection(block, _join(at, name), own, rows)
        self._output(block, _join(at, family.output), heads, rounds)
        self.rounds = rounds if self.policy.activations else None

    def _projection(
        self, block: DecoderBlock, path: str, own: list[int], rows: Sequence[Precision]
    ) -> None:
        """A map whose row blocks ``[dh, D]`` are the readers ``own``."""
        weight, bias = matrix(self.arch.model.get_submodule(path), path)
        precisions: list[Precision] = [rows[i] for i in own]
        if set(precisions) == {"fp32"}:
            return
        split = weight.detach().unflatten(0, (len(own), block.head_dim))
        largest = split.abs().amax(-1, keepdim=True)
        ends = torch.tensor([block.heads, block.heads + block.kv_heads])
        tensors = torch.searchsorted(ends, torch.tensor(own), right=True)
        if self.policy.weight_scale == "tensor":
            for tensor in tensors.unique():
                of_tensor = (tensors == tensor).to(largest.device)
                largest[of_tensor] = largest[of_tensor].max()
        new = mixed(split, precisions, largest).flatten(0, 1)
        per_row = self.policy.weight_scale == "row"
        scales = split.shape[1] if per_row else len(tensors.unique()) / len(own)
        for precision in precisions:
            self._saves(precision, split[0].numel(), scales)
        kinds: list[Precision] = [p for p in precisions for _ in range(block.head_dim)]
        if not self.policy.activations:
            self.parts[path] = RoundedLinear(new, bias)
        elif len(set(precisions)) == 1:
            before = partial(straight, precision=precisions[0])
            self.parts[path] = RoundedLinear(new, bias, before)
        else:
            self.parts[path] = RoundedRows(new, bias, kinds)

    def _output(
        self, block: DecoderBlock, path: str, heads: Sequence[Precision], rounds: Rounds
    ) -> None:
        if set(heads) == {"fp32"}:
            return
        weight, bias = matrix(block.output, path)
        split = weight.detach().unflatten(1, (block.heads, block.head_dim)).transpose(0, 1)
        per_row = self.policy.weight_scale == "row"
        largest = split.abs().amax((0, 2), keepdim=True)
        largest = largest if per_row else largest.amax().view(1, 1, 1)
        new = mixed(split, heads, largest).transpose(0, 1).flatten(1).contiguous()
        for precision in heads:
            scales = weight.shape[0] if per_row else 1
            self._saves(precision, split[0].numel(), scales / len(heads))

        def before(z: Tensor) -> Tensor:
            return rounds.code(z.unflatten(-1, (block.heads, block.head_dim))).flatten(-2)

        self.parts[path] = RoundedLinear(new, bias, before if self.policy.activations else None)

    # -------------------------------------------------------------- MLPs and ends

    def _mlp_precision(self) -> Precision:
        assert self.block is not None
        return self.policy.of(f"m{self.block.index}", "mlp")

    def mlp(self) -> None:
        """Replaces every linear map of the layer's MLP."""
        assert self.block is not None
        block, precision = self.block, self._mlp_precision()
        if precision == "fp32":
            return
        family = self.arch.family
        at = _join(family.base, family.layers, str(block.index), family.mlp or "")
        for name, module in block.mlp.named_modules():
            if any(p.ndim > 1 for p in module.parameters(recurse=False)):
                name = name if family.mlp else name.removeprefix("layer.")
                self._linear(_join(at, name), module, precision, native=True)

    def ends(self) -> None:
        """Replaces the unembedding and the embedding tables."""
        family, model = self.arch.family, self.arch.model
        precision = self.policy.of("logits", "output")
        if precision != "fp32":
            causal: Any = model
            head = causal.get_output_embeddings()
            path = next(name for name, m in model.named_modules() if m is head)
            if head.weight is self.arch.table:
                self._shares_table(matrix(head, path)[0], precision)
            self._linear(path, head, precision, native=False)
        for node, name in (("input", family.embedding), ("position", family.position)):
            precision = self.policy.of(node, "embed")
            if precision == "fp32" or name is None:
                continue
            path = _join(family.base, name)
            table = model.get_submodule(path)
            weight = table.weight
            assert isinstance(weight, Tensor)
            twin = copy.copy(table)
            rounded = round_to(weight.detach(), precision, self._largest(weight.detach()))
            twin._parameters = {"weight": nn.Parameter(rounded, requires_grad=False)}
            self.parts[path] = twin
            self._emulates(precision, "looking up a row is no product")
            self._saves(precision, weight.numel(), self._scales(weight))

    def _shares_table(self, weight: Tensor, precision: Precision) -> None:
        """An unembedding tied to the table is stored beside it, unless both are rounded alike."""
        numbers, scales = weight.numel(), self._scales(weight)
        self.saved -= numbers * self.arch.dtype.itemsize
        if self.policy.of("input", "embed") == precision:
            self.saved += _stored(precision, numbers, scales)

    def _linear(self, path: str, module: nn.Module, precision: Precision, *, native: bool) -> None:
        weight, bias = matrix(module, path)
        weight = weight.detach()
        largest = self._largest(weight)
        self._saves(precision, weight.numel(), self._scales(weight))
        new = round_to(weight, precision, largest)
        if not self.policy.activations:
            self._emulates(
                precision, "weights alone are rounded, so the product is the model's own"
            )
            self.parts[path] = RoundedLinear(new, bias)
            return
        why = native_kernel(precision, weight.device) if native else _SHARED
        if weight.dtype != torch.float32:
            why = "the model is float64"
        if self.policy.emulate is True:
            why = "the policy asks for emulation"
        if why is None:
            scale = scale_of(largest, precision) if precision in LARGEST else None
            self.used.add(precision)
            self.parts[path] = NativeLinear(new, bias, precision, scale)
            return
        self._emulates(precision, why)
        before = partial(straight, precision=precision)
        self.parts[path] = RoundedLinear(new.contiguous(), bias, before)

    # -------------------------------------------------------------- accounts

    def _largest(self, weight: Tensor) -> Tensor:
        """``[out or 1, 1]``: what the weight's scales come from."""
        size = weight.abs()
        if self.policy.weight_scale == "row":
            return size.amax(-1, keepdim=True)
        return size.amax().view(1, 1)

    def _scales(self, weight: Tensor) -> int:
        return weight.shape[0] if self.policy.weight_scale == "row" else 1

    def _emulates(self, precision: Precision, why: str) -> None:
        self.used.add(precision)
        self.emulated.setdefault(precision, why)

    def _saves(self, precision: Precision, numbers: int, scales: float) -> None:
        """Counts bytes that weights stored in the precision do not take."""
        if precision != "fp32":
            size = self.arch.dtype.itemsize
            self.saved += numbers * size - _stored(precision, numbers, scales)


def _stored(precision: Precision, numbers: int, scales: float) -> int:
    """Bytes of so many weights, scales (float32) included."""
    return round(numbers * BITS[precision] / 8 + (4 * scales if precision in LARGEST else 0))


def _join(*path: str) -> str:
    return ".".join(part for part in path if part)


def _stored_rows(block: DecoderBlock) -> Iterator[tuple[str, list[int]]]:
    """Each projection's name, and the reader of each of its row blocks in stored order."""
    family, heads, kv = block.family, block.heads, block.kv_heads
    if family.fused is not None:
        yield family.query, family.stored_order(heads, kv)
    else:
        yield family.query, list(range(heads))
        yield family.key, list(range(heads, heads + kv))
        yield family.value, list(range(heads + kv, block.rows))
