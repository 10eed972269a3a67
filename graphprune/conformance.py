"""Checks that anyone can run on their own adapter or method.

    from graphprune.conformance import adapter_checks, check_adapter

    check_adapter(my_model, my_task)                       # all at once, one report
    @pytest.mark.parametrize("check", adapter_checks())    # or one test each
    def test_my_adapter(check):
        check(my_model, my_task)

``expected_failures={"name of the check": "why"}`` excuses a check, and reports it if it passes
after all. The task needs clean and corrupted inputs and a differentiable metric.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.capabilities import (
    CompiledCircuits,
    EdgeGradients,
    IncrementalTrials,
    LearnedConstants,
    MeanMessages,
    PlacedMessages,
    UserModule,
    WiderCopy,
    module_of,
)
from graphprune.errors import GraphMismatchError, GraphPruneError
from graphprune.graph import ComputationalGraph
from graphprune.greedy.order import edge_order
from graphprune.greedy.trials import FullTrials
from graphprune.mask import EdgeMask
from graphprune.methods.base import Method, Pruner, Scorer
from graphprune.model import Ablation, MaskedModel
from graphprune.scores import EdgeScores
from graphprune.task import Task

__all__ = ["ConformanceError", "adapter_checks", "check_adapter", "check_method", "method_checks"]

AdapterCheck = Callable[[MaskedModel, Task], None]
MethodCheck = Callable[[Method, MaskedModel, Task], None]


class ConformanceError(GraphPruneError, AssertionError):
    """An adapter or a method broke a promise of the contract; the message names the check."""


def _batch(task: Task) -> Batch:
    return next(iter(task.batches(min(4, len(task)))))


def _objective(task: Task, batch: Batch, full: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda outputs: task.metric(outputs, batch, full)


def _close(got: Tensor, want: Tensor, what: str, rtol: float = 1e-3) -> None:
    got, want = got.double().cpu(), want.double().cpu()
    if got.shape != want.shape:
        raise ConformanceError(f"{what}: shape {list(got.shape)}, expected {list(want.shape)}")
    gap, size = float((got - want).abs().max()), float(want.abs().max())
    if not gap <= rtol * (size + 1e-3):
        raise ConformanceError(f"{what}: differs by {gap:.3g} where values reach {size:.3g}")


def _mask(model: MaskedModel, seed: int) -> Tensor:
    return torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------- adapters


def graph_is_stable(model: MaskedModel, task: Task) -> None:
    """The graph is the same object of the same fingerprint at each call, and has outputs."""
    graph = model.graph
    if graph.fingerprint != model.graph.fingerprint or not graph.num_edges:
        raise ConformanceError("graph: no edges, or a fingerprint that changes between calls")
    if not graph.input_nodes or not graph.output_nodes:
        raise ConformanceError("graph: names no input or no output nodes")


def ends_are_the_references(model: MaskedModel, task: Task) -> None:
    """Mask 1 gives the full outputs, mask 0 the ablated ones."""
    batch = _batch(task)
    reference = model.reference(batch)
    ones = torch.ones(model.graph.num_edges)
    _close(model.run(batch, ones, reference), reference.full, "mask 1 against the full model")
    _close(model.run(batch, 0 * ones, reference), reference.ablated, "mask 0 against the ablated")


def full_is_the_users_module(model: MaskedModel, task: Task) -> None:
    """The full outputs do not depend on what stands in for ablated messages."""
    batch = _batch(task)
    with_zero = model.reference(batch, Ablation("zero")).full
    _close(with_zero, model.reference(batch).full, "full outputs under zero ablation")


def a_stack_is_its_masks(model: MaskedModel, task: Task) -> None:
    """Candidates run together give what each gives alone."""
    batch = _batch(task)
    reference = model.reference(batch)
    masks = torch.stack([_mask(model, 0), (_mask(model, 1) < 0.3).float(), _mask(model, 2) * 0])
    together = model.run(batch, masks, reference)
    for row, mask in zip(together, masks, strict=True):
        _close(row, model.run(batch, mask, reference), "a mask in a stack against alone")


def examples_have_their_own_masks(model: MaskedModel, task: Task) -> None:
    """``[K, B, E]`` gives each example what it gives under its mask alone; so does the gradient."""
    batch = _batch(task)
    reference = model.reference(batch)
    shape = (2, batch.size, model.graph.num_edges)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(8))
    masks[1] = (masks[1] < 0.4).float()
    own = masks.clone().requires_grad_(True)
    together = model.run(batch, own, reference)
    (gradient,) = torch.autograd.grad((together * together).sum() / 2, own)
    for k in range(2):
        for b in range(batch.size):
            mask = masks[k, b].clone().requires_grad_(True)
            alone = model.run(batch, mask, reference)[b]
            _close(together[k, b].detach(), alone.detach(), "an example under its own mask")
            (want,) = torch.autograd.grad((alone * alone).sum() / 2, mask)
            _close(gradient[k, b], want, "the gradient of an example's own mask", rtol=1e-2)
    value = _objective(task, batch, reference.full)
    inner = (0.3 + 0.4 * masks[:1]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(model.run(batch, inner, reference)[0]).sum(), inner)
    direction, step = masks[1:] - 0.5, 1e-2
    ahead, behind = (
        float(value(model.run(batch, inner.detach() + s * step * direction, reference)[0]).sum())
        for s in (1, -1)
    )
    got = (gradient * direction).sum()
    slope = torch.tensor((ahead - behind) / (2 * step))
    _close(got, slope, "gradient of masks for each example", rtol=3e-2)


def examples_do_not_mix(model: MaskedModel, task: Task) -> None:
    """An example's outputs are the same whatever stands beside it in the batch."""
    if len(task) < 2:
        return
    both, alone = _batch(task.take(2)), _batch(task.take(1))
    mask = _mask(model, 3)
    place = both.indices.index(alone.indices[0]) if both.indices else 0
    got = model.run(both, mask)[place]
    _close(got, model.run(alone, mask)[0], "an example beside another")


