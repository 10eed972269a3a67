"""Sparsifiers of graphs: K neighbours, degrees, deletion that widens the spectral gap.

They rank the edges of any model's graph; a circuit of a size is the best of them. Degrees and the
gap are those of the undirected graph, so that both directions of a pair get one score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from graphprune.core.graph import ComputationalGraph
from graphprune.core.method import Scorer
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.passes import Passes
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.util.checks import at_least, require_one_of

from ..linalg.eigensolver import DENSE_LIMIT
from ..linalg.weighted_graph import FloatArray
from .spectral import EdgeWeights, edge_weights, weight_passes

__all__ = ["Degree", "GapDeletion", "KNeighbour"]


@dataclass(frozen=True, kw_only=True)
class _Sparsifier(Scorer):
    edge_weights: EdgeWeights = "equal"

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """Those of the edges' weights."""
        return weight_passes(model, task, self.edge_weights)

    def _sizes(self, model: MaskedModel, task: Task) -> FloatArray:
        """``[E]``: sizes of the edges' weights."""
        require_model(model)
        sizes: FloatArray = edge_weights(model, task, self.edge_weights).abs().numpy()
        return sizes

    def _in_order(self, graph: ComputationalGraph, best_first: np.ndarray) -> EdgeScores:
        """Scores of edges that stand in order ``[E]``, from E down to 1."""
        values = torch.zeros(graph.num_edges)
        values[torch.from_numpy(best_first)] = torch.arange(graph.num_edges, 0, -1).float()
        return EdgeScores(graph, values, method=self.label)


@dataclass(frozen=True, kw_only=True)
class KNeighbour(_Sparsifier):
    """Edges ranked by the smallest K at which their target keeps them.

    Every node draws the edges that it reads one after another, by chances proportional to their
    weights, and keeps the first K; at the size that K edges for each node come to, the circuit is
    the K-neighbour sparsifier (of a directed graph: Sadhanala et al. 2016, in the form of Chen et
    al. 2023, arXiv 2311.12314). Between two such sizes, earlier draws go first.

    Example:
        >>> mask = KNeighbour(seed=1).score(model, task).top(10)  # 10 nodes: one edge each
        >>> model.graph.edge_index[1][mask.kept].unique().numel()
        10
    """

    seed: int | None = None

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """See the class."""
        sizes, target = self._sizes(model, task), model.graph.edge_index[1].numpy()
        clocks = np.random.default_rng(self.chosen_seed).exponential(size=len(target))
        # Of exponential clocks of these rates the order is that of draws without replacement.
        drawn_at = np.divide(clocks, sizes, out=np.full(len(target), np.inf), where=sizes > 0)
        by_target = np.lexsort((drawn_at, target))
        starts = np.searchsorted(target[by_target], target[by_target])
        place = np.empty(len(target), dtype=np.int64)
        place[by_target] = np.arange(len(target)) - starts
        return self._in_order(model.graph, np.lexsort((drawn_at, place)))


@dataclass(frozen=True, kw_only=True)
class Degree(Scorer):
    """Edges ranked by the degrees of their ends; no weight is read.

    Args:
        rule: ``"local"``: local degree (Hamann et al. 2016, arXiv 1601.00286): a node of degree d
            prefers its neighbours of high degree and keeps the first ``d ** a`` of them; an edge
            scores 1 - a for the least ``a`` at which one of its ends keeps it. ``"sum"``: the two
            degrees, added.

    Example:
        >>> Degree(rule="sum").score(model, task).top(2).edges()  # nodes 0, 2, 5 and 8 have three
        ['0->5', '2->8']
    """

    rule: Literal["local", "sum"] = "local"

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """None."""
        return Passes()

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """See the class."""
        from scipy.stats import rankdata

        require_model(model)
        require_one_of(self.rule, ("local", "sum"), "rule")
        graph = model.graph
        pairs, pair_of, _ = _pairs(graph, np.ones(graph.num_edges))
        degree = np.bincount(pairs.ravel(), minlength=graph.num_nodes)
        if self.rule == "sum":
            values = degree[graph.edge_index.numpy()].sum(0)
            return EdgeScores(graph, torch.from_numpy(values).float(), method=self.label)
        score = np.zeros(pairs.shape[1])
        for end in (0, 1):
            own, other = pairs[end], pairs[1 - end]
            # Neighbours of either order of a pair: each node ranks all of them.
            nodes, others = np.concatenate([own, other]), np.concatenate([other, own])
            rank = np.empty(len(nodes))
            order = np.lexsort((-degree[others], nodes))
            for part in np.split(order, np.flatnonzero(np.diff(nodes[order])) + 1):
                rank[part] = rankdata(-degree[others[part]], method="min")
            d = degree[own]
            exponent = np.log(rank[: len(own)]) / np.log(np.maximum(d, 2))
            score = np.maximum(score, 1 - exponent)
        values = np.append(score, 1.0)[pair_of]  # a self-loop has no neighbour to lose
        return EdgeScores.computed(graph, torch.from_numpy(values).float(), method=self.label)


