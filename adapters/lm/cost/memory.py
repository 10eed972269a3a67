"""Memory of one batch of a language model, part by part, as the engine makes it.

Sizes are those of the tensors that ``passes`` and ``attribution`` hold; every part carries the
phases it lives in. All grow with the tokens of a batch, but for weights and a slice's Deltas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from graphprune.methods.costs import MemoryPart, RunShape

from ..attribution.gradients import KEPT_POINTS, slice_of_tokens
from ..describe.family import Family
from ..describe.module_copies import part
from ..describe.shape import Shape, random_model, truncated
from ..passes.incremental import rows_at_once

__all__ = ["LayerFacts", "Memory"]

_PASS = ("forward", "backward")
_MIB = 2**20


@dataclass(frozen=True)
class LayerFacts:
    """How many numbers a token's MLP keeps for its backward; whether norms subtract means."""

    kept_by_mlp: int
    centred: bool

    @classmethod
    def of(cls, config: Any, family: Family) -> LayerFacts:
        """Read off one layer on the meta device, which has shapes and no numbers."""
        model = random_model(truncated(config, 1), torch.device("meta"), torch.float32)
        base = part(model, family.base)
        layer = part(base, f"{family.layers}.0")
        assert family.mlp is not None  # plans are of known families
        mlp = part(layer, family.mlp)
        parameters = {p.untyped_storage()._cdata for p in mlp.parameters()}
        kept: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()._cdata
            if storage not in parameters and x.ndim > 2:
                kept[storage] = max(x.numel(), kept.get(storage, 0))
                alive.append(x)
            return x

        alive: list[Tensor] = []
        table: Any = part(base, family.embedding)
        probe = torch.empty(1, 1, table.weight.shape[1], device="meta", requires_grad=True)
        with torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
            mlp(probe)
        norm = family.mlp_norm or family.attention_norm or family.final_norm
        owner = layer if norm != family.final_norm else base
        centred = norm is not None and isinstance(part(owner, norm), nn.LayerNorm)
        return cls(sum(kept.values()), centred)