def gradient_is_finite_difference(model: MaskedModel, task: Task) -> None:
    """The mask's gradient against central differences along random directions."""
    batch = _batch(task)
    reference = model.reference(batch)
    value = _objective(task, batch, reference.full)
    start = 0.3 + 0.4 * _mask(model, 4)
    mask = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(model.run(batch, mask, reference)).sum(), mask)
    for seed in range(4):
        direction = _mask(model, 10 + seed) - 0.5
        step = 1e-2
        ahead, behind = (
            float(value(model.run(batch, start + sign * step * direction, reference)).sum())
            for sign in (1, -1)
        )
        got = (gradient * direction).sum().detach()
        _close(got, torch.tensor((ahead - behind) / (2 * step)), "mask gradient", rtol=3e-2)


def attribution_is_the_mask_gradient(model: Any, task: Task) -> None:
    """``edge_gradients`` at the clean model is the mask's gradient at 1; node sums follow."""
    batch = _batch(task)
    reference = model.reference(batch)
    value = _objective(task, batch, reference.full)
    found = model.edge_gradients(batch, value, reference)
    ones = torch.ones(model.graph.num_edges, requires_grad=True)
    (want,) = torch.autograd.grad(value(model.run(batch, ones, reference)).sum(), ones)
    _close(found.edge, want, "edge_gradients at the clean model", rtol=1e-2)
    sums = torch.zeros(model.graph.num_nodes, dtype=found.edge.dtype)
    sums.index_add_(0, model.graph.edge_index[0], found.edge)
    _close(found.node, sums, "node gradients against sums over the node's edges", rtol=1e-2)


def constants_pass_no_gradient_on(model: Any, task: Task) -> None:
    """With every sender a constant only edges into the graph's outputs have a gradient.

    Its gate then decides alone what a node sends: at 1 the clean message, so outputs are the full
    model's.
    """
    batch, graph = _batch(task), model.graph
    reference = model.reference(batch)
    value = _objective(task, batch, reference.full)
    gates = torch.ones(1, graph.num_nodes)
    constant = torch.zeros(1, graph.num_nodes, dtype=torch.bool)
    constant[0, graph.edge_index[0]] = True
    seen: list[Tensor] = []

    def looked_at(outputs: Tensor) -> Tensor:
        seen.append(outputs.detach())
        return value(outputs)

    found = model.edge_gradients(batch, looked_at, reference, gates=gates, constant=constant).edge
    _close(seen[0], reference.full, "outputs with every message a constant")
    inner = ~torch.isin(graph.edge_index[1], torch.tensor(graph.output_nodes))
    if bool((found[inner] != 0).any()):
        raise ConformanceError("edge_gradients: a gradient passed through a constant node")


