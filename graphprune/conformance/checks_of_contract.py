"""Checks of the contract: what every adapter promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, MaskedModel, gradient_by_mask
from graphprune.core.task import Task
from graphprune.errors import GraphMismatchError, GraphPruneError, UnsupportedModelError

from .common import ConformanceError, a_batch, drawn, objective_of, require_close

# A check raises, or gives the reason why it could not look.
AdapterCheck = Callable[[MaskedModel, Task], str | None]
_CIRCUITS = 8  # with dead ends


def graph_is_stable(model: MaskedModel, task: Task) -> None:
    """The graph is the same object of the same fingerprint at each call, and has outputs."""
    graph = model.graph
    if graph.fingerprint != model.graph.fingerprint or not graph.num_edges:
        raise ConformanceError("graph: no edges, or a fingerprint that changes between calls")
    if not graph.input_nodes or not graph.output_nodes:
        raise ConformanceError("graph: names no input or no output nodes")


def ends_are_the_references(model: MaskedModel, task: Task) -> None:
    """Mask 1 gives the full outputs, mask 0 the ablated ones."""
    batch = a_batch(task)
    reference = model.reference(batch)
    ones = torch.ones(model.graph.num_edges)
    require_close(
        model.run(batch, ones, reference), reference.full, "mask 1 against the full model"
    )
    require_close(
        model.run(batch, 0 * ones, reference), reference.ablated, "mask 0 against the ablated"
    )


def full_outputs_are_the_same_under_every_ablation(model: MaskedModel, task: Task) -> str | None:
    """The full outputs do not depend on what stands in for ablated messages."""
    batch = a_batch(task)
    try:
        with_zero = model.reference(batch, Ablation("zero")).full
    except UnsupportedModelError as error:
        return f"no zero ablation: {error}"
    require_close(with_zero, model.reference(batch).full, "full outputs under zero ablation")
    return None


def zero_ablation_reads_no_corrupted_input(model: MaskedModel, task: Task) -> str | None:
    """Under zero ablation outputs are the same whatever the corrupted inputs are."""
    batch = a_batch(task)
    if batch.corrupt is None:
        return "the task has no corrupted inputs"
    if batch.alignment is not None:
        return "the clean and corrupted inputs are aligned and cannot be exchanged"
    mask, zero = drawn(model, 5), Ablation("zero")
    try:
        with_corrupt = model.run(batch, mask, model.reference(batch, zero))
    except UnsupportedModelError as error:
        return f"no zero ablation: {error}"
    blind = replace(batch, corrupt=batch.clean)
    got = model.run(blind, mask, model.reference(blind, zero))
    require_close(got, with_corrupt, "zero ablation with other corrupted inputs")
    return None


def values_between_0_and_1_count(model: MaskedModel, task: Task) -> str | None:
    """Outputs move with a mask's values on the way from 0 to 1; they do not jump from end to end.

    A mask that is rounded passes every other check: its gradient is 0, and so are the differences.
    """
    batch = a_batch(task)
    reference = model.reference(batch)
    shares = torch.linspace(0, 1, 21)
    rows = shares[:, None].expand(-1, model.graph.num_edges)
    outputs = model.run(batch, rows, reference).double().flatten(1)
    span = float((outputs[0] - outputs[-1]).abs().max())
    if span <= 1e-3 * (float(outputs.abs().max()) + 1e-3):
        return "cutting every edge changes no output here"
    away = [(outputs - outputs[end]).abs().amax(1) > 1e-3 * span for end in (0, -1)]
    if not bool((away[0] & away[1]).any()):
        raise ConformanceError(
            "masks of one value each, from 0 to 1: every output is that of mask 0 or of mask 1; "
            "are values rounded or compared with a threshold?"
        )
    return None


def a_stack_is_its_masks(model: MaskedModel, task: Task) -> None:
    """Candidates run together give what each gives alone."""
    batch = a_batch(task)
    reference = model.reference(batch)
    masks = torch.stack([drawn(model, 0), (drawn(model, 1) < 0.3).float(), drawn(model, 2) * 0])
    together = model.run(batch, masks, reference)
    for row, mask in zip(together, masks, strict=True):
        require_close(row, model.run(batch, mask, reference), "a mask in a stack against alone")


def examples_have_their_own_masks(model: MaskedModel, task: Task) -> None:
    """``[K, B, E]`` gives each example what it gives under its mask alone; so does the gradient."""
    batch = a_batch(task)
    reference = model.reference(batch)
    shape = (2, batch.size, model.graph.num_edges)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(8))
    masks[1] = (masks[1] < 0.4).float()
    own = masks.clone().requires_grad_(True)
    together = model.run(batch, own, reference)
    gradient = gradient_by_mask((together * together).sum() / 2, own)
    for k in range(2):
        for b in range(batch.size):
            mask = masks[k, b].clone().requires_grad_(True)
            alone = model.run(batch, mask, reference)[b]
            require_close(together[k, b].detach(), alone.detach(), "an example under its own mask")
            (want,) = torch.autograd.grad((alone * alone).sum() / 2, mask)
            require_close(gradient[k, b], want, "the gradient of an example's own mask", rtol=1e-2)
    value = objective_of(task, batch, reference.full)
    inner = (0.3 + 0.4 * masks[:1]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(model.run(batch, inner, reference)[0]).sum(), inner)
    direction, step = masks[1:] - 0.5, 1e-2
    ahead, behind = (
        float(value(model.run(batch, inner.detach() + s * step * direction, reference)[0]).sum())
        for s in (1, -1)
    )
    got = (gradient * direction).sum()
    slope = torch.tensor((ahead - behind) / (2 * step))
    require_close(got, slope, "gradient of masks for each example", rtol=3e-2)


def examples_do_not_mix(model: MaskedModel, task: Task) -> str | None:
    """An example's outputs are the same whatever stands beside it in the batch."""
    if len(task) < 2:
        return "the task has one example"
    both, alone = a_batch(task.take(2)), a_batch(task.take(1))
    mask = drawn(model, 3)
    place = both.indices.index(alone.indices[0]) if both.indices else 0
    got = model.run(both, mask)[place]
    require_close(got, model.run(alone, mask)[0], "an example beside another")
    return None


