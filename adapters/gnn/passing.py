"""One pass of a message passing module with messages seen, replaced and masked.

PyG's message hooks are used, on plain edge tensors: sparse and sorted ones take fused paths on
which hooks are silently skipped, so every convolution that propagates must have called its hook.
A convolution may add self-loops of its own behind the graph's edges; what belongs to them is never
masked. Of a heterogeneous graph every propagation must go over the edges of one relation: it is
told by the very tensor that was handed in, since two relations may join the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from graphprune.errors import InputError, UnsupportedModelError

from .deletion import way_of
from .edge_tensors import unwrapped
from .replicas import Wiring

__all__ = ["Call", "ForeignEdges", "Passing", "arguments_of", "convolutions", "is_fused"]


class ForeignEdges(UnsupportedModelError):
    """A layer propagates over edges that are not those of the graph, or of one relation of it."""


Seen = list[tuple[Tensor, int, Tensor]]  # of propagations under way: edges, relation, numbers


def convolutions(module: nn.Module) -> dict[str, Any]:
    """Message passing parts by path."""
    return {name: m for name, m in module.named_modules() if isinstance(m, MessagePassing)}


def arguments_of(module: nn.Module) -> list[str]:
    """Names of what ``forward`` takes."""
    return [
        name
        for name, p in inspect.signature(module.forward).parameters.items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def is_fused(module: nn.Module) -> str:
    """Why a convolution would hide or go past its messages; ``""``: none does."""
    for name, conv in convolutions(module).items():
        if getattr(conv, "cached", False):
            return (
                f"{name or type(conv).__name__} caches its normalisation (cached=True) and would "
                "ignore every change of the graph; make it with cached=False"
            )
        if getattr(conv, "decomposed_layers", 1) > 1:
            return f"{name or type(conv).__name__} passes messages in decomposed layers"
    return ""


@dataclass(eq=False)
class Call:
    """Messages of one propagation: ``[M, ...]`` on the edges ``edges [M]`` (-1: the layer's own).

    ``index [M]`` are the messages' targets among the nodes at ``end`` (1; 0: the flow is turned)
    of the relation numbered ``relation``.
    """

    messages: Tensor
    edges: Tensor
    index: Tensor
    relation: int = 0
    end: int = 1

    def own(self, copies: int) -> Tensor:
        """``[copies, E_r, ...]``: messages on the graph's edges, in order."""
        mine = self.messages[self.edges >= 0]
        found: Tensor = mine.unflatten(0, (copies, len(mine) // copies))
        return found


@dataclass(eq=False)
class Passing:
    """Watches a pass over the edges of ``wiring``.

    Args:
        weights: ``[k * E]`` mask values of all copies' edges, or ``None``.
        replaced: for each call what stands in for a message at mask 0, one row for each edge of
            the call's relation; ``None``: nothing does.
        delete: whether a mask must equal deletion.
        felt: whether messages shall keep gradients.
        constant: ``[k * E]`` bool: edges that carry ``clean`` messages whatever their source sends.
        clean: for each call ``[k * E_r, ...]``, the clean run's messages, where some are constant.
    """

    wiring: Wiring
    weights: Tensor | None = None
    replaced: list[Tensor] | None = None
    delete: bool = False
    felt: bool = False
    constant: Tensor | None = None
    clean: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    _known: dict[int, tuple[Tensor, int, Tensor]] = field(default_factory=dict)

    @contextmanager
    def watch(self, module: nn.Module) -> Iterator[None]:
        """Hooks on all convolutions; removed whatever happens."""
        handles: list[Any] = []
        try:
            for path, conv in convolutions(module).items():
                self._hook(path or type(conv).__name__, conv, handles)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, conv: Any, handles: list[Any]) -> None:
        """Adds to ``handles`` one by one: what a refusal leaves behind is removed too."""
        seen: list[tuple[Tensor, int, Tensor]] = []
        called: list[int] = []
        told: list[int | None] = []

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = {self.wiring.known(v) for v in (*args, *kwargs.values())} - {None}
            told.append(found.pop() if len(found) == 1 else None)

        def leave(_: Any, args: tuple[Any, ...], out: Any) -> None:
            told.pop()

        def before(_: Any, inputs: tuple[Any, ...]) -> None:
            index = inputs[0]
            if not isinstance(index, Tensor) or index.layout != torch.strided:
                raise UnsupportedModelError(
                    f"{path} propagates over a sparse adjacency, whose fused path passes no "
                    "messages one by one; hand it a plain edge_index"
                )
            plain = unwrapped(index)
            seen.append((plain, *self._edges(path, plain, told[-1] if told else None)))
            called.append(len(self.calls))

        def message(_: Any, inputs: tuple[Any, ...], out: Tensor) -> Any:
            return self._message(path, conv, seen[-1], out)

        def after(_: Any, inputs: tuple[Any, ...], out: Any) -> None:
            if called.pop() == len(self.calls):
                raise UnsupportedModelError(
                    f"{path} propagated without passing a message that could be seen (a fused path)"
                )
            seen.pop()

        handles.append(conv.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(conv.register_forward_hook(leave))
        handles.append(conv.register_propagate_forward_pre_hook(before))
        handles.append(conv.register_message_forward_hook(message))
        handles.append(conv.register_propagate_forward_hook(after))
        if self.weights is not None and self.delete:
            handles += self._deleting(path, conv, seen, told)

    # ---------------------------------------------------------------- messages

    def _edges(self, path: str, index: Tensor, told: int | None) -> tuple[int, Tensor]:
        """The relation that ``index [2, M]`` holds, and ``[M]``: edge numbers, -1 the layer's own.

        ``told`` is the relation that the layer was called with, where it is known.
        """
        known = self._known.get(id(index))
        if known is not None and known[0] is index:
            return known[1:]
        wiring = self.wiring
        told = wiring.known(index) if told is None else told
        among = range(len(wiring.index)) if told is None else [told]
        found = [(r, e) for r in among if (e := self._matched(path, r, index)) is not None]
        several = len(wiring.index) > 1
        if not found:
            part = _part_of(index, wiring.index[0])
            if not several and part:
                raise ForeignEdges(
                    f"{path} passes messages over {index.shape[1]} of the graph's "
                    f"{wiring.index[0].shape[1]} edges at a time, where a mask needs all of them "
                    "in one call (RGCNConv, for one, takes each relation by itself; FastRGCNConv "
                    "computes the same over all edges at once)"
                )
            what = (
                f"({index.shape[1]} of them; no one relation's, as where a layer merges them)"
                if several
                else f"({index.shape[1]} of them, the graph has {wiring.index[0].shape[1]})"
            )
            raise ForeignEdges(f"{path} propagates over edges that are not the graph's {what}")
        if several and told is None and index.numel():
            # The reverse of one relation may hold the very numbers of another.
            names = " and ".join(wiring.names[r] for r, _ in found)
            raise ForeignEdges(
                f"{path} propagates over a copy of edges such as {names} has, and whose they are "
                "is not known; call it with the tensors of edge_index_dict themselves"
            )
        relation, edges = found[0]
        self._known[id(index)] = index, relation, edges
        return relation, edges

    def _matched(self, path: str, relation: int, index: Tensor) -> Tensor | None:
        """``[M]`` edge numbers where ``index`` is the relation's, with loops of the layer's own."""
        given, numbers = self.wiring.index[relation], self.wiring.numbers[relation]
        if index.shape == given.shape and torch.equal(index, given):
            return numbers
        loops, own = index[0] == index[1], given[0] == given[1]
        if not torch.equal(index[:, ~loops], given[:, ~own]):
            return None
        if self.wiring.bipartite[relation]:
            raise UnsupportedModelError(
                f"{path} adds self-loops to {self.wiring.names[relation]}, whose ends are of two "
                "types: it joins nodes that only share a number; make it with add_self_loops=False"
            )
        if bool(own.any()):
            raise InputError(
                f"{path} rearranges self-loops, and the graph has some of its own: masks would "
                "hit other edges. Strip them first, torch_geometric.utils.remove_self_loops"
            )
        found = numbers.new_full((index.shape[1],), -1)
        found[~loops] = numbers
        return found

    def _message(self, path: str, conv: Any, seen: tuple[Tensor, int, Tensor], out: Tensor) -> Any:
        axis = conv.node_dim % out.ndim
        if axis and out.shape[axis] == seen[0].shape[1]:  # several stacks of messages
            return self._message_rows(path, conv, seen, out.movedim(axis, 0)).movedim(0, axis)
        return self._message_rows(path, conv, seen, out)

    def _message_rows(
        self, path: str, conv: Any, seen: tuple[Tensor, int, Tensor], out: Tensor
    ) -> Tensor:
        index, relation, edges = seen
        if out.shape[0] != index.shape[1]:
            raise UnsupportedModelError(
                f"{path} gives messages of the shape {list(out.shape)}; expected one row for each "
                f"of its {index.shape[1]} edges"
            )
        number = len(self.calls)
        if self.constant is not None:
            own = torch.nonzero(edges >= 0)[:, 0]
            stays = self.constant[edges[own]]
            out = out.index_put((own[stays],), self.clean[number][stays].to(out))
        if self.weights is not None and not (self.delete and way_of(conv) == "weight"):
            shaped = self._mask(edges).view(-1, *[1] * (out.ndim - 1)).to(out.dtype)
            if self.delete:
                if way_of(conv) != "attention":
                    out = out * shaped
            elif self.replaced is None:
                out = out * shaped
            else:
                mine = (edges >= 0).nonzero()[:, 0]
                other = torch.zeros_like(out).index_put((mine,), self.replaced[number].to(out))
                out = out * shaped + (1 - shaped) * other
        if self.felt:
            out = out if out.requires_grad else out.detach().requires_grad_(True)
            out.retain_grad()
        self.calls.append(Call(out, edges, _targets(conv, index), relation, _end(conv)))
        return out

    def _mask(self, edges: Tensor) -> Tensor:
        """``[M]``: mask values of messages on ``edges [M]``; 1 for the layer's own."""
        assert self.weights is not None
        mine = torch.nonzero(edges >= 0)[:, 0]
        ones = self.weights.new_ones(len(edges))
        return ones.index_put((mine,), self.weights[edges[mine]])

    # ---------------------------------------------------------------- deletion

    def _deleting(self, path: str, conv: Any, seen: Seen, told: list[int | None]) -> list[Any]:
        way = way_of(conv)
        if way == "none":
            raise UnsupportedModelError(
                f"no mask on {path} ({type(conv).__name__}, aggr={conv.aggr}) equals deleting an "
                "edge; masks of zeros and ones are run on the smaller graph, others are refused"
            )
        if way == "weight":
            return [conv.register_forward_pre_hook(self._on_weight(path, told), with_kwargs=True)]
        if way == "attention":
            return [conv.register_message_forward_pre_hook(self._on_attention(seen))]
        if way == "mean":
            return [conv.register_aggregate_forward_hook(self._on_mean(seen))]
        return []

    def _on_weight(self, path: str, told: list[int | None]) -> Any:
        def hook(conv: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            names = arguments_of(conv)
            if "edge_weight" not in names:
                raise UnsupportedModelError(f"{path} takes no edge_weight to mask its degrees by")
            given = dict(zip(names, args, strict=False)) | kwargs
            assert self.weights is not None
            relation = told[-1]
            if relation is None:
                if len(self.wiring.numbers) > 1:
                    raise UnsupportedModelError(
                        f"{path} was not called with a tensor of edge_index_dict itself, so whose "
                        "degrees a mask must follow is not known"
                    )
                relation = 0
            weights = self.weights[self.wiring.numbers[relation]]
            own = given.get("edge_weight")
            given["edge_weight"] = weights if own is None else own * weights.to(own)
            return (), given

        return hook

    def _on_attention(self, seen: Seen) -> Any:
        def hook(conv: Any, inputs: tuple[Any, ...]) -> Any:
            (values,) = inputs
            alpha, (index, _, edges) = values["alpha"], seen[-1]
            mask = self._mask(edges)
            kept = alpha * mask.view(-1, *[1] * (alpha.ndim - 1)).to(alpha.dtype)
            target = _targets(conv, index)
            rows = int(target.max()) + 1 if target.numel() else 0
            total = kept.new_zeros((rows, *kept.shape[1:])).index_add(0, target, kept)
            safe = total[target]
            values = {**values, "alpha": kept / safe.masked_fill(safe == 0, 1.0)}
            return (values,)

        return hook

    def _on_mean(self, seen: Seen) -> Any:
        def hook(conv: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
            index, _, edges = seen[-1]
            mask, target = self._mask(edges), _targets(conv, index)
            count = out.new_zeros(out.shape[0]).index_add(0, target, torch.ones_like(mask).to(out))
            total = out.new_zeros(out.shape[0]).index_add(0, target, mask.to(out))
            share = count / total.masked_fill(total == 0, 1.0)
            return out * share.view(-1, *[1] * (out.ndim - 1))

        return hook


def _end(conv: Any) -> int:
    """Which end of an edge its message reaches: 1 its target, 0 its source."""
    return 0 if conv.flow == "target_to_source" else 1


def _targets(conv: Any, index: Tensor) -> Tensor:
    """``[M]``: the nodes that messages over ``index [2, M]`` reach."""
    return index[_end(conv)]


def _part_of(some: Tensor, whole: Tensor) -> bool:
    """Whether fewer edges, all of them the graph's."""
    if some.shape[1] >= whole.shape[1]:
        return False
    pairs = set(map(tuple, whole.T.tolist()))
    return all(tuple(pair) in pairs for pair in some.T.tolist())
