"""Reading MIB and EAP-IG files: parse and check first, then bring them onto a graph.

The benchmark's own loader passes over some faults: edges and nodes that are not in the file (they
score 0 and are outside the circuit; a node without a score is always kept), keys that it does not
know, the order of the names in a ``.pt`` file (its matrices are read by place) and pairs that are
no edge. Readers here refuse these, unless they are given a list of ``remarks``: then they read as
it does, and the list says what was passed over.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.scores import EdgeScores, NodeScores
from graphprune.errors import FormatError, NumericalError, unknown_name
from graphprune.mib.field import FieldLayout
from graphprune.mib.pt_read import read_pt, require_stored

__all__ = [
    "MIBFile",
    "MIBNodes",
    "Ungrouped",
    "Unscored",
    "edges_onto_graph",
    "nodes_onto_graph",
    "read_mib_json",
    "read_mib_pt",
]

Ungrouped = Literal["require", "sum", "any"]
Unscored = Literal["error", "zero", "keep"]

_PT_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
_PT_OPTIONAL = ("nodes_scores", "neurons_in_graph", "neurons_scores")
_NODE_KEYS = {"in_graph", "score", "neurons", "neurons_scores"}


@dataclass(frozen=True, eq=False)
class MIBNodes:
    """The nodes of a MIB file.

    Args:
        scores: one score for each node, with single neurons where the file has them.
        kept: whether a node is in the graph.
        unscored: nodes without a score; the field always keeps them.
        neurons_kept: ``{node name: bool [d_model]}``.
        neurons_unscored: the same, true for neurons that have none either.
    """

    scores: NodeScores
    kept: Mapping[str, bool] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    neurons_kept: Mapping[str, Tensor] = field(default_factory=dict)
    neurons_unscored: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MIBFile:
    """A file's content in the field's matrix, checked but not yet on a graph."""

    path: str
    layout: FieldLayout
    scores: NDArray[np.float32]
    kept: NDArray[np.bool_]
    nodes_kept: NDArray[np.bool_]
    node_scores: NDArray[np.float32] | None = None
    neurons_kept: NDArray[np.bool_] | None = None
    neuron_scores: NDArray[np.float32] | None = None


def _fault(message: str, path: object, remarks: list[str] | None) -> None:
    """Refuses what the benchmark's loader passes over, or adds it to the remarks."""
    if remarks is None:
        raise FormatError(f"{path}: {message}")
    remarks.append(message)


