"""From scores to the circuit of a size: the one place, whoever asks.

The command line, studies, curves, statistics, the demo and calibration all come here, so that one
ranking, one size and one ablation give one circuit. Of the edges that a rule selects the dead ends
go: those that change no output, whether they are there or not. Which these are depends on what an
ablated edge carries, see :func:`cut_off_nodes_differ`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graphprune.errors import InputError
from graphprune.mask import EdgeMask
from graphprune.model import Ablation, ablation_kind

if TYPE_CHECKING:
    from graphprune.scores import EdgeScores, Ranking
    from graphprune.task import Task

__all__ = ["Rule", "circuit_of_size", "cut_off_nodes_differ", "without_dead_ends"]

Rule = Literal["top", "greedy", "connected"]


def cut_off_nodes_differ(ablation: str | Ablation | None, task: Task) -> bool:
    """Whether a node that no kept path reaches may send something else than its ablation value.

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
    rule: Rule = "top",
) -> EdgeMask:
    """The circuit that ``scores`` give at a size, without dead ends.

    Args:
        scores: one for each edge.
        size: how many edges are selected: a count (int) or a share of all edges (float). Dead ends
            among them go, so that fewer may be left; ``"connected"`` leaves exactly so many.
        by: the ranking, ``"abs"`` or ``"signed"``.
        ablation: a name or an :class:`~graphprune.Ablation`: what the circuit is measured under.
        task: the examples it is measured on.
        rule: ``"top"`` takes the best edges, ``"greedy"`` grows from the output, ``"connected"``
            takes the best edges that are no dead ends.
    """
    if rule == "connected":
        ends = not cut_off_nodes_differ(ablation, task)
        return scores.connected(size, by, from_inputs=ends)
    if rule not in ("top", "greedy"):
        raise InputError(f"a rule is top, greedy or connected; got {rule!r}")
    selected = scores.top(size, by=by) if rule == "top" else scores.greedy(size, by=by)
    return without_dead_ends(selected, ablation=ablation, task=task)
