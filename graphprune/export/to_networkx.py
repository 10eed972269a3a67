"""A circuit as a networkx graph: its kept edges, their nodes and the fixed wires between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from graphprune.core.graph_io import graph_to_networkx

if TYPE_CHECKING:
    import networkx as nx

    from graphprune.core.circuit import Circuit


def circuit_to_networkx(circuit: Circuit) -> nx.DiGraph[Any]:
    """The networkx graph of a circuit; see :meth:`graphprune.Circuit.to_networkx`.

    Graph attributes are those of :meth:`ComputationalGraph.to_networkx`, renumbered to the nodes
    that are left, so ``ComputationalGraph.from_networkx`` reads the circuit as a graph of its own.
    """
    graph, kept = circuit.graph, torch.nonzero(circuit.mask.kept)[:, 0]
    columns = {"kept": circuit.mask.values[kept].tolist(), "number": kept.tolist()}
    if circuit.scores is not None:
        columns["score"] = circuit.scores.values[kept].tolist()
    out = graph_to_networkx(graph, kept, columns)
    out.graph.update(whole_graph=graph.fingerprint, whole_edges=graph.num_edges)
    return out
