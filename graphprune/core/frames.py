"""Edges as pandas frames: columns edge, source, target, kind, then the values asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.core.graph import ComputationalGraph

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["edge_frame"]


def edge_frame(graph: ComputationalGraph, **columns: Any) -> pd.DataFrame:
    """A row for each edge in graph order: edge, source, target, kind, then ``columns``."""
    import pandas as pd

    names = np.array([node.name for node in graph.nodes], dtype=object)
    source, target = graph.edge_index.numpy()
    kinds = np.array(graph.edge_kinds, dtype=object)
    return pd.DataFrame(
        {
            "edge": list(graph.edge_names),
            "source": names[source],
            "target": names[target],
            "kind": kinds[graph.edge_kind.numpy()],
            **columns,
        }
    )
