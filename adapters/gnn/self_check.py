"""What is proven of a module before it is trusted, against the user's own call on their own data.

With all edges kept a masked run must be that call. Copies side by side must not feed each other:
the second copy has fresh features, fresh values on its edges and another mask, so that a mean over
all nodes, a norm without a batch vector or attention between all nodes shows. Deletion is tried
when it is first asked for: on smaller graphs each copy has lost other edges, and under a mask of
zeros and ones the whole graph must give what the smaller one gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from graphprune.errors import InputError, UnsupportedModelError

from .copies import BatchLayout
from .find_call import attempt, call_on_part, find_call, nearly_equal, part_of
from .graph_data import GraphData, plain_copy
from .hooks import ForeignEdges, MessageHooks, convolutions
from .module_call import GraphModule, ModuleCall, OutputRows
from .norms import bare_norms

__all__ = ["Deletion", "checked_module", "require_maskable"]

log = logging.getLogger(__name__)


def require_maskable(module: nn.Module) -> None:
    """Raises where a module's sizes are not yet known, or a layer hides its messages."""
    if any(is_lazy(value) for value in (*module.parameters(), *module.buffers())):
        raise InputError(
            f"{type(module).__name__} has sizes that its first run decides (-1 channels); run "
            "it once on the data, then wrap it"
        )
    for path, conv in convolutions(module).items():
        name = path or type(conv).__name__
        if getattr(conv, "cached", False):
            raise UnsupportedModelError(
                f"{name} caches its normalisation (cached=True) and would ignore every change of "
                "the graph; make it with cached=False"
            )
        if getattr(conv, "decomposed_layers", 1) > 1:
            raise UnsupportedModelError(f"{name} passes messages in decomposed layers")


def checked_module(
    module: nn.Module,
    source: GraphData,
    data: Any,
    forward: Callable[[Any, Any], Any] | None,
    level: str | None,
    node_type: str | None,
) -> GraphModule:
    """The module with its call, the layout of its copies and the rows of its outputs.

    Raises:
        InputError: the call cannot be told, or fails.
        UnsupportedModelError: masked runs would not be the module's own.
    """
    name = type(module).__name__
    part = part_of(source)
    call = call_on_part(module, source, forward, part) or find_call(module, source, data, forward)
    first_runs, failed = attempt(lambda: _first_runs(call, data))
    if failed is not None:
        raise InputError(
            f"{name} called as {call} on the data fails: {type(failed).__name__}: "
            f"{str(failed)[:200]}. If that is not how it is called, say how: "
            "gp.wrap(module, data=data, forward=lambda module, d: ...)"
        ) from failed
    call, masked, why_unseen, raw = first_runs
    rows = OutputRows.of(raw, call.data, level, node_type)
    own = rows.split(raw, 1)
    if not bool(torch.isfinite(own).all()):
        raise UnsupportedModelError(
            f"the outputs of {name} itself hold NaN or infinite values on the data"
        )
    if level is None and rows.level == "node":
        _require_rows_of_nodes(call, data, len(own[0]))
    under_mask = rows.split(masked, 1)
    if not nearly_equal(under_mask, own):
        raise UnsupportedModelError(
            f"{name} with all edges kept does not give the outputs of {call}: they differ by "
            f"{float((under_mask - own).abs().max()):.3g}"
        )
    return _with_layout(GraphModule(call, rows, why_unseen), own, part)


def _first_runs(call: ModuleCall, data: Any) -> tuple[ModuleCall, Any, str, Any]:
    """The call, its outputs under a mask of ones, why it shows no messages, the user's outputs."""
    call = replace(call, data=_with_decided_axes(call))
    # Watched first: what masks cannot reach is refused before anything else is run.
    masked, why_unseen = _under_ones(call)
    with bare_norms(call.module) as bare:
        raw = call.on_data(plain_copy(data))
    return replace(call, bare_norms=tuple(sorted(bare))), masked, why_unseen, raw


