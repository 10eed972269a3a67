"""The field's own view of a transformer's graph: the matrix of writers by ungrouped readers.

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

__all__ = ["FieldLayout", "field_graph"]


@dataclass(frozen=True, eq=False)
class FieldLayout:
    """Where each edge of ``graph`` stands in the field's matrix.

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
    def of(cls, graph: ComputationalGraph) -> FieldLayout:
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
        rows, columns = ["input"], []
        for layer in range(n_layers):
            block = [f"a{layer}.h{head}" for head in range(n_heads)]
            rows += [*block, f"m{layer}"]
            columns += [f"{name}<{port}>" for port in "qkv" for name in block]
            columns.append(f"m{layer}")
        columns.append("logits")
        _check_nodes(graph, [*rows, "logits"])
        edge = _place(graph, rows, columns)
        layer_of = np.array([-1] + [layer for layer in range(n_layers) for _ in range(n_heads + 1)])
        is_mlp = np.array([name.startswith("m") for name in rows])
        parallel = edge[1, 3 * n_heads] < 0  # a0.h0->m0
        real = np.zeros(edge.shape, dtype=bool)
        column = 0
        for layer in range(n_layers):
            before = layer_of < layer
            real[:, column : column + 3 * n_heads] = before[:, None]
            column += 3 * n_heads
            here = (layer_of == layer) & ~is_mlp
            real[:, column] = before if parallel else before | here
            column += 1
        real[:, column] = True
        for wrong, what in ((real & (edge < 0), "lacks"), (~real & (edge >= 0), "has")):
            if wrong.any():
                row, col = np.argwhere(wrong)[0].tolist()
                raise InputError(
                    f"the graph {what} the edge {rows[row]}->{columns[col]}, so it is not the "
                    "graph that MIB and EAP-IG files describe"
                )
        return cls(graph, n_layers, n_heads, bool(parallel), tuple(rows), tuple(columns), edge)

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

    def name(self, row: int, column: int) -> str:
        """The field's name of the edge at one place."""
        return f"{self.rows[row]}->{self.columns[column]}"

    def matrix(self, values: NDArray[Any]) -> NDArray[Any]:
        """``[E]`` as ``[rows, columns]``, 0 where there is no edge; repeats for query heads."""
        out = np.zeros(self.edge.shape, dtype=values.dtype)
        out[self.real] = values[self.edge[self.real]]
        return out

    def order(self) -> NDArray[np.int64]:
        """``[real edges, 2]`` rows and columns in the order the reference writes its JSON in."""
        rows, columns = np.nonzero(self.real)
        width = 3 * self.n_heads + 1
        layer, within = columns // width, columns % width
        mlp = (within == 3 * self.n_heads) | (layer == self.n_layers)
        port, head = within // self.n_heads, within % self.n_heads
        late = np.zeros_like(mlp) if self.parallel else mlp
        keys = (port, head, mlp, rows, late, layer)
        chosen = np.lexsort(keys)
        return np.stack([rows[chosen], columns[chosen]], axis=1)

    def nodes_in_circuit(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[rows]``: writers that send along a kept edge and (but ``input``) read along one."""
        matrix = self.matrix(kept)
        read = {self.columns[c].split("<")[0] for c in np.flatnonzero(matrix.any(0)).tolist()}
        reads = np.array([name == "input" or name in read for name in self.rows])
        return np.asarray(matrix.any(1) & reads)


def _check_nodes(graph: ComputationalGraph, wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in graph.node_number]
    native = {n.name for n in graph.nodes if n.kind == "kv"}
    known = native | set(wanted)
    extra = [name for name in graph.node_number if name not in known]
    if missing or extra:
        raise InputError(
            "MIB and EAP-IG files describe the nodes input, a0.h0 ..., m0 ..., logits; this graph "
            f"lacks {missing[:5]} and has besides {extra[:5]}"
        )


def _place(graph: ComputationalGraph, rows: list[str], columns: list[str]) -> NDArray[np.int64]:
    names = [node.name for node in graph.nodes]
    row_number = {name: i for i, name in enumerate(rows)}
    column_number = {name: i for i, name in enumerate(columns)}
    fed: dict[int, list[int]] = {}
    for u, v in graph.fixed_edge_index.T.tolist():
        fed.setdefault(u, []).append(v)
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
        readers = [target]
        if graph.nodes[target].kind == "kv":
            readers = fed.get(target, [])
        for reader in readers:
            column = column_number.get(names[reader] + port)
            if column is None or (row_of[sources[group]] < 0).any():
                raise InputError(
                    f"the edge {graph.edge_names[int(group[0])]} has no place among the edges that "
                    "MIB and EAP-IG files describe"
                )
            edge[row_of[sources[group]], column] = group
        if not readers:
            raise InputError(f"no wire says which heads {names[target]} feeds")
    return edge


def field_graph(n_layers: int, n_heads: int, parallel: bool = False) -> ComputationalGraph:
    """The graph that a file's ``cfg`` describes: every head reads q, k and v of its own.

    Example:
        >>> field_graph(12, 12).num_edges, field_graph(6, 4).num_edges  # GPT-2 small, InterpBench
        (32491, 1108)
    """
    nodes = [Node("input", "embed")]
    layer_of, is_mlp = [-1], [False]
    for layer in range(n_layers):
        nodes += [Node(f"a{layer}.h{head}", "head", layer, head) for head in range(n_heads)]
        nodes.append(Node(f"m{layer}", "mlp", layer))
        layer_of += [layer] * (n_heads + 1)
        is_mlp += [False] * n_heads + [True]
    writers, mlp, layers = np.arange(len(nodes)), np.array(is_mlp), np.array(layer_of)
    nodes.append(Node("logits", "output"))
    pairs: list[tuple[NDArray[np.int64], int, int]] = []
    for number in range(1, len(nodes)):
        layer = n_layers if number == len(writers) else int(layers[number])
        before = writers[layers < layer]
        if number < len(writers) and not mlp[number]:
            pairs += [(before, number, port) for port in range(3)]
            continue
        if number < len(writers) and not parallel:
            before = writers[(layers < layer) | ((layers == layer) & ~mlp)]
        pairs.append((before, number, 3 if number < len(writers) else 4))
    sources = np.concatenate([before for before, _, _ in pairs])
    targets = np.concatenate([np.full(len(before), to) for before, to, _ in pairs])
    kinds = np.concatenate([np.full(len(before), kind) for before, _, kind in pairs])
    return ComputationalGraph(
        nodes=tuple(nodes),
        edge_index=torch.from_numpy(np.stack([sources, targets])),
        edge_kind=torch.from_numpy(kinds.astype(np.uint8)),
        edge_kinds=("q", "k", "v", "mlp", "resid"),
        ports=("q", "k", "v"),
        inputs=(0,),
        outputs=(len(nodes) - 1,),
    )
