"""Whether a circuit gives exactly the full model's outputs, and whether it can be any smaller.

What counts as the same output is the task's metric's to say (``Metric.same_as_full``: the same
choice at every answer position, or a tolerance for numbers). It must hold on every example, so
these functions suit tasks that list all inputs, such as compiled programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike, resolve_ablation, said_or_own
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, Masked, mask_of, require_same_graph
from graphprune.core.metrics import Metric
from graphprune.core.model import Ablation, MaskedModel, Reference, require_model
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.selection.selectors import cut_off_nodes_differ
from graphprune.util.checks import at_least

__all__ = [
    "SameOutputs",
    "equivalent",
    "is_minimal",
    "minimal_circuit",
    "removable_edges",
    "same_outputs",
]

# References kept between calls; those beyond are made anew each time.
_CACHE_BYTES = 2**30


@dataclass(eq=False)
class _Held:
    """One batch, and its reference where that is kept."""

    batch: Batch
    reference: Reference | None = None
    refuted: int = 0


@dataclass(eq=False)
class SameOutputs:
    """Asks many masks of one model and task whether they give the full model's outputs.

    Keeps the examples' clean and ablated values (up to 1 GiB), and tries the batch first that
    refuted most masks so far; a refuted mask is not run on further batches.

    Args:
        ablation: what stands in for edges outside a mask.
        max_candidates: masks run at once.
        batch_size: examples at a time; ``None`` takes the task's.
    """

    model: MaskedModel
    task: Task
    ablation: AblationLike | None = None
    max_candidates: int = 16
    batch_size: int | None = None
    _held: list[_Held] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        require_model(self.model)
        at_least(self.max_candidates, 1, "max_candidates")
        self._chosen: Ablation = resolve_ablation(self.model, self.task, self.ablation)
        self._metric: Metric = self.task.metric
        self._held = [_Held(batch) for batch in self.task.batches(self.batch_size)]
        self._space = _CACHE_BYTES

    def _reference(self, held: _Held) -> Reference:
        if held.reference is not None:
            return held.reference
        made = self.model.reference(held.batch, self._chosen)
        if made.nbytes <= self._space:
            self._space -= made.nbytes
            held.reference = made
        return made

    @property
    def leading(self) -> bool:
        """Whether a node that no kept path reaches from the input still sends something of its own.

        So it is unless the ablation is counterfactual, position by position.
        """
        return cut_off_nodes_differ(self._chosen, self.task)

    @torch.no_grad()
    def __call__(self, masks: Tensor) -> Tensor:
        """``[K]`` bool for ``masks [K, E]``: the same outputs on every example."""
        edges = self.model.graph.num_edges
        if masks.ndim != 2 or masks.shape[1] != edges:
            raise InputError(f"masks must have the shape [K, {edges}], got {list(masks.shape)}")
        good = torch.ones(len(masks), dtype=torch.bool)
        for start in range(0, len(masks), self.max_candidates):
            part = slice(start, start + self.max_candidates)
            good[part] = self._some(masks[part])
        return good

    def _some(self, masks: Tensor) -> Tensor:
        alive = torch.arange(len(masks))
        for held in self._ordered():
            alive = alive[self._at(held, masks[alive])]
            if not len(alive):
                break
        good = torch.zeros(len(masks), dtype=torch.bool)
        good[alive] = True
        return good

    @torch.no_grad()
    def first(self, masks: Tensor) -> int | None:
        """Number of the first of ``masks [K, E]`` that gives the same outputs; ``None``: none does.

        All run together on one batch; those that pass run on the rest one by one.
        """
        head, *rest = self._ordered()
        for number in torch.nonzero(self._at(head, masks))[:, 0].tolist():
            if all(bool(self._at(held, masks[number : number + 1])[0]) for held in rest):
                return int(number)
        return None

    def _ordered(self) -> list[_Held]:
        return sorted(self._held, key=lambda held: -held.refuted)

    def _at(self, held: _Held, masks: Tensor) -> Tensor:
        """``[K]`` bool: the same outputs on one batch."""
        reference = self._reference(held)
        outputs = self.model.run(held.batch, masks.float(), reference)
        full = reference.full
        same = torch.stack(
            [self._metric.same_as_full(out, held.batch, full).all() for out in outputs]
        ).cpu()
        held.refuted += int((~same).sum())
        return same


def _binary(model: MaskedModel, mask: EdgeMask) -> Tensor:
    """``[E]`` bool of a mask of zeros and ones."""
    require_same_graph(model.graph, mask.graph, "the model and the mask")
    if not mask.is_binary:
        raise InputError("an exact circuit keeps or drops each edge; this mask has values between")
    return mask.kept


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
    """
    return SameOutputs(model, task, ablation, max_candidates)(masks)


def equivalent(
    model: MaskedModel, task: Task, mask: EdgeMask | Masked, *, ablation: AblationLike | None = None
) -> bool:
    """Whether the circuit gives the full model's output on every example of the task."""
    chosen, mask = said_or_own(ablation, mask), mask_of(mask)
    require_same_graph(model.graph, mask.graph, "the model and the mask")
    return bool(SameOutputs(model, task, chosen)(mask.values[None])[0])


