"""The graph to and from networkx and PyG. Attributes are plain Python values throughout."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.core.graph import MOST_KINDS, ComputationalGraph, Node
from graphprune.core.graph_axes import (
    Axis,
    attribute_axes,
    edge_subset,
    no_edge_attribute,
    unclear,
)
from graphprune.errors import InputError
from graphprune.util.readers import json_value

if TYPE_CHECKING:
    import networkx as nx


def graph_to_networkx(
    graph: ComputationalGraph,
    edges: torch.Tensor | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> nx.MultiDiGraph[Any]:
    """Nodes with ``kind``, ``layer``, ``index``; edges with ``name``, ``kind``, ``number``.

    Wires carry ``fixed=True`` and no number; groups, inputs and outputs are graph attributes. A
    tied edge is written once for each of its messages, which share its name and number and have a
    ``message`` number of their own.

    Args:
        graph: what is written.
        edges: numbers of the edges alone to write, with the nodes that they touch and the wires
            between these, by their kinds as keys; ``None`` means the whole graph.
        columns: what edges carry besides, in place of ``number``, in order.
    """
    import networkx as nx

    whole = edges is None
    nodes: Sequence[int] = range(graph.num_nodes)
    chosen = torch.arange(graph.num_edges)
    if edges is not None:
        chosen, nodes = edges, torch.unique(graph.edge_index[:, edges]).tolist()
    new_number = {node: i for i, node in enumerate(nodes)}

    def renumbered(numbers: Iterable[int]) -> str:
        return ",".join(str(new_number[n]) for n in numbers if n in new_number)

    # Asked of the whole graph, so that a model's circuits all have one type.
    index = torch.cat([graph.untied.edge_index, graph.fixed_edge_index], 1)
    codes = index[0] * graph.num_nodes + index[1]
    parallel = len(torch.unique(codes)) < len(codes)
    out: Any = nx.MultiDiGraph() if parallel else nx.DiGraph()
    groups = [renumbered(group) for group in graph.groups]
    out.graph.update(
        ports=joined(graph.ports),
        edge_kinds=joined(graph.edge_kinds),
        groups=";".join(group for group in groups if whole or "," in group),
        inputs=renumbered(graph.input_nodes),
        outputs=renumbered(graph.output_nodes),
    )
    for number in new_number:
        out.add_node(graph.nodes[number].name, **node_attributes(graph.nodes[number]))

    def add(source: int, target: int, data: dict[str, Any]) -> None:
        u, v = graph.nodes[source].name, graph.nodes[target].name
        key: dict[str, str] = {}
        if parallel and not whole:
            kind, number = data["kind"], data.get("number", data.get("wire"))
            key["key"] = f"{kind}#{number}" if out.has_edge(u, v, key=kind) else kind
        out.add_edge(u, v, **key, **data)

    more = {"number": chosen.tolist()} if columns is None else columns
    values = zip(graph.edge_names.at(chosen), *more.values(), strict=True)
    row_of = dict(zip(chosen.tolist(), values, strict=True))
    messages, edge_of = chosen, chosen
    if graph.ties is not None:
        messages = torch.nonzero(torch.isin(graph.ties.edge, chosen))[:, 0]
        edge_of = graph.ties.edge[messages]
    ends, kinds = graph.untied.edge_index[:, messages].T, graph.untied.edge_kind[messages]
    rows = zip(ends.tolist(), kinds.tolist(), edge_of.tolist(), messages.tolist(), strict=True)
    for (u, v), kind, edge, message in rows:
        name, *row = row_of[edge]
        written = {
            "name": name,
            "kind": graph.edge_kinds[kind],
            **dict(zip(more, row, strict=True)),
        }
        add(u, v, written if graph.ties is None else {**written, "message": message})
    for wire, (u, v) in enumerate(graph.fixed_edge_index.T.tolist()):
        if u in new_number and v in new_number:
            name = {} if whole else {"name": f"{graph.nodes[u].name}->{graph.nodes[v].name}"}
            add(u, v, {**name, "kind": "wire", "fixed": True, "wire": wire})
    return out


def graph_from_networkx(source: nx.DiGraph[Any]) -> ComputationalGraph:
    """The reverse of :func:`graph_to_networkx`; any directed networkx graph is taken."""
    if not source.is_directed():
        raise InputError(
            "expected a directed networkx graph, got an undirected one; use G.to_directed() if "
            "every edge really carries messages both ways"
        )
    number = {name: i for i, name in enumerate(source.nodes)}
    texts = [str(name) for name in source.nodes]
    if len(set(texts)) != len(texts):
        raise InputError("two nodes have the same name once written as text")
    nodes = tuple(_node(str(name), data) for name, data in source.nodes(data=True))
    header = source.graph
    numbered = "edge_kinds" in header  # written by graph_to_networkx: edges carry their number
    edges, wires, owners = [], [], []
    for u, v, data in source.edges(data=True):
        pair = (number[u], number[v], str(data.get("kind", "message")))
        if numbered and data.get("fixed"):
            wires.append((data.get("wire"), pair))
        else:
            place = _whole(data.get("message")) if numbered else None
            edges.append((data.get("number") if place is None else place, pair))
            owners.append((place, _whole(data.get("number"))))
    pairs, fixed = (
        _in_order(rows) if numbered else [pair for _, pair in rows] for rows in (edges, wires)
    )
    named = [*_split(header.get("edge_kinds", "")), *(kind for _, _, kind in pairs)]
    kinds = tuple(dict.fromkeys(named)) or ("message",)
    code = {kind: i for i, kind in enumerate(kinds[:MOST_KINDS])}  # more are refused below

    def index(rows: list[tuple[int, int, str]]) -> torch.Tensor:
        ends = [(u, v) for u, v, _ in rows]
        return torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous()

    graph = ComputationalGraph(
        nodes=nodes,
        edge_index=index(pairs),
        edge_kind=torch.tensor([code.get(k, 0) for _, _, k in pairs], dtype=torch.uint8),
        edge_kinds=kinds,
        ports=tuple(_split(header.get("ports", ""))),
        fixed_edge_index=index(fixed),
        groups=tuple(_numbers(g, header) for g in str(header.get("groups", "")).split(";") if g),
        inputs=_numbers(header["inputs"], header) if "inputs" in header else None,
        outputs=_numbers(header["outputs"], header) if "outputs" in header else None,
    )
    if not owners or any(place is None or edge is None for place, edge in owners):
        return graph
    numbers = torch.tensor([edge for _, edge in sorted(owners)])
    return graph.tied(torch.unique(numbers, return_inverse=True)[1])


def node_attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as networkx has them, ``kind``, ``layer`` and ``index`` among them."""
    attributes: dict[str, Any] = {**node.attributes, "kind": node.kind}
    if node.layer is not None:
        attributes["layer"] = node.layer
    if node.index is not None:
        attributes["index"] = node.index
    return attributes


