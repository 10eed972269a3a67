"""One pass of a message passing module with messages seen, replaced and masked.

PyG's message hooks are used, on plain edge tensors: sparse and sorted ones take fused paths on
which hooks are silently skipped, so every convolution that propagates must have called its hook.
A convolution may add self-loops of its own behind the graph's edges; what belongs to them is never
masked.
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

__all__ = ["Call", "Passing", "arguments_of", "convolutions", "is_fused"]


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

    ``index [M]`` are the messages' targets.
    """

    messages: Tensor
    edges: Tensor
    index: Tensor


@dataclass(eq=False)
class Passing:
    """Watches a pass over ``edge_index [2, E]``.

    Args:
        weights: ``[E]`` mask values, or ``None``.
        replaced: for each call what stands in for a message at mask 0, ``[E, ...]``; ``None``:
            nothing does.
        delete: whether a mask must equal deletion.
        felt: whether messages shall keep gradients.
        kept: numbers of the copied edges that ``edge_index`` holds, if not all.
    """

    edge_index: Tensor
    weights: Tensor | None = None
    replaced: list[Tensor] | None = None
    delete: bool = False
    felt: bool = False
    kept: Tensor | None = None
    calls: list[Call] = field(default_factory=list)
    _known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

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
        seen: list[Tensor] = []
        called: list[int] = []

        def before(_: Any, inputs: tuple[Any, ...]) -> None:
            index = inputs[0]
            if not isinstance(index, Tensor) or index.layout != torch.strided:
                raise UnsupportedModelError(
                    f"{path} propagates over a sparse adjacency, whose fused path passes no "
                    "messages one by one; hand it a plain edge_index"
                )
            seen.append(index.as_subclass(Tensor))
            called.append(len(self.calls))

        def message(_: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
            return self._message(path, conv, seen[-1], out)

        def after(_: Any, inputs: tuple[Any, ...], out: Any) -> None:
            if called.pop() == len(self.calls):
                raise UnsupportedModelError(
                    f"{path} propagated without passing a message that could be seen (a fused path)"
                )
            seen.pop()

        handles.append(conv.register_propagate_forward_pre_hook(before))
        handles.append(conv.register_message_forward_hook(message))
        handles.append(conv.register_propagate_forward_hook(after))
        if self.weights is not None and self.delete:
            handles += self._deleting(path, conv, seen)

    # ---------------------------------------------------------------- messages

    def _edges(self, path: str, index: Tensor) -> Tensor:
        """``[M]``: the graph's edge that each message belongs to; -1 for the layer's own."""
        known = self._known.get(id(index))
        if known is not None and known[0] is index:
            return known[1]
        given = self.edge_index
        count = given.shape[1]
        if index.shape[1] == count and torch.equal(index, given):
            found = torch.arange(count, device=index.device)
        else:
            loops = index[0] == index[1]
            mine = given[0] != given[1]
            if not bool(mine.all()):
                raise InputError(
                    f"{path} rearranges self-loops, and the graph has some of its own: masks would "
                    "hit other edges. Strip them first, torch_geometric.utils.remove_self_loops"
                )
            others = index[:, ~loops]
            if others.shape[1] != count or not torch.equal(others, given):
                raise UnsupportedModelError(
                    f"{path} propagates over edges that are not the graph's "
                    f"({index.shape[1]} of them, the graph has {count})"
                )
            found = torch.full((index.shape[1],), -1, device=index.device)
            found[~loops] = torch.arange(count, device=index.device)
        self._known[id(index)] = index, found
        return found

    def _message(self, path: str, conv: Any, index: Tensor, out: Tensor) -> Tensor:
        axis = conv.node_dim % out.ndim
        if axis and out.shape[axis] == index.shape[1]:  # several stacks of messages
            return self._message_rows(path, conv, index, out.movedim(axis, 0)).movedim(0, axis)
        return self._message_rows(path, conv, index, out)

    def _message_rows(self, path: str, conv: Any, index: Tensor, out: Tensor) -> Tensor:
        if out.shape[0] != index.shape[1]:
            raise UnsupportedModelError(
                f"{path} gives messages of the shape {list(out.shape)}; expected one row for each "
                f"of its {index.shape[1]} edges"
            )
        edges = self._edges(path, index)
        number = len(self.calls)
        if self.weights is not None and not (self.delete and way_of(conv) == "weight"):
            mine = edges >= 0
            shaped = self._mask(edges).view(-1, *[1] * (out.ndim - 1)).to(out.dtype)
            if self.delete:
                if way_of(conv) != "attention":
                    out = out * shaped
            elif self.replaced is None:
                out = out * shaped
            else:
                other = torch.zeros_like(out)
                stands = self.replaced[number].to(out)
                other = other.index_put((mine.nonzero()[:, 0],), stands[edges[mine]])
                out = out * shaped + (1 - shaped) * other
        if self.felt:
            out = out if out.requires_grad else out.detach().requires_grad_(True)
            out.retain_grad()
        self.calls.append(Call(out, edges, _targets(conv, index)))
        return out

    def _mask(self, edges: Tensor) -> Tensor:
        """``[M]``: mask values of messages on ``edges [M]``; 1 for the layer's own."""
        assert self.weights is not None
        mine = torch.nonzero(edges >= 0)[:, 0]
        ones = self.weights.new_ones(len(edges))
        return ones.index_put((mine,), self.weights[edges[mine]])

    # ---------------------------------------------------------------- deletion

    def _deleting(self, path: str, conv: Any, seen: list[Tensor]) -> list[Any]:
        way = way_of(conv)
        if way == "none":
            raise UnsupportedModelError(
                f"no mask on {path} ({type(conv).__name__}, aggr={conv.aggr}) equals deleting an "
                "edge; masks of zeros and ones are run on the smaller graph, others are refused"
            )
        if way == "weight":
            return [conv.register_forward_pre_hook(self._on_weight(path), with_kwargs=True)]
        if way == "attention":
            return [conv.register_message_forward_pre_hook(self._on_attention(path, seen))]
        if way == "mean":
            return [conv.register_aggregate_forward_hook(self._on_mean(path, seen))]
        return []

    def _on_weight(self, path: str) -> Any:
        def hook(conv: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            names = arguments_of(conv)
            if "edge_weight" not in names:
                raise UnsupportedModelError(f"{path} takes no edge_weight to mask its degrees by")
            given = dict(zip(names, args, strict=False)) | kwargs
            assert self.weights is not None
            own = given.get("edge_weight")
            given["edge_weight"] = self.weights if own is None else own * self.weights.to(own)
            return (), given

        return hook

    def _on_attention(self, path: str, seen: list[Tensor]) -> Any:
        def hook(conv: Any, inputs: tuple[Any, ...]) -> Any:
            (values,) = inputs
            alpha, index = values["alpha"], seen[-1]
            mask = self._mask(self._edges(path, index))
            kept = alpha * mask.view(-1, *[1] * (alpha.ndim - 1)).to(alpha.dtype)
            target = _targets(conv, index)
            total = kept.new_zeros((int(index.max()) + 1, *kept.shape[1:])).index_add(
                0, target, kept
            )
            safe = total[target]
            values = {**values, "alpha": kept / safe.masked_fill(safe == 0, 1.0)}
            return (values,)

        return hook

    def _on_mean(self, path: str, seen: list[Tensor]) -> Any:
        def hook(conv: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
            index = seen[-1]
            mask, target = self._mask(self._edges(path, index)), _targets(conv, index)
            count = out.new_zeros(out.shape[0]).index_add(0, target, torch.ones_like(mask).to(out))
            total = out.new_zeros(out.shape[0]).index_add(0, target, mask.to(out))
            share = count / total.masked_fill(total == 0, 1.0)
            return out * share.view(-1, *[1] * (out.ndim - 1))

        return hook


def _targets(conv: Any, index: Tensor) -> Tensor:
    """``[M]``: the nodes that messages over ``index [2, M]`` reach."""
    return index[0 if conv.flow == "target_to_source" else 1]
