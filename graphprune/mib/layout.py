"""The matrix of edges in MIB's and EAP-IG's files: writers by ungrouped readers.

EAP-IG and MIB keep scores in a matrix. Rows are writers: ``input``, then for each layer its heads
and its MLP. Columns are readers: for each layer every head's q, every head's k, every head's v,
then the MLP; at last ``logits``. Key/value heads do not exist there: an edge into a native
key/value reader stands once for each query head that reader feeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import InputError


def _axes(n_layers: int, n_heads: int) -> tuple[list[str], list[str]]:
    """The names of the rows and of the columns."""
    rows, columns = ["input"], []
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        rows += [*heads, f"m{layer}"]
        columns += [*(f"{name}<{port}>" for port in "qkv" for name in heads), f"m{layer}"]
    return rows, [*columns, "logits"]


def _possible_edges(n_layers: int, n_heads: int, parallel: bool) -> NDArray[np.bool_]:
    """``[rows, columns]``: whether the writer comes before the reader.

    An MLP reads the heads of its own layer too, unless attention and MLP run in ``parallel``.
    """
    row_layer = np.r_[-1, np.repeat(np.arange(n_layers), n_heads + 1)]
    row_is_head = np.r_[False, np.tile(np.arange(n_heads + 1) < n_heads, n_layers)]
    column_layer, port, _ = _split_columns(np.arange(n_layers * (3 * n_heads + 1) + 1), n_heads)
    before: NDArray[np.bool_] = row_layer[:, None] < column_layer
    if not parallel:
        before |= row_is_head[:, None] & (port == 3) & (row_layer[:, None] == column_layer)
    return before


def _split_columns(columns: NDArray[np.int64], n_heads: int) -> tuple[NDArray[np.int64], ...]:
    """Layer, port (0 to 2: q, k, v; 3: an MLP) and head of each column.

    ``logits`` stands where q of the first head of one more layer would.
    """
    layer, within = np.divmod(columns, 3 * n_heads + 1)
    return (layer, *np.divmod(within, n_heads))


@dataclass(frozen=True, eq=False)
class UngroupedLayout:
    """Where each edge of ``graph`` stands in the files' matrix.

    ``rows`` and ``columns`` name the axes; ``edge [rows, columns]`` is the number of the graph's
    edge at each place, -1 where no edge is possible.
    """

    graph: ComputationalGraph
    n_layers: int
    n_heads: int
    parallel: bool
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    edge: NDArray[np.int64]

    @classmethod
    def of(cls, graph: ComputationalGraph) -> UngroupedLayout:
        """Reads the shape off the node names; :class:`InputError` where the graph has another."""
        heads = [n for n in graph.nodes if n.kind == "head"]
        layers = {n.layer for n in graph.nodes if n.kind in ("head", "mlp")}
        if not heads or None in layers or any(n.index is None for n in heads):
            raise InputError(
                "MIB and EAP-IG files describe transformers with nodes of the kinds head and mlp, "
                f"each with its layer and index; {graph!r} is no such graph"
            )
        n_layers = 1 + max(n for n in layers if n is not None)
        n_heads = 1 + max(n.index for n in heads if n.index is not None)
        rows, columns = _axes(n_layers, n_heads)
        _check_nodes(graph, [*rows, "logits"])
        edge = _edge_numbers(graph, rows, columns)
        parallel = bool(edge[1, 3 * n_heads] < 0)  # a0.h0->m0
        possible = _possible_edges(n_layers, n_heads, parallel)
        for wrong, verb in ((possible & (edge < 0), "lacks"), (~possible & (edge >= 0), "has")):
            if wrong.any():
                row, column = np.argwhere(wrong)[0].tolist()
                raise InputError(
                    f"the graph {verb} the edge {rows[row]}->{columns[column]}, so it is not the "
                    "graph that MIB and EAP-IG files describe"
                )
        return cls(graph, n_layers, n_heads, parallel, tuple(rows), tuple(columns), edge)

    @cached_property
    def real(self) -> NDArray[np.bool_]:
        """``[rows, columns]``: where an edge is possible."""
        return np.asarray(self.edge >= 0)

    @cached_property
    def row_number(self) -> dict[str, int]:
        """From a writer's name to its row."""
        return {name: i for i, name in enumerate(self.rows)}

    @cached_property
    def column_number(self) -> dict[str, int]:
        """From a reader's name to its column."""
        return {name: i for i, name in enumerate(self.columns)}

    @property
    def shape(self) -> dict[str, int | bool]:
        """The model's shape as files have it: layers, heads, parallel attention and MLP or not."""
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "parallel_attn_mlp": self.parallel,
        }

    def name(self, row: int, column: int) -> str:
        """The name in files of the edge at one place."""
        return f"{self.rows[row]}->{self.columns[column]}"

    def matrix(self, values: NDArray[Any]) -> NDArray[Any]:
        """``[E]`` as ``[rows, columns]``, 0 where there is no edge; repeats for query heads."""
        out = np.zeros(self.edge.shape, dtype=values.dtype)
        out[self.real] = values[self.edge[self.real]]
        return out

    def order(self) -> NDArray[np.int64]:
        """``[real edges, 2]`` rows and columns in the order the reference writes its JSON in."""
        rows, columns = np.nonzero(self.real)
        layer, port, head = _split_columns(columns, self.n_heads)
        mlp = (port == 3) | (layer == self.n_layers)
        late = np.zeros_like(mlp) if self.parallel else mlp
        chosen = np.lexsort((port, head, mlp, rows, late, layer))
        return np.stack([rows[chosen], columns[chosen]], axis=1)

    def nodes_in_circuit(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[rows]``: writers that send along an edge ``kept [rows, columns]`` and read along one.

        ``input`` reads nothing and needs only to send.
        """
        read = {self.columns[c].split("<")[0] for c in np.flatnonzero(kept.any(0)).tolist()}
        reads = np.array([name == "input" or name in read for name in self.rows])
        return np.asarray(kept.any(1) & reads)


def _check_nodes(graph: ComputationalGraph, expected: list[str]) -> None:
    missing = [name for name in expected if name not in graph.node_number]
    known = {n.name for n in graph.nodes if n.kind == "kv"} | set(expected)
    extra = [name for name in graph.node_number if name not in known]
    if missing or extra:
        raise InputError(
            "MIB and EAP-IG files describe the nodes input, a0.h0 ..., m0 ..., logits; this graph "
            f"lacks {missing[:5]} and has besides {extra[:5]}"
        )


def _edge_numbers(
    graph: ComputationalGraph, rows: list[str], columns: list[str]
) -> NDArray[np.int64]:
    """``[rows, columns]``: the number of the graph's edge at each place, -1 for none."""
    names = [node.name for node in graph.nodes]
    row_number = {name: i for i, name in enumerate(rows)}
    column_number = {name: i for i, name in enumerate(columns)}
    heads_fed: dict[int, list[int]] = {}
    for kv, head in graph.fixed_edge_index.T.tolist():
        heads_fed.setdefault(kv, []).append(head)
    row_of = np.array([row_number.get(name, -1) for name in names])
    edge = np.full((len(rows), len(columns)), -1, dtype=np.int64)
    sources, targets = graph.edge_index.numpy()
    kinds = graph.edge_kind.numpy()
    # Edges that share target and kind go to the same columns, so the loop is over readers.
    codes = targets * len(graph.edge_kinds) + kinds
    sorting = np.argsort(codes, kind="stable")
    bounds = np.flatnonzero(np.diff(codes[sorting])) + 1
    for group in np.split(sorting, bounds) if len(sorting) else []:
        target, kind = int(targets[group[0]]), graph.edge_kinds[int(kinds[group[0]])]
        port = f"<{kind}>" if kind in graph.ports else ""
        grouped = graph.nodes[target].kind == "kv"
        readers = heads_fed.get(target, []) if grouped else [target]
        if not readers:
            raise InputError(f"no wire says which heads {names[target]} feeds")
        for reader in readers:
            column = column_number.get(names[reader] + port)
            if column is None or (row_of[sources[group]] < 0).any():
                raise InputError(
                    f"the edge {graph.edge_names[int(group[0])]} has no place among the edges that "
                    "MIB and EAP-IG files describe"
                )
            edge[row_of[sources[group]], column] = group
    return edge


def field_graph(n_layers: int, n_heads: int, parallel: bool = False) -> ComputationalGraph:
    """The graph that a file's ``cfg`` describes: every head reads q, k and v of its own.

    Example:
        >>> field_graph(12, 12).num_edges, field_graph(6, 4).num_edges  # GPT-2 small, InterpBench
        (32491, 1108)
    """
    nodes = [Node("input", "embed")]
    for layer in range(n_layers):
        nodes += [Node(f"a{layer}.h{head}", "head", layer, head) for head in range(n_heads)]
        nodes.append(Node(f"m{layer}", "mlp", layer))
    nodes.append(Node("logits", "output"))
    sources, columns = np.nonzero(_possible_edges(n_layers, n_heads, parallel))
    layer_of, port, head = _split_columns(columns, n_heads)
    targets = 1 + layer_of * (n_heads + 1) + np.where(port == 3, n_heads, head)
    kinds = np.where(layer_of == n_layers, 4, port)
    order = np.lexsort((sources, kinds, targets))
    return ComputationalGraph(
        nodes=tuple(nodes),
        edge_index=torch.from_numpy(np.stack([sources[order], targets[order]])),
        edge_kind=torch.from_numpy(kinds[order].astype(np.uint8)),
        edge_kinds=("q", "k", "v", "mlp", "resid"),
        ports=("q", "k", "v"),
        inputs=(0,),
        outputs=(len(nodes) - 1,),
    )
