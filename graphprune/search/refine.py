"""Local search from a discrete circuit: projected gradient steps, taken only where they help.

At a 0/1 mask m with the loss's gradient g, ``m - eta g`` is projected back to the budget: the kept
edges that help least make way for the absent ones that would help most, more of them the larger
eta is. Several eta are tried side by side; the best circuit found is the next m, until none is
better or the rounds are over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphprune.core.mask import EdgeMask
from graphprune.search.loop import Optimisation
from graphprune.selection.connected import exact_budget
from graphprune.util.numbers import ranks

__all__ = ["BATCHES", "TRIALS_A_ROUND", "larger_circuits", "refine"]

_SWAPS = (1, 2, 4, 8, 16, 32)  # of each ten thousand edges kept
TRIALS_A_ROUND = len(_SWAPS)
BATCHES = 8


def refine(run: Optimisation, mask: EdgeMask, rounds: int, *, batches: int = BATCHES) -> EdgeMask:
    """A circuit of the same size whose loss on the first ``batches`` batches is no higher.

    A round costs a gradient and up to six sparse runs of each of these batches. Ctrl-C ends it
    with the best circuit so far.
    """
    graph, count = mask.graph, mask.num_kept
    best = run.mask_loss(mask, batches)
    tried = {mask}
    for _ in range(rounds):
        if run.asked:
            break
        gradient = run.gradient(mask, batches)
        better = None
        for values in _steps(mask, gradient):
            other = exact_budget(graph, values, count, from_inputs=run.from_inputs)
            if other in tried or other.num_kept != count:
                continue
            tried.add(other)
            loss = run.mask_loss(other, batches)
            if loss < best:
                best, better = loss, other
        if better is None:
            break
        mask = better
    return mask


def _steps(mask: EdgeMask, gradient: Tensor) -> list[Tensor]:
    """``mask - eta gradient`` for the eta that swap 1, 2, 4, ... edges of ten thousand."""
    kept, scale = mask.kept, max(1, mask.num_kept // 10_000)
    useful, most = -gradient, scale * max(_SWAPS)
    worst = useful[kept].topk(min(most, mask.num_kept), largest=False).values
    best = useful[~kept].topk(min(most, len(kept) - mask.num_kept)).values
    steps = []
    for swaps in (scale * each for each in _SWAPS):
        if swaps > min(len(worst), len(best)):
            break
        gain = float(best[swaps - 1] - worst[swaps - 1])
        if gain <= 0:
            break
        steps.append(mask.values - gradient * (1.0 + 1e-6) / gain)
    return steps


def larger_circuits(
    run: Optimisation, mask: EdgeMask, *, batches: int = BATCHES
) -> dict[int, EdgeMask]:
    """By size: the best of three circuits, by the loss on the first ``batches`` batches.

    They are the one that the run passed (``run.path``), whose gates were still soft; the best edges
    of the warm start's ranking, where there is one; and the final ``mask`` with the best other
    edges of that ranking, or else of the final gates. So no circuit of a run is worse on these
    examples than the ranking that it began with. A run that Ctrl-C ended has those passed.
    """
    graph = mask.graph
    if run.stopped:
        return {size: EdgeMask(graph, values) for size, values in sorted(run.path.items())}
    start = None if run.start is None else run.start.scores.float().abs().cpu()
    order = ranks(run.values if start is None else start, noise=0.0)
    extended = mask.values.cpu() * (graph.num_edges + 1) + torch.from_numpy(order)
    found = {}
    for size, passed in sorted(run.path.items()):
        circuits = [EdgeMask(graph, passed)]
        for values in [extended] if start is None else [extended, start]:
            other = exact_budget(graph, values, size, from_inputs=run.from_inputs)
            circuits += [other] if other.num_kept == size else []
        found[size] = min(circuits, key=lambda circuit: run.mask_loss(circuit, batches))
    return found
