"""Several circuits side by side: what each pair shares, beside what chance gives.

By edges (Jaccard overlap and containment), by nodes, and by scores where there are any (Ruzicka's
weighted overlap, rank correlation). :mod:`graphprune.comparison.overlap_nulls` has the three kinds
of chance of shared edges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.comparison.alignment import align_masks, align_scores, require_named
from graphprune.comparison.circuit_comparison import (
    CircuitComparison,
    NodeOverlap,
    PairOverlap,
    SampledNull,
    ScoreOverlap,
)
from graphprune.comparison.count_distribution import hypergeometric
from graphprune.comparison.edge_groups import Strata, levels, make_strata
from graphprune.comparison.overlap_nulls import (
    NULLS,
    NullName,
    judged,
    overlap_null,
    require_nulls,
    stratified,
)
from graphprune.comparison.p_values import holm
from graphprune.comparison.score_overlap import amounts, rank_correlation, ruzicka
from graphprune.core.circuit import Circuit
from graphprune.core.mask import EdgeMask
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError
from graphprune.util.progress import track


def compare_circuits(
    circuits: Mapping[str, Circuit | EdgeMask],
    *others: object,
    scores: Mapping[str, EdgeScores] | None = None,
    strata: Sequence[str] | None = None,
    nulls: Sequence[NullName] = NULLS,
    samples: int = 200,
    seed: int = 0,
) -> CircuitComparison:
    """The overlap of circuits, pair by pair, beside what chance gives.

    Args:
        circuits: at least two, by name; of one graph, or of graphs whose edges have the same names.
            A mask counts by its kept edges (values above 0).
        others: nothing; circuits given one after another, without names, are an error.
        scores: by name, for the overlap of scores; ``None`` takes those that the circuits hold.
        strata: what random circuits keep under ``"composition"``, some of
            :data:`graphprune.comparison.AXES`; ``None`` takes level and kind of both ends and kind
            of edge, as far as the graph has them.
        nulls: which kinds of chance to reckon with, of ``"uniform"``, ``"composition"`` and
            ``"degrees"``.
        samples: random draws within strata for the weighted overlap of scores, which has no exact
            distribution; 0: none.
        seed: of the draws.

    Raises:
        InputError: fewer than two circuits, unknown strata or nulls.
        GraphMismatchError: circuits of graphs with other edges; the message names
            :func:`compare_profiles`.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges(
        ...     [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out"), ("in", "out")])
        >>> one = EdgeMask.from_edges(graph, ["in->a", "a->out"])
        >>> two = EdgeMask.from_edges(graph, ["in->a", "a->out", "in->out"])
        >>> pair = compare_circuits({"one": one, "two": two}).pair("one", "two")
        >>> pair.shared, pair.jaccard, pair.contained_first, pair.nulls["uniform"].p_more
        (2, 0.6666666666666666, 1.0, 0.3)
    """
    require_named(circuits, others)
    masks = align_masks(circuits)
    graph = next(iter(masks.values())).graph
    known_scores = align_scores(circuits, scores, graph)
    require_nulls(nulls)
    if samples < 0:
        raise InputError(f"samples must be 0 or more, got {samples}")
    classes = make_strata(graph, strata)
    node_strata = _node_strata(next(iter(masks.values())))
    drawn = _draws(known_scores, classes, samples, seed)
    pairs = []
    for first, second in track(list(combinations(masks, 2)), "comparing circuits"):
        one, two = masks[first], masks[second]
        shared = int((one.kept & two.kept).sum())
        pairs.append(
            PairOverlap(
                first=first,
                second=second,
                edges_first=one.num_kept,
                edges_second=two.num_kept,
                shared=shared,
                jaccard=_jaccard(shared, one.num_kept, two.num_kept),
                contained_first=shared / one.num_kept if one.num_kept else None,
                contained_second=shared / two.num_kept if two.num_kept else None,
                nulls={null: overlap_null(one, two, null, strata=classes) for null in nulls},
                nodes=_node_overlap(one, two, node_strata),
                scores=_score_overlap(known_scores, first, second, classes, drawn),
            )
        )
    times_kept = torch.stack([mask.kept for mask in masks.values()]).sum(0)
    adjusted = _adjusted(pairs, nulls)
    return CircuitComparison(
        masks=masks,
        pairs=adjusted,
        in_exactly=tuple(torch.bincount(times_kept, minlength=len(masks) + 1).tolist()),
        strata=classes.axes,
        num_strata=classes.count,
        left_out=classes.left_out,
        samples=samples,
        seed=seed,
        remarks=(*_remarks(circuits, classes), *_underpowered(adjusted, nulls)),
    )


def _jaccard(shared: int, first: int, second: int) -> float:
    """Of two sets with so many members; 1 where both are empty."""
    return shared / (first + second - shared) if first + second else 1.0


def _adjusted(pairs: list[PairOverlap], nulls: Sequence[NullName]) -> tuple[PairOverlap, ...]:
    """The pairs with Holm's p-values over all of them, for each kind of chance by itself."""
    for null in nulls:
        adjusted = holm([pair.nulls[null].p_more for pair in pairs])
        pairs = [
            replace(pair, nulls={**pair.nulls, null: replace(pair.nulls[null], p_adjusted=p)})
            for pair, p in zip(pairs, adjusted, strict=True)
        ]
    return tuple(pairs)


_LEVEL = 0.05  # what is called underpowered could not have had an adjusted p-value up to this


def _underpowered(pairs: Sequence[PairOverlap], nulls: Sequence[NullName]) -> list[str]:
    """Pairs for which no overlap, however large, could have been told from chance."""
    remarks = []
    for null in nulls:
        least = holm([pair.nulls[null].p_least for pair in pairs])
        weak = [f"{pair.first} | {pair.second}"
                for pair, p in zip(pairs, least, strict=True) if p > _LEVEL]  # fmt: skip
        if weak:
            remarks.append(
                f'underpowered by the chance "{null}": {", ".join(weak)}: circuits of these sizes '
                f"that share all they can have p above {_LEVEL:g}"
            )
    sampled = [pair.scores.sampled for pair in pairs if pair.scores is not None]
    drawn = [null.samples for null in sampled if null is not None and null.p_least > _LEVEL]
    if drawn:
        remarks.append(
            f"underpowered: weighted overlaps beside {max(drawn)} samples cannot have p up to "
            f"{_LEVEL:g}; give more"
        )
    return remarks


def _remarks(circuits: Mapping[str, Any], strata: Strata) -> tuple[str, ...]:
    remarks = []
    weights = {}
    for name, thing in circuits.items():
        model = thing.provenance.get("model") if isinstance(thing, Circuit) else None
        if isinstance(model, Mapping) and "weights" in model:
            weights[name] = str(model["weights"])
    if len(set(weights.values())) > 1:
        remarks.append(
            "the circuits are of models with different weights: nodes of one name stand at the "
            "same place but need not do the same"
        )
    if strata.count <= 1:
        remarks.append(
            'all edges are of one kind and level, so that the chance "composition" is the chance '
            '"uniform"'
        )
    return tuple(remarks)


# -------------------------------------------------------------------- nodes and scores


def _draws(
    scores: Mapping[str, EdgeScores], strata: Strata, samples: int, seed: int
) -> dict[tuple[str, str], list[float]]:
    """For each pair, weighted overlaps of scores shuffled within strata ``samples`` times."""
    # A stream for each name, so that the order of the circuits changes nothing.
    digests = {name: hashlib.sha256(name.encode()).digest()[:8] for name in scores}
    streams = {
        n: np.random.default_rng([seed, int.from_bytes(d, "big")]) for n, d in digests.items()
    }
    parts = {name: amounts(one) for name, one in scores.items()}
    out: dict[tuple[str, str], list[float]] = {pair: [] for pair in combinations(scores, 2)}
    for _ in range(samples if out else 0):
        moved = {name: parts[name][:, strata.shuffled(streams[name])] for name in scores}
        for first, second in out:
            out[first, second].append(ruzicka(moved[first], moved[second]))
    return out


def _used(mask: EdgeMask, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``[N]``: the nodes that a kept edge touches."""
    out = np.zeros(mask.graph.num_nodes, dtype=bool)
    out[mask.graph.edge_index.numpy()[:, kept]] = True
    return out


def _node_overlap(one: EdgeMask, two: EdgeMask, codes: NDArray[np.int64]) -> NodeOverlap:
    """``codes [N]`` are the nodes' strata, -1 for a node that no edge touches."""
    used = [_used(mask, mask.kept.numpy()) for mask in (one, two)]
    first, second = (int(nodes.sum()) for nodes in used)
    shared = int((used[0] & used[1]).sum())
    there = codes >= 0
    uniform = hypergeometric(int(there.sum()), first, second)
    alike = stratified(codes[there], used[0][there], used[1][there])
    return NodeOverlap(
        nodes_first=first,
        nodes_second=second,
        shared=shared,
        jaccard=_jaccard(shared, first, second),
        nulls={
            "uniform": judged(uniform, shared, first + second, "uniform"),
            "composition": judged(alike, shared, first + second, "composition"),
        },
    )


def _node_strata(mask: EdgeMask) -> NDArray[np.int64]:
    """``[N]``: nodes of one kind and level, as far as the graph has levels; -1: without edges."""
    graph = mask.graph
    places = np.array([node.kind for node in graph.nodes])
    with suppress(InputError):  # no levels: kinds alone
        places = np.char.add(np.char.add(places, " "), levels(graph).names().astype(str))
    _, codes = np.unique(places, return_inverse=True)
    return np.where(_used(mask, np.ones(graph.num_edges, dtype=bool)), codes, -1)


def _score_overlap(
    scores: Mapping[str, EdgeScores],
    first: str,
    second: str,
    strata: Strata,
    drawn: Mapping[tuple[str, str], list[float]],
) -> ScoreOverlap | None:
    if first not in scores or second not in scores:
        return None
    one, two = scores[first], scores[second]
    value = ruzicka(amounts(one), amounts(two))
    samples = drawn.get((first, second)) or drawn.get((second, first))
    return ScoreOverlap(
        weighted_jaccard=value,
        weighted_jaccard_ignoring_signs=ruzicka(amounts(one, "ignore"), amounts(two, "ignore")),
        sampled=SampledNull.of(samples, value) if samples else None,
        spearman=rank_correlation(one, two, strata),
        spearman_abs=rank_correlation(one, two, strata, by="abs"),
    )
