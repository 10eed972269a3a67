"""Checks of capabilities: what an adapter promises beyond the contract."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from graphprune.capabilities import (
    CompiledCircuits,
    EdgeGradients,
    IncrementalTrials,
    LearnedConstants,
    MeanMessages,
    PlacedMessages,
    UserModule,
    WiderCopy,
)
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, gradient_by_mask
from graphprune.core.task import Task
from graphprune.core.trials import FullTrials
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.search.order import edge_order

from .checks_of_contract import AdapterCheck
from .common import (
    ConformanceError,
    a_batch,
    drawn,
    objective_of,
    require_close,
    require_unchanged,
    state_of,
)


def attribution_is_the_mask_gradient(model: Any, task: Task) -> None:
    """``edge_gradients`` at the clean model is the mask's gradient at 1; node sums follow."""
    batch = a_batch(task)
    reference = model.reference(batch)
    value = objective_of(task, batch, reference.full)
    gradients = model.edge_gradients(batch, value, reference)
    ones = torch.ones(model.graph.num_edges, requires_grad=True)
    (want,) = torch.autograd.grad(value(model.run(batch, ones, reference)).sum(), ones)
    require_close(gradients.edge, want, "edge_gradients at the clean model", rtol=1e-2)
    if model.graph.ties is not None:
        return  # a tied edge's gradient is the sum over messages of two senders
    sums = torch.zeros(model.graph.num_nodes, dtype=gradients.edge.dtype)
    sums.index_add_(0, model.graph.edge_index[0], gradients.edge)
    require_close(
        gradients.node, sums, "node gradients against sums over the node's edges", rtol=1e-2
    )


def constants_pass_no_gradient_on(model: Any, task: Task) -> None:
    """With every sender a constant only edges into the graph's outputs have a gradient.

    Its gate then decides alone what a node sends: at 1 the clean message, so outputs are the full
    model's.
    """
    batch, graph = a_batch(task), model.graph
    reference = model.reference(batch)
    value = objective_of(task, batch, reference.full)
    gates = torch.ones(1, graph.num_nodes)
    constant = torch.zeros(1, graph.num_nodes, dtype=torch.bool)
    constant[0, graph.untied.edge_index[0]] = True
    seen: list[Tensor] = []

    def looked_at(outputs: Tensor) -> Tensor:
        seen.append(outputs.detach())
        return value(outputs)

    gradient = model.edge_gradients(
        batch, looked_at, reference, gates=gates, constant=constant
    ).edge
    require_close(seen[0], reference.full, "outputs with every message a constant")
    read = torch.isin(graph.untied.edge_index[1], torch.tensor(graph.output_nodes))
    inner = graph.per_edge(read.int()) == 0
    if bool((gradient[inner] != 0).any()):
        raise ConformanceError("edge_gradients: a gradient passed through a constant node")


def groups_cover_every_sender(model: Any, task: Task) -> None:
    """``source_groups`` holds every sending node exactly once."""
    members = sorted(n for group in model.source_groups() for n in group)
    if members != torch.unique(model.graph.untied.edge_index[0]).tolist():
        raise ConformanceError("source_groups: not every sender stands in exactly one group")


def messages_cover_every_edge_once(model: Any, task: Task) -> None:
    """``messages`` names each edge once for each of its messages, with finite values."""
    seen = torch.zeros(model.graph.num_edges, dtype=torch.int64)
    for place in model.messages(a_batch(task)):
        seen[place.edges.reshape(-1)] += 1
        if not bool(torch.isfinite(place.values).all()):
            raise ConformanceError("messages: a value is NaN or infinite")
    ones = torch.ones(model.graph.untied.num_edges, dtype=torch.int64)
    wrong = int((seen != model.graph.per_edge(ones)).sum())
    if wrong:
        raise ConformanceError(f"messages: {wrong} edges are not named once for each message")


def mean_ablation_is_between(model: Any, task: Task) -> None:
    """Zero and mean ablation run, and mean ablation over one repeated input is that input."""
    batch = a_batch(task.take(1))
    if batch.corrupt is None:
        return
    mean = model.mean_ablation([batch], per_position=True)
    mask = drawn(model, 5)
    got = model.run(batch, mask, model.reference(batch, mean))
    require_close(got, model.run(batch, mask), "the mean over one example against that example")
    out = model.run(batch, mask, model.reference(batch, Ablation("zero")))
    if not bool(torch.isfinite(out).all()):
        raise ConformanceError("zero ablation: outputs are not finite")