@dataclass(frozen=True, eq=False)
class Memory:
    """The parts of each kind of pass. All counts are bytes."""

    shape: Shape
    request: RunShape
    checkpointing: bool
    facts: LayerFacts

    # ---------------------------------------------------------------- numbers

    @property
    def item(self) -> int:
        """Of a number in the model's dtype."""
        return self.shape.dtype.itemsize

    @property
    def wide(self) -> int:
        """Of a number in float32 at least."""
        return max(self.item, 4)

    @property
    def tokens(self) -> int:
        """Of a batch."""
        return self.request.batch_size * self.request.tokens

    @property
    def answers(self) -> int:
        """Tokens of a batch that are read out."""
        return self.request.batch_size * self.request.answers

    @property
    def streams(self) -> int:
        """Places of the residual stream that are tensors of their own."""
        layers = self.shape.layout.layers
        return (1 if self.shape.layout.parallel else 2) * layers + 1

    def values(self, item: int | None = None) -> int:
        """What one pass leaves of a token: codes, messages, and streams (float32 at least)."""
        layout, width = self.shape.layout, self.shape.width
        item = self.item if item is None else item
        sent = (layout.layers + 1) * width + layout.layers * layout.heads * self.shape.head_dim
        return sent * item + (2 * layout.layers + 1) * width * max(item, 4)

    @property
    def reference(self) -> int:
        """Ablated codes, messages and streams, and both ends' outputs: ``LMReference.nbytes``."""
        return self.values() * self.tokens + 2 * 4 * self.shape.outputs * self.answers

    @property
    def slots(self) -> tuple[int, int]:
        """Slots of the main delta buffer and of the answers' one (0: there is none)."""
        layout = self.shape.layout
        if 2 * self.request.answers <= self.request.tokens:
            return 1 + layout.head(layout.layers - 1), 1 + layout.writers
        return 1 + layout.writers, 0

    @property
    def attention(self) -> int:
        """Numbers of a token that one layer's attention leaves: q/k/v, turned, repeated, code."""
        shape, layout = self.shape, self.shape.layout
        heads, dh = layout.heads, shape.head_dim
        turned = 0 if shape.family.position is not None else (heads + layout.kv_heads) * dh
        repeated = 2 * heads * dh if layout.kv_heads != layout.heads else 0
        return layout.rows * dh + heads * dh + turned + repeated

    # ---------------------------------------------------------------- parts

    def parts(self) -> list[MemoryPart]:
        """Those of the request's kind of pass."""
        kinds = {
            "step": self._step,
            "forward": self._forward,
            "attribution": self._attribution,
            "messages": self._messages,
            "trials": self._trials,
        }
        weights = MemoryPart("weights", self.shape.parameters * self.item)
        parts = [weights, *kinds[self.request.kind]()]
        if self.request.here and self.request.device.type == "cpu":
            parts += self._on_cpu(parts)
        return parts

    def _on_cpu(self, parts: list[MemoryPart]) -> list[MemoryPart]:
        """What a process holds beyond its tensors: measured on Linux with glibc and oneDNN.

        Memory that was freed is not handed back, only used again; products in half precision copy
        operands whose rows do not stand together; libraries have work space.
        """
        named = {part.name: part.bytes for part in parts}
        half = self.item == 2
        idle = max(0, named.get("clean pass", 0) - named.get("kept graphs", 0))
        found = [
            MemoryPart("not handed back", idle, ("forward", "backward", "update")),
            MemoryPart("work space", (24 if half else 12) * _MIB),
        ]
        if half:
            names = ("its gradient", "a layer's inputs")
            found.append(MemoryPart("copied operands", sum(named.get(n, 0) for n in names), _PASS))
        return found

    def _masked(self) -> list[MemoryPart]:
        """What masked passes have in common: reference, clean pass, Deltas, a layer's inputs."""
        shape, layout, width = self.shape, self.shape.layout, self.shape.width
        n = self.tokens * self.request.copies
        main, tail = self.slots
        slots = (n * main + self.answers * self.request.copies * tail) * width
        plain = self.tokens * (3 * shape.hidden + 4 * width) * self.item
        folded = layout.heads * shape.head_dim * width * self.wide
        folded *= 2 if self.facts.centred else 1
        return [
            MemoryPart("reference", self.reference),
            MemoryPart("clean pass", self.values() * self.tokens, ("reference",)),
            MemoryPart("a plain layer", plain, ("reference",)),
            MemoryPart("Delta", slots * self.wide, _PASS),
            MemoryPart("a layer's inputs", n * (layout.rows + 1) * width * self.wide, _PASS),
            MemoryPart("a layer's weights", folded, _PASS),
            MemoryPart(
                "outputs", 3 * 4 * shape.outputs * self.answers * self.request.copies, _PASS
            ),
        ]

    def _forward(self) -> list[MemoryPart]:
        """A masked run without gradients."""
        n = self.tokens * self.request.copies
        each = self.attention + self.facts.kept_by_mlp
        return [*self._masked(), MemoryPart("a layer's values", n * each * self.item, _PASS)]

    def _step(self) -> list[MemoryPart]:
        """A masked forward and backward."""
        shape, layout, width = self.shape, self.shape.layout, self.shape.width
        n = self.tokens * self.request.copies
        main, tail = self.slots
        slots = (n * main + self.answers * self.request.copies * tail) * width
        mlp = (3 if shape.gated else 1) * shape.hidden
        # Attention's insides are made again for one layer at a time.
        graph = (layout.rows * shape.head_dim + mlp) * self.item + layout.rows * 4
        products = min(n, 32) * (layout.rows + 1) * main * 4
        if self.item == 2:
            products += min(n, 32) * (layout.rows + 1) * width * 4
        again = n * self.attention * self.item
        if self.checkpointing:
            again += 2 * n * graph
        else:
            again += 2 * n * (shape.hidden + layout.rows * shape.head_dim) * self.item
        rounded = 0  # reader inputs and messages' gradients, copied in the model's dtype
        if self.item == 2:
            rounded = n * (layout.rows + 1 + layout.heads) * width * self.item
        kept = 0 if self.checkpointing else layout.layers * n * graph
        return [
            *self._masked(),
            MemoryPart("its gradient", slots * self.item, ("backward",)),
            MemoryPart("kept graphs", kept, _PASS),
            MemoryPart("a layer's products", products, ("backward",)),
            MemoryPart("a layer's graphs", again, ("backward",)),
            MemoryPart("rounded inputs", rounded, ("backward",)),
        ]

    def _attribution(self) -> list[MemoryPart]:
        """A plain pass with its graph; then sums over points against a slice's Deltas."""
        shape, layout, width = self.shape, self.shape.layout, self.shape.width
        n, layers, dh = self.tokens, layout.layers, shape.head_dim
        points = min(self.request.points, KEPT_POINTS)
        rounded = 0
        if self.item == 2:  # norms keep their input: rounded, or in float32 where the mean stays
            rounded = 2 * width * (2 if self.facts.centred else 4)
        graph = (self.attention + self.facts.kept_by_mlp + 3 * width) * self.item + rounded
        entry = (3 * self.item + 2 * self.wide) * width
        held = n * (layers * graph + self.streams * width * self.wide + entry)
        back = n * (3 * shape.hidden * self.item + 3 * width * self.wide)
        sums = (layers * n * (layout.rows * dh + width) + self.answers * width) * self.wide
        along = layers * n * layout.rows * self.wide
        tokens = min(n, slice_of_tokens(layout.writers * width, partial=False))
        deltas = tokens * layout.writers * width * self.wide
        inputs = tokens * layout.rows * width * self.wide
        folded = layout.heads * dh * width * self.wide * (2 if self.item == 2 else 1)
        copies = (11 if shape.family.position is not None else 8) * n * width * self.wide
        one = self.values() * n
        more = points > 1
        everywhere = (*_PASS, "contraction")
        return [
            MemoryPart("a pass's graph", held, _PASS),
            MemoryPart("outputs", (8 + self.item) * shape.outputs * self.answers, _PASS),
            MemoryPart("a layer's gradients", back, ("backward",)),
            MemoryPart("sums over points", sums, everywhere if more else ("contraction",)),
            MemoryPart("normed parts", points * along, everywhere if more else ("contraction",)),
            MemoryPart(
                "normed inputs", max(0, points - 1) * layers * n * width * self.wide, everywhere
            ),
            MemoryPart("ablated pass", one, everywhere if more else ("contraction",)),
            MemoryPart("clean pass", one, ("contraction",)),
            MemoryPart("a slice's Deltas", deltas, ("contraction",)),
            MemoryPart("a slice's reader inputs", inputs, ("contraction",)),
            MemoryPart("a layer's weights", folded, ("contraction",)),
            MemoryPart("a layer's values", copies, ("contraction",)),
        ]

    def _messages(self) -> list[MemoryPart]:
        """All clean messages of a batch, and one place's in float64."""
        layout, width = self.shape.layout, self.shape.width
        n = self.tokens
        return [
            MemoryPart("clean pass", self.values() * n),
            MemoryPart("messages", layout.writers * n * width * self.item, ("forward",)),
            MemoryPart("a reader's shares", n * (4 * width + 3 * layout.writers) * 8, ("forward",)),
        ]

    def _trials(self) -> list[MemoryPart]:
        """A descent's buffers at their most: at a reader of the first layer, all edges kept."""
        shape, layout, width = self.shape, self.shape.layout, self.shape.width
        n, layers, rows, dh = self.tokens, layout.layers, layout.rows, shape.head_dim
        main, tail = self.slots
        slots = (n * main + self.answers * tail) * width
        rides = rows_at_once(
            self.request.device.type, n, layout.writers * width, self.answers * shape.outputs
        )
        rides = min(rides, self.request.copies)
        last = 2 * layout.kv_heads * n + (layout.heads + 1) * self.answers
        standing = (max(0, layers - 2) * (rows + 1) + 1) * n + last
        centred = (self.streams * n * width * self.wide) if self.facts.centred else 0
        still = layout.heads  # embedding and the first layer's other heads
        run = rides * (n * (main - still) + self.answers * max(0, tail - still)) * width * self.wide
        run += rides * n * layers * rows * dh * self.item
        layer = max(self.attention, self.facts.kept_by_mlp) * self.item + 2 * width * self.wide
        read = max(2**21, rides * n * width) * (8 if self.item == 2 else self.wide)
        parts = [
            MemoryPart("reference", self.reference),
            MemoryPart("clean pass", self.values() * n, ("reference",)),
            MemoryPart("the circuit's messages", slots * self.wide, ("forward",)),
            MemoryPart(
                "the circuit's projections", layers * n * rows * dh * self.item, ("forward",)
            ),
            MemoryPart("streams without their means", centred, ("forward",)),
            MemoryPart("what stays as it is", standing * width * self.wide, ("forward",)),
            MemoryPart("trials side by side", run, ("forward",)),
            MemoryPart("their layer", rides * n * layer + read, ("forward",)),
        ]
        if self.request.rounded:
            parts.append(MemoryPart("rounded weights", layers * self._layer_parameters * self.item))
        if self.request.float64:
            exact = n * (width * (main + rows + 1) + rows * dh + 3 * shape.hidden)
            exact += self.answers * tail * width
            parts += [
                MemoryPart("float64 reference", self.values(8) * n),
                MemoryPart("float64 run", 8 * exact, ("backward",)),
                MemoryPart("a layer's weights in float64", 8 * self._layer_parameters),
            ]
            held = ("the circuit's", "streams", "what stays", "trials")
            parts = [
                MemoryPart(p.name, p.bytes, _PASS) if p.name.startswith(held) else p for p in parts
            ]
        return parts

    @property
    def _layer_parameters(self) -> int:
        shape, layout = self.shape, self.shape.layout
        return (layout.rows + layout.heads) * shape.head_dim * shape.width + shape.mlp