def _node(name: str, data: dict[str, Any]) -> Node:
    """Networkx gives attributes no meaning: a ``layer`` that is no number is the user's own."""
    numbers = {key: _whole(data.get(key)) for key in ("layer", "index")}
    own = {key for key, value in numbers.items() if value is None and data.get(key) is not None}
    attributes = {k: v for k, v in data.items() if k not in ("kind", *numbers) or k in own}
    return Node(name, str(data.get("kind", "node")), **numbers, attributes=attributes)


def _whole(value: Any) -> int | None:
    """``value`` as an int where it is a whole number, also 2.0 (pandas) or "2" (XML)."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value) else None
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not np.isfinite(value) or value != int(value):
        return None
    return int(value)


def _in_order(rows: list[tuple[Any, tuple[int, int, str]]]) -> list[tuple[int, int, str]]:
    """Edges by the numbers they carry; as they stand where one was added that carries none."""
    order = [_whole(number) for number, _ in rows]
    if any(number is None for number in order):
        return [pair for _, pair in rows]
    return [rows[i][1] for i in sorted(range(len(rows)), key=lambda i: order[i] or 0)]


def joined(names: Iterable[str]) -> str:
    """Names as one text; JSON where a comma or an empty name would be lost between commas."""
    plain = list(names)
    odd = any(not name or "," in name or name.startswith("[") for name in plain)
    return json.dumps(plain) if odd else ",".join(plain)


def _split(text: Any) -> list[str]:
    if not str(text).startswith("["):
        return [name for name in str(text).split(",") if name]
    try:
        names = json_value(str(text))
    except ValueError as error:
        raise InputError(f"the graph attribute {text!r} is no list of names: {error}") from None
    return [str(name) for name in names]


def _numbers(text: Any, header: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(x) for x in str(text).split(",") if x)
    except ValueError:
        name = next(key for key in ("inputs", "outputs", "groups") if str(text) in str(header[key]))
        raise InputError(
            f"the graph attribute {name!r} must hold numbers of nodes, such as '0,1', as "
            f"to_networkx writes it; got {header[name]!r}. Rename or remove it: "
            f"del G.graph[{name!r}]"
        ) from None


def graph_to_pyg(graph: ComputationalGraph) -> Any:
    """``torch_geometric.data.Data`` with ``edge_index``, ``edge_kind`` and ``num_nodes``.

    Of a graph with ties all messages, with ``edge_of_message [M]``: the edge each belongs to.
    """
    from torch_geometric.data import Data

    more = {} if graph.ties is None else {"edge_of_message": graph.ties.edge.clone()}
    return Data(
        edge_index=graph.untied.edge_index.clone(),
        edge_kind=graph.untied.edge_kind.clone(),
        num_nodes=graph.num_nodes,
        **more,
    )


def graph_from_pyg(data: Any) -> ComputationalGraph:
    """Nodes are named by their number; every ``edge_index`` column is an edge, in order."""
    index = data.edge_index.detach().to("cpu", torch.int64)
    graph = ComputationalGraph(
        nodes=tuple(Node(str(i)) for i in range(int(data.num_nodes))),
        edge_index=index,
        edge_kind=torch.zeros(index.shape[1], dtype=torch.uint8),
    )
    edge = data.get("edge_of_message")
    return graph if edge is None else graph.tied(edge.cpu())


def without_edges(
    data: Any,
    kept: torch.Tensor,
    graph: ComputationalGraph,
    edge_attrs: Iterable[str] | None = None,
) -> Any:
    """Data with the edges ``kept [E]`` alone; see :meth:`graphprune.EdgeMask.apply`."""
    if "networkx" in sys.modules:  # such a graph cannot exist before it was imported
        import networkx as nx

        if isinstance(data, nx.Graph):
            return _without_networkx(data, kept, graph)
    from torch_geometric.data import Batch, Data, HeteroData

    if not isinstance(data, Data | HeteroData):
        raise InputError(
            "expected PyG's Data, Batch or HeteroData, or a networkx graph, got "
            f"{type(data).__name__}"
        )
    require_same_edges(data, graph)
    axes: dict[Any, dict[str, Axis]]
    if isinstance(data, HeteroData):
        # A relation holds no nodes, so that nothing of it could belong to either.
        axes = {kind: attribute_axes((data, kind)) for kind in data.edge_types}
        for name in edge_attrs or ():
            if all(named.get(name) != "edge" for named in axes.values()):
                raise no_edge_attribute(name)
    else:
        axes = {None: attribute_axes(data, edge_attrs)}
        either = [name for name, axis in axes[None].items() if axis == "either"]
        if either:
            raise unclear(either)

    def smaller(one: Any, kept_of: Mapping[Any, torch.Tensor]) -> Any:
        small = copy.copy(one)
        for kind, part in kept_of.items():
            edge_subset(small, part, axes[kind], one, kind)
        return small

    parts = by_edge_type(data, kept)
    if not isinstance(data, Batch):
        return smaller(data, parts)
    # A batch keeps where each graph's edges begin, and a subgraph of it keeps that too: stale.
    graphs = {kind: graphs_of_edges(data, kind) for kind in parts}
    some = []
    for number, one in enumerate(data.to_data_list()):
        some.append(smaller(one, {k: part[graphs[k] == number] for k, part in parts.items()}))
    return Batch.from_data_list(some)


def by_edge_type(data: Any, values: torch.Tensor) -> dict[Any, torch.Tensor]:
    """``values [E]`` of a PyG graph's edges by their type; ``None`` is the only one of ``Data``."""
    from torch_geometric.data import HeteroData

    kinds = data.edge_types if isinstance(data, HeteroData) else [None]
    stores = [data if kind is None else data[kind] for kind in kinds]
    parts = values.split([int(store.edge_index.shape[1]) for store in stores])
    return dict(zip(kinds, parts, strict=True))


