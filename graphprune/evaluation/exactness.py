"""Exact circuits, which give the full model's outputs, and those of them that cannot be smaller.

What counts as the same output is the task's metric's to say (``Metric.same_as_full``: the same
choice at every answer position, or a tolerance for numbers). It must hold on every example, so
these functions suit tasks that list all inputs, such as compiled programs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike, said_or_own
from graphprune.core.mask import EdgeMask, Masked, binary_mask, mask_of, require_same_graph
from graphprune.core.model import MaskedModel
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.evaluation.reference_cache import ReferenceCache, require_mask_rows
from graphprune.selection.selectors import cut_off_nodes_differ
from graphprune.util.checks import at_least


@dataclass(eq=False)
class SameOutputs:
    """Asks many masks of one model and task whether they give the full model's outputs.

    Keeps the examples' clean and ablated values (up to 1 GiB), and tries the batch first that
    refuted most masks so far; a refuted mask is not run on further batches.

    Args:
        ablation: what stands in for edges outside a mask.
        max_candidates: masks run at once.
        batch_size: examples at a time; ``None`` takes the task's.

    Example:
        >>> same = SameOutputs(model, task)
        >>> same(torch.stack([scores.top(20).values, scores.top(1).values]))
        tensor([ True, False])
    """

    model: MaskedModel
    task: Task
    ablation: AblationLike | None = None
    max_candidates: int = 16
    batch_size: int | None = None

    def __post_init__(self) -> None:
        at_least(self.max_candidates, 1, "max_candidates")
        self._cache = ReferenceCache(self.model, self.task, self.ablation, self.batch_size)
        self._refuted = [0] * len(self._cache)  # masks by each batch so far

    @property
    def leading(self) -> bool:
        """``True`` if a node that no kept path reaches from the input still sends something.

        So it is unless the ablation is counterfactual, position by position.
        """
        return cut_off_nodes_differ(self._cache.ablation, self.task)

    @torch.no_grad()
    def __call__(self, masks: Tensor) -> Tensor:
        """``[K]`` bool for ``masks [K, E]``: the same outputs on every example."""
        require_mask_rows(masks, self.model.graph)
        good = torch.zeros(len(masks), dtype=torch.bool)
        for alive in torch.arange(len(masks)).split(self.max_candidates):
            for number in self._ordered():
                if len(alive):
                    alive = alive[self._same(number, masks[alive])]
            good[alive] = True
        return good

    @torch.no_grad()
    def first(self, masks: Tensor) -> int | None:
        """Number of the first of ``masks [K, E]`` that gives the same outputs, or ``None``.

        All run together on one batch; those that pass run on the rest one by one.
        """
        head, *rest = self._ordered()
        for row in torch.nonzero(self._same(head, masks))[:, 0].tolist():
            if all(bool(self._same(number, masks[row : row + 1])[0]) for number in rest):
                return int(row)
        return None

    def _ordered(self) -> list[int]:
        """Numbers of the batches, the one that refuted most masks first."""
        return sorted(range(len(self._cache)), key=lambda number: -self._refuted[number])

    def _same(self, number: int, masks: Tensor) -> Tensor:
        """``[K]`` bool: the same outputs on one batch."""
        batch, reference = self._cache[number]
        outputs = self.model.run(batch, masks.float(), reference)
        full, metric = reference.full, self.task.metric
        same = torch.stack([metric.same_as_full(out, batch, full).all() for out in outputs]).cpu()
        self._refuted[number] += int((~same).sum())
        return same


def same_outputs(
    model: MaskedModel,
    task: Task,
    masks: Tensor,
    *,
    ablation: AblationLike | None = None,
    max_candidates: int = 16,
) -> Tensor:
    """``[K]`` bool for ``masks [K, E]``: which give the full model's output on every example.

    To ask often, keep a :class:`SameOutputs`, which keeps the examples' values.

    Example:
        >>> same_outputs(model, task, torch.stack([scores.top(20).values, scores.top(1).values]))
        tensor([ True, False])
    """
    return SameOutputs(model, task, ablation, max_candidates)(masks)


def equivalent(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask | Masked,
    *,
    ablation: AblationLike | None = None,
) -> bool:
    """``True`` if the circuit gives the full model's output on every example of the task.

    Example:
        >>> equivalent(model, task, scores.top(20)), equivalent(model, task, scores.top(1))
        (True, False)
    """
    chosen, mask = said_or_own(ablation, mask), mask_of(mask)
    require_same_graph(model.graph, mask.graph, "the model and the mask")
    return bool(SameOutputs(model, task, chosen)(mask.values[None])[0])


def without_each(kept: Tensor, edges: Tensor) -> Tensor:
    """``[K, E]`` bool: ``kept [E]`` without each of ``edges [K]``."""
    masks = kept.repeat(len(edges), 1)
    masks[torch.arange(len(edges)), edges] = False
    return masks


def removable_edges(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask | Masked,
    *,
    ablation: AblationLike | None = None,
    max_candidates: int = 16,
) -> EdgeMask:
    """The kept edges whose removal alone leaves every output the full model's.

    Example:
        >>> len(removable_edges(model, task, gp.EdgeMask.full(model.graph)).edges())
        23
    """
    kept = binary_mask(model.graph, mask).kept
    edges = torch.nonzero(kept)[:, 0]
    values = torch.zeros(model.graph.num_edges)
    exact = SameOutputs(model, task, said_or_own(ablation, mask), max_candidates)
    for chunk in edges.split(max_candidates):
        values[chunk] = exact(without_each(kept, chunk)).float()
    return EdgeMask(model.graph, values)


def is_minimal(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask | Masked,
    *,
    ablation: AblationLike | None = None,
) -> bool:
    """``True`` if the circuit is exact and the removal of any kept edge changes some output.

    Example:
        >>> is_minimal(model, task, gp.EdgeMask.full(model.graph))
        False
    """
    if not equivalent(model, task, mask, ablation=ablation):
        return False
    return removable_edges(model, task, mask, ablation=ablation).num_kept == 0


def minimal_circuit(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask | Masked,
    order: EdgeScores | None = None,
    *,
    ablation: AblationLike | None = None,
    max_candidates: int = 16,
) -> EdgeMask:
    """Removes edges while every output stays the full model's, until no kept edge can go.

    Edges are tried in ascending order of ``order`` (``None`` means from the graph's last edge to
    its first) in passes, until a pass removes nothing: the result :func:`is_minimal`. Where edges
    go easily whole stretches are tried at once; each that stays was tried alone in the last pass.
    Edges that lead nowhere go without a run.

    Args:
        mask: an exact circuit of zeros and ones.
        ablation: ``None`` takes the one that a circuit was found under, else counterfactual.
        max_candidates: candidates run at once.

    Raises:
        InputError: the circuit does not give the full model's outputs to begin with.

    Example:
        >>> small = minimal_circuit(model, task, gp.EdgeMask.full(model.graph), scores)
        >>> small, is_minimal(model, task, small)
        (EdgeMask(1 of 24 edges, 4.1667%), True)
    """
    exact = SameOutputs(model, task, said_or_own(ablation, mask), max_candidates)
    kept = binary_mask(model.graph, mask).kept
    if not bool(exact(kept.float()[None])[0]):
        raise InputError(
            f"the circuit of {int(kept.sum())} edges does not give the full model's outputs on "
            "every example; polishing starts from one that does"
        )
    if order is None:
        ranked = torch.arange(model.graph.num_edges - 1, -1, -1)
    else:
        require_same_graph(model.graph, order.graph, "the model and the scores")
        ranked = torch.sort(order.values, stable=True).indices
    kept = _without_dead_ends(exact, kept)
    while True:
        after = _one_pass(exact, kept, ranked)
        if bool((after == kept).all()):
            return EdgeMask(model.graph, kept.float())
        kept = after


def _without_dead_ends(exact: SameOutputs, kept: Tensor) -> Tensor:
    alive = exact.model.graph.alive(kept.numpy(), from_inputs=not exact.leading)
    return torch.from_numpy(alive)


@dataclass
class _Pace:
    """The way the next edges are tried: all at once as if ``going``, or each alone."""

    going: bool = True
    width: int = 16


def _one_pass(exact: SameOutputs, kept: Tensor, ranked: Tensor) -> Tensor:
    """Every kept edge tried once, in order."""
    kept, start, pace = kept.clone(), 0, _Pace(width=exact.max_candidates)
    while True:
        rest = ranked[start:]
        places = torch.nonzero(kept[rest])[: pace.width, 0]
        if not len(places):
            return kept
        edges = rest[places]
        gone, tried = (_try_stretch if pace.going else _try_each)(exact, kept, edges, pace)
        if tried:
            start += int(places[tried - 1]) + 1
        if len(gone):
            kept[gone] = False
            kept = _without_dead_ends(exact, kept)


def _try_stretch(
    exact: SameOutputs, kept: Tensor, edges: Tensor, pace: _Pace
) -> tuple[Tensor, int]:
    """The longest stretch of ``edges`` that can go at once, and of how many the fate is known."""
    count = min(len(edges), exact.max_candidates)
    cuts = [-(-len(edges) * (i + 1) // count) for i in range(count)][::-1]
    masks = kept.float().repeat(count, 1)
    for row, cut in zip(masks, cuts, strict=True):
        row[edges[:cut]] = 0.0
    first = exact.first(masks)
    going = 0 if first is None else cuts[first]
    if first == 0:
        pace.width *= 2
        return edges, len(edges)
    # The next cut's edges cannot all go: where that is a single edge, it stays.
    more = (cuts[-1] if first is None else cuts[first - 1]) - going
    pace.width = more if more < len(edges) else max(1, more // 2)
    if more > 1:
        return edges[:going], going
    pace.going = going > 0
    return edges[:going], going + 1


def _try_each(exact: SameOutputs, kept: Tensor, edges: Tensor, pace: _Pace) -> tuple[Tensor, int]:
    """The first of ``edges`` that can go alone; those before it stay."""
    edges = edges[: exact.max_candidates]
    first = exact.first(without_each(kept, edges))
    if first is None:
        pace.width = min(2 * len(edges), exact.max_candidates)
        return edges[:0], len(edges)
    pace.going = first == 0
    pace.width = 1 if pace.going else max(1, first)
    return edges[first : first + 1], first + 1
