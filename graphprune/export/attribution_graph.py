"""A circuit as attribution-graph JSON, which circuit-tracer's viewer shows.

Source: the format of circuit-tracer (https://github.com/safety-research/circuit-tracer), schema
version 1: ``metadata``, ``qParams``, ``nodes`` and ``links``. Its nodes stand at positions of one
prompt. A circuit holds for all prompts, so the viewer's columns, which are the prompt's tokens
there, are the kinds of nodes here: the input, attention heads, MLPs, the output.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.util.files import write_text
from graphprune.util.plain import recorded

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit

FEATURE = "cross layer transcoder"
"""The viewer's type for an inner node; it knows none for a head or an MLP."""

_COLUMNS = {"embed": "input", "head": "heads", "kv": "key/value heads", "mlp": "MLPs"}
_PINNED = 60  # links between pinned nodes are shown from the start; beyond that many, none is
_LOGITS_LABEL = 'Output "{name}" (p=1)'  # the viewer reads a token and its probability off this


def to_attribution_graph(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """Writes :func:`attribution_graph` to ``path``, whole or not at all.

    Example:
        >>> import json
        >>> small = gp.EAP().score(lm, prompts).top(30).prune_dead_ends()
        >>> found = gp.Circuit.from_mask(small, model=lm, task=prompts)
        >>> file = to_attribution_graph(found, folder / "graph.json")
        >>> sorted(json.loads(file.read_text(encoding="utf-8")))
        ['links', 'metadata', 'nodes', 'qParams']
    """
    text = json.dumps(attribution_graph(circuit), allow_nan=False, indent=1)
    return write_text(path, text + "\n")


def attribution_graph(circuit: Circuit) -> dict[str, Any]:
    """The circuit's nodes and links as plain values in the viewer's format.

    A link's ``weight`` is the sum of the scores of the kept edges between its two nodes (a head's
    q, k and v are one node there), and of their mask values where the circuit has no scores;
    ``kinds`` names those edges' kinds. A node's layer is the model's; where nodes have none, as in
    a graph network, it is the length of the shortest path from an input.

    Example:
        >>> import torch
        >>> import graphprune as gp
        >>> graph = gp.ComputationalGraph.from_edges([("input", "h"), ("h", "out")])
        >>> scores = gp.EdgeScores(graph, torch.tensor([0.5, -2.0]))
        >>> circuit = gp.Circuit.from_mask(gp.EdgeMask.full(graph), scores=scores)
        >>> document = attribution_graph(circuit)
        >>> [(node["node_id"], node["layer"]) for node in document["nodes"]]
        [('input', 'E'), ('h', '0'), ('out', '1')]
        >>> [(link["source"], link["target"], link["weight"]) for link in document["links"]]
        [('input', 'h', 0.5), ('h', 'out', -2.0)]
    """
    graph = circuit.to_networkx()
    layers = _layers(circuit, graph)
    last = max((layer for layer in layers.values() if layer is not None), default=-1) + 1
    inputs, outputs = _ends(circuit)
    column_of = {n: _column(n, data, inputs, outputs) for n, data in graph.nodes(data=True)}
    columns = list(dict.fromkeys(column_of.values()))
    nodes = []
    for number, name in enumerate(graph):
        layer, kind, label = str(layers[name]), FEATURE, name
        if name in inputs:
            layer, kind = "E", "embedding"
        elif name in outputs:
            layer, kind, label = str(last), "logit", _LOGITS_LABEL.format(name=name)
        nodes.append(
            {
                "node_id": name,
                "feature": number,
                "layer": layer,
                "ctx_idx": columns.index(column_of[name]),
                "feature_type": kind,
                "token_prob": 0.0,
                "is_target_logit": name in outputs,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": name,
                "clerp": label,
                "influence": None,
                "activation": None,
            }
        )
    pinned = list(graph) if len(graph) <= _PINNED else []
    # With a single token the viewer would take every node for one that is active everywhere.
    tokens = columns if len(columns) > 1 else [*columns, ""]
    return {
        "metadata": {
            "slug": re.sub(r"[^a-z0-9]+", "-", circuit.title.lower()).strip("-") or "circuit",
            "scan": recorded(circuit.provenance, "model", "model") or "unknown",
            "transcoder_list": [],
            "prompt_tokens": tokens,
            "prompt": circuit.title,
            "node_threshold": None,
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": pinned,
            "supernodes": [],
            "linkType": "both",
            "clickedId": next((name for name in graph if name in outputs), ""),
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": _links(graph),
    }


def _links(graph: Any) -> list[dict[str, Any]]:
    links: dict[tuple[str, str], dict[str, Any]] = {}
    for source, target, data in graph.edges(data=True):
        new = {"source": source, "target": target, "weight": 0.0, "kinds": []}
        link = links.setdefault((source, target), new)
        if not data.get("fixed"):  # a wire has no score: it is there, with weight 0
            link["weight"] += data.get("score", data["kept"])
        link["kinds"].append(data["kind"])
    return list(links.values())


def _layers(circuit: Circuit, graph: Any) -> dict[str, int | None]:
    """The layer of each node that is neither input nor output."""
    import networkx as nx

    layers = {name: data.get("layer") for name, data in graph.nodes(data=True)}
    inputs, outputs = _ends(circuit)
    inner = [name for name in layers if name not in inputs and name not in outputs]
    if any(not isinstance(layers[name], int) for name in inner):
        sources = [name for name in graph if name in inputs] or list(graph)[:1]
        depth = nx.multi_source_dijkstra_path_length(graph, sources, weight=None) if sources else {}
        layers = {name: max(int(depth.get(name, 1)) - 1, 0) for name in layers}
    return {name: layers[name] if name in inner else None for name in layers}


def _ends(circuit: Circuit) -> tuple[set[str], set[str]]:
    """Names of the inputs and of the outputs; a node that is both, as in a GNN, is an inner one."""
    graph = circuit.graph
    inputs = {graph.nodes[n].name for n in graph.input_nodes}
    outputs = {graph.nodes[n].name for n in graph.output_nodes}
    return inputs - outputs, outputs - inputs


def _column(name: str, data: Any, inputs: set[str], outputs: set[str]) -> str:
    if name in inputs:
        return "input"
    if name in outputs:
        return "output"
    kind = str(data.get("kind") or "nodes")
    return _COLUMNS.get(kind, kind)
