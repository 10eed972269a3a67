"""The data of a circuit's page, as plain values: places, edges by columns, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.core.mask import require_same_graph
from graphprune.drawing.content import content, edge_strengths, strongest_edges
from graphprune.drawing.layered import free_places
from graphprune.drawing.network import NodeColours, flows_one_way, node_colouring
from graphprune.drawing.places import network_places, separated
from graphprune.drawing.styles import (
    BORDER,
    CUT,
    FILL,
    KIND_WORDS,
    NEGATIVE,
    NEUTRAL,
    OWN,
    POSITIVE,
    SHARED,
    WIRE,
)
from graphprune.drawing.subject import CircuitLike
from graphprune.errors import InputError
from graphprune.util.plain import flatten, plain

LETTER, HEIGHT, ROW = 7.6, 27.0, 84.0
"""Pixels: the width of a letter, the height of a node, and from row to row."""
PORTS = {"q": -14.0, "k": 0.0, "v": 14.0}
MOST_CUT = 3000  # edges up to which those cut are shown too
HIDDEN, WIRE_STATE = -1, -1  # in place of a state


def page_data(
    circuit: CircuitLike,
    max_edges: int,
    against: CircuitLike | None,
    names: tuple[str, str],
    answers: Sequence[Mapping[str, Any]] | None,
    node_colours: NodeColours,
) -> dict[str, Any]:
    """Everything that the page's program reads."""
    graph = circuit.graph
    layered = flows_one_way(graph)
    kept = strongest_edges(circuit, max_edges)
    held, total = len(kept), circuit.mask.num_kept
    state = torch.full((graph.num_edges,), HIDDEN)
    state[kept] = 0
    states: list[dict[str, Any]] = [{"name": "kept"}]
    values = circuit.mask.values if circuit.scores is None else circuit.scores.values
    scored = circuit.scores is not None
    if against is not None:
        require_same_graph(graph, against.graph, "the page's two circuits")
        if (against.scores is None) != (circuit.scores is None):
            raise InputError("of two circuits on a page, both have scores or neither has")
        states = [
            {"name": "both", "colour": SHARED},
            {"name": f"{names[0]} alone", "colour": OWN[0]},
            {"name": f"{names[1]} alone", "colour": OWN[1]},
        ]
        theirs = torch.zeros_like(circuit.mask.kept)
        theirs[strongest_edges(against, max_edges)] = True
        ours = state == 0
        # An edge that only one page's worth of edges holds may still be in both circuits.
        first, second = circuit.mask.kept, against.mask.kept
        state = torch.where(first & second, 0, torch.where(first, 1, 2))
        state[~(ours | theirs)] = HIDDEN
        held, total = int((state != HIDDEN).sum()), int((first | second).sum())
        other = against.mask.values if against.scores is None else against.scores.values
        values = torch.where(first, values, other)
    elif not layered and graph.num_edges <= MOST_CUT and held < graph.num_edges:
        states.append({"name": "cut", "colour": CUT, "cut": True})
        state[~circuit.mask.kept] = 1
    numbers = torch.nonzero(state != HIDDEN)[:, 0]
    edges, touched = _edges(circuit, numbers, state, values)
    nodes, key, bands = _nodes(circuit, numbers, touched, layered, node_colours)
    share = float(edge_strengths(circuit)[kept].sum()) / (
        float(edge_strengths(circuit)[circuit.mask.kept].sum()) or 1.0
    )
    place = {number: i for i, number in enumerate(touched)}
    provenance = dict(circuit.provenance)
    notes, carried = provenance.get("notes"), None
    if isinstance(notes, Mapping):
        carried = notes.get("answers")
        provenance["notes"] = {k: v for k, v in notes.items() if k != "answers"}
    if answers is None:
        answers = carried if isinstance(carried, list | tuple) else ()
    real = state[numbers] < (1 if states[-1].get("cut") else 3)
    return {
        "nodes": nodes,
        "edges": edges,
        "kinds": list(graph.edge_kinds),
        "ports": list(graph.ports),
        "portOffsets": PORTS,
        "states": states,
        "scored": scored,
        "layered": layered,
        "bands": bands,
        "key": key,
        "colours": {
            "positive": POSITIVE,
            "negative": NEGATIVE,
            "neutral": NEUTRAL,
            "wire": WIRE,
        },
        "largest": float(values[numbers][real].abs().max()) if bool(real.any()) else 1.0,
        "held": held,
        "total": total,
        "share": f"{share:.0%}",
        "inputs": [place[n] for n in graph.input_nodes if n in place],
        "outputs": [place[n] for n in graph.output_nodes if n in place],
        "prompts": [_answers(row) for row in answers],
        "report": flatten(circuit.report_dict()),
        "provenance": flatten(provenance),
    }


