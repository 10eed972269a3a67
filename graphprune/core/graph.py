"""The computational graph: nodes, the edges that can be masked, and what is wired for good.

Conventions. ``edge_index`` is ``[2, E]``: row 0 holds sources, row 1 targets (PyG's order). Every
edge in it can be masked and counts towards ``num_edges``. ``fixed_edge_index`` holds wires that are
always there and never counted, such as a grouped key/value reader feeding its query heads. A
*coupled group* is a set of nodes that influence each other's output by something that is no edge
(a norm over their sum); reachability treats a group as one node.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.elements import EdgeNames, Ties
from graphprune.core.elements import Node as Node
from graphprune.errors import InputError
from graphprune.util.modes import ordinary
from graphprune.util.paths import components, longest_paths

if TYPE_CHECKING:
    import networkx as nx

MOST_KINDS = 256  # an edge's kind is one byte


@dataclass(frozen=True, eq=False)
class ComputationalGraph:
    """A frozen directed graph whose edges carry messages that can be masked.

    Args:
        nodes: the components; names are unique.
        edge_index: ``[2, E]`` int64, sources over targets, on the CPU.
        edge_kind: ``[E]`` uint8, an index into ``edge_kinds``.
        edge_kinds: names of the kinds of edge.
        ports: the kinds that name a separate input of their target (``q``, ``k``, ``v``) and
            therefore stand in an edge's name, as in ``input->a0.h1<q>``.
        fixed_edge_index: ``[2, F]`` wires that are always there and never counted.
        groups: coupled groups, as tuples of node numbers.
        inputs, outputs: node numbers where information enters and leaves. ``None`` takes the
            nodes without incoming, or without outgoing edges.
        ties: the messages, where an edge may stand for both directions; ``None``: each edge is one.

    Example:
        >>> graph = ComputationalGraph.from_edges([("input", "h"), ("h", "out"), ("input", "out")])
        >>> graph.num_edges, graph.is_acyclic, list(graph.edge_names)
        (3, True, ['input->h', 'h->out', 'input->out'])
    """

    nodes: tuple[Node, ...]
    edge_index: Int64[Tensor, "2 edge"]
    edge_kind: UInt8[Tensor, " edge"]
    edge_kinds: tuple[str, ...] = ("message",)
    ports: tuple[str, ...] = ()
    fixed_edge_index: Int64[Tensor, "2 wire"] = field(
        default_factory=lambda: torch.zeros(2, 0, dtype=torch.int64)
    )
    groups: tuple[tuple[int, ...], ...] = ()
    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None
    ties: Ties | None = None

    def __post_init__(self) -> None:
        for name in ("edge_index", "edge_kind", "fixed_edge_index"):
            object.__setattr__(self, name, ordinary(getattr(self, name)))
        if self.edge_index.ndim != 2 or self.edge_index.shape[0] != 2:
            raise InputError(f"edge_index must be [2, E], got {list(self.edge_index.shape)}")
        if self.edge_kind.shape != self.edge_index.shape[1:]:
            raise InputError(
                f"edge_kind must hold one entry for each of the {self.edge_index.shape[1]} edges, "
                f"got {list(self.edge_kind.shape)}"
            )
        for name, index in (("edge_index", self.edge_index), ("fixed", self.fixed_edge_index)):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self.nodes):
                raise InputError(f"{name} names a node outside 0..{len(self.nodes) - 1}")
        if len({node.name for node in self.nodes}) != len(self.nodes):
            raise InputError("node names must be unique")
        if len(self.edge_kinds) > MOST_KINDS:
            raise InputError(
                f"{len(self.edge_kinds)} kinds of edges, beginning with "
                f"{', '.join(map(repr, self.edge_kinds[:3]))}; a graph tells at most {MOST_KINDS} "
                "kinds apart. If every edge has a kind of its own, it is a name: call the "
                "attribute something else than 'kind'"
            )
        if self.edge_kind.numel() and int(self.edge_kind.max()) >= len(self.edge_kinds):
            raise InputError(f"edge_kind names a kind outside {self.edge_kinds}")
        if self.ties is not None:
            named = int(self.ties.edge.max()) + 1 if self.ties.edge.numel() else 0
            if named != self.num_edges:
                raise InputError(f"ties name {named} edges, the graph has {self.num_edges}")

    # ---------------------------------------------------------------- building

    @classmethod
    def from_edges(
        cls,
        edges: Sequence[tuple[str, str]],
        nodes: Sequence[str] | None = None,
        *,
        edge_kind: Sequence[int] | Tensor | None = None,
        **options: Any,
    ) -> ComputationalGraph:
        """Builds a graph from named pairs; nodes stand in order of appearance unless given.

        Args:
            edges: ``(source, target)`` names; a pair may stand several times, once for each of the
                target's ports.
            nodes: all names, in the graph's order.
            edge_kind: each edge's number in ``edge_kinds``; ``None`` means 0 for all.
            options: ``edge_kinds``, ``ports`` and the other fields of the class.

        Example:
            >>> graph = ComputationalGraph.from_edges(
            ...     [("a", "b"), ("a", "b"), ("b", "c")], edge_kind=[0, 1, 2],
            ...     edge_kinds=("q", "k", "mlp"), ports=("q", "k"))
            >>> list(graph.edge_names)
            ['a->b<q>', 'a->b<k>', 'b->c']
        """
        seen = dict.fromkeys(name for edge in edges for name in edge)
        names = list(seen if nodes is None else nodes)
        kinds = [0] * len(edges) if edge_kind is None else edge_kind
        number = {name: i for i, name in enumerate(names)}
        try:
            pairs = [[number[u] for u, _ in edges], [number[v] for _, v in edges]]
        except KeyError as error:
            raise InputError(f"an edge names the node {error.args[0]!r}, not in nodes") from None
        return cls(
            nodes=tuple(Node(name) for name in names),
            edge_index=torch.tensor(pairs, dtype=torch.int64).reshape(2, -1),
            edge_kind=torch.as_tensor(kinds, dtype=torch.uint8),
            **options,
        )

    @classmethod
    def from_networkx(cls, graph: nx.DiGraph[Any]) -> ComputationalGraph:
        """Builds a graph from a networkx DiGraph or MultiDiGraph, edges in ``graph.edges`` order.

        Node attributes ``kind``, ``layer`` and ``index`` and the edge attribute ``kind`` are read
        where present (as :meth:`to_networkx` writes them); a graph exported by graphprune comes
        back with the same fingerprint. A ``layer`` or an ``index`` that is no whole number (a word,
        2.5, NaN, a tuple) is an attribute like any other and stays among ``Node.attributes``.
        Raises :class:`InputError` for an undirected graph and for more than 256 kinds of edges.
        """
        from graphprune.core.graph_io import graph_from_networkx

        return graph_from_networkx(graph)

    def to_networkx(self) -> nx.MultiDiGraph[Any]:
        """The graph as a networkx DiGraph, or MultiDiGraph where two edges join the same pair."""
        from graphprune.core.graph_io import graph_to_networkx

        return graph_to_networkx(self)

    def to_pyg(self) -> Any:
        """The graph as a ``torch_geometric.data.Data`` with ``edge_index`` and ``edge_kind``."""
        from graphprune.core.graph_io import graph_to_pyg

        return graph_to_pyg(self)

    @classmethod
    def from_pyg(cls, data: Any) -> ComputationalGraph:
        """Builds a graph from a ``torch_geometric.data.Data``: edges in ``edge_index`` order."""
        from graphprune.core.graph_io import graph_from_pyg

        return graph_from_pyg(data)

    # ---------------------------------------------------------------- reading

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    @cached_property
    def num_edges(self) -> int:
        """Number of edges that can be masked."""
        return int(self.edge_index.shape[1])

    @cached_property
    def edge_names(self) -> EdgeNames:
        """The edges' names in order, such as ``input->a0.h1<q>``; see :class:`EdgeNames`."""
        ports = [f"<{kind}>" if kind in self.ports else "" for kind in self.edge_kinds]
        both = torch.zeros(self.num_edges, dtype=torch.bool)
        two_way = both if self.ties is None else self.ties.two_way
        return EdgeNames(self.nodes, self.edge_index, self.edge_kind, ports, two_way)

    @cached_property
    def node_number(self) -> Mapping[str, int]:
        """From a node's name to its position in ``nodes``."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    @cached_property
    def edge_number(self) -> Mapping[str, int]:
        """From an edge's name to its position; no two edges have one name."""
        return {name: i for i, name in enumerate(self.edge_names)}

    @cached_property
    def input_nodes(self) -> tuple[int, ...]:
        """Numbers of the nodes where information enters."""
        return self._ends(self.inputs, row=1)

    @cached_property
    def output_nodes(self) -> tuple[int, ...]:
        """Numbers of the nodes where information leaves."""
        return self._ends(self.outputs, row=0)

    def _ends(self, given: tuple[int, ...] | None, row: int) -> tuple[int, ...]:
        if given is not None:
            return given
        touched = np.zeros(self.num_nodes, dtype=bool)
        touched[self.untied.edge_index[row].numpy()] = True
        touched[self.fixed_edge_index[row].numpy()] = True
        return tuple(np.flatnonzero(~touched).tolist())

    @cached_property
    def representative(self) -> NDArray[np.int64]:
        """``[N]``: each node's coupled group, named by the group's first node (itself if alone)."""
        first = np.arange(self.num_nodes)
        for group in self.groups:
            first[list(group)] = min(group)
        return first

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that gives an edge its meaning, in order."""
        digest = hashlib.sha256()
        head = {
            "nodes": [[n.name, n.kind, n.layer, n.index] for n in self.nodes],
            "edge_kinds": self.edge_kinds,
            "ports": self.ports,
            "groups": self.groups,
            "inputs": self.input_nodes,
            "outputs": self.output_nodes,
        }
        digest.update(json.dumps(head, sort_keys=True).encode())
        ties = () if self.ties is None else (self.ties.index, self.ties.kind, self.ties.edge)
        for part in (self.edge_index, self.edge_kind, self.fixed_edge_index, *ties):
            digest.update(np.ascontiguousarray(part.numpy()).tobytes())
        return digest.hexdigest()

    # ---------------------------------------------------------------- messages

    @cached_property
    def untied(self) -> ComputationalGraph:
        """The graph whose edges are this one's messages, in the data's order; itself without ties.

        Example:
            >>> from torch_geometric.nn import GCNConv
            >>> graph = gp.wrap(GCNConv(4, 2), data=data).graph
            >>> graph.num_edges, graph.untied.num_edges
            (12, 24)
        """
        if self.ties is None:
            return self
        return replace(self, edge_index=self.ties.index, edge_kind=self.ties.kind, ties=None)

    def tied(self, edge: Tensor) -> ComputationalGraph:
        """The graph with the edges of one number in ``edge [M]`` (0, 1, ...) as one edge.

        It has the direction and the kind of the first of them.

        Example:
            >>> both_ways = ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("a", "c")])
            >>> list(both_ways.tied(torch.tensor([0, 0, 1])).edge_names)
            ['a--b', 'a->c']
        """
        ties = Ties(self.edge_index, self.edge_kind, edge)
        index, kind = self.edge_index[:, ties.first], self.edge_kind[ties.first]
        return replace(self, edge_index=index, edge_kind=kind, ties=ties)

    def per_message(self, values: Tensor) -> Tensor:
        """``[..., M]`` of ``[..., E]``: the messages of an edge have its value."""
        return values if self.ties is None else values[..., self.ties.edge.to(values.device)]

    def per_edge(self, values: Tensor) -> Tensor:
        """``[E, ...]`` of ``[M, ...]``: sums over the messages of each edge."""
        if self.ties is None:
            return values
        sums = values.new_zeros(self.num_edges, *values.shape[1:])
        return sums.index_add(0, self.ties.edge.to(values.device), values)

    @property
    def counted(self) -> str:
        """The word for what is counted: ``"edges"``, or ``"pairs"`` where both directions are one.

        Self-loops and edges without a reverse count as one each.
        """
        return "edges" if self.ties is None else "pairs"

    @cached_property
    def _wiring(self) -> NDArray[np.int64]:
        """``[2, M + F]``: messages, then wires."""
        pairs = self.untied.edge_index.numpy(), self.fixed_edge_index.numpy()
        return np.concatenate(pairs, axis=1)

    @cached_property
    def _cycles(self) -> NDArray[np.int64]:
        """``[N]``: a number for each node, one for all nodes of a cycle."""
        return components(self.num_nodes, self._wiring, "strong")

    @cached_property
    def is_acyclic(self) -> bool:
        """``True`` if no walk over edges and wires comes back to where it started."""
        loops = (self._wiring[0] == self._wiring[1]).any()
        return not loops and len(np.unique(self._cycles)) == self.num_nodes

    @cached_property
    def depth(self) -> NDArray[np.int64]:
        """``[N]``: the longest path from any source, in edges; nodes on a cycle count as one."""
        return longest_paths(self._wiring, self._cycles)

    def reachable(
        self, start: Sequence[int], kept: NDArray[np.bool_], *, backward: bool = False
    ) -> NDArray[np.bool_]:
        """``[N]``: the nodes in ``start`` and all with a kept path from (``backward``: to) one.

        Coupled groups count as one node, and wires are always there.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order

        wired = np.ones(self.fixed_edge_index.shape[1], dtype=bool)
        sent = kept if self.ties is None else kept[self.ties.edge.numpy()]
        pairs = self.representative[self._wiring[:, np.concatenate([sent, wired])]]
        rows, columns = pairs[::-1] if backward else pairs
        # One more node leads to all in `start`, so that one search finds what any of them reaches.
        root = self.num_nodes
        first = np.unique(self.representative[list(start)]) if len(start) else np.zeros(0, int)
        rows = np.concatenate([rows, np.full(len(first), root)])
        columns = np.concatenate([columns, first])
        ones = np.ones(len(rows), dtype=np.int8)
        rooted = csr_array((ones, (rows, columns)), shape=(root + 1, root + 1))
        order = breadth_first_order(rooted, root, return_predecessors=False)
        seen = np.zeros(root + 1, dtype=bool)
        seen[order] = True
        return np.asarray(seen[self.representative])

    @cached_property
    def has_dead_ends(self) -> bool:
        """Whether some kept edges may lie on no path from an input to an output.

        None does where every edge leads from an input straight to an output, as in a graph network,
        whose nodes all hold features and are all read: nothing has to be searched there.
        """
        sources, targets = self.representative[self.untied.edge_index.numpy()]
        ends = []
        for nodes in (self.input_nodes, self.output_nodes):
            is_end = np.zeros(self.num_nodes, dtype=bool)
            is_end[self.representative[list(nodes)]] = True
            ends.append(is_end)
        return not bool(ends[0][sources].all() and ends[1][targets].all())

    def alive(self, kept: NDArray[np.bool_], *, from_inputs: bool = True) -> NDArray[np.bool_]:
        """``[E]``: kept edges that lie on a path from an input node to an output node.

        ``from_inputs=False`` asks only that the path ends at an output, wherever it starts.
        """
        if not self.has_dead_ends:
            return kept.copy()
        back = self.reachable(self.output_nodes, kept, backward=True)
        sources, targets = self.untied.edge_index.numpy()
        leading = back[targets]
        if from_inputs:
            leading = leading & self.reachable(self.input_nodes, kept)[sources]
        if self.ties is not None:
            count = np.bincount(self.ties.edge.numpy(), leading, minlength=self.num_edges)
            leading = count > 0
        return np.asarray(kept & leading)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComputationalGraph) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        shape = "acyclic" if self.num_nodes < 5000 and self.is_acyclic else "directed"
        if self.ties is not None:
            shape = f"{len(self.ties.edge)} messages"
        return (
            f"ComputationalGraph({self.num_nodes} nodes, {self.num_edges} {self.counted}, {shape})"
        )