def _under_ones(call: ModuleCall) -> tuple[Any, str]:
    copies = call.data.make_copies()
    hooks = MessageHooks(copies.edges, torch.ones(call.data.num_edges, device=call.data.device))
    try:
        raw = call(copies, hooks)
    except ForeignEdges as error:
        _require_edges_read(call, error)
        return call(copies), str(error)
    if not hooks.seen:
        name = type(call.module).__name__
        raise UnsupportedModelError(f"{name} passed no message that could be seen")
    return raw, ""


def _require_edges_read(call: ModuleCall, error: ForeignEdges) -> None:
    """Raises ``error`` where a module's outputs are the same without any of the graph's edges."""
    none = torch.zeros(call.data.num_edges, dtype=torch.bool, device=call.data.device)
    without, failed = attempt(lambda: call(call.data.make_copies(kept=none)))
    if failed is None and nearly_equal(without, call(call.data.make_copies())):
        raise UnsupportedModelError(
            f"{error}, and outputs are the same without any edge of the graph: there is nothing "
            "to prune"
        )


# ------------------------------------------------------------------ what belongs to what


def _with_decided_axes(call: ModuleCall) -> GraphData:
    """Where a name and a size leave open what an attribute belongs to, smaller graphs decide."""
    source = call.data
    if not source.either:
        return source
    names = [n for n in source.either if not call.arguments or n in call.arguments]
    if len(names) > 4:
        raise _ambiguous(names)
    kept = torch.arange(source.num_edges, device=source.device) % 3 > 0
    running: list[tuple[GraphData, Any]] = []
    both: tuple[Literal["node", "edge"], ...] = ("node", "edge")
    for axes in product(both, repeat=len(names)):
        chosen = dict(zip(names, axes, strict=True))
        attributes = {
            key: replace(one, axis=chosen.get(key[1], one.axis))
            for key, one in source.attributes.items()
        }
        decided = replace(source, attributes=attributes)
        out, failed = attempt(lambda: replace(call, data=decided)(decided.make_copies(kept=kept)))  # noqa: B023
        if failed is None:
            running.append((decided, out))
    if not running:  # smaller graphs do not run at all: deletion will say so
        return source
    first = running[0][1]
    for _, out in running[1:]:
        if not isinstance(first, Tensor) or not nearly_equal(out, first):
            raise _ambiguous(names)
    return running[0][0]


def _ambiguous(names: list[str]) -> InputError:
    return InputError(
        f"the data has as many nodes as edges, so whether {', '.join('data.' + n for n in names)} "
        "belongs to nodes or to edges is not known; give names with 'edge' or 'node' in them, and "
        "say how the module is called: gp.wrap(module, data=data, forward=lambda module, d: ...)"
    )


def _require_rows_of_nodes(call: ModuleCall, data: Any, rows: int) -> None:
    """Rows that are as many as nodes may still be of edges, or of pairs asked about."""
    for what, smaller in _with_one_less(call, data, rows):
        out, _ = attempt(smaller)
        if isinstance(out, Tensor) and len(out) != rows:
            raise UnsupportedModelError(
                f"expected outputs of one row for each node or graph; the rows of "
                f"{type(call.module).__name__} are {what}, as many as there are nodes by chance"
                + ("; say so: level='pair'" if "pairs" in what else "")
            )