def _edges(
    circuit: CircuitLike, numbers: Tensor, state: Tensor, values: Tensor
) -> tuple[dict[str, Any], list[int]]:
    """Columns of the edges, wires last with state -1, and the numbers of the nodes they touch."""
    graph = circuit.graph
    touched = torch.unique(graph.edge_index[:, numbers]).tolist()
    place = np.full(graph.num_nodes, -1)
    place[touched] = np.arange(len(touched))
    wires = place[graph.fixed_edge_index.numpy()].reshape(2, -1)
    wires = wires[:, (wires >= 0).all(0)]
    ends = np.concatenate([place[graph.edge_index[:, numbers].numpy()], wires], axis=1)
    extra = [0] * wires.shape[1]
    shown = [float(f"{value:.5g}") for value in values[numbers].tolist()]
    repeated = graph.edge_names.repeated
    columns = {
        "source": ends[0].tolist(),
        "target": ends[1].tolist(),
        "kind": graph.edge_kind[numbers].tolist() + extra,
        "state": state[numbers].tolist() + [WIRE_STATE] * len(extra),
        "names": {i: repeated[n] for i, n in enumerate(numbers.tolist()) if n in repeated},
    }
    if circuit.scores is None:
        return columns | {"kept": shown + extra}, touched
    return columns | {"score": shown + extra}, touched


def _nodes(
    circuit: CircuitLike,
    numbers: Tensor,
    touched: Sequence[int],
    layered: bool,
    node_colours: NodeColours,
) -> tuple[list[dict[str, Any]], list[list[str]], list[dict[str, Any]]]:
    """The nodes with their places, what their colours mean, and the layers' stretches."""
    graph = circuit.graph
    shown = content(circuit, numbers, chains=False)
    labels = [
        name if len(name) <= 14 else f"{name[:7]}…{name[-6:]}"
        for name in (graph.nodes[n].name for n in touched)
    ]
    nodes: list[dict[str, Any]] = []
    for number, label, drawn in zip(touched, labels, shown.nodes, strict=True):
        node = graph.nodes[number]
        ports = [port for port in PORTS if port in drawn.ports]
        nodes.append(
            {
                "name": node.name,
                "label": label,
                "kind": node.kind,
                "words": KIND_WORDS.get(node.kind, ""),
                "layer": node.layer,
                "width": max(LETTER * len(label) + 14, 46.0),
                "height": HEIGHT + (8 if ports else 0),
                "fill": FILL.get(node.kind, "#FFFFFF"),
                "border": BORDER.get(node.kind, "#666666"),
                "ports": ports or None,
            }
        )
    if layered:
        places, rows = free_places(shown, [entry["width"] for entry in nodes], gap=14.0)
        for entry, x, row in zip(nodes, places.tolist(), rows.tolist(), strict=True):
            entry |= {"x": round(x, 1), "y": round(-ROW * row, 1)}
        kinds = {entry["kind"] for entry in nodes}
        key = [
            [words, FILL[kind], BORDER.get(kind, "#666666")]
            for kind, words in KIND_WORDS.items()
            if kind in kinds
        ]
        return nodes, key, _bands(nodes)
    fills, explained = node_colouring(graph, node_colours)
    side = 46.0 if len(nodes) <= 60 else 18.0
    pairs = [(edge.source, edge.target) for edge in shown.edges]
    spread = 2.1 * side * max(len(nodes), 1) ** 0.5
    xy = separated(network_places(len(nodes), pairs), side * 1.2, (spread * 1.3, spread), grow=True)
    for entry, number, (x, y) in zip(nodes, touched, xy.tolist(), strict=True):
        entry |= {"x": round(x, 1), "y": round(-y, 1), "width": side, "height": side}
        entry |= {"fill": fills[number], "border": "#444444"}
        if len(entry["label"]) * 6 > side:
            entry["label"] = ""  # pointing at it tells its name
    words = [part.label for part in explained if part.shape == "text"]
    prefix = "degree " if words and words[0].startswith("degree") else ""
    return (
        nodes,
        [[prefix + e.label, e.colour, "#444444"] for e in explained if e.shape == "disc"],
        [],
    )


def _bands(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each layer where it begins and ends on the page, from the first."""
    ys: dict[int, list[float]] = {}
    for node in nodes:
        if node["layer"] is not None:
            ys.setdefault(node["layer"], []).append(node["y"])
    return [
        {"layer": layer, "top": min(heights) - ROW / 2, "bottom": max(heights) + ROW / 2}
        for layer, heights in sorted(ys.items())
    ]


def _answers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with both answers, as text; :class:`InputError` where a part is missing."""
    parts = row if isinstance(row, Mapping) else {}
    missing = [key for key in ("prompt", "model", "circuit") if key not in parts]
    if missing:
        raise InputError(
            f"answers need 'prompt', 'model' and 'circuit'; {', '.join(missing)} missing from one"
        )

    def side(given: Any) -> list[list[Any]]:
        if isinstance(given, str):
            return [[given, None]]
        try:
            return [[str(text), float(share)] for text, share in given]
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"an answer is a text, or pairs of a text and its share; got {given!r:.100}"
            ) from None

    return {
        "prompt": str(row["prompt"]),
        "answer": str(plain(row.get("answer") or "")),
        "model": side(row["model"]),
        "circuit": side(row["circuit"]),
    }
