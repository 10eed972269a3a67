"""One pass of a message passing module with its messages seen, replaced and masked.

PyG's ``propagate`` computes a message for each edge (``message``), sums those of each target
(``aggregate``), and calls hooks before and after each step. A mask reaches it as what the hook on
``message`` returns in the messages' place. On sparse and sorted edge tensors ``propagate`` takes
fused paths on which that hook is silently skipped: edges are handed in as plain tensors, and every
convolution that propagates must have called its hook.

A convolution may add self-loops of its own behind the graph's edges; what belongs to them is never
masked. Of a heterogeneous graph every propagation must go over the edges of one relation: it is
told by the very tensor that was handed in, since two relations may join the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from graphprune.errors import InputError, UnsupportedModelError

from .copies import CopiedEdges, plain_tensor
from .deletion_rules import deletion_rule

__all__ = ["ForeignEdges", "MessageHooks", "Propagation", "convolutions"]


MOST_MATCHED = 256  # edge tensors of propagations that are remembered


class ForeignEdges(UnsupportedModelError):
    """A layer propagates over edges that are not those of the graph, or of one relation of it."""


def convolutions(module: nn.Module) -> dict[str, Any]:
    """Message passing parts by path."""
    return {name: m for name, m in module.named_modules() if isinstance(m, MessagePassing)}


@dataclass(frozen=True, eq=False)
class _Matched:
    """An edge tensor of a propagation, and ``edges [M]``: its edges' numbers, -1 a layer's own."""

    index: Tensor
    relation: int
    edges: Tensor


@dataclass(eq=False)
class Propagation:
    """Messages of one propagation: ``[M, ...]`` on the edges ``edges [M]`` (-1: the layer's own).

    ``targets [M]`` are the nodes they reach, at ``end`` (1; 0: the flow is turned) of the relation
    numbered ``relation``.
    """

    messages: Tensor
    edges: Tensor
    targets: Tensor
    relation: int = 0
    end: int = 1

    def on_graph_edges(self, copies: int) -> Tensor:
        """``[copies, E_r, ...]``: messages on the graph's edges, in order."""
        own = self.messages[self.edges >= 0]
        return own.reshape(copies, len(own) // copies, *own.shape[1:])


@dataclass(eq=False)
class MessageHooks:
    """Watches a pass over ``edges``.

    Args:
        edges: of all copies.
        mask: ``[k * E]`` mask values of all copies' edges, or ``None``.
        replaced: for each propagation what stands in for a message at mask 0, one row for each
            edge of its relation; ``None`` means nothing does.
        delete: whether a mask must equal deletion.
        gradients: whether messages shall keep gradients.
        constant: ``[k * E]`` bool: edges that carry ``clean`` messages whatever their source sends.
        clean: for each propagation ``[k * E_r, ...]``, the clean run's messages, where some are
            constant.
    """

    edges: CopiedEdges
    mask: Tensor | None = None
    replaced: list[Tensor] | None = None
    delete: bool = False
    gradients: bool = False
    constant: Tensor | None = None
    clean: list[Tensor] = field(default_factory=list)
    seen: list[Propagation] = field(default_factory=list)
    _matched: dict[int, _Matched] = field(default_factory=dict)

    @contextmanager
    def watch(self, module: nn.Module) -> Iterator[None]:
        """Hooks on all convolutions; removed whatever happens."""
        with ExitStack() as handles:
            for path, conv in convolutions(module).items():
                _LayerHooks(self, path or type(conv).__name__, conv).attach(handles)
            yield

    def mask_of(self, edges: Tensor) -> Tensor:
        """``[M]``: mask values of messages on ``edges [M]``; 1 for the layer's own."""
        assert self.mask is not None
        in_graph = torch.nonzero(edges >= 0)[:, 0]
        ones = self.mask.new_ones(len(edges))
        return ones.index_put((in_graph,), self.mask[edges[in_graph]])

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
        if not fitting:
            raise self._foreign(path, index)
        if len(every.index) > 1 and relation is None and index.numel():
            # The reverse of one relation may hold the very numbers of another.
            names = " and ".join(every.names[r] for r, _ in fitting)
            raise ForeignEdges(
                f"{path} propagates over a copy of edges such as {names} has, and whose they are "
                "is not known; call it with the tensors of edge_index_dict themselves"
            )
        if len(self._matched) >= MOST_MATCHED:  # hooks that stay while a module trains
            self._matched.clear()
        self._matched[id(index)] = _Matched(index, *fitting[0])
        return self._matched[id(index)]

    def _numbers(self, path: str, relation: int, index: Tensor) -> Tensor | None:
        """``[M]`` edge numbers where ``index`` is the relation's, with loops of the layer's own."""
        given, numbers = self.edges.index[relation], self.edges.numbers[relation]
        if index.shape == given.shape and torch.equal(index, given):
            return numbers
        loops, own = index[0] == index[1], given[0] == given[1]
        if not torch.equal(index[:, ~loops], given[:, ~own]):
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
        with_loops[~loops] = numbers
        return with_loops

    def _foreign(self, path: str, index: Tensor) -> ForeignEdges:
        first, count = self.edges.index[0], index.shape[1]
        if len(self.edges.index) > 1:
            return ForeignEdges(
                f"{path} propagates over edges that are not the graph's ({count} of them; no one "
                "relation's, as where a layer merges them)"
            )
        if count < first.shape[1]:
            pairs = set(map(tuple, first.T.tolist()))
            if all(tuple(pair) in pairs for pair in index.T.tolist()):
                return ForeignEdges(
                    f"{path} passes messages over {count} of the graph's {first.shape[1]} edges at "
                    "a time, where a mask needs all of them in one call (RGCNConv, for one, takes "
                    "each relation by itself; FastRGCNConv computes the same over all edges at "
                    "once)"
                )
        return ForeignEdges(
            f"{path} propagates over edges that are not the graph's ({count} of them, the graph "
            f"has {first.shape[1]})"
        )

    # ---------------------------------------------------------------- messages

    def changed(self, out: Tensor, edges: Tensor, rule: str) -> Tensor:
        """What takes the place of messages ``out [M, ...]`` on ``edges [M]``.

        ``rule`` is the layer's own, by which deletion follows a mask.
        """
        number = len(self.seen)
        if self.constant is not None:
            own = torch.nonzero(edges >= 0)[:, 0]
            stays = self.constant[edges[own]]
            out = out.index_put((own[stays],), self.clean[number][stays].to(out))
        # Masked degrees and masked attention have changed the messages already.
        if self.mask is not None and not (self.delete and rule in ("weight", "attention")):
            mask = self.mask_of(edges).view(-1, *[1] * (out.ndim - 1)).to(out.dtype)
            if self.delete or self.replaced is None:
                out = out * mask
            else:
                in_graph = (edges >= 0).nonzero()[:, 0]
                other = torch.zeros_like(out).index_put((in_graph,), self.replaced[number].to(out))
                out = out * mask + (1 - mask) * other
        if self.gradients:
            out = out if out.requires_grad else out.detach().requires_grad_(True)
            out.retain_grad()
        return out


class _LayerHooks:
    """The hooks on one convolution, and what is under way in it.

    Both lists are stacks, since a convolution may be called, and may propagate, inside itself.
    """

    def __init__(self, hooks: MessageHooks, path: str, conv: Any) -> None:
        self.hooks, self.path, self.conv = hooks, path, conv
        self.rule = deletion_rule(conv) if hooks.mask is not None and hooks.delete else ""
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
        if self.rule == "none":
            raise UnsupportedModelError(
                f"no mask on {self.path} ({type(conv).__name__}, aggr={conv.aggr}) equals deleting "
                "an edge; masks of zeros and ones are run on the smaller graph, others refused: "
                "take a method without gradients, gp.ExactPatching(ablation='delete'), or "
                "ablation='zero'"
            )
        if self.rule == "weight":
            add(conv.register_forward_pre_hook(self._mask_degrees, with_kwargs=True))
        elif self.rule == "attention":
            add(conv.register_message_forward_pre_hook(self._mask_attention))
        elif self.rule == "mean":
            add(conv.register_aggregate_forward_hook(self._mask_mean))

    def _enter(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
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
        rows = self.hooks.changed(rows, matched.edges, self.rule)
        targets = matched.index[self.end]
        self.hooks.seen.append(
            Propagation(rows, matched.edges, targets, matched.relation, self.end)
        )
        return rows.movedim(0, axis) if turned else rows

    # ---------------------------------------------------------------- what deletion changes besides

    def _mask_degrees(self, conv: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A norm made of edge weights follows the mask where the mask is on these."""
        names = list(inspect.signature(conv.forward).parameters)
        if "edge_weight" not in names:
            raise UnsupportedModelError(f"{self.path} takes no edge_weight to mask its degrees by")
        numbers, relation = self.hooks.edges.numbers, self.called_with[-1]
        if relation is None and len(numbers) > 1:
            raise UnsupportedModelError(
                f"{self.path} was not called with a tensor of edge_index_dict itself, so whose "
                "degrees a mask must follow is not known"
            )
        assert self.hooks.mask is not None
        weights = self.hooks.mask[numbers[relation or 0]]
        given = dict(zip(names, args, strict=False)) | kwargs
        own = given.get("edge_weight")
        given["edge_weight"] = weights if own is None else own * weights.to(own)
        return (), given

    def _mask_attention(self, conv: Any, inputs: tuple[Any, ...]) -> Any:
        """Attention is normalised anew over what the mask leaves: a softmax without the rest."""
        (values,) = inputs
        alpha, (matched, _) = values["alpha"], self.open[-1]
        mask = self.hooks.mask_of(matched.edges)
        kept = alpha * mask.view(-1, *[1] * (alpha.ndim - 1)).to(alpha.dtype)
        target = matched.index[self.end]
        rows = int(target.max()) + 1 if target.numel() else 0
        total = kept.new_zeros((rows, *kept.shape[1:])).index_add(0, target, kept)[target]
        return ({**values, "alpha": kept / total.masked_fill(total == 0, 1.0)},)

    def _mask_mean(self, conv: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        """A mean divides by the mask's sum instead of the count."""
        matched, _ = self.open[-1]
        mask, target = self.hooks.mask_of(matched.edges).to(out), matched.index[self.end]
        zeros = out.new_zeros(out.shape[0])
        count = zeros.index_add(0, target, torch.ones_like(mask))
        total = zeros.index_add(0, target, mask)
        share = count / total.masked_fill(total == 0, 1.0)
        return out * share.view(-1, *[1] * (out.ndim - 1))
