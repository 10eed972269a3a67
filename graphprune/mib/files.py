"""Score files of the field (MIB, EAP-IG), read and written: JSON and ``.pt``.

Sign and names are ours too: positive = useful, ``input->a0.h1<q>``. What differs: these files know
no key/value heads, so an edge into one stands there once for each query head it feeds, and reading
such a file back onto a grouped graph says how the repeats become one edge again.

``.pt`` files are read with ``weights_only=True``. In these files NaN means "not scored, always
kept"; here it is an error unless ``unscored`` says what to do.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.scores import EdgeScores, NodeScores
from graphprune.errors import InputError
from graphprune.mib.field import FieldLayout
from graphprune.mib.mib_read import (
    MIBNodes,
    Ungrouped,
    Unscored,
    edges_onto_graph,
    nodes_onto_graph,
    read_mib_json,
    read_mib_pt,
)
from graphprune.util.files import atomic_path, write_bytes

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit
    from graphprune.core.graph import ComputationalGraph

__all__ = [
    "MIBNodes",
    "from_mib_json",
    "from_mib_nodes",
    "from_mib_pt",
    "to_mib_json",
    "to_mib_pt",
]

PathLike = str | os.PathLike[str]


# -------------------------------------------------------------------- writing


def to_mib_json(
    source: Circuit | EdgeScores | EdgeMask | NodeScores,
    path: PathLike,
    *,
    mask: EdgeMask | None = None,
    nodes: NodeScores | MIBNodes | None = None,
    d_model: int | None = None,
) -> Path:
    """Writes the JSON file that MIB's evaluation and EAP-IG's ``Graph.from_json`` read.

    Args:
        source: a circuit, or scores, or a mask alone (its values then stand as scores). Scores
            alone are a file before any selection: no edge is in the graph.
        path: the file; one that stands there is replaced.
        mask: which edges are in the graph, beside bare scores.
        nodes: scores of nodes and neurons; nodes that send nothing or were never scored are NaN
            in the file. ``logits`` never gets a score, which the readers need.
        d_model: width of the residual stream; ``None`` takes it from the circuit's provenance.

    Raises :class:`InputError` where the graph is no transformer's, or ``d_model`` is unknown.
    """
    table = _Table.of(source, mask, nodes, d_model)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(table.json_parts())
    return Path(path)


def to_mib_pt(
    source: Circuit | EdgeScores | EdgeMask | NodeScores,
    path: PathLike,
    *,
    mask: EdgeMask | None = None,
    nodes: NodeScores | MIBNodes | None = None,
    d_model: int | None = None,
) -> Path:
    """Writes the ``.pt`` file that EAP-IG's ``Graph.from_pt`` reads; see :func:`to_mib_json`."""
    table = _Table.of(source, mask, nodes, d_model)
    layout = table.layout
    content: dict[str, Any] = {
        "cfg": table.cfg,
        "src_nodes": list(layout.rows),
        "dst_nodes": list(layout.columns),
        "edges_scores": torch.from_numpy(layout.matrix(table.scores)),
        "edges_in_graph": torch.from_numpy(layout.matrix(table.kept)),
        "nodes_in_graph": torch.from_numpy(table.nodes_kept.copy()),
    }
    if table.node_scores is not None:
        content["nodes_scores"] = torch.from_numpy(table.node_scores)
    if table.neuron_scores is not None and table.neurons_kept is not None:
        content["neurons_in_graph"] = torch.from_numpy(table.neurons_kept)
        content["neurons_scores"] = torch.from_numpy(table.neuron_scores)
    # In memory first: on a full disk torch's own writer ends the whole process.
    whole = io.BytesIO()
    torch.save(content, whole)
    return write_bytes(path, whole.getbuffer())


