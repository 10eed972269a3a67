"""From scores to a circuit: the one table of selectors, and the circuit of a size.

A *selector* chooses edges by their scores. :data:`SELECTORS` lists them by name, with what each
does and its settings: the command line and whoever else offers a choice reads that table. A new one
is a function of a :class:`Candidates` and of its settings as keywords, put into the table.

Curves, studies, statistics, the demo and calibration take :func:`circuit_of_size`, so that one
ranking, one size and one ablation give one circuit. Of the edges that are selected the dead ends
go: those that change no output, whether they are there or not. Which these are depends on what an
ablated edge carries, see :func:`cut_off_nodes_differ`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, MaskedModel, ablation_kind
from graphprune.core.scores import EdgeScores, NodeScores, Ranking
from graphprune.core.task import Task


@dataclass(frozen=True, eq=False)
class Candidates:
    """The edges to choose from, and how many are wanted.

    Args:
        method: what scored them; ``model`` and ``task``: where.
        scores: one for each edge.
        size: a count (int) or a share of all edges (float).
        by: the ranking, ``"abs"`` or ``"signed"``.
        from_inputs: whether a node that no kept path reaches from the input counts as cut.
        threshold: the lowest score kept, where a threshold decides.
        nodes: scores of nodes, where the method has some.
    """

    method: Any
    model: MaskedModel
    task: Task
    scores: EdgeScores
    size: int | float
    by: Ranking = "abs"
    from_inputs: bool = True
    threshold: float | None = None
    nodes: NodeScores | None = None


@dataclass(frozen=True)
class Selector:
    """A way from scores to a mask.

    ``choose(candidates, **settings)`` gives the mask. ``ranks_itself``: it reads no ``by``.
    """

    choose: Callable[..., EdgeMask]
    ranks_itself: bool = False

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.choose.__name__

    @property
    def summary(self) -> str:
        """One line on it."""
        return inspect.getdoc(self.choose) or ""

    @property
    def settings(self) -> Mapping[str, inspect.Parameter]:
        """Its own settings, by name."""
        parameters = inspect.signature(self.choose).parameters
        return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def top(given: Candidates) -> EdgeMask:
    """The best edges."""
    return given.scores.top(given.size, given.by)


def greedy(given: Candidates) -> EdgeMask:
    """Grown from the output."""
    return given.scores.greedy(given.size, given.by)


def threshold(given: Candidates) -> EdgeMask:
    """All edges with at least some score."""
    assert given.threshold is not None
    return given.scores.threshold(given.threshold, given.by)


def nodes(given: Candidates) -> EdgeMask:
    """The edges between the best nodes."""
    assert given.nodes is not None
    return given.nodes.top(given.size, given.by)


def connected(given: Candidates) -> EdgeMask:
    """The best edges, none a dead end."""
    return given.scores.connected(given.size, given.by, from_inputs=given.from_inputs)


def ilp(given: Candidates, *, positives: float = 0.0, time_limit: float | None = 300.0) -> EdgeMask:
    """The best connected circuit, by integer programming."""
    return given.scores.ilp(
        given.size, given.by, positives=positives, from_inputs=given.from_inputs,
        time_limit=time_limit,
    )  # fmt: skip


def pnr(given: Candidates, *, positives: float = 0.7, connected: bool = True) -> EdgeMask:
    """A share of positive edges first."""
    return given.scores.pnr(
        given.size, positives, connected=connected, from_inputs=given.from_inputs
    )


def bootstrap(
    given: Candidates,
    *,
    resamples: int = 10,
    blocks: int | None = None,
    level: float = 0.95,
    kind: Literal["t", "percentile", "paper"] = "t",
    connected: bool = True,
    seed: int = 0,
) -> EdgeMask:
    """Edges told apart from 0 first."""
    from graphprune.selection.bootstrap import bootstrap_scores

    resampled = bootstrap_scores(
        given.method, given.model, given.task, resamples=resamples, blocks=blocks, seed=seed
    )
    return resampled.select(
        given.size, given.by, level=level, kind=kind, connected=connected,
        from_inputs=given.from_inputs,
    )  # fmt: skip


def influence(given: Candidates, *, share: float | None = None, connected: bool = True) -> EdgeMask:
    """By influence on the output through all paths; ``share``: as many as make that much up."""
    if share is not None:
        return given.scores.cumulative(share)
    ranked = given.scores.influence()
    if not connected:
        return ranked.top(given.size, given.by)
    return ranked.connected(given.size, given.by, from_inputs=given.from_inputs)


def polish(
    given: Candidates, *, pool: float = 2.0, metric: str = "kl", halvings: int = 6
) -> EdgeMask:
    """From ``pool`` times as many edges by what cutting costs."""
    from graphprune.methods.polish import polish as cut_down

    return cut_down(
        given.model, given.task, given.scores, given.size, pool=pool, metric=metric,
        ablation=given.method.chosen_ablation, batch_size=given.method.batch_size,
        halvings=halvings,
    )  # fmt: skip


_OWN_RANKING = (pnr, polish)
_ALL = (top, greedy, threshold, nodes, connected, ilp, pnr, bootstrap, influence, polish)

SELECTORS: dict[str, Selector] = {
    choose.__name__: Selector(choose, choose in _OWN_RANKING) for choose in _ALL
}


def cut_off_nodes_differ(ablation: str | Ablation | None, task: Task) -> bool:
    """``True`` if a node that no kept path reaches may not send its ablation value.

    Only on a corrupted prompt, position by position, does it compute exactly what replaces it:
    under zero and mean ablation it still sends what it makes of ablated inputs, and where prompts
    are aligned span by span it reads pooled messages. ``ablation`` is a name or an
    :class:`~graphprune.Ablation`; ``None``, not said, is counterfactual.
    """
    if ablation_kind(ablation) not in ("counterfactual", None):
        return True
    return task.aligns_spans


def without_dead_ends(mask: EdgeMask, *, ablation: str | Ablation | None, task: Task) -> EdgeMask:
    """``mask`` without the edges that change no output under this ablation on this task."""
    return mask.prune_dead_ends(from_inputs=not cut_off_nodes_differ(ablation, task))


def circuit_of_size(
    scores: EdgeScores,
    size: float,
    by: Ranking = "abs",
    *,
    ablation: str | Ablation | None,
    task: Task,
) -> EdgeMask:
    """The best edges that ``scores`` give at a size, without dead ends.

    Args:
        scores: one for each edge.
        size: how many edges are selected: a count (int) or a share of all edges (float). Dead ends
            among them go, so that fewer may be left.
        by: the ranking, ``"abs"`` or ``"signed"``.
        ablation: a name or an :class:`~graphprune.Ablation`: what the circuit is measured under.
        task: the examples it is measured on.
    """
    return without_dead_ends(scores.top(size, by), ablation=ablation, task=task)