def read_mib_json(
    path: str | os.PathLike[str],
    layout: FieldLayout,
    *,
    remarks: list[str] | None = None,
    circuit: bool = False,
) -> MIBFile:
    """Parses and checks a JSON file.

    Args:
        path: the file.
        layout: of the graph that it belongs to.
        remarks: gets what the benchmark's loader passes over; ``None``: that is an error.
        circuit: whether edges may lack a score, as in the benchmark's files of circuits.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no readable JSON: {error}") from error
    _require_keys(path, found, ("cfg", "nodes", "edges"), None)
    for part in ("cfg", "nodes", "edges"):
        if not isinstance(found[part], dict):
            raise FormatError(f"{path}: {part} should be an object")
    _check_cfg(path, found["cfg"], layout)
    width, real = len(layout.columns), layout.real.reshape(-1).tolist()
    needed = {"in_graph"} if circuit else {"score", "in_graph"}
    places, numbers, truths = [], [], []
    for name, entry in found["edges"].items():
        source, _, target = name.partition("->")
        row, column = layout.row_number.get(source), layout.column_number.get(target)
        if row is None or column is None or not real[row * width + column]:
            raise FormatError(f"{path}: the graph has no edge {name!r}")
        if not isinstance(entry, dict) or not needed <= entry.keys():
            raise FormatError(
                f"{path}: edge {name!r} should have {' and '.join(sorted(needed, reverse=True))}, "
                f"got {entry!r:.80}"
            )
        places.append(row * width + column)
        numbers.append(_number(entry.get("score", 0.0), path, "edge", name))
        truths.append(_truth(entry["in_graph"], path, "edge", name))
    scores = np.full(layout.edge.shape, np.nan, dtype=np.float32)
    kept = np.zeros(layout.edge.shape, dtype=bool)
    seen = np.zeros(layout.edge.shape, dtype=bool)
    scores.reshape(-1)[places] = numbers
    kept.reshape(-1)[places] = truths
    seen.reshape(-1)[places] = True
    if not np.array_equal(seen, layout.real):
        row, column = np.argwhere(layout.real & ~seen)[0].tolist()
        _fault(
            f"{int(seen.sum())} of the graph's {int(layout.real.sum())} edges are there; the first "
            f"one missing is {layout.name(row, column)!r} (MIB's loader gives missing edges the "
            "score 0, outside the circuit)",
            path, remarks,
        )  # fmt: skip
        scores[layout.real & ~seen] = 0.0
    return _json_nodes(path, found["nodes"], layout, scores, kept, remarks)


def _json_nodes(
    path: str | os.PathLike[str],
    nodes: dict[str, Any],
    layout: FieldLayout,
    scores: NDArray[np.float32],
    kept: NDArray[np.bool_],
    remarks: list[str] | None,
) -> MIBFile:
    expected = set(layout.rows) | {"logits"}
    missing, extra = sorted(set(layout.rows) - set(nodes)), sorted(set(nodes) - expected)
    if extra:
        raise FormatError(f"{path}: nodes lack {missing[:5]} and have besides {extra[:5]}")
    if missing:
        _fault(
            f"nodes lack {missing[:5]} (MIB's loader gives them no score, so that circuits of "
            "nodes always keep them)",
            path, remarks,
        )  # fmt: skip
    count = len(layout.rows)
    nodes_kept = np.zeros(count, dtype=bool)
    node_scores = np.full(count, np.nan, dtype=np.float32)
    neurons: dict[str, dict[int, list[Any]]] = {"neurons": {}, "neurons_scores": {}}
    scored = False
    unknown: set[str] = set()
    for row, name in enumerate(layout.rows):
        if name not in nodes:
            continue
        entry, where = nodes[name], f"{path}: node {name!r}"
        if not isinstance(entry, dict) or "in_graph" not in entry:
            raise FormatError(f"{where} should have in_graph and may have {sorted(_NODE_KEYS)}")
        if set(entry) - _NODE_KEYS - unknown:
            unknown |= set(entry) - _NODE_KEYS
            _fault(
                f"node {name!r} should have in_graph and may have {sorted(_NODE_KEYS)}, but has "
                f"{sorted(set(entry) - _NODE_KEYS)} too (MIB's loader does not read that)",
                path, remarks,
            )  # fmt: skip
        nodes_kept[row] = _truth(entry["in_graph"], path, "node", name)
        if "score" in entry:
            scored = True
            node_scores[row] = _number(entry["score"], path, "node", name)
        for key, rows in neurons.items():
            if key in entry:
                if not isinstance(entry[key], list):
                    raise FormatError(f"{where}: {key} should be a list")
                rows[row] = entry[key]
    lengths = {len(values) for rows in neurons.values() for values in rows.values()}
    if len(lengths) > 1:
        raise FormatError(f"{path}: neurons come in different lengths, {sorted(lengths)}")
    width = lengths.pop() if lengths else 0
    neurons_kept, neuron_scores = None, None
    if neurons["neurons"]:
        neurons_kept = np.repeat(nodes_kept[:, None], width, axis=1)
        for row, values in neurons["neurons"].items():
            name = layout.rows[row]
            neurons_kept[row] = [_truth(value, path, "neurons of", name) for value in values]
    if neurons["neurons_scores"]:
        neuron_scores = np.full((count, width), np.nan, dtype=np.float32)
        for row, values in neurons["neurons_scores"].items():
            name = layout.rows[row]
            neuron_scores[row] = [_number(v, path, "neurons_scores of", name) for v in values]
    return MIBFile(
        str(path),
        layout,
        scores,
        kept,
        nodes_kept,
        node_scores if scored else None,
        neurons_kept,
        neuron_scores,
    )


def read_mib_pt(
    path: str | os.PathLike[str],
    layout: FieldLayout,
    *,
    remarks: list[str] | None = None,
    circuit: bool = False,
) -> MIBFile:
    """Loads (:func:`read_pt`) and checks a ``.pt`` file; see :func:`read_mib_json`."""
    found = read_pt(path)
    needed = tuple(key for key in _PT_KEYS if not (circuit and key == "edges_scores"))
    _require_keys(path, found, needed, None)
    extra = sorted({str(key) for key in found} - {*_PT_KEYS, *_PT_OPTIONAL})
    if extra:
        _fault(f"unexpected keys {extra[:8]} (MIB's loader does not read them)", path, remarks)
    _check_cfg(path, found["cfg"], layout)
    for key, names in (("src_nodes", layout.rows), ("dst_nodes", layout.columns)):
        listed = found[key]
        if not isinstance(listed, list | tuple) or list(listed) != list(names):
            got = len(listed) if isinstance(listed, list | tuple) else type(listed).__name__
            _fault(
                f"{key} should be the graph's {len(names)} names from {names[0]!r} to "
                f"{names[-1]!r} in order, got {got} (MIB's loader does not read them: the matrices "
                "count by place)",
                path, remarks,
            )  # fmt: skip
    rows, full = [len(layout.rows)], list(layout.edge.shape)
    out: dict[str, NDArray[Any]] = {}
    for key in (*_PT_KEYS[3:], *_PT_OPTIONAL):
        if key not in found:
            continue
        value: Any = found[key]
        shape: list[Any] = full if key.startswith("edges") else rows
        if key.startswith("neurons"):
            shape = [*rows, found["cfg"].get("d_model", 0)]
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise FormatError(f"{path}: {key} should be a tensor {shape}, got {came}")
        require_stored(value, f"{path}: {key}")
        truth = key.endswith("in_graph")
        out[key] = value.detach().to(torch.bool if truth else torch.float32).numpy()
    stray = out["edges_in_graph"] & ~layout.real
    if stray.any():
        row, column = np.argwhere(stray)[0].tolist()
        _fault(
            f"the graph has no edge {layout.name(row, column)!r}, but edges_in_graph marks it "
            "(MIB's loader lets it pass, and runs nothing for it)",
            path, remarks,
        )  # fmt: skip
    return MIBFile(
        str(path),
        layout,
        out.get("edges_scores", np.where(layout.real, np.float32(0), np.float32(np.nan))),
        out["edges_in_graph"],
        out["nodes_in_graph"],
        out.get("nodes_scores"),
        out.get("neurons_in_graph"),
        out.get("neurons_scores"),
    )


def edges_onto_graph(
    file: MIBFile, graph: ComputationalGraph, ungrouped: Ungrouped, unscored: Unscored
) -> tuple[EdgeScores, EdgeMask]:
    """The file's edges as scores and mask of ``graph``; see :func:`from_mib_json`."""
    if ungrouped not in ("require", "sum", "any"):
        raise unknown_name("ungrouped", ungrouped, ("require", "sum", "any"))
    if unscored not in ("error", "zero", "keep"):
        raise unknown_name("unscored", unscored, ("error", "zero", "keep"))
    layout, real = file.layout, file.layout.real
    scores, kept, edge = file.scores[real], file.kept[real], layout.edge[real]
    places = np.argwhere(real)
    empty = np.isnan(scores)
    if np.isinf(scores).any():
        first = int(np.flatnonzero(np.isinf(scores))[0])
        raise FormatError(f"{file.path}: the score of {layout.name(*places[first])!r} is infinite")
    if empty.any() and unscored == "error":
        first = int(np.flatnonzero(empty)[0])
        raise FormatError(
            f"{file.path}: {int(empty.sum())} of {len(scores)} edges have no score (NaN), first "
            f"{layout.name(*places[first])!r}; say unscored='zero', or 'keep' to rank them first "
            "as the field does"
        )
    largest = float(np.abs(scores[~empty]).max(initial=0.0)) or 1.0
    scores = np.where(empty, np.float32(2 * largest if unscored == "keep" else 0.0), scores)
    count = graph.num_edges
    any_kept = np.zeros(count, dtype=bool)
    np.logical_or.at(any_kept, edge, kept)
    values = np.zeros(count, dtype=np.float32)
    if ungrouped == "sum":
        total = np.bincount(edge, weights=scores.astype(np.float64), minlength=count)
        values = total.astype(np.float32)
    else:
        ascending = np.argsort(np.abs(scores), kind="stable")
        values[edge[ascending]] = scores[ascending]
    if ungrouped == "require":
        differ = (values[edge] != scores) | (any_kept[edge] != kept)
        if differ.any():
            number = int(edge[int(np.flatnonzero(differ)[0])])
            repeats = np.flatnonzero(edge == number)
            shown = ", ".join(
                f"{layout.name(*places[i])} {scores[i]:.6g} {'in' if kept[i] else 'out'}"
                for i in repeats.tolist()
            )
            raise FormatError(
                f"{file.path}: the entries for the one edge {graph.edge_names[number]} disagree "
                f"({shown}); say ungrouped='sum' or 'any' to reduce them"
            )
    mask = EdgeMask(graph, torch.from_numpy(any_kept.astype(np.float32)))
    try:
        return EdgeScores(graph, torch.from_numpy(values), method="file"), mask
    except NumericalError as error:
        raise FormatError(f"{file.path}: {error}") from error


