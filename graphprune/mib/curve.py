r"""MIB's scores of a method's circuits: CPR, CMD and AUROC, as the benchmark's evaluator has them.

The evaluator is ``evaluation.py`` of hannamw/MIB-circuit-track. A circuit's faithfulness is
``f = (m(circuit) - m(ablated)) / (m(full) - m(ablated))``, m the mean metric. Over circuits of ten
sizes, CPR is the area under f and CMD that under \|1 - f\|, by the trapezoid rule.

What is particular to that evaluator, and kept here:

- The x axis is the size that was asked for, from .001 to 1, whatever number of edges a circuit has.
  What lies before .001 is left out: a perfect ranking has the CPR .999.
- Of a file of scores, each size takes the best ``int(size * count)`` edges or nodes, then dead ends
  go. CPR ranks by signed scores, CMD by magnitudes. ``count`` is the number of scored nodes, or of
  edges where those into a key/value head count once for each query head.
- Of a folder of circuits nine are read and ordered by their number of edges, counted in the same
  way (ties by f). The tenth point is the whole graph: f = 1, not measured. Both areas come from
  the same points.
- A node that has no score is always kept.
- AUROC takes greedy circuits by magnitude, of ``size * edges`` edges, a fraction of an edge counted
  as one, without dead ends. The area is divided by the last false positive rate and has no corner
  at (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.model import Ablation, MaskedModel, require_model
from graphprune.core.scores import EdgeScores, NodeScores, Ranking
from graphprune.core.sizes import MIB_SIZES
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.evaluation.curve import FaithfulnessCurve, curve_of
from graphprune.mib.content import MIBNodes
from graphprune.mib.layout import UngroupedLayout
from graphprune.selection.selectors import without_dead_ends
from graphprune.util.numbers import ranking

_RANKINGS: tuple[Ranking, ...] = ("signed", "abs")


def repeats_in_files(graph: ComputationalGraph) -> Tensor:
    """``[E]`` float: how often each edge stands in score files, once for each query head it feeds.

    1 everywhere on graphs that are no transformer's.
    """
    try:
        layout = UngroupedLayout.of(graph)
    except InputError:
        return torch.ones(graph.num_edges)
    edges = layout.edge[layout.real]
    return torch.from_numpy(np.bincount(edges, minlength=graph.num_edges)).float()


def kept_shares(circuits: Sequence[EdgeMask]) -> list[float]:
    """The share of all edges that each circuit really keeps, as MIB's code counts edges.

    An edge into a key/value head counts once for each query head that reads it. The evaluator
    saves this count of a circuit (``weighted_edge_count``, where a node kept in part counts by the
    share of its neurons) and integrates over the requested share instead. The paper is said to
    count sizes so, over the count of the whole model.

    Example:
        >>> kept_shares([gp.EAP().score(lm, prompts).top(0.5)])
        [0.5]
    """
    repeats = repeats_in_files(circuits[0].graph)
    return [float(repeats[mask.kept].sum() / repeats.sum()) for mask in circuits]


def mib_curve(
    model: MaskedModel,
    task: Task,
    found: EdgeScores | NodeScores | MIBNodes | Sequence[EdgeMask],
    *,
    ablation: AblationLike = "counterfactual",
    batch_size: int | None = None,
) -> FaithfulnessCurve:
    """CPR and CMD as MIB's evaluator gives them; see the module.

    Args:
        model, task: what is evaluated; MIB's own metric is ``logit_diff``.
        found: scores of edges; of nodes; or nine circuits. Ten circuits may be given where one of
            them is the whole graph.
        ablation: MIB's is counterfactual, whatever its flag says.
        batch_size: examples at a time.

    Raises :class:`InputError` for another number of circuits, and where f is not defined.

    Example:
        >>> curve = mib_curve(lm, prompts, gp.EAP().score(lm, prompts))
        >>> len(curve.sizes), curve.f["abs"][-1]
        (10, 1.0)
    """
    require_model(model)
    chosen = resolve_ablation(model, task, ablation)

    def pruned(circuits: list[EdgeMask]) -> list[EdgeMask]:
        return [without_dead_ends(mask, ablation=chosen, task=task) for mask in circuits]

    if isinstance(found, EdgeScores):
        require_same_graph(model.graph, found.graph, "the model and the scores")
        masks: dict[Ranking, list[EdgeMask]]
        masks = {by: pruned(_edge_circuits(found, by)) for by in _RANKINGS}
        return curve_of(model, task, masks, MIB_SIZES, chosen, batch_size, found.method)
    if isinstance(found, Sequence):
        return _of_circuits(model, task, list(found), chosen, batch_size)
    nodes = found if isinstance(found, MIBNodes) else MIBNodes(found)
    require_same_graph(model.graph, nodes.graph, "the model and the scores of nodes")
    masks = {by: pruned(_node_circuits(nodes, by)) for by in _RANKINGS}
    return curve_of(model, task, masks, MIB_SIZES, chosen, batch_size, nodes.scores.method)


def _edge_circuits(scores: EdgeScores, by: Ranking) -> list[EdgeMask]:
    """An edge of a key/value group is in as soon as the budget reaches the first of its repeats."""
    graph = scores.graph
    repeats = repeats_in_files(graph).long()
    order = ranking(scores.values.abs() if by == "abs" else scores.values)
    starts = repeats[order].cumsum(0) - repeats[order]
    total, out = int(repeats.sum()), []
    for size in MIB_SIZES:
        values = torch.zeros(graph.num_edges)
        values[order[starts < int(size * total)]] = 1.0
        out.append(EdgeMask(graph, values))
    return out


def _node_circuits(nodes: MIBNodes, by: Ranking) -> list[EdgeMask]:
    graph = nodes.graph
    always = {graph.node_number[name] for name in nodes.unscored}
    scored = torch.tensor([n for n in nodes.scores.senders.tolist() if n not in always])
    if not len(scored):
        raise InputError("no node has a score, so no circuit of nodes is smaller than the graph")
    values = nodes.scores.values[scored]
    order = scored[ranking(values.abs() if by == "abs" else values)]
    source, target = graph.edge_index
    wires = graph.fixed_edge_index
    out = []
    for size in MIB_SIZES:
        kept = torch.zeros(graph.num_nodes, dtype=torch.bool)
        kept[[*always, *graph.output_nodes]] = True
        kept[order[: int(size * len(scored))]] = True
        reads = kept.clone()
        reads[wires[0][kept[wires[1]]]] = True
        out.append(EdgeMask(graph, (kept[source] & reads[target]).float()))
    return out


def _of_circuits(
    model: MaskedModel,
    task: Task,
    circuits: list[EdgeMask],
    ablation: Ablation,
    batch_size: int | None,
) -> FaithfulnessCurve:
    weight = repeats_in_files(model.graph)
    for mask in circuits:
        require_same_graph(model.graph, mask.graph, "the model and the circuits")
    whole = [mask for mask in circuits if mask.num_kept == model.graph.num_edges]
    if len(circuits) == 10 and len(whole) == 1:
        circuits = [mask for mask in circuits if mask is not whole[0]]
    if len(circuits) != 9:
        raise InputError(
            f"MIB scores nine circuits, one for each size below 1 (a tenth may be the whole graph);"
            f" got {len(circuits)}"
        )
    sizes = tuple((i + 1) / 10 for i in range(9))  # stand-ins: only f and its metric are read
    measured = curve_of(model, task, {"signed": circuits}, sizes, ablation, batch_size, "circuits")
    counts = [float(weight[mask.kept].sum()) for mask in circuits]
    f, values = measured.f["signed"], measured.values["signed"]
    rows = sorted(zip(counts, f, values, strict=True))
    points = [row[1] for row in rows] + [1.0]
    kept = [int(row[0]) for row in rows] + [int(weight.sum())]
    shown = [row[2] for row in rows] + [measured.full]
    return FaithfulnessCurve(
        MIB_SIZES,
        dict.fromkeys(_RANKINGS, points),
        dict.fromkeys(_RANKINGS, kept),
        dict.fromkeys(_RANKINGS, shown),
        measured.full,
        measured.ablated,
        measured.metric,
        "circuits",
        measured.note,
    )


def mib_auroc(scores: EdgeScores, truth: EdgeMask) -> float:
    """The area under MIB's ROC curve of ten greedy circuits; see the module.

    :func:`graphprune.auroc` is the usual one, over all thresholds. Raises :class:`InputError` where
    the true circuit is empty or the whole graph, or no false edge is ever taken.

    Example:
        >>> mib_auroc(scores, scores.top(3))
        1.0
    """
    require_same_graph(scores.graph, truth.graph, "the scores and the true circuit")
    inside, total = truth.kept, truth.graph.num_edges
    positives, negatives = int(inside.sum()), int((~inside).sum())
    if not positives or not negatives:
        raise InputError("AUROC needs a true circuit with some but not all of the graph's edges")
    tpr, fpr = [], []
    for size in MIB_SIZES:
        circuit = scores.greedy(min(_steps(size * total), total)).prune_dead_ends().kept
        tpr.append(int((circuit & inside).sum()) / positives)
        fpr.append(int((circuit & ~inside).sum()) / negatives)
    if not fpr[-1]:
        raise InputError("no edge outside the true circuit leads to the output: no false positives")
    return float(np.trapezoid(tpr, np.array(fpr) / fpr[-1]))


def _steps(count: float) -> int:
    """The number of times one can be taken from ``count`` above 0, in floating point."""
    steps = 0
    while count > 0:
        count -= 1
        steps += 1
    return steps