def graphs_of_edges(data: Any, kind: Any) -> torch.Tensor:
    """``[E_r]``: the graph of a batch that each edge of a type belongs to."""
    store, batch = (data, data.batch) if kind is None else (data[kind], data[kind[0]].batch)
    graphs: torch.Tensor = batch[store.edge_index[0]].cpu()
    return graphs


def _without_networkx(source: Any, kept: torch.Tensor, graph: ComputationalGraph) -> Any:
    theirs = graph_from_networkx(source).untied
    same = [n.name for n in theirs.nodes] == [n.name for n in graph.nodes]
    if not same or not torch.equal(theirs.edge_index, graph.edge_index):
        raise InputError(
            f"the networkx graph's edges are not those of the mask's graph: {theirs!r} and "
            f"{graph!r}; apply a mask to the graph that it was found on"
        )
    every = source.edges(keys=True) if source.is_multigraph() else source.edges
    numbered = "edge_kinds" in source.graph  # written by graph_to_networkx
    edges = [edge for edge in every if not (numbered and source.edges[edge].get("fixed"))]
    order = "message" if edges and "message" in source.edges[edges[0]] else "number"
    carried = [_whole(source.edges[edge].get(order)) for edge in edges]
    if numbered and None not in carried:
        edges.sort(key=lambda edge: int(source.edges[edge][order]))
    small = source.copy()
    small.remove_edges_from(
        edge for edge, stays in zip(edges, kept.tolist(), strict=True) if not stays
    )
    return small


