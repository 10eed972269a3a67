"""One pass of a message passing module with its messages seen, replaced and masked.

PyG's ``propagate`` computes a message for each edge (``message``), sums those of each target
(``aggregate``), and calls hooks before and after each step. A mask reaches it as what the hook on
``message`` returns in the messages' place. On sparse and sorted edge tensors ``propagate`` takes
fused paths on which that hook is silently skipped: edges are handed in as plain tensors, and every
convolution that propagates must have called its hook.

A convolution may add self-loops of its own behind the graph's edges; what belongs to them is never
masked. It may take some of the edges, turn them round or renumber their ends: edges are then known
by what became of ``edge_index`` (:mod:`graphprune.adapters.gnn.edge_tracking`). Of a heterogeneous
graph every propagation must go over the edges of one relation: it is told by the very tensor that
was handed in, since two relations may join the same numbers.

A mask that deletes is none on messages: it weighs every sum over edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from graphprune.errors import InputError, UnsupportedModelError

from .copies import CopiedEdges, plain_tensor
from .edge_tracking import EdgeTracker
from .edge_values import attributed, masked
from .propagation import EdgeRows, Propagation

__all__ = ["ForeignEdges", "MessageHooks", "convolutions"]


class ForeignEdges(UnsupportedModelError):
    """A layer propagates over edges that are not those of the graph, or of one relation of it."""


def convolutions(module: nn.Module) -> dict[str, Any]:
    """Message passing parts by path."""
    return {name: m for name, m in module.named_modules() if isinstance(m, MessagePassing)}


@dataclass(frozen=True, eq=False)
class _Matched:
    """An edge tensor of a propagation, and which of a relation's edges it holds.

    ``turned``: whether its first row holds targets.
    """

    index: Tensor
    relation: int
    places: EdgeRows
    turned: bool = False


@dataclass(eq=False)
class MessageHooks:
    """Watches a pass over ``edges``.

    Args:
        edges: of all copies.
        mask: ``[k * E]`` mask values of all copies' edges, or ``None``.
        replaced: for each propagation what stands in for a message at mask 0, one row for each
            edge of its relation; ``None`` means nothing does.
        delete: whether the mask deletes: it then weighs sums over edges, and no message.
        look: whether messages are seen under deletion too, in calls that the user makes: edges are
            then known by their contents, and forgotten when the next call begins.
        gradients: whether messages shall keep gradients.
        attribute: whether each propagation gets weights of its edges whose gradients are those of a
            mask at 1; ``replaced`` is then overwritten, and messages are not kept.
        constant: ``[k * E]`` bool: edges that carry ``clean`` messages whatever their source sends.
        clean: for each propagation ``[k * E_r, ...]``, the clean run's messages, where some are
            constant.
    """

    edges: CopiedEdges
    mask: Tensor | None = None
    replaced: list[Tensor] | None = None
    delete: bool = False
    look: bool = False
    gradients: bool = False
    attribute: bool = False
    constant: Tensor | None = None
    clean: list[Tensor] = field(default_factory=list)
    seen: list[Propagation] = field(default_factory=list)
    _matched: dict[int, _Matched] = field(default_factory=dict)
    _tracker: EdgeTracker = field(init=False)
    _calls: int = 0  # of the module, under way

    def __post_init__(self) -> None:
        self._tracker = EdgeTracker(self.edges, self.mask if self.delete else None)

    @contextmanager
    def watch(self, module: nn.Module) -> Iterator[None]:
        """Hooks on all convolutions; removed whatever happens."""
        with ExitStack() as handles:
            if self.look:
                add = handles.enter_context
                add(module.register_forward_pre_hook(self._begin_call, with_kwargs=True))
                add(module.register_forward_hook(self._end_call, always_call=True))
            if self.look or not self.delete:
                for path, conv in convolutions(module).items():
                    _LayerHooks(self, path or type(conv).__name__, conv).attach(handles)
            handles.enter_context(self._tracker)
            yield

    def mask_of(self, places: EdgeRows) -> Tensor:
        """``[M']``: mask values of the graph's edges among messages."""
        assert self.mask is not None
        if places.among is None and len(places.numbers) == len(self.mask):
            return self.mask
        return self.mask[places.own]

    # ---------------------------------------------------------------- which edges

    def match(self, path: str, index: Tensor, called_with: int | None) -> _Matched:
        """The relation whose edges ``index [2, M]`` holds, and their numbers.

        ``called_with`` is the relation that the layer ``path`` was called with, where it is known.
        """
        known = self._matched.get(id(index))
        if known is not None and known.index is index:
            return known
        every = self.edges
        relation = every.relation_of(index) if called_with is None else called_with
        among = range(len(every.index)) if relation is None else [relation]
        fitting = [(r, e) for r in among if (e := self._numbers(path, r, index)) is not None]
        if fitting:
            first, edges = fitting[0]
            found = _Matched(index, first, EdgeRows(edges, every.numbers[first]))
        else:
            found = self._tracked(path, index)
        if fitting and len(every.index) > 1 and relation is None and index.numel():
            # The reverse of one relation may hold the very numbers of another.
            names = " and ".join(every.names[r] for r, _ in fitting)
            raise ForeignEdges(
                f"{path} propagates over a copy of edges such as {names} has, and whose they are "
                "is not known; call it with the tensors of edge_index_dict themselves"
            )
        if self.look and self._tracker.origins(index) is None:
            # Made before the call, with its own loops.
            self._tracker.know(index, found.places.edges)
        self._matched[id(index)] = found
        return found

    def _begin_call(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._calls:
            self.restart()
        self._calls += 1
        for value in (*args, *kwargs.values()):
            # Data brings its edges along, a dictionary those of several relations.
            given = getattr(value, "edge_index", value)
            for one in given.values() if isinstance(given, dict) else [given]:
                self.know(one)

    def _end_call(self, _: Any, args: tuple[Any, ...], out: Any) -> None:
        self._calls -= 1

    def restart(self) -> None:
        """Forgets what earlier calls made of the edges."""
        self._tracker.restart()
        self._matched.clear()

    def know(self, value: object) -> None:
        """Tells the tracker of edges that equal a relation's, which the user made anew."""
        if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim != 2:
            return
        if self._tracker.origins(value) is None:
            for given, numbers in zip(self.edges.index, self.edges.numbers, strict=True):
                if value.shape == given.shape and torch.equal(value, given):
                    self._tracker.know(value, numbers)
                    return

    def _tracked(self, path: str, index: Tensor) -> _Matched:
        """What became of the graph's edges, where ``index [2, M]`` is made of them."""
        origins = self._tracker.origins(index)
        if origins is None or origins.shape != index.shape:
            raise self._foreign(path, index)
        edges, ends = origins >> 1, origins & 1
        own = edges[0] >= 0
        numbers, turned = edges[0][own], ends[0][own]
        if not torch.equal(edges[0], edges[1]) or bool((ends[0][own] == ends[1][own]).any()):
            raise self._foreign(path, index)  # the ends of two edges
        relations = [
            r for r, its in enumerate(self.edges.numbers) if bool(torch.isin(numbers, its).all())
        ]
        if not relations or (len(numbers) and bool((turned != turned[0]).any())):
            raise self._foreign(path, index)
        if len(numbers.unique()) < len(numbers):
            raise ForeignEdges(f"{path} sends several messages along one edge at once")
        places = EdgeRows(edges[0], self.edges.numbers[relations[0]])
        return _Matched(index, relations[0], places, bool(turned[:1].any()))

    def _numbers(self, path: str, relation: int, index: Tensor) -> Tensor | None:
        """``[M]`` edge numbers where ``index`` is the relation's, with loops of the layer's own."""
        given, numbers = self.edges.index[relation], self.edges.numbers[relation]
        if index.shape == given.shape and torch.equal(index, given):
            return numbers
        count, own = given.shape[1], given[0] == given[1]
        behind = index[:, count:]
        # The usual place of a layer's loops, and the quick way to see that they are nothing else.
        appended = torch.equal(index[:, :count], given) and torch.equal(behind[0], behind[1])
        loops = own if appended else index[0] == index[1]
        if not appended and not torch.equal(index[:, ~loops], given[:, ~own]):
            return None
        if self.edges.bipartite[relation]:
            raise UnsupportedModelError(
                f"{path} adds self-loops to {self.edges.names[relation]}, whose ends are of two "
                "types: it joins nodes that only share a number; make it with add_self_loops=False"
            )
        if bool(own.any()):
            raise InputError(
                f"{path} rearranges self-loops, and the graph has some of its own: masks would "
                "hit other edges. Strip them first, torch_geometric.utils.remove_self_loops"
            )
        with_loops = numbers.new_full((index.shape[1],), -1)
        if appended:
            with_loops[:count] = numbers
        else:
            with_loops[~loops] = numbers
        return with_loops

    def _foreign(self, path: str, index: Tensor) -> ForeignEdges:
        first, count = self.edges.index[0], index.shape[1]
        if len(self.edges.index) > 1:
            return ForeignEdges(
                f"{path} propagates over edges that are not the graph's ({count} of them; no one "
                "relation's, as where a layer merges them)"
            )
        return ForeignEdges(
            f"{path} propagates over edges that are not the graph's ({count} of them, the graph "
            f"has {first.shape[1]})"
        )

    # ---------------------------------------------------------------- messages

    def changed(self, out: Tensor, matched: _Matched) -> Tensor:
        """What takes the place of messages ``out [M, ...]`` on the edges matched."""
        number, places = len(self.seen), matched.places
        if self.constant is not None:
            own = torch.arange(len(out), device=out.device)
            own = own if places.rows is None else own[places.rows]
            stays = self.constant[places.own]
            clean = _at(self.clean[number], places)
            out = out.index_put((own[stays],), clean[stays].to(out))
        if self.mask is not None and not self.delete:
            other = None if self.replaced is None else _at(self.replaced[number], places)
            out = masked(out, self.mask_of(places), other, places.rows)
        if self.gradients and not out.requires_grad:
            out = out.detach().requires_grad_(True)
        return out

    def weighed(self, out: Tensor, matched: _Matched) -> tuple[Tensor, Tensor]:
        """Messages, and what gathers their attribution: ``[k * E_r]``."""
        places, other = matched.places, None
        kind = torch.promote_types(out.dtype, torch.float32)
        weight = torch.zeros(len(places.numbers), dtype=kind, device=out.device, requires_grad=True)
        if self.replaced is not None:
            other = _at(self.replaced[len(self.seen)], places).to(out.dtype)
            self.replaced[len(self.seen)] = out.new_zeros(0)  # let go as soon as it is read
        at = weight if places.among is None else weight[places.among]
        return attributed(out, at, other, places.rows), weight


def _at(values: Tensor, places: EdgeRows) -> Tensor:
    """``[M', ...]``: of values ``[k * E_r, ...]`` those of the messages on the graph's edges."""
    return values if places.among is None else values[places.among]


class _LayerHooks:
    """The hooks on one convolution, and what is under way in it.

    Both lists are stacks, since a convolution may be called, and may propagate, inside itself.
    """

    def __init__(self, hooks: MessageHooks, path: str, conv: Any) -> None:
        self.hooks, self.path, self.conv = hooks, path, conv
        self.end = 0 if conv.flow == "target_to_source" else 1
        self.called_with: list[int | None] = []  # relations, one for each forward under way
        self.open: list[tuple[_Matched, int]] = []  # propagations under way, messages before each

    def attach(self, handles: ExitStack) -> None:
        """Adds to ``handles`` one by one: what a refusal leaves behind is removed too."""
        conv, add = self.conv, handles.enter_context
        add(conv.register_forward_pre_hook(self._enter, with_kwargs=True))
        add(conv.register_forward_hook(self._leave))
        add(conv.register_propagate_forward_pre_hook(self._before))
        add(conv.register_message_forward_hook(self._message))
        add(conv.register_propagate_forward_hook(self._after))

    def _enter(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
        if self.hooks.look:
            for value in values:
                self.hooks.know(value)
        relations = {self.hooks.edges.relation_of(value) for value in values} - {None}
        self.called_with.append(relations.pop() if len(relations) == 1 else None)

    def _leave(self, _: Any, args: tuple[Any, ...], out: Any) -> None:
        self.called_with.pop()

    def _before(self, _: Any, inputs: tuple[Any, ...]) -> None:
        index = inputs[0]
        if not isinstance(index, Tensor) or index.layout != torch.strided:
            raise UnsupportedModelError(
                f"{self.path} propagates over a sparse adjacency, whose fused path passes no "
                "messages one by one; hand it a plain edge_index"
            )
        called_with = self.called_with[-1] if self.called_with else None
        matched = self.hooks.match(self.path, plain_tensor(index), called_with)
        self.open.append((matched, len(self.hooks.seen)))

    def _after(self, _: Any, inputs: tuple[Any, ...], out: Any) -> None:
        _, before = self.open.pop()
        if before == len(self.hooks.seen):
            raise UnsupportedModelError(
                f"{self.path} propagated without passing a message that could be seen (a fused "
                "path)"
            )

    def _message(self, _: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        matched, _ = self.open[-1]
        axis, count = self.conv.node_dim % out.ndim, matched.index.shape[1]
        # Several stacks of messages: the edges' axis is not the first.
        turned = axis > 0 and out.shape[axis] == count
        rows = out.movedim(axis, 0) if turned else out
        if rows.shape[0] != count:
            raise UnsupportedModelError(
                f"{self.path} gives messages of the shape {list(rows.shape)}; expected one row for "
                f"each of its {count} edges"
            )
        rows, weight = self.hooks.changed(rows, matched), None
        if self.hooks.attribute:
            rows, weight = self.hooks.weighed(rows, matched)
        end = 1 - self.end if matched.turned else self.end
        kept = rows.new_zeros(0) if weight is not None else rows
        seen = Propagation(
            kept, matched.places, partial(self._targets, matched, end), matched.relation, end,
            weight,
        )  # fmt: skip
        self.hooks.seen.append(seen)
        return rows.movedim(0, axis) if turned else rows

    def _targets(self, matched: _Matched, end: int) -> Tensor:
        """``[M]``: the nodes reached, by their numbers in the graph."""
        targets, places = matched.index[self.end], matched.places
        if places.edges is places.numbers:
            return targets
        graph, among = self.hooks.edges.index[matched.relation][end], places.among
        own, known = places.edges >= 0, graph if among is None else graph[among]
        if torch.equal(targets[own], known):
            return targets
        return torch.full_like(targets, -1).masked_scatter(own, known)  # a pooled graph's numbers
