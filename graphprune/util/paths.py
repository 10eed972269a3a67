"""Connected components and longest paths of a directed graph given by its pairs of nodes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def components(nodes: int, pairs: Numbers, connection: Literal["weak", "strong"]) -> Numbers:
    """``[nodes]``: the number of each node's connected component under ``pairs [2, n]``.

    Example:
        >>> components(4, np.array([[0, 1, 2], [1, 2, 1]]), "strong").tolist()
        [1, 0, 0, 2]
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(pairs.shape[1], dtype=np.int8)
    matrix = csr_array((ones, (pairs[0], pairs[1])), shape=(nodes, nodes))
    _, labels = connected_components(matrix, directed=True, connection=connection)
    return np.asarray(labels, dtype=np.int64)


def longest_paths(pairs: Numbers, parts: Numbers) -> Numbers:
    """``[nodes]``: the most of ``pairs [2, n]`` on a path to each node; a cycle counts as one node.

    ``parts [nodes]`` are the strong :func:`components`.

    Example:
        >>> pairs = np.array([[0, 1, 0], [1, 2, 2]])
        >>> longest_paths(pairs, components(3, pairs, "strong")).tolist()
        [0, 1, 2]
    """
    sources, targets = parts[pairs]
    across = sources != targets
    sources, targets = sources[across], targets[across]
    depth = np.zeros(len(parts), dtype=np.int64)
    while True:
        deeper = depth.copy()
        np.maximum.at(deeper, targets, depth[sources] + 1)
        if (deeper == depth).all():
            return np.asarray(depth[parts])
        depth = deeper