def nodes_onto_graph(file: MIBFile, graph: ComputationalGraph) -> MIBNodes:
    """The file's nodes; see :func:`from_mib_nodes`."""
    rows = file.layout.rows
    values = torch.zeros(graph.num_nodes)
    numbers = [graph.node_number[name] for name in rows]
    unscored: tuple[str, ...] = rows
    if file.node_scores is not None:
        if np.isinf(file.node_scores).any():
            first = rows[int(np.flatnonzero(np.isinf(file.node_scores))[0])]
            raise FormatError(f"{file.path}: the score of the node {first!r} is infinite")
        empty = np.isnan(file.node_scores)
        values[numbers] = torch.from_numpy(np.where(empty, np.float32(0), file.node_scores))
        unscored = tuple(name for name, without in zip(rows, empty, strict=True) if without)
    neurons, neurons_kept, neurons_unscored = {}, {}, {}
    for row, name in enumerate(rows):
        if file.neuron_scores is not None:
            found = torch.from_numpy(file.neuron_scores[row].copy())
            if bool(torch.isinf(found).any()):
                raise FormatError(f"{file.path}: a neuron of the node {name!r} scores infinite")
            neurons_unscored[name] = torch.isnan(found)
            neurons[name] = torch.where(neurons_unscored[name], torch.zeros(()), found)
        if file.neurons_kept is not None:
            neurons_kept[name] = torch.from_numpy(file.neurons_kept[row].copy())
    return MIBNodes(
        NodeScores(graph, values, neurons, method="file"),
        {name: bool(keep) for name, keep in zip(rows, file.nodes_kept, strict=True)},
        unscored,
        neurons_kept,
        neurons_unscored,
    )


