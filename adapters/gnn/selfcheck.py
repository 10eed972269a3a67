"""What is proven of a module before it is trusted, against the user's own call on their own data.

With all edges kept a masked run must be that call. Copies side by side must not feed each other:
the second copy has fresh features, fresh values on its edges and another mask, so that a mean over
all nodes, a norm without a batch vector or attention between all nodes shows; on smaller graphs
each copy has lost other edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import InputError, UnsupportedModelError

from .answers import Answers
from .attributes import Axis, Copies, Layout, near
from .calling import CallPlan, call_plan, failures, told
from .edge_tensors import untouched
from .norms import bare_norms
from .passing import ForeignEdges, Passing
from .replicas import OneKind, Source

__all__ = ["checked", "outputs", "require_deletes"]


def outputs(
    module: nn.Module,
    source: Source,
    plan: CallPlan,
    copies: Copies,
    passing: Passing | None = None,
) -> Any:
    """The module's outputs for copies of the data, while ``passing`` watches."""
    if passing is None:
        return plan(module, source, copies)
    with passing.watch(module):
        return plan(module, source, copies)


def checked(
    module: nn.Module, source: Source, data: Any, forward: Any, level: str | None, kind: str | None
) -> tuple[Source, CallPlan, Answers, str]:
    """How the module is called and copied, what its outputs are, and why it shows no messages.

    Raises:
        InputError: the call cannot be told, or fails.
        UnsupportedModelError: masked runs would not be the module's own.
    """
    plan = call_plan(module, source, data, forward)
    try:
        source = _decided(module, source, plan)
        # Watched first: what masks cannot reach is refused before anything else is run.
        masked, merged = _open(module, source, plan)
        with bare_norms(module) as bare:
            raw = plan.users(module, source, untouched(data))
        plan = replace(plan, bare=tuple(sorted(bare)))
    except failures() as error:
        if told(error):
            raise
        raise InputError(
            f"{type(module).__name__} called as {plan} on the data fails: "
            f"{type(error).__name__}: {str(error)[:200]}. If that is not how it is called, say "
            "how: gp.wrap(module, data=data, forward=lambda module, d: ...)"
        ) from error
    answers = Answers.of(raw, source, level, kind)
    own = answers.split(raw, 1)
    if not bool(torch.isfinite(own).all()):
        raise UnsupportedModelError(
            f"the outputs of {type(module).__name__} itself hold NaN or infinite values on the data"
        )
    if level is None and answers.level == "node":
        _require_rows_of_nodes(module, source, plan, data, len(own[0]), answers)
    found = answers.split(masked, 1)
    if not near(found, own):
        raise UnsupportedModelError(
            f"{type(module).__name__} with all edges kept does not give the outputs of {plan}: "
            f"they differ by {float((found - own).abs().max()):.3g}"
        )
    return _apart(module, source, plan, answers, own, merged), plan, answers, merged


def _open(module: nn.Module, source: Source, plan: CallPlan) -> tuple[Any, str]:
    """Outputs with all edges kept, and why the module shows no messages (``""``: it does)."""
    one = source.one
    passing = Passing(one.wiring, torch.ones(source.num_edges, device=one.wiring.index[0].device))
    try:
        raw = outputs(module, source, plan, one, passing)
    except ForeignEdges as error:
        if isinstance(source, OneKind):
            raise
        return outputs(module, source, plan, one), str(error)
    if not passing.calls:
        raise UnsupportedModelError(f"{type(module).__name__} passed no message that could be seen")
    return raw, ""


# ------------------------------------------------------------------ what belongs to what


def _decided(module: nn.Module, source: Source, plan: CallPlan) -> Source:
    """Where a name and a size leave open what an attribute belongs to, smaller graphs decide."""
    if not isinstance(source, OneKind) or not source.either:
        return source
    names = [n for n in source.either if not plan.names or n in plan.names]
    if len(names) > 4:
        raise _ambiguous(names)
    kept = torch.arange(source.num_edges, device=source.edge_index.device) % 3 > 0
    fit: list[tuple[Source, Any]] = []
    both: tuple[Axis, ...] = ("node", "edge")
    for axes in product(both, repeat=len(names)):
        made = _with_axes(source, dict(zip(names, axes, strict=True)))
        wiring, which = made.wiring(1).only(kept)
        try:
            out = outputs(module, made, plan, Copies(dict(made.node), 1, wiring, which))
        except failures() as error:
            if told(error):
                raise
            continue
        fit.append((made, out))
    if not fit:  # smaller graphs do not run at all: deletion will say so
        return source
    first = fit[0][1]
    for _, out in fit[1:]:
        if not (isinstance(out, Tensor) and isinstance(first, Tensor) and near(out, first)):
            raise _ambiguous(names)
    return fit[0][0]


def _with_axes(source: OneKind, axes: Mapping[str, Axis]) -> OneKind:
    made = {
        name: replace(one, axis=axes.get(name, one.axis)) for name, one in source.attributes.items()
    }
    return replace(source, attributes=made)


def _ambiguous(names: list[str]) -> InputError:
    return InputError(
        f"the data has as many nodes as edges, so whether {', '.join('data.' + n for n in names)} "
        "belongs to nodes or to edges is not known; give names with 'edge' or 'node' in them, and "
        "say how the module is called: gp.wrap(module, data=data, forward=lambda module, d: ...)"
    )


def _require_rows_of_nodes(
    module: nn.Module, source: Source, plan: CallPlan, data: Any, rows: int, answers: Answers
) -> None:
    """Rows that are as many as nodes may still be of edges, or of pairs asked about."""
    for what, out in _fewer(module, source, plan, data, rows):
        counts = {len(out)} if isinstance(out, Tensor) else set()
        if counts and counts != {sum(answers.types.values())}:
            raise UnsupportedModelError(
                f"expected outputs of one row for each node or graph; the rows of "
                f"{type(module).__name__} are {what}, as many as there are nodes by chance"
            )


