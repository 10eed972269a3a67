"""Polishing: from a somewhat larger circuit down to exactly n edges by what cutting really costs.

ACDC (``gp.ACDC``, within the given circuit) at the threshold that leaves the fewest edges but at
least n; then the cheapest cuts, half of the surplus at a time, measured anew each time, down to n.
Beside it, the cheapest cuts from the given circuit at once; the better of both is taken. Every
decision is by runs of the model, none by an estimate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike
from graphprune.core.mask import EdgeMask, budget, require_same_graph
from graphprune.core.metrics import Metric
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.search.evaluators import LossEvaluator
from graphprune.search.order import readers
from graphprune.selection.connected import exact_budget, require_feasible
from graphprune.selection.selectors import cut_off_nodes_differ
from graphprune.util.interrupts import whole_results

from .acdc import ACDC

__all__ = ["polish"]

_ROW = 16


@torch.no_grad()
def polish(
    model: MaskedModel,
    task: Task,
    start: EdgeMask | EdgeScores,
    size: float,
    *,
    pool: float = 2.0,
    metric: str | Metric = "kl",
    ablation: AblationLike | None = None,
    batch_size: int | None = None,
    halvings: int = 6,
) -> EdgeMask:
    """A circuit of exactly ``size`` edges without dead ends, from ``start`` by exact cuts.

    It is never worse on the task's examples than the best ``size`` edges of the scores taken
    connected: where cutting found nothing better, those are kept.

    Args:
        model, task: the examples on which cuts are measured; all of them for every edge of the
            pool, several times over, so this is for small circuits.
        start: scores, whose best ``pool * size`` edges are the circuit to begin with, or such a
            circuit.
        size: a count (int) or a share of all edges.
        pool: see ``start``; not read for a circuit.
        metric: what a cut must not raise: ``"kl"``, another metric or ``"task"``, see
            :class:`~graphprune.ACDC`.
        ablation, batch_size: as methods have them.
        halvings: descents that look for the threshold.

    Raises:
        InputError: ``size`` is less than any circuit needs, or more than ``start`` has.

    Example:
        >>> polish(model, task, scores, 8, halvings=2)
        EdgeMask(8 of 24 edges, 33.3333%)
    """
    require_model(model)
    graph = model.graph
    require_same_graph(graph, start.graph, "the model and what is to be polished")
    count = budget(size, graph.num_edges)
    from_inputs = not cut_off_nodes_differ(ablation, task)
    require_feasible(graph, count, from_inputs=from_inputs)
    candidates: list[EdgeMask] = []
    if isinstance(start, EdgeScores):
        if not pool >= 1:
            raise InputError(f"pool is a factor from 1 on, got {pool!r}")
        ranked = start.values.abs()
        candidates.append(exact_budget(graph, ranked, count, from_inputs=from_inputs))
        wide = min(int(pool * count), graph.num_edges)
        start = exact_budget(graph, ranked, wide, from_inputs=from_inputs)
    start = start.prune_dead_ends(from_inputs=from_inputs)
    if start.num_kept < count:
        raise InputError(
            f"a circuit of {count} edges cannot be cut from one that has {start.num_kept} besides "
            "dead ends"
        )
    method = ACDC(metric=metric, ablation=ablation, batch_size=batch_size, recheck="off")
    order = method.edge_order(graph)
    cuts = _Cuts(method._evaluator(model, task, order), count, from_inputs, order)
    descended = cuts.descend(method, model, task, start, halvings)
    candidates += [cuts.finish(descended), cuts.finish(start)]
    exact = [mask for mask in candidates if mask.num_kept == count]
    return min(exact or candidates, key=cuts.loss)


class _Cuts:
    """Circuits and what they cost, down to ``count`` edges."""

    def __init__(
        self, evaluator: LossEvaluator, count: int, from_inputs: bool, order: Tensor
    ) -> None:
        self.evaluator, self.count, self.from_inputs = evaluator, count, from_inputs
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(len(order))

    def loss(self, mask: EdgeMask) -> float:
        self.evaluator.start(mask.kept)
        return self.evaluator.loss()

    def effects(self, mask: EdgeMask) -> Tensor:
        """``[E]`` float64: the rise of the loss when a kept edge is cut alone, inf elsewhere."""
        self.evaluator.start(mask.kept)
        base = self.evaluator.loss()
        found = torch.full((len(mask.values),), float("inf"), dtype=torch.float64)
        for edges in self._calls(mask):
            each = torch.eye(len(edges), dtype=torch.bool)
            found[edges] = torch.tensor(self.evaluator.without(edges, each), dtype=torch.float64)
        return found - base

    def _calls(self, mask: EdgeMask) -> list[Tensor]:
        """Kept edges in the order of decisions, those of one call with one reader if need be."""
        edges = torch.nonzero(mask.kept)[:, 0]
        edges = edges[self.place[edges].argsort()]
        width = max(1, min(_ROW, self.evaluator.most))
        if self.evaluator.spans:
            return list(torch.split(edges, width))
        reader = readers(mask.graph)[edges]
        turns = (torch.nonzero(reader[1:] != reader[:-1])[:, 0] + 1).tolist()
        return [
            part for group in torch.tensor_split(edges, turns) for part in torch.split(group, width)
        ]

    def descend(
        self, method: ACDC, model: MaskedModel, task: Task, start: EdgeMask, halvings: int
    ) -> EdgeMask:
        """The smallest circuit of at least ``count`` edges among descents at several thresholds."""
        if start.num_kept == self.count:
            return start
        effects = self.effects(start)
        sizes = effects[torch.isfinite(effects)].sort().values
        top = float(sizes.abs().max()) + 1e-9
        low, high, best = 1e-6 * top, 4.0 * top, start
        tau = max(float(sizes[start.num_kept - self.count - 1]), low)
        for _ in range(halvings):
            with whole_results():
                found = replace(method, tau=tau).fit(model, task, within=start).mask
            assert found is not None
            found = found.prune_dead_ends(from_inputs=self.from_inputs)
            if found.num_kept >= self.count:
                low = tau
                if found.num_kept <= best.num_kept:
                    best = found
                if found.num_kept == self.count:
                    break
            else:
                high = tau
            tau = (low * high) ** 0.5
        return best

    def finish(self, mask: EdgeMask) -> EdgeMask:
        """Cuts the cheapest edges, half of what is too many at a time, then measures again."""
        while mask.num_kept > self.count:
            effects = self.effects(mask)
            goal = max(self.count, mask.num_kept - max(1, (mask.num_kept - self.count) // 2))
            shorter = self._cheapest(mask, effects, goal)
            if shorter is None:
                values = torch.where(torch.isfinite(effects), effects, effects.new_tensor(-1e30))
                return exact_budget(
                    mask.graph, values, self.count, from_inputs=self.from_inputs
                )  # every single cut takes too many edges with it
            mask = shorter
        return mask

    def _cheapest(self, mask: EdgeMask, effects: Tensor, goal: int) -> EdgeMask | None:
        graph, kept, moved = mask.graph, mask.kept.numpy().copy(), False
        for edge in effects.argsort().tolist():
            if kept.sum() <= goal:
                break
            if not kept[edge]:
                continue
            less = kept.copy()
            less[edge] = False
            less = graph.alive(less, from_inputs=self.from_inputs)
            if less.sum() >= self.count:
                kept, moved = less, True
        return EdgeMask(graph, torch.from_numpy(np.asarray(kept)).float()) if moved else None