def _require_keys(
    path: object, found: Any, needed: tuple[str, ...], optional: tuple[str, ...] | None
) -> None:
    """``optional=None`` lets further keys pass."""
    if not isinstance(found, dict):
        raise FormatError(f"{path}: expected a mapping with {needed}, got {type(found).__name__}")
    keys = {str(key) for key in found}
    missing = sorted(set(needed) - keys)
    extra = [] if optional is None else sorted(keys - set(needed) - set(optional))
    if missing or extra:
        raise FormatError(f"{path}: missing keys {missing}, unexpected keys {extra[:8]}")


def _check_cfg(path: object, cfg: Any, layout: FieldLayout) -> None:
    expected = {
        "n_layers": layout.n_layers,
        "n_heads": layout.n_heads,
        "parallel_attn_mlp": layout.parallel,
    }
    if not isinstance(cfg, dict):
        raise FormatError(f"{path}: cfg should be a mapping, got {type(cfg).__name__}")
    for key, value in expected.items():
        if not isinstance(cfg.get(key), int | float) or cfg[key] != value:
            raise FormatError(
                f"{path}: cfg says {key}={reprlib.repr(cfg.get(key))}, the graph has {value!r}; "
                "the file belongs to another model"
            )


def _number(value: Any, path: object, what: str, name: str) -> float:
    if type(value) not in (int, float):
        raise FormatError(f"{path}: {what} {name!r}: expected a number, got {value!r:.60}")
    # Beyond float32 stands infinity, which is refused further on.
    return float(value) if -3e38 < value < 3e38 or value != value else math.inf


def _truth(value: Any, path: object, what: str, name: str) -> bool:
    if type(value) not in (bool, int) or value not in (0, 1):
        raise FormatError(f"{path}: {what} {name!r}: expected true or false, got {value!r:.60}")
    return bool(value)