def _without_each(kept: Tensor, edges: Tensor) -> Tensor:
    """``[K, E]``: ``kept [E]`` without each of ``edges [K]``."""
    masks = kept.float().repeat(len(edges), 1)
    masks[torch.arange(len(edges)), edges] = 0.0
    return masks


def removable_edges(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask | Masked,
    *,
    ablation: AblationLike | None = None,
    max_candidates: int = 16,
) -> EdgeMask:
    """The kept edges whose removal alone leaves every output the full model's."""
    kept = _binary(model, mask_of(mask))
    edges = torch.nonzero(kept)[:, 0]
    values = torch.zeros(model.graph.num_edges)
    ask = SameOutputs(model, task, said_or_own(ablation, mask), max_candidates)
    for some in edges.split(max_candidates):
        values[some] = ask(_without_each(kept, some)).float()
    return EdgeMask(model.graph, values)


def is_minimal(
    model: MaskedModel, task: Task, mask: EdgeMask | Masked, *, ablation: AblationLike | None = None
) -> bool:
    """Whether the circuit is exact and the removal of any kept edge changes some output."""
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

    Edges are tried in ascending order of ``order`` (``None``: from the graph's last edge to its
    first) in passes, until a pass removes nothing: the result :func:`is_minimal`. Where edges go
    easily whole stretches are tried at once; each that stays was tried alone in the last pass.
    Edges that lead nowhere go without a run.

    Args:
        mask: an exact circuit of zeros and ones.
        ablation: ``None``: the one that a circuit was found under, else counterfactual.
        max_candidates: candidates run at once.

    Raises:
        InputError: the circuit does not give the full model's outputs to begin with.
    """
    ask = SameOutputs(model, task, said_or_own(ablation, mask), max_candidates)
    mask = mask_of(mask)
    kept = _binary(model, mask)
    if not bool(ask(kept.float()[None])[0]):
        raise InputError(
            f"the circuit of {mask.num_kept} edges does not give the full model's outputs on every "
            "example; polishing starts from one that does"
        )
    if order is None:
        ranked = torch.arange(model.graph.num_edges - 1, -1, -1)
    else:
        require_same_graph(model.graph, order.graph, "the model and the scores")
        ranked = torch.sort(order.values, stable=True).indices
    kept = _lead_somewhere(ask, kept)
    while True:
        after = _one_pass(ask, kept, ranked)
        if bool((after == kept).all()):
            return EdgeMask(model.graph, kept.float())
        kept = after


def _lead_somewhere(ask: SameOutputs, kept: Tensor) -> Tensor:
    alive = ask.model.graph.alive(kept.numpy(), from_inputs=not ask.leading)
    return torch.from_numpy(alive)


@dataclass
class _Guess:
    """How the next edges are tried: all of them ``going``, or each alone as if all would stay."""

    going: bool = True
    width: int = 16


def _one_pass(ask: SameOutputs, kept: Tensor, ranked: Tensor) -> Tensor:
    """Every kept edge tried once, in order."""
    kept, start, guess = kept.clone(), 0, _Guess(width=ask.max_candidates)
    while True:
        rest = ranked[start:]
        places = torch.nonzero(kept[rest])[: guess.width, 0]
        if not len(places):
            return kept
        edges = rest[places]
        gone, told = (_try_stretch if guess.going else _try_each)(ask, kept, edges, guess)
        if told:
            start += int(places[told - 1]) + 1
        if len(gone):
            kept[gone] = False
            kept = _lead_somewhere(ask, kept)


def _try_stretch(
    ask: SameOutputs, kept: Tensor, edges: Tensor, guess: _Guess
) -> tuple[Tensor, int]:
    """The longest stretch of ``edges`` that can go at once, and of how many the fate is known."""
    count = min(len(edges), ask.max_candidates)
    cuts = [-(-len(edges) * (i + 1) // count) for i in range(count)][::-1]
    masks = kept.float().repeat(count, 1)
    for row, cut in zip(masks, cuts, strict=True):
        row[edges[:cut]] = 0.0
    found = ask.first(masks)
    going = 0 if found is None else cuts[found]
    if found == 0:
        guess.width *= 2
        return edges, len(edges)
    # The next cut's edges cannot all go: where that is a single edge, it stays.
    more = (cuts[-1] if found is None else cuts[found - 1]) - going
    guess.width = more if more < len(edges) else max(1, more // 2)
    if more > 1:
        return edges[:going], going
    guess.going = going > 0
    return edges[:going], going + 1


def _try_each(ask: SameOutputs, kept: Tensor, edges: Tensor, guess: _Guess) -> tuple[Tensor, int]:
    """The first of ``edges`` that can go alone; those before it stay."""
    edges = edges[: ask.max_candidates]
    found = ask.first(_without_each(kept, edges))
    if found is None:
        guess.width = min(2 * len(edges), ask.max_candidates)
        return edges[:0], len(edges)
    guess.going = found == 0
    guess.width = 1 if guess.going else max(1, found)
    return edges[found : found + 1], found + 1