def constants_begin_as_they_should(model: Any, task: Task) -> None:
    """Learned constants that begin at zero run as zero ablation does, and have a gradient."""
    batch = _batch(task)
    mask = _mask(model, 9)
    learned = model.learned_ablation(Ablation("zero"))
    got = model.run(batch, mask, model.reference(batch, learned))
    _close(got.detach(), model.run(batch, mask, model.reference(batch, Ablation("zero"))),
           "constants that begin at zero")  # fmt: skip
    slopes = torch.autograd.grad(got.sum(), learned.parameters)
    if not any(bool((slope != 0).any()) for slope in slopes):
        raise ConformanceError("learned_ablation: outputs have no gradient by the constants")


def trials_are_whole_runs(model: Any, task: Task) -> None:
    """Trials give the outputs of the masked runs that they stand for, as edges are cut."""
    batch = _batch(task)
    reference = model.reference(batch)
    order = edge_order(model.graph, "reverse_topological")
    kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
    with torch.no_grad():
        trials = model.trials(batch, kept, reference, order)
        whole = FullTrials(model, batch, kept, reference)
        for edge in order[: min(6, len(order))]:
            one, cut = edge[None], torch.ones(1, 1, dtype=torch.bool)
            _close(trials.without(one, cut), whole.without(one, cut), "a trial against a whole run")
            trials.cut(0)
            whole.cut(0)
            _close(trials.outputs(), whole.outputs(), "the circuit after a cut")


def compiled_circuits_are_masked_runs(model: Any, task: Task) -> None:
    """A compiled circuit gives the masked run's outputs, again at each call."""
    batch = _batch(task)
    reference = model.reference(batch)
    mask = EdgeMask(model.graph, (_mask(model, 11) < 0.3).float())
    run = model.compiled(batch, mask, reference)
    want = model.run(batch, mask, reference)
    for call in ("first", "second"):
        _close(run(), want, f"the {call} call of a compiled circuit")


def a_wider_copy_is_the_model(model: Any, task: Task) -> None:
    """The float64 copy has the same graph, and outputs that rounding alone tells apart."""
    wide = model.widened()
    if wide is None:
        return
    if wide.graph != model.graph:
        raise ConformanceError("widened: the copy has another graph")
    batch, mask = _batch(task), _mask(model, 12)
    got = wide.run(batch, mask)
    if got.dtype != torch.float64:
        raise ConformanceError(f"widened: outputs are {got.dtype}, expected torch.float64")
    _close(model.run(batch, mask), got, "the model against its float64 copy")


def messages_cover_every_edge_once(model: Any, task: Task) -> None:
    """``messages`` names each edge exactly once, with finite values."""
    seen = torch.zeros(model.graph.num_edges, dtype=torch.int64)
    for place in model.messages(_batch(task)):
        seen[place.edges.reshape(-1)] += 1
        if not bool(torch.isfinite(place.values).all()):
            raise ConformanceError("messages: a value is NaN or infinite")
    if not bool((seen == 1).all()):
        raise ConformanceError(f"messages: {int((seen != 1).sum())} edges are not named just once")


def groups_cover_every_sender(model: Any, task: Task) -> None:
    """``source_groups`` holds every sending node exactly once."""
    members = sorted(n for group in model.source_groups() for n in group)
    if members != torch.unique(model.graph.edge_index[0]).tolist():
        raise ConformanceError("source_groups: not every sender stands in exactly one group")