def _fewer(
    module: nn.Module, source: Source, plan: CallPlan, data: Any, rows: int
) -> Iterator[tuple[str, Any]]:
    """Outputs once an edge, or a pair asked about, is left out, where they are as many as rows."""
    device = source.one.wiring.numbers[0].device
    for first, count in zip(source.firsts, source.counts, strict=True):
        if count == rows:
            kept = torch.ones(source.num_edges, dtype=torch.bool, device=device)
            kept[first + count - 1] = False
            wiring, which = source.wiring(1).only(kept)
            copies = Copies(dict(source.node), 1, wiring, which)
            try:
                yield "of edges", outputs(module, source, plan, copies)
            except failures() as error:
                if told(error):
                    raise
    pairs = data["edge_label_index"] if isinstance(source, OneKind) and source.has(
        "edge_label_index"
    ) else None  # fmt: skip
    if isinstance(pairs, Tensor) and pairs.shape[-1] == rows:
        small = untouched(data)
        small["edge_label_index"] = pairs[..., :-1]
        try:
            yield "of pairs of nodes", plan.users(module, source, small)
        except failures() as error:
            if told(error):
                raise


# ------------------------------------------------------------------ copies side by side


def _apart(
    module: nn.Module,
    source: Source,
    plan: CallPlan,
    answers: Answers,
    own: Tensor,
    merged: str,
) -> Source:
    """The source with a layout in which copies do not feed each other."""
    because = ""
    for laid in _ways(source):
        try:
            far = _feed(module, laid, plan, answers, own, bool(merged))
            if far is None:
                return laid
            because = f": outputs differ by {far:.3g}"
        except failures() as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            because = because or f" ({str(error)[:200]})"
    raise UnsupportedModelError(
        f"{type(module).__name__} mixes graphs that stand side by side without an "
        "edge between them (a norm, a pooling or attention over all nodes?); give such layers the "
        f"batch vector, forward(x, edge_index, batch){because}"
    )


def _ways(source: Source) -> Iterator[Source]:
    """PyG's way first: names with "index" hold numbers of nodes, which move with the copies.

    By any other name they may be ids, rows of a table of embeddings say, and stay.
    """
    moving = source.moving if isinstance(source, OneKind) else ()
    sets = product((True, False), repeat=len(moving)) if len(moving) < 4 else [(True,) * 4]
    for moves in sets:
        stay = [name for name, move in zip(moving, moves, strict=False) if not move]
        some = source.staying(stay) if isinstance(source, OneKind) else source
        yield from (some.laid(layout) for layout in _layouts(source))


def _layouts(source: Source) -> Iterator[Layout]:
    for graphs in ("rows", "ones", "same") if source.globals else ("rows",):
        for batch in (True, False):
            yield Layout(graphs, batch)


def _feed(
    module: nn.Module,
    source: Source,
    plan: CallPlan,
    answers: Answers,
    own: Tensor,
    merged: bool,
) -> float | None:
    """How far outputs of two copies are from those of each alone; ``None``: rounding."""
    generator = torch.Generator().manual_seed(0)
    fresh = {name: _fresh(value, generator) for name, value in source.node.items()}
    both = {name: torch.cat([value, fresh[name]]) for name, value in source.node.items()}
    edges = {key: _fresh(value, generator) for key, value in source.edge.items()}
    two = {key: torch.cat([value, edges[key]]) for key, value in source.edge.items()}
    mask = torch.rand(source.num_edges, generator=generator).to(own)
    ones = torch.ones_like(mask)

    def run(count: int, nodes: Any, values: Any, weights: Tensor) -> Tensor:
        wiring = source.wiring(count)
        copies = Copies(nodes, count, wiring, instead=values)
        passing = None if merged else Passing(wiring, weights)
        return answers.split(outputs(module, source, plan, copies, passing), count)

    other = run(1, fresh, edges, mask)
    found = run(2, both, two, torch.cat([ones, mask]))
    alone = torch.cat([own, other])
    return None if near(found, alone) else float((found - alone).abs().max())


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


@torch.no_grad()
def require_deletes(module: nn.Module, source: Source, plan: CallPlan, answers: Answers) -> None:
    """Copies that have lost different edges must run, and each as if it were alone."""
    generator = torch.Generator().manual_seed(0)
    device = source.one.wiring.numbers[0].device
    drawn = [torch.rand(source.num_edges, generator=generator) < s for s in (0.9, 0.2)]
    kept = [one.to(device) for one in drawn]

    def run(chosen: Tensor) -> Tensor:
        count = len(chosen) // source.num_edges
        wiring, which = source.wiring(count).only(chosen)
        nodes = {k: v.repeat(count, *[1] * (v.ndim - 1)) for k, v in source.node.items()}
        copies = Copies(nodes, count, wiring, which)
        return answers.split(outputs(module, source, plan, copies), count)

    try:
        alone = torch.cat([run(one) for one in kept])
        both = run(torch.cat(kept))
    except failures() as error:
        if told(error):
            raise
        raise UnsupportedModelError(
            f"{type(module).__name__} does not run on the graph with fewer edges, so nothing "
            f"can be deleted from it ({type(error).__name__}: {str(error)[:160]}); use "
            "ablation='zero', 'mean' or 'counterfactual'"
        ) from error
    if not near(both, alone):
        raise UnsupportedModelError(
            f"{type(module).__name__} mixes graphs that stand side by side once their edges differ "
            "(something is counted over all edges?), so ablation='delete' would not be the smaller "
            f"graph: outputs differ by {float((both - alone).abs().max()):.3g}"
        )
