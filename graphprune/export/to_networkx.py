"""A circuit as a networkx graph: its kept edges, their nodes and the fixed wires between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.core.graph_io import joined, node_attributes

if TYPE_CHECKING:
    import networkx as nx

    from graphprune.core.circuit import Circuit


def circuit_to_networkx(circuit: Circuit) -> nx.DiGraph[Any]:
    """See :meth:`graphprune.Circuit.to_networkx`.

    Graph attributes are those of :meth:`ComputationalGraph.to_networkx`, renumbered to the nodes
    that are left, so ``ComputationalGraph.from_networkx`` reads the circuit as a graph of its own.
    """
    import networkx as nx

    graph = circuit.graph
    kept = torch.nonzero(circuit.mask.kept)[:, 0]
    node_numbers = torch.unique(graph.edge_index[:, kept]).tolist()
    new_number = {node: i for i, node in enumerate(node_numbers)}
    out: Any = nx.MultiDiGraph() if _has_parallel_edges(circuit) else nx.DiGraph()

    def renumbered(nodes: tuple[int, ...]) -> str:
        return ",".join(str(new_number[n]) for n in nodes if n in new_number)

    groups = [g for g in map(renumbered, graph.groups) if "," in g]
    out.graph.update(
        ports=joined(graph.ports),
        edge_kinds=joined(graph.edge_kinds),
        groups=";".join(groups),
        inputs=renumbered(graph.input_nodes),
        outputs=renumbered(graph.output_nodes),
        whole_graph=graph.fingerprint,
        whole_edges=graph.num_edges,
    )
    for number in node_numbers:
        node = graph.nodes[number]
        out.add_node(node.name, **node_attributes(node))

    values = circuit.mask.values[kept].tolist()
    scores = None if circuit.scores is None else circuit.scores.values[kept].tolist()
    kinds = graph.edge_kind[kept].tolist()
    ends = graph.edge_index[:, kept].T.tolist()
    names = graph.edge_names.at(kept)
    for i, (edge_number, (u, v)) in enumerate(zip(kept.tolist(), ends, strict=True)):
        kind = graph.edge_kinds[kinds[i]]
        source, target = graph.nodes[u].name, graph.nodes[v].name
        data: dict[str, Any] = {
            "name": names[i],
            "kind": kind,
            "kept": values[i],
            "number": edge_number,
        }
        if scores is not None:
            data["score"] = scores[i]
        _add(out, source, target, kind, data)
    for wire, (u, v) in enumerate(graph.fixed_edge_index.T.tolist()):
        if u in new_number and v in new_number:
            source, target = graph.nodes[u].name, graph.nodes[v].name
            data = {"name": f"{source}->{target}", "kind": "wire", "fixed": True, "wire": wire}
            _add(out, source, target, "wire", data)
    return out


def _has_parallel_edges(circuit: Circuit) -> bool:
    """Asked of the whole graph, so that a model's circuits all have one type."""
    graph = circuit.graph
    index = np.concatenate([graph.edge_index.numpy(), graph.fixed_edge_index.numpy()], axis=1)
    codes = index[0] * graph.num_nodes + index[1]
    return bool(len(np.unique(codes)) < codes.size)


def _add(out: Any, source: str, target: str, kind: str, data: dict[str, Any]) -> None:
    if not out.is_multigraph():
        out.add_edge(source, target, **data)
        return
    twin = out.has_edge(source, target, key=kind)
    number = data.get("number", data.get("wire"))
    out.add_edge(source, target, key=f"{kind}#{number}" if twin else kind, **data)
