"""Rules that choose edges: positives first, and by influence on the output.

Each gives a ranking; :func:`take` makes a mask of exactly n edges from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError
from graphprune.selection.connected import exact_budget
from graphprune.util.numbers import ranking


def take(
    graph: ComputationalGraph, order: Tensor, count: int, *, connected: bool, from_inputs: bool
) -> EdgeMask:
    """The mask of exactly ``count`` edges from the top of ``order [E]``, edge numbers best first.

    ``connected``: none of them is a dead end, as :func:`.exact_budget` does
    it; else the first ``count``.
    """
    values = torch.zeros(graph.num_edges)
    if not connected:
        values[order[:count]] = 1.0
        return EdgeMask(graph, values)
    # Ranks up to a few millions are exact in float32, as `exact_budget` compares them.
    values[order] = torch.arange(graph.num_edges, 0, -1, dtype=torch.float32)
    return exact_budget(graph, values, count, from_inputs=from_inputs)


def positives_first(values: Tensor, count: int, share: float) -> Tensor:
    """Edge numbers: the ``int(share * count)`` best positive ones, then the rest by magnitude.

    Where fewer are positive, all of them come first. The positive-ratio selection of Nikankin et
    al. (arXiv 2510.25786).

    Example:
        >>> positives_first(torch.tensor([-9.0, 1.0, -8.0, 2.0, 0.5]), 4, 0.5).tolist()
        [3, 1, 0, 2, 4]
    """
    by_sign = ranking(values)
    quota = min(int(share * count + 1e-9), int((values > 0).sum()))
    first = by_sign[:quota]
    rest = ranking(values.abs())
    return torch.cat([first, rest[~torch.isin(rest, first)]])


def edge_influence(graph: ComputationalGraph, values: Tensor) -> Tensor:
    """``[E]`` from 0 on: how much of the output each edge's message makes up, through all paths.

    A node's reads are shares: an edge's is its magnitude over the sum of all into the node, a
    wire's the magnitudes into its source, in equal parts to the nodes wired to it. Outputs have
    influence 1, other nodes the sum over what leaves them of share times the reader's influence,
    and an edge its share times its reader's. The measure by which circuit tracing prunes (Ameisen
    et al. 2025), there with attributions of features. On cycles it is the sum over all walks.

    Raises :class:`InputError` where some cycle reads nothing from outside: its walks never end.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "d"), ("a", "c"), ("c", "d")])
        >>> edge_influence(graph, torch.tensor([5.0, 3.0, -0.1, 1.0])).tolist()
        [0.75, 0.75, 0.25, 0.25]
    """
    from scipy.sparse import csr_array, eye_array
    from scipy.sparse.linalg import splu

    size, nodes = values.double().abs().numpy(), graph.num_nodes
    group = graph.representative
    sources, targets = group[graph.edge_index.numpy()]
    wire_from, wire_to = group[graph.fixed_edge_index.numpy()]
    into = np.bincount(targets, weights=size, minlength=nodes)
    fed = np.bincount(wire_from, minlength=nodes)
    carried = into[wire_from] / np.maximum(fed[wire_from], 1)
    total = into + np.bincount(wire_to, weights=carried, minlength=nodes)
    safe = np.where(total > 0, total, 1.0)
    share, wire_share = size / safe[targets], carried / safe[wire_to]
    rows, columns = np.concatenate([sources, wire_from]), np.concatenate([targets, wire_to])
    entries = np.concatenate([share, wire_share])
    flow = csr_array((entries, (rows, columns)), shape=(nodes, nodes))
    ends = np.zeros(nodes)
    ends[group[list(graph.output_nodes)]] = 1.0
    try:
        influence = splu((eye_array(nodes) - flow).tocsc()).solve(ends)
    except RuntimeError:
        influence = np.full(nodes, np.inf)
    if not np.isfinite(influence).all() or influence.max(initial=0.0) > 1e9:
        raise InputError(
            "influence is not defined here: the scores around some cycle are such that it reads "
            "nothing from outside itself"
        )
    amounts = share * influence[targets]
    return torch.from_numpy(np.where(amounts > 0, amounts, 0.0))
