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
from typing import Any

import torch

from graphprune.core.circuit import Circuit
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.scores import EdgeScores, NodeScores
from graphprune.errors import InputError
from graphprune.mib.content import MIBContent, MIBNodes, Ungrouped, Unscored, Writable
from graphprune.mib.layout import UngroupedLayout
from graphprune.mib.parsing import load, parse
from graphprune.util.files import atomic_path, write_bytes
from graphprune.util.readers import read_json
from graphprune.util.safe_pt import read_pt

PathLike = str | os.PathLike[str]


# -------------------------------------------------------------------- writing


def to_mib_json(
    source: Writable,
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

    Example:
        >>> found = gp.EAP().score(lm, prompts)
        >>> to_mib_json(found, folder / "importances.json", d_model=16).name
        'importances.json'
    """
    content = MIBContent.of(source, mask, nodes)
    cfg = _cfg(content, source, d_model)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_json_parts(content, cfg))
    return Path(path)


def to_mib_pt(
    source: Writable,
    path: PathLike,
    *,
    mask: EdgeMask | None = None,
    nodes: NodeScores | MIBNodes | None = None,
    d_model: int | None = None,
) -> Path:
    """Writes the ``.pt`` file that EAP-IG's ``Graph.from_pt`` reads; see :func:`to_mib_json`.

    Example:
        >>> found = gp.EAP().score(lm, prompts)
        >>> to_mib_pt(found, folder / "importances.pt", d_model=16).name
        'importances.pt'
    """
    content = MIBContent.of(source, mask, nodes)
    arrays = {
        "edges_scores": content.scores,
        "edges_in_graph": content.kept,
        "nodes_in_graph": content.nodes_kept,
        "nodes_scores": content.node_scores,
        "neurons_in_graph": content.neurons_kept,
        "neurons_scores": content.neuron_scores,
    }
    file = {
        "cfg": _cfg(content, source, d_model),
        "src_nodes": list(content.layout.rows),
        "dst_nodes": list(content.layout.columns),
        **{key: torch.from_numpy(array) for key, array in arrays.items() if array is not None},
    }
    # In memory first: on a full disk torch's own writer ends the whole process.
    buffer = io.BytesIO()
    torch.save(file, buffer)
    return write_bytes(path, buffer.getvalue())


def _cfg(content: MIBContent, source: Writable, d_model: int | None) -> dict[str, Any]:
    """The model's shape; the residual stream's width is the one given, or else known."""
    provenance: Mapping[str, Any] = source.provenance if isinstance(source, Circuit) else {}
    model = provenance.get("model")
    notes = [provenance, model if isinstance(model, Mapping) else {}]
    neurons = None if content.neuron_scores is None else int(content.neuron_scores.shape[1])
    candidates = [
        d_model,
        *(known.get(key) for known in notes for key in ("d_model", "hidden_size")),
        neurons,
    ]
    width = next((n for n in candidates if isinstance(n, int) and n > 0), None)
    if width is None:
        raise InputError(
            "MIB and EAP-IG files name the width of the residual stream, and neither the "
            "circuit's provenance nor its neurons do: give d_model="
        )
    if neurons not in (None, width):
        raise InputError(f"d_model is {width}, but {neurons} neurons are scored")
    return {**content.layout.shape, "d_model": width}


def _json_parts(content: MIBContent, cfg: dict[str, Any]) -> Iterator[str]:
    """The file's text in pieces: a million edges need no second copy in memory."""
    layout = content.layout
    nodes: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(layout.rows):
        nodes[name] = {"in_graph": bool(content.nodes_kept[row])}
        if content.node_scores is not None:
            nodes[name]["score"] = float(content.node_scores[row])
        if content.neuron_scores is not None and content.neurons_kept is not None:
            nodes[name]["neurons"] = content.neurons_kept[row].tolist()
            nodes[name]["neurons_scores"] = content.neuron_scores[row].tolist()
    nodes["logits"] = {"in_graph": True}
    yield f'{{"cfg": {json.dumps(cfg)}, "nodes": {json.dumps(nodes)}, "edges": {{'
    cells = layout.order()
    index = cells[:, 0], cells[:, 1]
    scores, kept = content.scores[index].tolist(), content.kept[index].tolist()
    comma = ""
    # The names hold nothing that JSON escapes, and a finite float's repr is its JSON.
    for cell, score, keep in zip(cells.tolist(), scores, kept, strict=True):
        in_graph = "true" if keep else "false"
        yield f'{comma}"{layout.name(*cell)}": {{"score": {score!r}, "in_graph": {in_graph}}}'
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

    Example:
        >>> found = gp.EAP().score(lm, prompts)
        >>> file = to_mib_json(found, folder / "importances.json", mask=found.top(20), d_model=16)
        >>> from_mib_json(file, lm.graph)
        (EdgeScores(110 edges, method='file'), EdgeMask(20 of 110 edges, 18.1818%))
    """
    layout = UngroupedLayout.of(graph)
    return parse(path, read_json(path, strict=False), layout, form="json").edges(
        ungrouped, unscored
    )


def from_mib_pt(
    path: PathLike,
    graph: ComputationalGraph,
    *,
    ungrouped: Ungrouped = "require",
    unscored: Unscored = "error",
) -> tuple[EdgeScores, EdgeMask]:
    """Reads the edges of an EAP-IG ``.pt`` file onto ``graph``; see :func:`from_mib_json`.

    Example:
        >>> found = gp.EAP().score(lm, prompts)
        >>> file = to_mib_pt(found, folder / "importances.pt", mask=found.top(20), d_model=16)
        >>> from_mib_pt(file, lm.graph)
        (EdgeScores(110 edges, method='file'), EdgeMask(20 of 110 edges, 18.1818%))
    """
    layout = UngroupedLayout.of(graph)
    return parse(path, read_pt(path), layout, form="pt").edges(ungrouped, unscored)


def from_mib_nodes(path: PathLike, graph: ComputationalGraph) -> MIBNodes:
    """Reads the nodes of a MIB or EAP-IG file: ``.pt`` by that suffix, else JSON.

    Nodes without a score, or with NaN for one, are listed in ``unscored`` and score 0.

    Example:
        >>> nodes = gp.NAP().score_nodes(lm, prompts)
        >>> file = to_mib_json(
        ...     gp.EAP().score(lm, prompts), folder / "nodes.json", nodes=nodes, d_model=16
        ... )
        >>> from_mib_nodes(file, lm.graph).scores
        NodeScores(12 nodes, method='file')
    """
    layout = UngroupedLayout.of(graph)
    return parse(path, load(path), layout).nodes()