class _Table:
    """What stands in a file, before it is written either way."""

    def __init__(
        self, layout: FieldLayout, scores: NDArray[np.float32], kept: NDArray[np.bool_]
    ) -> None:
        self.layout = layout
        self.scores = scores
        self.kept = kept
        self.nodes_kept = layout.nodes_in_circuit(kept)
        self.node_scores: NDArray[np.float32] | None = None
        self.neuron_scores: NDArray[np.float32] | None = None
        self.neurons_kept: NDArray[np.bool_] | None = None
        self.cfg: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        source: Circuit | EdgeScores | EdgeMask | NodeScores,
        mask: EdgeMask | None,
        nodes: NodeScores | MIBNodes | None,
        d_model: int | None,
    ) -> _Table:
        graph = source.graph
        scores: EdgeScores | None = None
        provenance: Mapping[str, Any] = {}
        if isinstance(source, EdgeScores):
            scores = source
        elif isinstance(source, EdgeMask):
            mask = source if mask is None else mask
        elif isinstance(source, NodeScores):
            nodes = source if nodes is None else nodes
        else:
            scores, provenance = source.scores, source.provenance
            mask = source.mask if mask is None else mask
        for part in (mask, nodes.scores if isinstance(nodes, MIBNodes) else nodes):
            if part is not None:
                require_same_graph(graph, part.graph, "the parts of a MIB file")
        values = torch.zeros(graph.num_edges)
        if scores is not None:
            values = scores.values
        elif mask is not None and not isinstance(source, NodeScores):
            values = mask.values
        kept = EdgeMask.empty(graph).kept if mask is None else mask.kept
        table = cls(FieldLayout.of(graph), values.numpy(), kept.numpy())
        if nodes is not None:
            table._add_nodes(nodes)
        table.cfg = {
            "n_layers": table.layout.n_layers,
            "n_heads": table.layout.n_heads,
            "parallel_attn_mlp": table.layout.parallel,
            "d_model": table._width(d_model, provenance),
        }
        return table

    def _width(self, given: int | None, provenance: Mapping[str, Any]) -> int:
        model = provenance.get("model")
        places = [provenance, model if isinstance(model, Mapping) else {}]
        known = [
            given,
            *(place.get(key) for place in places for key in ("d_model", "hidden_size")),
            None if self.neuron_scores is None else int(self.neuron_scores.shape[1]),
        ]
        found = [width for width in known if isinstance(width, int) and width > 0]
        if not found:
            raise InputError(
                "MIB and EAP-IG files name the width of the residual stream, and neither the "
                "circuit's provenance nor its neurons do: give d_model="
            )
        if self.neuron_scores is not None and self.neuron_scores.shape[1] != found[0]:
            raise InputError(
                f"d_model is {found[0]}, but {self.neuron_scores.shape[1]} neurons are scored"
            )
        return found[0]

    def _add_nodes(self, nodes: NodeScores | MIBNodes) -> None:
        file = nodes if isinstance(nodes, MIBNodes) else MIBNodes(nodes)
        scores, layout = file.scores, self.layout
        number = scores.graph.node_number
        senders = set(scores.senders.tolist())
        values = scores.values.tolist()
        self.node_scores = np.array(
            [
                values[number[n]] if number[n] in senders and n not in file.unscored else np.nan
                for n in layout.rows
            ],
            dtype=np.float32,
        )
        for name, keep in file.kept.items():
            if name in layout.row_number:
                self.nodes_kept[layout.row_number[name]] = keep
        if not scores.neurons:
            return
        widths = {int(v.numel()) for v in scores.neurons.values()}
        unknown = sorted(set(scores.neurons) - set(layout.rows))
        if len(widths) != 1 or unknown:
            raise InputError(
                "neurons need one score for each component of the residual stream at nodes that "
                f"send; got lengths {sorted(widths)} and the nodes {unknown}"
            )
        shape = (len(layout.rows), widths.pop())
        self.neuron_scores = np.full(shape, np.nan, dtype=np.float32)
        self.neurons_kept = np.repeat(self.nodes_kept[:, None], shape[1], axis=1)
        for name, row in layout.row_number.items():
            if name in scores.neurons:
                self.neuron_scores[row] = scores.neurons[name].numpy()
            if name in file.neurons_unscored:
                self.neuron_scores[row, file.neurons_unscored[name].numpy()] = np.nan
            if name in file.neurons_kept:
                self.neurons_kept[row] = file.neurons_kept[name].bool().numpy()

    def json_parts(self) -> Iterator[str]:
        """The file's text in pieces: a million edges need no second copy in memory."""
        nodes: dict[str, dict[str, Any]] = {}
        for row, name in enumerate(self.layout.rows):
            entry: dict[str, Any] = {"in_graph": bool(self.nodes_kept[row])}
            if self.node_scores is not None:
                entry["score"] = float(self.node_scores[row])
            if self.neuron_scores is not None and self.neurons_kept is not None:
                entry["neurons"] = self.neurons_kept[row].tolist()
                entry["neurons_scores"] = self.neuron_scores[row].tolist()
            nodes[name] = entry
        nodes["logits"] = {"in_graph": True}
        yield f'{{"cfg": {json.dumps(self.cfg)}, "nodes": {json.dumps(nodes)}, "edges": {{'
        layout = self.layout
        places = layout.order()
        edges = layout.edge[places[:, 0], places[:, 1]]
        scores, kept = self.scores[edges].tolist(), self.kept[edges].tolist()
        comma = ""
        # The names hold nothing that JSON escapes, and a finite float's repr is its JSON.
        for (row, column), score, keep in zip(places.tolist(), scores, kept, strict=True):
            yield (
                f'{comma}"{layout.rows[row]}->{layout.columns[column]}": '
                f'{{"score": {score!r}, "in_graph": {"true" if keep else "false"}}}'
            )
            comma = ", "
        yield "}}"