def require_same_edges(data: Any, graph: ComputationalGraph) -> None:
    """Raises :class:`InputError` unless the data's edges are the graph's, in its order."""
    from torch_geometric.data import HeteroData

    if not isinstance(data, HeteroData):
        given = {"": data.edge_index}
        wanted: dict[str, torch.Tensor] | None = {"": graph.edge_index}
    else:
        given = {"__".join(kind): data[kind].edge_index for kind in data.edge_types}
        typed = numbered_types(graph)
        wanted = None if typed is None else {name: index for name, (_, index) in typed.items()}
    plain = {name: index.as_subclass(torch.Tensor).cpu() for name, index in given.items()}
    count = sum(index.shape[1] for index in plain.values())
    if count != graph.num_edges:
        raise InputError(f"the data has {count} edges, the mask's graph {graph.num_edges}")
    if wanted is not None and (
        list(wanted) != list(plain) or not all(torch.equal(wanted[k], plain[k]) for k in plain)
    ):
        raise InputError("the data's edges are not the graph's, or stand in another order")


def numbered_types(
    graph: ComputationalGraph,
) -> dict[str, tuple[tuple[str, str, str], torch.Tensor]] | None:
    """Relations of a heterogeneous graph by name, with ``[2, E_r]`` numbers within their types.

    ``None`` for a graph that is no wrapped heterogeneous one: whose nodes stand type after type,
    named ``paper:3``, and whose kinds of edge are named ``author__writes__paper``.
    """
    kinds = [node.kind for node in graph.nodes]
    inside = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    names = [f"{kind}:{i}" for kind, count in inside.items() for i in range(count)]
    if not graph.edge_kinds or names != [node.name for node in graph.nodes]:
        return None
    number_in_type = torch.tensor([int(node.name.rsplit(":", 1)[1]) for node in graph.nodes])
    relations = {}
    for number, name in enumerate(graph.edge_kinds):
        index = graph.edge_index[:, graph.edge_kind == number]
        ends = {(kinds[u], kinds[v]) for u, v in index.T.tolist()}
        if not ends:
            ends = {(a, b) for a in inside for b in inside if _between(name, a, b) is not None}
        relation = _between(name, *ends.pop()) if len(ends) == 1 else None
        if relation is None:
            return None
        relations[name] = relation, number_in_type[index]
    return relations


def _between(name: str, source: str, target: str) -> tuple[str, str, str] | None:
    front, back = f"{source}__", f"__{target}"
    if not name.startswith(front) or not name.endswith(back) or len(name) <= len(front + back):
        return None
    return source, name[len(front) : len(name) - len(back)], target