@dataclass(frozen=True, kw_only=True)
class GapDeletion(_Sparsifier):
    """Edges ranked by when a deletion that widens the spectral gap would take them.

    The gap is the second eigenvalue of the undirected graph's normalised Laplacian, and what a
    deletion makes of it is told to first order: ``w (gap (g_u^2 + g_v^2) - (g_u - g_v)^2)`` with
    the eigenvector g of ``(D - A) g = gap D g``. The pairs that widen it most go first (ProxyDelete
    of Jamadandi et al. 2024, arXiv 2404.04612, which takes one pair at a time). Where the graph
    falls apart its largest component is looked at; what is left in pieces goes last. Self-loops
    have no part in it, and are never deleted.

    Args:
        rounds: eigenvectors that are computed; pairs of one round go together, the strongest
            first. At least as many as pairs: one pair at a time.

    Example:
        >>> scores = GapDeletion(rounds=12).score(model, task)
        >>> (~scores.top(22)).edges()  # both directions of the pair that goes first
        ['3->4', '4->3']
    """

    rounds: int = 100
    dense_limit: int = DENSE_LIMIT

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """See the class."""
        at_least(self.rounds, 1, "rounds")
        graph, sizes = model.graph, self._sizes(model, task)
        pairs, pair_of, weights = _pairs(graph, sizes)
        alive, deleted_at = np.ones(len(weights), dtype=bool), np.full(len(weights) + 1, np.inf)
        chunk = -(-len(weights) // self.rounds)
        count = 0
        while alive.any():
            gain = self._gains(pairs[:, alive], weights[alive], graph.num_nodes)
            seen = np.flatnonzero(np.isfinite(gain))
            if not len(seen):
                break
            chosen = seen[np.argsort(-gain[seen], kind="stable")[:chunk]]
            gone = np.flatnonzero(alive)[chosen]
            deleted_at[gone] = count + np.arange(len(gone))
            count += len(gone)
            alive[gone] = False
        return self._in_order(graph, np.argsort(-deleted_at[pair_of], kind="stable"))

    def _gains(self, pairs: np.ndarray, weights: FloatArray, nodes: int) -> FloatArray:
        """``[P]``: each pair's first-order change of the gap; infinite outside the component."""
        u, v = pairs
        adjacency = csr_matrix(coo_matrix((weights, (u, v)), (nodes, nodes)))
        adjacency = adjacency + adjacency.T
        _, part = connected_components(adjacency, directed=False)
        inside = np.flatnonzero(part == np.bincount(part[u]).argmax())
        gains = np.full(len(weights), -np.inf)
        if len(inside) < 3:  # one pair: there is no second eigenvalue to widen
            return gains
        degree = np.asarray(adjacency.sum(1)).ravel()[inside]
        scale = 1 / np.sqrt(degree)
        normed = adjacency[inside][:, inside].multiply(scale[:, None]).multiply(scale).tocsr()
        if len(inside) <= self.dense_limit:
            last = len(inside) - 2
            values, vectors = eigh(normed.toarray(), subset_by_index=[last, last])
        else:
            start = np.linspace(1, 2, len(inside))  # fixed, so that two runs agree
            values, vectors = eigsh(normed, k=2, which="LA", v0=start)
            order = np.argsort(values)[:1]
            values, vectors = values[order], vectors[:, order]
        g = np.zeros(nodes)
        g[inside] = vectors[:, 0] * scale
        gap = 1 - values[0]
        own = part[u] == part[inside[0]]
        change = weights * (gap * (g[u] ** 2 + g[v] ** 2) - (g[u] - g[v]) ** 2)
        gains[own] = change[own]
        return gains


def _pairs(
    graph: ComputationalGraph, sizes: FloatArray
) -> tuple[np.ndarray, np.ndarray, FloatArray]:
    """Ends ``[2, P]`` of the pairs that edges join, each edge's pair (-1: a loop), and weights.

    The weights of a pair's edges are added.
    """
    ends = np.sort(graph.edge_index.numpy(), axis=0)
    proper = ends[0] != ends[1]
    pairs, which = np.unique(ends[:, proper], axis=1, return_inverse=True)
    pair_of = np.full(graph.num_edges, -1)
    pair_of[proper] = which.ravel()
    weights: FloatArray = np.bincount(
        which.ravel(), sizes[proper], minlength=pairs.shape[1]
    ).astype(np.float64)
    return pairs, pair_of, weights
