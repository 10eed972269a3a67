"""The fewest edges that keep a task exactly: the optimised ranking, then an exact polish.

While the gates are squeezed from all edges down to one, the shortest exact prefix of their ranking
is looked for at every point on the way. The smallest one found is the optimised circuit. Then
edges are removed one by one while every output stays as it is; what is left is minimal: the removal
of any edge changes some output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphprune.core.mask import EdgeMask
from graphprune.core.result import Result
from graphprune.core.scores import EdgeScores
from graphprune.search.loop import Optimisation
from graphprune.util.numbers import ranking

if TYPE_CHECKING:
    from graphprune.evaluation.exactness import SameOutputs

__all__ = ["exact_prefix", "minimal"]

log = logging.getLogger(__name__)


def exact_prefix(ask: SameOutputs, values: Tensor, *, below: int) -> EdgeMask | None:
    """The shortest prefix of a ranking that gives the same outputs, dead ends dropped.

    Found by bisection with many sizes at once, so the shortest where longer prefixes of an exact
    one are exact too. ``None`` if none has fewer than ``below`` edges.
    """
    graph = ask.model.graph
    order = ranking(values)

    def prefix(n: int) -> Tensor:
        kept = torch.zeros(graph.num_edges, dtype=torch.bool)
        kept[order[:n]] = True
        return torch.from_numpy(graph.alive(kept.numpy(), from_inputs=not ask.leading))

    low, high = 0, graph.num_edges  # a prefix of `high` edges is exact
    best: Tensor | None = None
    while high - low > 1:
        count = min(ask.max_candidates, high - low - 1)
        sizes = sorted({low + (high - low) * (i + 1) // (count + 1) for i in range(count)} - {low})
        masks = torch.stack([prefix(n) for n in sizes])
        good = ask(masks.float())
        hits = torch.nonzero(good)[:, 0].tolist()
        if not hits:
            low = sizes[-1]
            continue
        first = hits[0]
        high, best = sizes[first], masks[first]
        low = sizes[first - 1] if first else low
    if best is None or int(best.sum()) >= below:
        return None
    return EdgeMask(graph, best.float())


def minimal(run: Optimisation, scores_of: Callable[[Optimisation, int], EdgeScores]) -> Result:
    """Runs the optimisation to the end; the smallest exact circuit on the way, polished.

    ``scores_of`` gives the gates' ranking, for the number of edges that were kept.
    """
    from graphprune.evaluation.exactness import SameOutputs, minimal_circuit

    graph = run.model.graph
    ask = SameOutputs(run.model, run.task, run.ablation)
    if run.best is None:
        run.best = (float(graph.num_edges), torch.ones(graph.num_edges))
    points = sorted({max(1, run.steps * (k + 1) // 20) for k in range(20)})
    for point in points:
        run.run(until=point)
        if run.stopped:
            break
        if run.step != point:
            continue  # passed before this run was resumed
        smaller = exact_prefix(ask, run.values, below=int(run.best[0]))
        if smaller is not None:
            run.best = (float(smaller.num_kept), smaller.values.clone())
            run.made_at = run.step
        run.save()
    optimised = EdgeMask(graph, run.best[1])
    if optimised.num_kept == graph.num_edges and not run.stopped:
        log.warning(
            "no ranking on the way had an exact prefix smaller than the whole graph of %d edges; "
            "the circuit comes from removing edges one by one",
            graph.num_edges,
        )
    scores = scores_of(run, optimised.num_kept)
    polished = optimised
    if not run.stopped:
        polished = minimal_circuit(run.model, run.task, optimised, scores, ablation=run.ablation)
    return Result(
        mask=polished,
        scores=scores,
        ablation=run.ablation,
        history=run.history,
        stopped=run.stopped,
        notes={
            "loss": run.mask_loss(polished),
            "optimised_edges": optimised.num_kept,
            "polished_edges": polished.num_kept,
            "optimised_mask": optimised.edges() if optimised.num_kept <= 1000 else None,
            "steps": run.step,
            "cached": run.minibatches.caching,
            **run.say_stopped(),
        },
    )
