"""A model taken apart along its family: who writes to a residual stream, and who reads it where.

A *group* is what is added to the stream at one point: a stack's embedding, a layer's heads, its
MLP. A *place* is one or more readers of the same point of a stream; they read the stack's first
groups. Under post-norms the stream is normed after a group was added, so each reader norms its own
masked stream at every group on the way:

    x = norm_j( x + sum_u [ m(u, r) y_u + (1 - m(u, r)) ytilde_u ] )    for each group j in turn.

A module that several layers share (ALBERT) stands in several branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import UnsupportedModelError

from ..lm.describe.norms import Norm, centre, describe_norm, wide
from .families import Attention, Mlp, ResidualFamily, Stack

__all__ = ["AttentionParts", "Behind", "Group", "MlpParts", "Parts", "Place"]

KINDS = ("q", "k", "v", "mlp", "resid")
Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Behind:
    """A norm over a stream: of one reader, or behind a group.

    ``resize``: the linear map to the layers' width behind an embedding's norm. Both forwards are
    those that the modules have at wrap time: while the model runs, other things are done there.
    """

    norm: Norm
    forward: Function
    resize: Function | None

    def __call__(self, x: Tensor) -> Tensor:
        """The user's own modules on ``x [..., D]``."""
        out: Tensor = self.forward(x)
        return out if self.resize is None else self.resize(out)

    def push(self, x: Tensor, changes: Tensor, *, frozen: bool = False) -> Tensor:
        """What the norm at ``x [B, T, D]`` makes of small changes ``[w, B, T, D]`` of it.

        ``frozen`` takes its scale as a constant; then shares of ``x`` add up to what it gives.
        """
        x_hat, scale = self.norm.statistics(wide(x))
        gain = wide(self.norm.gain.detach())
        out = centre(changes, self.norm.centred)
        if not frozen:
            out = out - x_hat * (out * x_hat).mean(-1, keepdim=True)
        out = out * (scale * gain)
        if self.resize is None:
            return out
        like = self.norm.gain.dtype
        moved: Tensor = self.resize(out.to(like)) - self.resize(
            torch.zeros_like(out[:1], dtype=like)
        )
        return moved.to(changes)

    def frozen(self, x: Tensor) -> Tensor:
        """As a call, with the norm's scale taken as a constant by gradients."""
        out = self.norm.frozen(x)
        return out if self.resize is None else self.resize(out)


@dataclass(frozen=True, eq=False)
class Place:
    """Readers of one point of a stream.

    ``rows`` are their nodes and kinds; ``groups`` the groups that they read, which hold ``writers``
    nodes; ``norm`` the norm before them; ``edges`` their edges, row by row.
    """

    stack: int
    rows: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]
    writers: int
    norm: Behind | None
    edges: slice

    def of(self, values: Tensor) -> Tensor:
        """``[..., rows, writers]``: the place's part of values of edges ``[..., E]``."""
        shape = (len(self.rows), self.writers)
        part: Tensor = values[..., self.edges].unflatten(-1, shape)
        return part


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes whose messages are added to the stream of ``stack`` together, and the norm behind."""

    stack: int
    nodes: tuple[int, ...]
    norm: Behind | None


@dataclass(frozen=True, eq=False)
class AttentionParts:
    """An attention's projections with the rows of a place that each reads, and its output map."""

    projections: tuple[tuple[nn.Module, Place, tuple[int, ...]], ...]
    output: nn.Module
    group: int
    heads: int
    scale: Function | None


@dataclass(frozen=True, eq=False)
class MlpParts:
    """An MLP's modules that read its input, the one that gives its output, and its place."""

    inputs: tuple[nn.Module, ...]
    output: nn.Module
    place: Place
    group: int