# -------------------------------------------------------------------- reading


def from_mib_json(
    path: PathLike,
    graph: ComputationalGraph,
    *,
    ungrouped: Ungrouped = "require",
    unscored: Unscored = "error",
) -> tuple[EdgeScores, EdgeMask]:
    """Reads the edges of a MIB or EAP-IG JSON file onto ``graph``.

    Args:
        path: the file.
        graph: the graph its edges belong to; every edge must stand in the file and none besides.
        ungrouped: what becomes of the entries that stand for one native key/value edge.
            ``"require"``: they must agree; ``"sum"``: scores are summed (each was scored by
            itself, by a tool that knows no groups); ``"any"``: the largest magnitude counts. With
            both of the latter the edge is in the graph if any of them is.
        unscored: edges whose score is NaN: ``"error"``, ``"zero"``, or ``"keep"`` (twice the
            largest magnitude, so that they are chosen first, as the field reads NaN).

    Raises :class:`FormatError` that names the first wrong edge, key or size.
    """
    file = read_mib_json(path, FieldLayout.of(graph))
    return edges_onto_graph(file, graph, ungrouped, unscored)


def from_mib_pt(
    path: PathLike,
    graph: ComputationalGraph,
    *,
    ungrouped: Ungrouped = "require",
    unscored: Unscored = "error",
) -> tuple[EdgeScores, EdgeMask]:
    """Reads the edges of an EAP-IG ``.pt`` file onto ``graph``; see :func:`from_mib_json`."""
    file = read_mib_pt(path, FieldLayout.of(graph))
    return edges_onto_graph(file, graph, ungrouped, unscored)


def from_mib_nodes(path: PathLike, graph: ComputationalGraph) -> MIBNodes:
    """Reads the nodes of a MIB or EAP-IG file: ``.pt`` by that suffix, else JSON.

    Nodes without a score, or with NaN for one, are listed in ``unscored`` and score 0.
    """
    read = read_mib_pt if Path(path).suffix == ".pt" else read_mib_json
    return nodes_onto_graph(read(path, FieldLayout.of(graph)), graph)
