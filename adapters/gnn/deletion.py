"""Masks that equal deleting an edge: how each family of convolutions normalises, as a table.

Multiplying a message by its mask value is deletion where messages are summed and nothing else
depends on the edge. Elsewhere something must follow: degrees (a mask on the edge weight that the
norm is made of), means (divide by the mask's sum instead of the count), attention (softmax over
what is left). Where none of these fits, only a run on the smaller graph is right. The table says
what to try; a model tries it against real deletion before it trusts it.
"""

from __future__ import annotations

from typing import Any, Literal

from torch_geometric.nn import MessagePassing

__all__ = ["SOFT", "Way", "way_of"]

Way = Literal["sum", "mean", "weight", "attention", "none"]

_SUM = (
    "GraphConv", "GINConv", "GatedGraphConv", "ResGatedGraphConv", "LEConv", "SimpleConv",
    "SAGEConv",
)  # fmt: skip
_WEIGHT = ("GCNConv", "TAGConv", "SGConv", "ARMAConv", "ChebConv", "APPNP", "SSGConv")
_ATTENTION = ("GATConv", "GATv2Conv")

SOFT: dict[str, Way] = {
    **dict.fromkeys(_SUM, "sum"),
    **dict.fromkeys(_WEIGHT, "weight"),
    **dict.fromkeys(_ATTENTION, "attention"),
}
"""Ways by class name; of the ``sum`` family the aggregation decides between sum and mean."""


def way_of(conv: Any) -> Way:
    """How a mask on this convolution can equal deletion; ``"none"``: it cannot."""
    named = next((SOFT[c.__name__] for c in type(conv).__mro__ if c.__name__ in SOFT), None)
    if named is None:
        # Of an unknown class nothing is assumed, but for one that only sums weighted states.
        plain = type(conv).message is MessagePassing.message and type(conv).__bases__ == (
            MessagePassing,
        )
        named = "sum" if plain and not _updates_edges(conv) else "none"
    if named == "sum":
        aggregation = str(getattr(conv, "aggr", None))
        if getattr(conv, "normalize", False) and type(conv).__name__ == "GCNConv":
            return "weight"
        return {"add": "sum", "sum": "sum", "mean": "mean"}.get(aggregation, "none")  # type: ignore[return-value]
    if getattr(conv, "improved", False) or (
        named == "attention" and conv.edge_dim is not None and conv.add_self_loops
    ):
        return "none"  # self-loops of weight 2, or with the mean of what edges carry
    if named == "weight" and getattr(conv, "normalize", True) is False:
        return "sum"
    return named


def _updates_edges(conv: Any) -> bool:
    return type(conv).edge_update is not MessagePassing.edge_update