class Parts:
    """The modules of a model, its groups and places, and the graph that they make.

    Raises :class:`UnsupportedModelError` where a part is not where the family says.
    """

    def __init__(self, model: nn.Module, family: ResidualFamily) -> None:
        self.model, self.family = model, family
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.places: list[Place] = []
        self.branches: list[AttentionParts | MlpParts] = []
        self.embeddings: list[nn.Module] = []
        self.entries: list[nn.Module] = []
        self.multipliers: list[float] = []  # of what the embeddings give
        self.layers: list[list[nn.Module]] = []
        self._edges = 0
        self._layers = 0  # of the stacks so far: a decoder's count on from the encoder's
        self._ends: list[Behind | None] = []
        for number, stack in enumerate(family.stacks):
            self._add_stack(number, stack)
        self.nodes.append(Node("logits", "output"))
        last = len(family.stacks) - 1
        self.final = self._place(last, [(len(self.nodes) - 1, 4)], None)
        self.graph = self._graph()
        self.normed_rows = sum(
            len(place.rows) * sum(self.groups[i].norm is not None for i in place.groups)
            for place in self.places
        )

    def _part(self, under: nn.Module, path: str) -> nn.Module:
        try:
            return under.get_submodule(path)
        except AttributeError:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no {path} in its {type(under).__name__}, where "
                f"a model of type {self.family.model_types[0]!r} has it"
            ) from None

    def _norm(self, under: nn.Module, path: str | None, resize: str | None = None) -> Behind | None:
        if path is None:
            return None
        norm = self._part(under, path)
        if isinstance(norm, nn.Identity):
            return None
        # A map to another width is left out where an embedding has the layers' width.
        there = resize is not None and hasattr(under, resize.split(".")[0])
        after = self._part(under, resize).forward if there and resize is not None else None
        return Behind(describe_norm(norm, path), norm.forward, after)

    def _layers_of(self, base: Any, stack: Stack) -> list[nn.Module]:
        """A stack's layers in the order in which they run; one may run several times."""
        listed: Any = self._part(base, stack.layers)
        if stack.inner is None or not len(listed):
            return list(listed)
        depth = int(base.config.num_hidden_layers)
        each = depth / len(listed)
        return [
            layer for i in range(depth) for layer in getattr(listed[int(i / each)], stack.inner)
        ]

    def _add_stack(self, number: int, stack: Stack) -> None:
        base: Any = self._part(self.model, stack.base)
        layers = self._layers_of(base, stack)
        if not len(layers):
            raise UnsupportedModelError("the model has no layers, so there is nothing to prune")
        heads = int(getattr(base.config, stack.heads))
        entry = stack.embedding_norm
        self.embeddings.append(self._part(base, stack.embedding))
        times = 1.0 if stack.multiplier is None else float(getattr(base, stack.multiplier))
        self.multipliers.append(times)
        self.entries.append(layers[0] if entry is None else self._part(base, entry))
        first = Node(f"{stack.prefix}input", "embed")
        self._group(number, [first], self._norm(base, entry, stack.resize))
        for index, layer in enumerate(layers):
            for branch in stack.branches:
                if isinstance(branch, Mlp):
                    self._add_mlp(number, stack, layer, index, branch)
                else:
                    self._add_attention(number, stack, layer, index, branch, heads)
        self._layers += len(layers)
        self._ends.append(self._norm(base, stack.final_norm))
        self.layers.append(layers)
        self.width = int(base.config.hidden_size)

    def _group(self, stack: int, nodes: list[Node], norm: Behind | None) -> int:
        first = len(self.nodes)
        self.nodes += nodes
        self.groups.append(Group(stack, tuple(range(first, len(self.nodes))), norm))
        return len(self.groups) - 1

    def _place(self, stack: int, rows: list[tuple[int, int]], norm: Behind | None) -> Place:
        """A place that reads all that is added to a stack by now."""
        groups = tuple(i for i, group in enumerate(self.groups) if group.stack == stack)
        writers = sum(len(self.groups[i].nodes) for i in groups)
        start, self._edges = self._edges, self._edges + len(rows) * writers
        place = Place(stack, tuple(rows), groups, writers, norm, slice(start, self._edges))
        self.places.append(place)
        return place

    def _add_mlp(
        self, number: int, stack: Stack, layer: nn.Module, index: int, branch: Mlp
    ) -> None:
        norm = self._norm(layer, branch.norm)
        place = self._place(number, [(len(self.nodes), 3)], None if branch.post else norm)
        node = Node(f"{stack.prefix}m{index}", "mlp", self._layers + index)
        group = self._group(number, [node], norm if branch.post else None)
        inputs = tuple(self._part(layer, path) for path in branch.inputs)
        self.branches.append(MlpParts(inputs, self._part(layer, branch.output), place, group))

    def _add_attention(
        self,
        number: int,
        stack: Stack,
        layer: nn.Module,
        index: int,
        branch: Attention,
        heads: int,
    ) -> None:
        norm, first = self._norm(layer, branch.norm), len(self.nodes)
        before = None if branch.post else norm
        rows = [[(first + h, kind) for h in range(heads)] for kind in range(3)]
        query, key, value = (self._part(layer, p) for p in (branch.query, branch.key, branch.value))
        if branch.cross:
            asked = self._place(number, rows[0], before)
            told = self._place(0, rows[1] + rows[2], self._ends[0])
            places, starts = (asked, told, told), (0, 0, heads)
        else:
            place = self._place(number, [*rows[0], *rows[1], *rows[2]], before)
            places, starts = (place,) * 3, (0, heads, 2 * heads)
        letter = "c" if branch.cross else "a"
        name = f"{stack.prefix}{letter}{index}"
        nodes = [Node(f"{name}.h{h}", "head", self._layers + index, h) for h in range(heads)]
        group = self._group(number, nodes, norm if branch.post else None)
        projections = tuple(
            (module, place, tuple(range(start, start + heads)))
            for module, place, start in zip((query, key, value), places, starts, strict=True)
        )
        if query is key:
            order = torch.arange(3 * heads)
            order = order.view(3, heads).T.flatten() if branch.by_head else order
            projections = ((query, places[0], tuple(order.tolist())),)
        output = self._part(layer, branch.output)
        scale = None if branch.scale is None else self._part(layer, branch.scale).forward
        self.branches.append(AttentionParts(projections, output, group, heads, scale))

    def _graph(self) -> ComputationalGraph:
        sources, targets, kinds = [], [], []
        for place in self.places:
            read = [node for i in place.groups for node in self.groups[i].nodes]
            for node, kind in place.rows:
                sources += read
                targets += [node] * len(read)
                kinds += [kind] * len(read)
        return ComputationalGraph(
            nodes=tuple(self.nodes),
            edge_index=torch.tensor([sources, targets], dtype=torch.int64),
            edge_kind=torch.tensor(kinds, dtype=torch.uint8),
            edge_kinds=KINDS,
            ports=KINDS[:3],
            inputs=tuple(group.nodes[0] for group in self.groups if self._is_first(group)),
            outputs=(len(self.nodes) - 1,),
        )

    def _is_first(self, group: Group) -> bool:
        return self.nodes[group.nodes[0]].kind == "embed"

    def first_group(self, stack: int) -> int:
        """The number of a stack's embedding among the groups."""
        return next(i for i, group in enumerate(self.groups) if group.stack == stack)

    def behind(self, group: int, x: Tensor) -> Tensor:
        """A stream ``x`` to which a group was added, normed where a norm stands behind it."""
        norm = self.groups[group].norm
        return x if norm is None else wide(norm(x.to(norm.norm.gain.dtype)))
