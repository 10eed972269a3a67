"""Against a known circuit, and against itself: recovery and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError
from graphprune.util.numbers import ranks


@dataclass(frozen=True)
class Recovery:
    """The part of a known circuit that a found one holds, by edges.

    Example:
        >>> recovery(scores.top(8), scores.top(12))
        Recovery(precision=1.0, recall=0.667, f1=0.8, exact=False)
    """

    precision: float
    recall: float
    f1: float
    exact: bool


def recovery(found: EdgeMask, truth: EdgeMask) -> Recovery:
    """Precision, recall and F1 of the kept edges against the true circuit's.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> recovery(EdgeMask(graph, [1, 1, 0]), EdgeMask(graph, [1, 0, 0]))
        Recovery(precision=0.5, recall=1.0, f1=0.6666666666666666, exact=False)
    """
    require_same_graph(found.graph, truth.graph, "the found and the true circuit")
    both = int((found.kept & truth.kept).sum())
    precision = both / found.num_kept if found.num_kept else float(truth.num_kept == 0)
    recall = both / truth.num_kept if truth.num_kept else 1.0
    total = precision + recall
    return Recovery(
        precision,
        recall,
        2 * precision * recall / total if total else 0.0,
        bool((found.kept == truth.kept).all()),
    )


def auroc(scores: EdgeScores, truth: EdgeMask) -> float:
    """Area under the ROC curve of ``|score|`` as a test for being in the true circuit.

    The chance that a true edge outranks a false one, ties counting half (Mann-Whitney); computed
    scores that only rounding tells apart are ties.

    Example:
        >>> auroc(scores, scores.top(3)), auroc(gp.Random().score(model, task), scores.top(3))
        (1.0, 0.762)
    """
    require_same_graph(scores.graph, truth.graph, "the scores and the true circuit")
    inside = truth.kept.numpy()
    positives, negatives = int(inside.sum()), int((~inside).sum())
    if not positives or not negatives:
        raise InputError("AUROC needs a true circuit with some but not all of the graph's edges")
    wins = ranks(scores.values.abs(), scores.noise)[inside].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def mean_jaccard(masks: Sequence[EdgeMask]) -> float:
    """Mean Jaccard overlap over all pairs of masks, such as those of several seeds.

    Example:
        >>> mean_jaccard([gp.Random(seed=seed).score(model, task).top(12) for seed in range(3)])
        0.386
    """
    if len(masks) < 2:
        raise InputError(f"mean_jaccard compares at least two masks, got {len(masks)}")
    pairs = [a.jaccard(b) for i, a in enumerate(masks) for b in masks[i + 1 :]]
    return float(np.mean(pairs))