def constants_begin_as_they_should(model: Any, task: Task) -> str | None:
    """Learned constants that begin at zero run as zero ablation does, and have a gradient."""
    batch, mask = a_batch(task), drawn(model, 9)
    try:
        learned = model.learned_ablation(Ablation("zero"))
        got = model.run(batch, mask, model.reference(batch, learned))
    except (InputError, UnsupportedModelError) as error:
        return f"none on this task: {error}"
    want = model.run(batch, mask, model.reference(batch, Ablation("zero")))
    require_close(got.detach(), want, "constants that begin at zero")
    slopes = torch.autograd.grad(got.sum(), learned.parameters, allow_unused=True)
    if not any(slope is not None and bool((slope != 0).any()) for slope in slopes):
        raise ConformanceError("learned_ablation: outputs have no gradient by the constants")
    return None


def trials_are_whole_runs(model: Any, task: Task) -> None:
    """Trials give the outputs of the masked runs that they stand for, as edges are cut."""
    batch = a_batch(task)
    reference = model.reference(batch)
    order = edge_order(model.graph, "reverse_topological")
    kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
    with torch.no_grad():
        trials = model.trials(batch, kept, reference, order)
        whole = FullTrials(model, batch, kept, reference)
        for edge in order[: min(6, len(order))]:
            one, cut = edge[None], torch.ones(1, 1, dtype=torch.bool)
            require_close(
                trials.without(one, cut), whole.without(one, cut), "a trial against a whole run"
            )
            trials.cut(0)
            whole.cut(0)
            require_close(trials.outputs(), whole.outputs(), "the circuit after a cut")


def compiled_circuits_are_masked_runs(model: Any, task: Task) -> None:
    """A compiled circuit gives the masked run's outputs, again at each call."""
    batch = a_batch(task)
    reference = model.reference(batch)
    mask = EdgeMask(model.graph, (drawn(model, 11) < 0.3).float())
    run = model.compiled(batch, mask, reference)
    want = model.run(batch, mask, reference)
    for call in ("first", "second"):
        require_close(run(), want, f"the {call} call of a compiled circuit")


def a_wider_copy_is_the_model(model: Any, task: Task) -> None:
    """The float64 copy has the same graph, and outputs that rounding alone tells apart."""
    wide = model.widened()
    if wide is None:
        return
    if wide.graph != model.graph:
        raise ConformanceError("widened: the copy has another graph")
    batch, mask = a_batch(task), drawn(model, 12)
    got = wide.run(batch, mask)
    if got.dtype != torch.float64:
        raise ConformanceError(f"widened: outputs are {got.dtype}, expected torch.float64")
    require_close(model.run(batch, mask), got, "the model against its float64 copy")


def module_is_unchanged(model: Any, task: Task) -> None:
    """Weights, gradients, flags, modes, hooks and submodules are as before, after errors too."""
    module = model.module
    before = state_of(module)
    batch = a_batch(task)
    mask = drawn(model, 7).requires_grad_(True)
    gradient_by_mask(model.run(batch, mask).sum(), mask)

    def fails(outputs: Tensor) -> Tensor:
        raise ZeroDivisionError

    full = model.reference(batch).full
    if isinstance(model, EdgeGradients):
        model.edge_gradients(batch, objective_of(task, batch, full))
        with contextlib.suppress(ZeroDivisionError):
            model.edge_gradients(batch, fails)
    require_unchanged(module, before)


CAPABILITY_CHECKS: dict[AdapterCheck, type[Any]] = {
    attribution_is_the_mask_gradient: EdgeGradients,
    constants_pass_no_gradient_on: EdgeGradients,
    groups_cover_every_sender: EdgeGradients,
    messages_cover_every_edge_once: PlacedMessages,
    mean_ablation_is_between: MeanMessages,
    constants_begin_as_they_should: LearnedConstants,
    trials_are_whole_runs: IncrementalTrials,
    compiled_circuits_are_masked_runs: CompiledCircuits,
    a_wider_copy_is_the_model: WiderCopy,
    module_is_unchanged: UserModule,
}