def gradient_is_finite_difference(model: MaskedModel, task: Task) -> None:
    """The mask's gradient against central differences along random directions."""
    batch = a_batch(task)
    reference = model.reference(batch)
    value = objective_of(task, batch, reference.full)
    start = 0.3 + 0.4 * drawn(model, 4)
    mask = start.clone().requires_grad_(True)
    gradient = gradient_by_mask(value(model.run(batch, mask, reference)).sum(), mask)
    for seed in range(4):
        direction = drawn(model, 10 + seed) - 0.5
        got = (gradient * direction).sum().detach()
        slopes = []
        for step in (1e-2, 3e-3, 1e-3):  # a step may cross a kink of a ReLU, a shorter one does not
            ahead, behind = (
                float(value(model.run(batch, start + sign * step * direction, reference)).sum())
                for sign in (1, -1)
            )
            slopes.append((ahead - behind) / (2 * step))
        nearest = min(slopes, key=lambda slope: abs(slope - float(got)))
        require_close(got, torch.tensor(nearest), "mask gradient against differences", rtol=3e-2)


def dead_ends_change_nothing(model: MaskedModel, task: Task) -> str | None:
    """Pruning dead ends of circuits leaves their outputs as they are.

    It tells masks that are read in another order than the graph's edges.
    """
    batch = a_batch(task)
    reference = model.reference(batch)
    looked = 0
    for seed in range(200):
        share = 0.2 + 0.6 * (seed % 7) / 6
        mask = EdgeMask(model.graph, (drawn(model, 100 + seed) < share).float())
        pruned = mask.prune_dead_ends()
        if not 0 < pruned.num_kept < mask.num_kept:
            continue
        got = model.run(batch, pruned, reference)
        what = f"outputs without the dead ends {(mask - pruned).edges()[:5]}"
        require_close(got, model.run(batch, mask, reference), what)
        looked += 1
        if looked == _CIRCUITS:
            break
    return None if looked else "no circuit drawn had dead ends and other edges"


def foreign_masks_are_refused(model: MaskedModel, task: Task) -> None:
    """A mask of another graph raises :class:`GraphMismatchError`."""
    other = EdgeMask.full(ComputationalGraph.from_edges([("a", "b")]))
    got = "outputs"
    try:
        model.run(a_batch(task), other)
    except GraphMismatchError:
        return
    except GraphPruneError as error:
        got = f"{type(error).__name__}: {error}"
    raise ConformanceError(
        f"run: expected a GraphMismatchError for a mask of another graph, got {got}"
    )


CONTRACT_CHECKS: tuple[AdapterCheck, ...] = (
    graph_is_stable,
    ends_are_the_references,
    full_outputs_are_the_same_under_every_ablation,
    zero_ablation_reads_no_corrupted_input,
    values_between_0_and_1_count,
    a_stack_is_its_masks,
    examples_have_their_own_masks,
    examples_do_not_mix,
    gradient_is_finite_difference,
    dead_ends_change_nothing,
    foreign_masks_are_refused,
)
