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

__all__ = ["DeletionRule", "deletion_rule"]

DeletionRule = Literal["sum", "mean", "weight", "attention", "none"]

_SUM = (
    "GraphConv", "GINConv", "GatedGraphConv", "ResGatedGraphConv", "LEConv", "SimpleConv",
    "SAGEConv",
)  # fmt: skip
_WEIGHT = ("GCNConv", "TAGConv", "SGConv", "ARMAConv", "ChebConv", "APPNP", "SSGConv")
_ATTENTION = ("GATConv", "GATv2Conv")
_BY_CLASS: dict[str, DeletionRule] = {
    **dict.fromkeys(_SUM, "sum"),
    **dict.fromkeys(_WEIGHT, "weight"),
    **dict.fromkeys(_ATTENTION, "attention"),
}


def deletion_rule(conv: Any) -> DeletionRule:
    """The way in which a mask on this convolution can equal deletion; ``"none"``: it cannot.

    Of the ``sum`` family the aggregation decides between sum and mean.
    """
    names = (c.__name__ for c in type(conv).__mro__)
    rule = next((_BY_CLASS[name] for name in names if name in _BY_CLASS), None)
    if rule is None:
        # Of an unknown class nothing is assumed, but for one that only sums weighted states.
        plain = (
            type(conv).message is MessagePassing.message
            and type(conv).edge_update is MessagePassing.edge_update
            and type(conv).__bases__ == (MessagePassing,)
        )
        rule = "sum" if plain else "none"
    if rule == "weight" and not getattr(conv, "improved", False):
        return "weight" if getattr(conv, "normalize", True) is not False else "sum"
    if rule == "sum":
        aggregation = str(getattr(conv, "aggr", None))
        return {"add": "sum", "sum": "sum", "mean": "mean"}.get(aggregation, "none")  # type: ignore[return-value]
    if rule == "attention" and not (conv.edge_dim is not None and conv.add_self_loops):
        return rule
    return "none"  # self-loops of weight 2, or with the mean of what edges carry