def mean_ablation_is_between(model: Any, task: Task) -> None:
    """Zero and mean ablation run, and mean ablation over one repeated input is that input."""
    batch = _batch(task.take(1))
    if batch.corrupt is None:
        return
    mean = model.mean_ablation([batch], per_position=True)
    mask = _mask(model, 5)
    got = model.run(batch, mask, model.reference(batch, mean))
    _close(got, model.run(batch, mask), "the mean over one example against that example")
    out = model.run(batch, mask, model.reference(batch, Ablation("zero")))
    if not bool(torch.isfinite(out).all()):
        raise ConformanceError("zero ablation: outputs are not finite")


def dead_ends_change_nothing(model: MaskedModel, task: Task) -> None:
    """Pruning dead ends of a sparse circuit leaves its outputs as they are."""
    batch = _batch(task)
    mask = EdgeMask(model.graph, (_mask(model, 6) < 0.2).float())
    reference = model.reference(batch)
    got = model.run(batch, mask.prune_dead_ends(), reference)
    _close(got, model.run(batch, mask, reference), "outputs after pruning dead ends")


def foreign_masks_are_refused(model: MaskedModel, task: Task) -> None:
    """A mask of another graph raises :class:`GraphMismatchError`."""
    other = EdgeMask.full(ComputationalGraph.from_edges([("a", "b")]))
    try:
        model.run(_batch(task), other)
    except GraphMismatchError:
        return
    raise ConformanceError("run: a mask of another graph was not refused")


def module_is_unchanged(model: Any, task: Task) -> None:
    """Weights, gradients, flags, modes, hooks and submodules are as before, after errors too."""
    before = _state(model.module)
    batch = _batch(task)
    mask = _mask(model, 7).requires_grad_(True)
    model.run(batch, mask).sum().backward()

    def fails(outputs: Tensor) -> Tensor:
        raise ZeroDivisionError

    full = model.reference(batch).full
    if isinstance(model, EdgeGradients):
        model.edge_gradients(batch, _objective(task, batch, full))
        with contextlib.suppress(ZeroDivisionError):
            model.edge_gradients(batch, fails)
    after = _state(model.module)
    for name, value in before.items():
        if not _same(value, after[name]):
            raise ConformanceError(f"the user's module changed: {name}")