def _with_one_less(
    call: ModuleCall, data: Any, rows: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls without one edge, or one pair asked about, where they are as many as rows."""
    source = call.data
    for first, count in zip(source.first_edges, source.edge_counts, strict=True):
        if count == rows:
            kept = torch.arange(source.num_edges, device=source.device) != first + count - 1
            yield "of edges", lambda kept=kept: call(source.make_copies(kept=kept))  # type: ignore[misc]
    if not source.heterogeneous and source.has("edge_label_index"):
        small = plain_copy(data)
        pairs = small["edge_label_index"]
        if isinstance(pairs, Tensor) and pairs.shape[-1] == rows:
            small["edge_label_index"] = pairs[..., :-1]
            yield "of pairs of nodes", lambda: call.on_data(small)


# ------------------------------------------------------------------ copies side by side


def _with_layout(module: GraphModule, own: Tensor, part: Tensor | None) -> GraphModule:
    """The module with a layout in which copies do not feed each other.

    ``own [1, rows, V]`` are its outputs; ``part [E]`` bool: edges that are enough to try it on.
    """
    because, source = "", module.call.data
    if part is not None:
        small, failed = attempt(
            lambda: module.outputs(source.make_copies(kept=part)), refusals=True
        )
        own, part = (own, None) if failed is not None else (small, part)
    for source in _layouts(module.call.data):
        laid_out = replace(module, call=replace(module.call, data=source))
        far, failed = attempt(lambda: _leak(laid_out, own, part), refusals=True)  # noqa: B023
        if failed is not None:
            because = because or f" ({str(failed)[:200]})"
        elif far is None:
            return laid_out
        else:
            because = f": outputs differ by {far:.3g}"
    log.info(
        "%s mixes graphs that stand side by side without an edge between them (a norm, a pooling "
        "or attention over all nodes?), so each is run by itself; give such layers the batch "
        "vector, forward(x, edge_index, batch), for speed%s",
        type(module.call.module).__name__,
        because,
    )
    source = module.call.data
    layout = BatchLayout(alone=True)
    return replace(module, call=replace(module.call, data=replace(source, layout=layout)))


def _layouts(source: GraphData) -> Iterator[GraphData]:
    """PyG's way first: names with "index" hold numbers of nodes, which move with the copies.

    By any other name they may be ids, rows of a table of embeddings say, and stay.
    """
    moving = [
        key
        for key, one in source.attributes.items()
        if one.shift is not None and not key[1].endswith("batch")
    ]
    of_graphs = any(one.axis == "graph" for one in source.attributes.values())
    per_graph: tuple[Literal["rows", "ones", "same"], ...] = ("rows", "ones", "same")
    per_graph = per_graph if of_graphs else per_graph[:1]
    choices = product((True, False), repeat=len(moving)) if len(moving) < 4 else [(True,) * 4]
    for moves in choices:
        staying = {key for key, move in zip(moving, moves, strict=False) if not move}
        attributes = {
            key: replace(one, shift=None) if key in staying else one
            for key, one in source.attributes.items()
        }
        for graphs, batch in product(per_graph, (True, False)):
            yield replace(source, attributes=attributes, layout=BatchLayout(graphs, batch))


def _leak(module: GraphModule, own: Tensor, part: Tensor | None) -> float | None:
    """How far outputs of two copies are from those of each alone; ``None`` if only by rounding.

    ``part [E]`` bool: the edges that copies have; ``None`` means all.
    """
    source, generator = module.call.data, torch.Generator().manual_seed(0)
    fresh = {name: _fresh(value, generator) for name, value in source.node_tensors.items()}
    both = {name: torch.cat([value, fresh[name]]) for name, value in source.node_tensors.items()}
    fresh_edges = {key: _fresh(value, generator) for key, value in source.edge_tensors.items()}
    two = {key: torch.cat([value, fresh_edges[key]]) for key, value in source.edge_tensors.items()}
    mask = torch.rand(source.num_edges, generator=generator).to(own)

    def run(
        count: int, nodes: Mapping[str, Tensor], on_edges: Mapping[Any, Tensor], weights: Tensor
    ) -> Tensor:
        kept = None if part is None else part.repeat(count)
        copies = source.make_copies(nodes, count, kept, on_edges)
        return module.outputs(
            copies, None if module.why_unseen else MessageHooks(copies.edges, weights)
        )

    other = run(1, fresh, fresh_edges, mask)
    together = run(2, both, two, torch.cat([torch.ones_like(mask), mask]))
    alone = torch.cat([own, other])
    return None if nearly_equal(together, alone) else float((together - alone).abs().max())


def _fresh(value: Tensor, generator: torch.Generator) -> Tensor:
    """Other values that are as valid: numbers within their range, ids of those that there are."""
    rows = len(value)
    if value.dtype == torch.bool or not rows:
        return value[torch.randperm(rows, generator=generator).to(value.device)]
    if value.is_floating_point():
        order = torch.randperm(rows, generator=generator).to(value.device)
        # Signs and ranges stay: a module may take logarithms of what it is given.
        share = 0.5 + 0.5 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
        return value[order] * share.to(value)
    drawn = torch.randint(rows, (rows,), generator=generator).to(value.device)
    return value[drawn]


# ------------------------------------------------------------------ deletion


class Deletion:
    """Runs on smaller graphs; what deletion rests on is tried once, when first asked for.

    Whether a mask can equal deletion hangs on the layers, not on the dtype they compute in.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self._smaller_works = self._mask_works = False
        self._alone = module.call.data.layout.alone

    def smaller(self, nodes: Mapping[str, Tensor] | None, count: int, kept: Tensor) -> Tensor:
        """``[k, rows, V]`` of ``count`` copies with the edges ``kept [k * E]`` bool alone.

        ``nodes [k * N, ...]``; ``None`` means the data's own. Nothing is watched.
        """
        if not self._smaller_works:
            self._try_smaller()
            self._smaller_works = True
        return self._smaller(nodes, count, kept)

    def _smaller(self, nodes: Mapping[str, Tensor] | None, count: int, kept: Tensor) -> Tensor:
        data = self.module.call.data
        if count == 1 or not self._alone:
            return self.module.outputs(data.make_copies(nodes, count, kept))
        parts = [
            {name: value.unflatten(0, (count, -1))[copy] for name, value in (nodes or {}).items()}
            for copy in range(count)
        ]
        each = zip(parts, kept.chunk(count), strict=True)
        return torch.cat([self._smaller(part or None, 1, own) for part, own in each])

    def _drawn(self, share: float, generator: torch.Generator) -> Tensor:
        source = self.module.call.data
        return (torch.rand(source.num_edges, generator=generator) < share).to(source.device)

    @torch.no_grad()
    def _try_smaller(self) -> None:
        """Copies that have lost different edges must run; are they as each would be alone?"""
        generator, name = torch.Generator().manual_seed(0), type(self.module.call.module).__name__
        kept = [self._drawn(share, generator) for share in (0.9, 0.2)]
        outputs, failed = attempt(
            lambda: (
                torch.cat([self._smaller(None, 1, one) for one in kept]),
                self._smaller(None, 2, torch.cat(kept)),
            )
        )
        if failed is not None:
            raise UnsupportedModelError(
                f"{name} does not run on the graph with fewer edges, so nothing can be deleted "
                f"from it ({type(failed).__name__}: {str(failed)[:160]}); use ablation='zero', "
                "'mean' or 'counterfactual'"
            ) from failed
        alone, both = outputs
        if not nearly_equal(both, alone):  # once edges differ: something is counted over all
            self._alone = True

    @torch.no_grad()
    def require_soft(self, like: Tensor) -> None:
        """Raises unless masks on the whole graph, as ``like`` typed, can equal deletion."""
        if self._mask_works:
            return
        copies, generator = self.module.call.data.make_copies(), torch.Generator().manual_seed(0)
        for share in (0.3, 0.7):
            kept = self._drawn(share, generator)
            small = self.smaller(None, 1, kept)
            soft = self.module.outputs(
                copies, MessageHooks(copies.edges, kept.to(like), delete=True)
            )
            half = small.dtype in (torch.float16, torch.bfloat16)
            if not nearly_equal(soft, small, 8 * torch.finfo(small.dtype).eps if half else None):
                raise UnsupportedModelError(
                    f"no mask on {type(self.module.call.module).__name__} equals deleting an edge, "
                    "which it does more with than sum over: outputs differ by "
                    f"{float((soft - small).abs().max()):.3g}; masks of "
                    "zeros and ones are run on the smaller graph, others are refused: take a "
                    "method that needs no gradient, gp.ExactPatching(ablation='delete'), or "
                    "ablation='zero'"
                )
        self._mask_works = True
