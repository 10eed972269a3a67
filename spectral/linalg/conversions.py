"""Conversion of networkx, PyG and scipy graphs and plain pairs to a graph and its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import InputError

__all__ = ["as_graph_or_pair", "checked_pair", "graph_of"]


def as_graph_or_pair(graph: Any, weights: Any = None) -> tuple[Any, Any]:
    """A graph that :func:`.weighted_graph` takes, and its weights.

    - a directed ``networkx`` graph: edges in ``graph.edges`` order, of their attribute ``weight``
      (all of them or none);
    - a PyG ``Data``: its ``edge_weight``, or its ``edge_attr`` of one number an edge;
    - a ``scipy.sparse`` matrix, ``A[i, j]`` the edge i -> j: non-zero entries, row by row;
    - ``(edge_index, weights)``.

    ``weights`` that are given win over those that the graph carries. Anything else is passed on.

    Raises:
        InputError: an undirected graph, a matrix that is not square, some edges without a weight.

    Example:
        >>> from scipy.sparse import csr_array
        >>> pair, weights = as_graph_or_pair(csr_array([[0, 2.0], [-1.0, 0]]))
        >>> pair[0].tolist(), pair[1], weights.tolist()
        ([[0, 1], [1, 0]], 2, [2.0, -1.0])
    """
    if issparse(graph):
        return _sparse(graph, weights)
    if isinstance(graph, tuple):
        return _pair(graph, weights)
    if all(hasattr(graph, name) for name in ("is_directed", "edges", "adj")):
        return _networkx(graph, weights)
    if all(hasattr(graph, name) for name in ("edge_index", "edge_attr", "num_nodes")):
        return _pyg(graph, weights)
    return graph, weights


def graph_of(sources: Any, targets: Any, num_nodes: int) -> ComputationalGraph:
    """A graph of nodes named by their numbers."""
    index = torch.from_numpy(np.stack([sources, targets]).astype(np.int64))
    return ComputationalGraph(
        nodes=tuple(Node(str(node)) for node in range(num_nodes)),
        edge_index=index,
        edge_kind=torch.zeros(index.shape[1], dtype=torch.uint8),
    )


def _networkx(graph: Any, weights: Any) -> tuple[Any, Any]:
    if not graph.is_directed():
        raise InputError(
            "the networkx graph is undirected, so its spectrum is real and its imaginary parts say "
            "nothing; give a DiGraph whose edges do not all come in pairs"
        )
    if weights is None:
        carried = [(u, v, w) for u, v, w in graph.edges(data="weight")]
        bare = [(u, v) for u, v, w in carried if w is None]
        if bare and len(bare) < len(carried):
            raise InputError(
                f"{len(bare)} of {len(carried)} edges of the networkx graph have no weight, first "
                f"{bare[0]}; give all of them one, or weights="
            )
        weights = None if bare else [w for _, _, w in carried]
    return ComputationalGraph.from_networkx(graph), weights


def _pyg(data: Any, weights: Any) -> tuple[Any, Any]:
    if weights is None:
        weights = getattr(data, "edge_weight", None)
    if weights is None and data.edge_attr is not None:
        attributes = data.edge_attr
        weights = attributes[:, 0] if attributes.shape[1:] == (1,) else attributes
        if weights.dim() != 1:
            raise InputError(
                f"edge_attr holds {list(attributes.shape[1:])} numbers an edge, and a spectrum "
                "needs one; give weights="
            )
    return ComputationalGraph.from_pyg(data), weights


def _sparse(matrix: Any, weights: Any) -> tuple[Any, Any]:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"expected a square matrix, A[i, j] the edge i -> j, got {matrix.shape}")
    rows = matrix.tocsr().copy()
    rows.sum_duplicates()
    rows.eliminate_zeros()
    entries = rows.tocoo()
    index = np.stack([entries.row, entries.col]).astype(np.int64)
    return (index, int(matrix.shape[0])), entries.data if weights is None else weights


def _pair(pair: Any, weights: Any) -> tuple[Any, Any]:
    if len(pair) != 2 or isinstance(pair[1], int | np.integer | float | str):
        return pair, weights
    if weights is not None:
        raise InputError(
            "weights were given twice: in the pair (edge_index, weights) and beside it"
        )
    index = np.asarray(pair[0])
    nodes = int(index.max()) + 1 if index.size and index.dtype.kind in "iu" else 0
    return (pair[0], nodes), pair[1]


def checked_pair(pair: Any) -> tuple[Any, int]:
    """``edge_index [2, E]`` and the number of nodes; raises :class:`InputError`."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InputError(
            "expected a ComputationalGraph, a directed networkx graph, a PyG Data, a scipy.sparse "
            "matrix, or a pair (edge_index [2, E], num_nodes or weights), got "
            f"{type(pair).__name__}"
        )
    index, nodes = pair
    pairs = np.asarray(torch.as_tensor(index).detach().cpu().numpy())
    if pairs.ndim != 2 or pairs.shape[0] != 2 or (pairs.size and pairs.dtype.kind not in "iu"):
        raise InputError(
            f"edge_index must be [2, E] whole numbers, got {list(pairs.shape)} {pairs.dtype}"
        )
    if isinstance(nodes, bool) or not isinstance(nodes, (int, np.integer)) or nodes < 0:
        raise InputError(f"num_nodes must be a whole number of at least 0, got {nodes!r}")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < nodes:
        raise InputError(
            f"edge_index names a node outside 0..{nodes - 1}: {pairs.min()} to {pairs.max()}"
        )
    return pairs, int(nodes)