def _state(module: torch.nn.Module) -> dict[str, Any]:
    return {
        "weights": {k: v.detach().clone() for k, v in module.state_dict().items()},
        "gradients": [p.grad is None for p in module.parameters()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in module.modules()
        ],
        "submodules": [id(m) for m in module.modules()],
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    return bool(a == b)


_CONTRACT_CHECKS: tuple[AdapterCheck, ...] = (
    graph_is_stable,
    ends_are_the_references,
    full_is_the_users_module,
    a_stack_is_its_masks,
    examples_have_their_own_masks,
    examples_do_not_mix,
    gradient_is_finite_difference,
    dead_ends_change_nothing,
    foreign_masks_are_refused,
)

_CAPABILITY_CHECKS: dict[AdapterCheck, type[Any]] = {
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


# -------------------------------------------------------------------- methods


def settings_are_frozen(method: Method, model: MaskedModel, task: Task) -> None:
    """A method is a frozen dataclass that can be rebuilt from its fields."""
    if not dataclasses.is_dataclass(method):
        raise ConformanceError(f"{type(method).__name__} is no dataclass")
    again = dataclasses.replace(method)
    if again != method or again.label != method.label:
        raise ConformanceError(f"{type(method).__name__} is not rebuilt from its own settings")
    try:
        setattr(method, dataclasses.fields(method)[0].name, None)
    except dataclasses.FrozenInstanceError:
        return
    raise ConformanceError(f"{type(method).__name__} is not frozen")


def result_is_of_this_graph(method: Method, model: MaskedModel, task: Task) -> None:
    """The result is an EdgeScores or EdgeMask over the model's graph."""
    if _run(method, model, task).graph != model.graph:
        raise ConformanceError("the result belongs to another graph")


def result_is_reproducible(method: Method, model: MaskedModel, task: Task) -> None:
    """Two runs with the same settings give the same bits."""
    first, second = (_run(method, model, task).values for _ in range(2))
    if not torch.equal(first, second):
        raise ConformanceError(f"two runs of {method.label} differ")


def method_leaves_the_module_alone(method: Method, model: MaskedModel, task: Task) -> None:
    """The user's module is as before."""
    module = module_of(model)
    if module is None:
        return
    before = _state(module)
    _run(method, model, task)
    after = _state(module)
    for name, value in before.items():
        if not _same(value, after[name]):
            raise ConformanceError(f"the user's module changed: {name}")


def scores_do_not_depend_on_batching(method: Method, model: MaskedModel, task: Task) -> None:
    """A scorer's means over examples are the same for every batch size.

    Not asked of mask optimisers (scorers that prune too): a batch is one of their steps.
    """
    if not isinstance(method, Scorer) or isinstance(method, Pruner):
        return
    one = dataclasses.replace(method, batch_size=1)
    whole = dataclasses.replace(method, batch_size=len(task))
    _close(
        _run(one, model, task).values,
        _run(whole, model, task).values,
        f"{method.label} with batches of 1 against one batch",
        rtol=1e-2,
    )


def _run(method: Method, model: MaskedModel, task: Task) -> EdgeScores | EdgeMask:
    if isinstance(method, Scorer):
        scores = method.score(model, task)
        if not isinstance(scores, EdgeScores):
            raise ConformanceError(f"score gave {type(scores).__name__}, expected EdgeScores")
        return scores
    if isinstance(method, Pruner):
        mask = method.prune(model, task)
        if not isinstance(mask, EdgeMask):
            raise ConformanceError(f"prune gave {type(mask).__name__}, expected EdgeMask")
        return mask
    raise ConformanceError(f"{type(method).__name__} is neither a Scorer nor a Pruner")


_METHOD_CHECKS: tuple[MethodCheck, ...] = (
    settings_are_frozen,
    result_is_of_this_graph,
    result_is_reproducible,
    method_leaves_the_module_alone,
    scores_do_not_depend_on_batching,
)


# -------------------------------------------------------------------- running them


def adapter_checks(model: MaskedModel | None = None) -> tuple[AdapterCheck, ...]:
    """The checks of an adapter, each ``check(model, task)``; for ``pytest.mark.parametrize``.

    Without a model those of the contract alone; with one also those of its capabilities.
    """
    claimed = tuple(c for c, kind in _CAPABILITY_CHECKS.items() if isinstance(model, kind))
    return _CONTRACT_CHECKS + claimed


def method_checks() -> tuple[MethodCheck, ...]:
    """The checks of a method, each ``check(method, model, task)``."""
    return _METHOD_CHECKS


def _all(
    checks: tuple[Callable[..., None], ...], args: tuple[Any, ...], excused: Mapping[str, str]
) -> dict[str, str]:
    names = [check.__name__ for check in checks]
    unknown = sorted(set(excused) - set(names))
    if unknown:
        raise ConformanceError(f"expected_failures names no check: {unknown}; checks: {names}")
    found, broken = {}, []
    for check in checks:
        try:
            check(*args)
            found[check.__name__] = "passed"
            if check.__name__ in excused:
                broken.append(f"{check.__name__}: passed, though excused")
        except (GraphPruneError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            if check.__name__ in excused:
                found[check.__name__] = f"expected failure: {excused[check.__name__]}"
            else:
                broken.append(f"{check.__name__}: {error}")
    if broken:
        listed = "\n".join(broken)
        raise ConformanceError(f"{len(broken)} of {len(checks)} checks failed:\n{listed}")
    return found


def check_adapter(
    model: MaskedModel, task: Task, *, expected_failures: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Runs the checks of the contract and of each capability that the model has.

    Gives ``{check: "passed"}``, ``"no <capability>"`` for those of capabilities that it lacks, or
    raises with all failures.
    """
    found = _all(adapter_checks(model), (model, task), expected_failures or {})
    return found | {
        check.__name__: f"no {kind.__name__}"
        for check, kind in _CAPABILITY_CHECKS.items()
        if check.__name__ not in found
    }


def check_method(
    method: Method,
    model: MaskedModel,
    task: Task,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Runs every check of a method on one model; gives ``{check: "passed"}`` or raises."""
    return _all(_METHOD_CHECKS, (method, model, task), expected_failures or {})
