"""Edges as a pandas table: columns edge, source, target, kind, then whatever is known of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def edge_table(graph: ComputationalGraph, columns: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """A row for each edge in graph order: edge, source, target, kind, then ``columns [E]``.

    Raises :class:`InputError` for a column with the name of one of the four.
    """
    import pandas as pd

    names = np.array(_encodable(node.name for node in graph.nodes), dtype=object)
    source, target = graph.edge_index.numpy()
    kinds = np.array(_encodable(graph.edge_kinds), dtype=object)
    table = {
        "edge": _encodable(graph.edge_names),
        "source": names[source],
        "target": names[target],
        "kind": kinds[graph.edge_kind.numpy()],
    }
    more = columns or {}
    require_other_names(more, table)
    return pd.DataFrame({**table, **more})


def _encodable(names: Iterable[str]) -> list[str]:
    """The names, a lone surrogate as an escape: tables are of UTF-8, which has none."""
    return [
        name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")
        for name in names
    ]


def require_other_names(names: Iterable[str], taken: Collection[str]) -> None:
    """Raises :class:`InputError` for a column whose name another one has already."""
    for name in names:
        if name in taken:
            raise InputError(
                f"a table of edges has a column {name!r} of its own ({', '.join(taken)}); call "
                "yours something else"
            )
