"""The graph to and from networkx and PyG. Attributes are plain Python values throughout."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.core.graph import MOST_KINDS, ComputationalGraph, Node
from graphprune.core.graph_axes import attribute_axes, edge_subset, unclear
from graphprune.errors import InputError

if TYPE_CHECKING:
    import networkx as nx


def graph_to_networkx(graph: ComputationalGraph) -> nx.MultiDiGraph[Any]:
    """Nodes with ``kind``, ``layer``, ``index``; edges with ``name``, ``kind``, ``number``.

    Wires carry ``fixed=True`` and no number; groups, inputs and outputs are graph attributes.
    """
    import networkx as nx

    pairs = graph.edge_index.T.tolist() + graph.fixed_edge_index.T.tolist()
    multi = len({tuple(p) for p in pairs}) < len(pairs)
    out: Any = nx.MultiDiGraph() if multi else nx.DiGraph()
    out.graph.update(
        ports=joined(graph.ports),
        edge_kinds=joined(graph.edge_kinds),
        groups=";".join(",".join(map(str, g)) for g in graph.groups),
        inputs=",".join(map(str, graph.input_nodes)),
        outputs=",".join(map(str, graph.output_nodes)),
    )
    for node in graph.nodes:
        out.add_node(node.name, **node_attributes(node))
    kinds = graph.edge_kind.tolist()
    for i, ((u, v), name) in enumerate(
        zip(graph.edge_index.T.tolist(), graph.edge_names, strict=True)
    ):
        out.add_edge(
            graph.nodes[u].name,
            graph.nodes[v].name,
            name=name,
            kind=graph.edge_kinds[kinds[i]],
            number=i,
        )
    for i, (u, v) in enumerate(graph.fixed_edge_index.T.tolist()):
        out.add_edge(graph.nodes[u].name, graph.nodes[v].name, kind="wire", fixed=True, wire=i)
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
    about = source.graph
    ours = "edge_kinds" in about  # written by graph_to_networkx: edges carry their number
    edges, wires = [], []
    for u, v, data in source.edges(data=True):
        pair = (number[u], number[v], str(data.get("kind", "message")))
        if ours and data.get("fixed"):
            wires.append((data.get("wire"), pair))
        else:
            edges.append((data.get("number"), pair))
    pairs, fixed = (_in_order(rows) if ours else [p for _, p in rows] for rows in (edges, wires))
    occurring = dict.fromkeys(kind for _, _, kind in pairs)
    kinds = tuple(dict.fromkeys([*_split(about.get("edge_kinds", "")), *occurring])) or ("message",)
    places = {kind: i for i, kind in enumerate(kinds[:MOST_KINDS])}  # more are refused below

    def index(rows: list[tuple[int, int, str]]) -> torch.Tensor:
        ends = [(u, v) for u, v, _ in rows]
        return torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous()

    return ComputationalGraph(
        nodes=nodes,
        edge_index=index(pairs),
        edge_kind=torch.tensor([places.get(k, 0) for _, _, k in pairs], dtype=torch.uint8),
        edge_kinds=kinds,
        ports=tuple(_split(about.get("ports", ""))),
        fixed_edge_index=index(fixed),
        groups=tuple(_numbers(g, about) for g in str(about.get("groups", "")).split(";") if g),
        inputs=_numbers(about["inputs"], about) if "inputs" in about else None,
        outputs=_numbers(about["outputs"], about) if "outputs" in about else None,
    )


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
    places = {key: _whole(data.get(key)) for key in ("layer", "index")}
    own = {key for key, value in places.items() if value is None and data.get(key) is not None}
    attributes = {k: v for k, v in data.items() if k not in ("kind", *places) or k in own}
    return Node(name, str(data.get("kind", "node")), **places, attributes=attributes)


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
        names = json.loads(str(text))
    except ValueError as error:
        raise InputError(f"the graph attribute {text!r} is no list of names: {error}") from None
    return [str(name) for name in names]


def _numbers(text: Any, about: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(x) for x in str(text).split(",") if x)
    except ValueError:
        name = next(key for key in ("inputs", "outputs", "groups") if str(text) in str(about[key]))
        raise InputError(
            f"the graph attribute {name!r} must hold numbers of nodes, such as '0,1', as "
            f"to_networkx writes it; got {about[name]!r}. Rename or remove it: "
            f"del G.graph[{name!r}]"
        ) from None


def graph_to_pyg(graph: ComputationalGraph) -> Any:
    """``torch_geometric.data.Data`` with ``edge_index``, ``edge_kind`` and ``num_nodes``."""
    from torch_geometric.data import Data

    return Data(
        edge_index=graph.edge_index.clone(),
        edge_kind=graph.edge_kind.clone(),
        num_nodes=graph.num_nodes,
    )


def graph_from_pyg(data: Any) -> ComputationalGraph:
    """Nodes are named by their number; every ``edge_index`` column is an edge, in order."""
    index = data.edge_index.detach().to("cpu", torch.int64)
    return ComputationalGraph(
        nodes=tuple(Node(str(i)) for i in range(int(data.num_nodes))),
        edge_index=index,
        edge_kind=torch.zeros(index.shape[1], dtype=torch.uint8),
    )


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
    if isinstance(data, HeteroData):
        return _without_relations(data, kept, edge_attrs)
    axes = attribute_axes(data, edge_attrs)
    either = [name for name, axis in axes.items() if axis == "either"]
    if either:
        raise unclear(either)
    if isinstance(data, Batch):
        # A batch keeps where each graph's edges begin, and a subgraph of it keeps that too: stale.
        of = data.batch.cpu()[data.edge_index[0].cpu()]
        some = []
        for number, one in enumerate(data.to_data_list()):
            small = copy.copy(one)
            edge_subset(small, kept[of == number], axes, one)
            some.append(small)
        return Batch.from_data_list(some)
    small = copy.copy(data)
    edge_subset(small, kept, axes, data)
    return small


def _without_networkx(source: Any, kept: torch.Tensor, graph: ComputationalGraph) -> Any:
    theirs = graph_from_networkx(source)
    same = [n.name for n in theirs.nodes] == [n.name for n in graph.nodes]
    if not same or not torch.equal(theirs.edge_index, graph.edge_index):
        raise InputError(
            f"the networkx graph's edges are not those of the mask's graph: {theirs!r} and "
            f"{graph!r}; apply a mask to the graph that it was found on"
        )
    every = source.edges(keys=True) if source.is_multigraph() else source.edges
    edges = [edge for edge in every if not _is_wire(source, edge)]
    carried = [_whole(source.edges[edge].get("number")) for edge in edges]
    if "edge_kinds" in source.graph and None not in carried:
        edges.sort(key=lambda edge: int(source.edges[edge]["number"]))
    small = source.copy()
    small.remove_edges_from(
        edge for edge, stays in zip(edges, kept.tolist(), strict=True) if not stays
    )
    return small


def _is_wire(source: Any, edge: Any) -> bool:
    return "edge_kinds" in source.graph and bool(source.edges[edge].get("fixed"))


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


def _without_relations(data: Any, kept: torch.Tensor, edge_attrs: Iterable[str] | None) -> Any:
    from torch_geometric.data import Batch

    index = {kind: data[kind].edge_index for kind in data.edge_types}
    counts = [one.shape[1] for one in index.values()]
    parts = dict(zip(index, kept.split(counts), strict=True))
    # A relation holds no nodes, so that nothing of it could belong to either.
    axes = {kind: attribute_axes((data, kind)) for kind in index}
    for name in edge_attrs or ():
        if all(named.get(name) != "edge" for named in axes.values()):
            raise InputError(
                f"edge_attrs names {name!r}, which has no entry for each edge of the data"
            )

    def smaller(one: Any, mine: dict[Any, torch.Tensor]) -> Any:
        small = copy.copy(one)
        for kind, part in mine.items():
            edge_subset(small, part, axes[kind], one, kind)
        return small

    if isinstance(data, Batch):
        some = []
        for number, one in enumerate(data.to_data_list()):
            mine = {
                kind: part[(data[kind[0]].batch[index[kind][0]] == number).cpu()]
                for kind, part in parts.items()
            }
            some.append(smaller(one, mine))
        return Batch.from_data_list(some)
    return smaller(data, parts)


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
    place = torch.tensor([int(node.name.rsplit(":", 1)[1]) for node in graph.nodes])
    relations = {}
    for number, name in enumerate(graph.edge_kinds):
        index = graph.edge_index[:, graph.edge_kind == number]
        ends = {(kinds[u], kinds[v]) for u, v in index.T.tolist()}
        if not ends:
            ends = {(a, b) for a in inside for b in inside if _between(name, a, b) is not None}
        relation = _between(name, *ends.pop()) if len(ends) == 1 else None
        if relation is None:
            return None
        relations[name] = relation, place[index]
    return relations


def _between(name: str, source: str, target: str) -> tuple[str, str, str] | None:
    front, back = f"{source}__", f"__{target}"
    if not name.startswith(front) or not name.endswith(back) or len(name) <= len(front + back):
        return None
    return source, name[len(front) : len(name) - len(back)], target
