"""From scores to the circuit of a size: the one place, whoever asks.

The command line, studies, curves, statistics, the demo and calibration all come here, so that one
ranking, one size and one ablation give one circuit. Of the edges that a rule selects the dead ends
go: those that change no output, whether they are there or not. Which these are depends on what an
ablated edge carries, see :func:`cut_off_nodes_differ`.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, ablation_kind
from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.core.scores import EdgeScores, Ranking
    from graphprune.core.task import Task

__all__ = [
    "Rule",
    "circuit_of_size",
    "cut_off_nodes_differ",
    "grow_from_output",
    "without_dead_ends",
]


def grow_from_output(graph: ComputationalGraph, values: Tensor, count: int) -> Tensor:
    """``[E]`` mask values of a circuit grown best-first from the output nodes.

    A node enters with the first edge that leaves it (together with its coupled group and the nodes
    wired into it); from then on the edges into it compete. A heap over node-sorted edges keeps
    this at O(count log E).
    """
    group = graph.representative
    target = group[graph.edge_index[1].numpy()]
    order = np.lexsort((-values.numpy(), target))
    starts = np.searchsorted(target[order], np.arange(graph.num_nodes + 1))
    wired: dict[int, list[int]] = {}
    for source, reader in graph.fixed_edge_index.T.tolist():
        wired.setdefault(int(group[reader]), []).append(int(group[source]))
    sources = group[graph.edge_index[0].numpy()]
    score = values.numpy()
    heap: list[tuple[float, int, int]] = []
    inside: set[int] = set()

    def offer(place: int, node: int) -> None:
        if place < starts[node + 1]:
            edge = int(order[place])
            heapq.heappush(heap, (-float(score[edge]), edge, place))

    def enter(node: int) -> None:
        if node not in inside:
            inside.add(node)
            offer(int(starts[node]), node)
            for other in wired.get(node, ()):
                enter(other)

    for node in graph.output_nodes:
        enter(int(group[node]))
    chosen = torch.zeros(graph.num_edges)
    for _ in range(count):
        if not heap:
            break
        _, edge, place = heapq.heappop(heap)
        chosen[edge] = 1.0
        offer(place + 1, int(target[edge]))
        enter(int(sources[edge]))
    return chosen


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
