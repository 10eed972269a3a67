"""Parsing and checking MIB and EAP-IG files.

The benchmark's own loader passes over some faults: edges and nodes that are not in the file (they
score 0 and are outside the circuit; a node without a score is always kept), keys that it does not
know, the order of the names in a ``.pt`` file (its matrices are read by place) and pairs that are
no edge. Parsers here refuse these, unless they are given a list of ``remarks``: then they read as
it does, and the list says what was passed over.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import FormatError
from graphprune.mib.content import MIBContent
from graphprune.mib.layout import UngroupedLayout
from graphprune.util.readers import read_json
from graphprune.util.safe_pt import read_pt, require_stored

PathLike = str | os.PathLike[str]
_PT_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
_PT_OPTIONAL = ("nodes_scores", "neurons_in_graph", "neurons_scores")
_NODE_KEYS = {"in_graph", "score", "neurons", "neurons_scores"}


def load(path: PathLike) -> Any:
    """The values in a file: ``.pt`` by that suffix, else JSON."""
    return read_pt(path) if Path(path).suffix == ".pt" else read_json(path, strict=False)


def parse(
    path: PathLike,
    values: Any,
    layout: UngroupedLayout,
    *,
    form: Literal["json", "pt"] | None = None,
    remarks: list[str] | None = None,
    circuit: bool = False,
) -> MIBContent:
    """The checked content of what :func:`load` gave.

    Args:
        path: the file, which errors name.
        values: what it holds.
        layout: of the graph that it belongs to.
        form: of the file; ``None`` means ``.pt`` by that suffix, else JSON.
        remarks: gets what the benchmark's loader passes over; without it that is an error.
        circuit: whether edges may lack a score, as in the benchmark's files of circuits.
    """
    if form is None:
        form = "pt" if Path(path).suffix == ".pt" else "json"
    chosen = _parse_pt if form == "pt" else _parse_json
    return chosen(values, layout, circuit, _Faults(path, remarks))


class _Faults:
    """Raises the faults of one file, or notes those that the benchmark's loader passes over."""

    def __init__(self, path: PathLike, remarks: list[str] | None) -> None:
        self.path, self._remarks = str(path), remarks

    def error(self, message: str) -> FormatError:
        return FormatError(f"{self.path}: {message}")

    def passed_over(self, message: str) -> None:
        if self._remarks is None:
            raise self.error(message)
        self._remarks.append(message)

    def require_keys(self, values: Any, needed: Iterable[str]) -> None:
        if not isinstance(values, dict):
            came = type(values).__name__
            raise self.error(f"expected a mapping with {tuple(needed)}, got {came}")
        missing = sorted(set(needed) - {str(key) for key in values})
        if missing:
            raise self.error(f"missing keys {missing}")

    def require_shape(self, cfg: Any, layout: UngroupedLayout) -> None:
        if not isinstance(cfg, dict):
            raise self.error(f"cfg should be a mapping, got {type(cfg).__name__}")
        for key, value in layout.shape.items():
            if not isinstance(cfg.get(key), int | float) or cfg[key] != value:
                raise self.error(
                    f"cfg says {key}={reprlib.repr(cfg.get(key))}, the graph has {value!r}; "
                    "the file belongs to another model"
                )

    def number(self, value: Any, what: str) -> float:
        if type(value) not in (int, float):
            raise self.error(f"{what}: expected a number, got {value!r:.60}")
        # Beyond float32 stands infinity, which is refused further on.
        return float(value) if -3e38 < value < 3e38 or value != value else math.inf

    def truth(self, value: Any, what: str) -> bool:
        if type(value) not in (bool, int) or value not in (0, 1):
            raise self.error(f"{what}: expected true or false, got {value!r:.60}")
        return bool(value)


# -------------------------------------------------------------------- JSON


def _parse_json(values: Any, layout: UngroupedLayout, circuit: bool, faults: _Faults) -> MIBContent:
    faults.require_keys(values, ("cfg", "nodes", "edges"))
    for part in ("cfg", "nodes", "edges"):
        if not isinstance(values[part], dict):
            raise faults.error(f"{part} should be an object")
    faults.require_shape(values["cfg"], layout)
    scores, kept = _json_edges(values["edges"], layout, circuit, faults)
    nodes = _json_nodes(values["nodes"], layout, faults)
    return MIBContent(layout, scores, kept, *nodes, path=faults.path)


def _json_edges(
    edges: dict[str, Any], layout: UngroupedLayout, circuit: bool, faults: _Faults
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores (NaN where no edge is possible) and which edges are in the graph."""
    width, real = len(layout.columns), layout.real.reshape(-1).tolist()
    needed = {"in_graph"} if circuit else {"score", "in_graph"}
    cells, numbers, truths = [], [], []
    for name, entry in edges.items():
        source, _, target = name.partition("->")
        row, column = layout.row_number.get(source), layout.column_number.get(target)
        if row is None or column is None or not real[row * width + column]:
            raise faults.error(f"the graph has no edge {name!r}")
        if not isinstance(entry, dict) or not needed <= entry.keys():
            raise faults.error(
                f"edge {name!r} should have {' and '.join(sorted(needed, reverse=True))}, "
                f"got {entry!r:.80}"
            )
        cells.append(row * width + column)
        numbers.append(faults.number(entry.get("score", 0.0), f"edge {name!r}"))
        truths.append(faults.truth(entry["in_graph"], f"edge {name!r}"))
    scores = np.full(layout.edge.shape, np.nan, dtype=np.float32)
    kept, seen = np.zeros((2, *layout.edge.shape), dtype=bool)
    scores.reshape(-1)[cells] = numbers
    kept.reshape(-1)[cells] = truths
    seen.reshape(-1)[cells] = True
    missing = layout.real & ~seen
    if missing.any():
        first = layout.name(*np.argwhere(missing)[0])
        faults.passed_over(
            f"{int(seen.sum())} of the graph's {int(layout.real.sum())} edges are there; the first "
            f"one missing is {first!r} (MIB's loader gives missing edges the score 0, outside the "
            "circuit)"
        )
        scores[missing] = 0.0
    return scores, kept


def _json_nodes(
    nodes: dict[str, Any], layout: UngroupedLayout, faults: _Faults
) -> tuple[
    NDArray[np.bool_],
    NDArray[np.float32] | None,
    NDArray[np.bool_] | None,
    NDArray[np.float32] | None,
]:
    """Which nodes are in the graph, their scores, and the same of neurons."""
    missing = sorted(set(layout.rows) - set(nodes))
    extra = sorted(set(nodes) - {*layout.rows, "logits"})
    if extra:
        raise faults.error(f"nodes lack {missing[:5]} and have besides {extra[:5]}")
    if missing:
        faults.passed_over(
            f"nodes lack {missing[:5]} (MIB's loader gives them no score, so that circuits of "
            "nodes always keep them)"
        )
    count = len(layout.rows)
    nodes_kept = np.zeros(count, dtype=bool)
    node_scores = np.full(count, np.nan, dtype=np.float32)
    neurons: dict[str, dict[int, list[Any]]] = {"neurons": {}, "neurons_scores": {}}
    scored = False
    unknown: set[str] = set()
    for row, name in enumerate(layout.rows):
        if name not in nodes:
            continue
        entry = nodes[name]
        allowed = f"node {name!r} should have in_graph and may have {sorted(_NODE_KEYS)}"
        if not isinstance(entry, dict) or "in_graph" not in entry:
            raise faults.error(allowed)
        further = set(entry) - _NODE_KEYS
        if further - unknown:
            unknown |= further
            faults.passed_over(
                f"{allowed}, but has {sorted(further)} too (MIB's loader does not read that)"
            )
        nodes_kept[row] = faults.truth(entry["in_graph"], f"node {name!r}")
        if "score" in entry:
            scored = True
            node_scores[row] = faults.number(entry["score"], f"node {name!r}")
        for key, by_row in neurons.items():
            if key in entry:
                if not isinstance(entry[key], list):
                    raise faults.error(f"node {name!r}: {key} should be a list")
                by_row[row] = entry[key]
    lengths = {len(values) for rows in neurons.values() for values in rows.values()}
    if len(lengths) > 1:
        raise faults.error(f"neurons come in different lengths, {sorted(lengths)}")
    shape = (count, lengths.pop() if lengths else 0)
    neurons_kept, neuron_scores = None, None
    if neurons["neurons"]:
        neurons_kept = np.repeat(nodes_kept[:, None], shape[1], axis=1)
        for row, truths in neurons["neurons"].items():
            what = f"neurons of {layout.rows[row]!r}"
            neurons_kept[row] = [faults.truth(value, what) for value in truths]
    if neurons["neurons_scores"]:
        neuron_scores = np.full(shape, np.nan, dtype=np.float32)
        for row, numbers in neurons["neurons_scores"].items():
            what = f"neurons_scores of {layout.rows[row]!r}"
            neuron_scores[row] = [faults.number(value, what) for value in numbers]
    return nodes_kept, node_scores if scored else None, neurons_kept, neuron_scores


# -------------------------------------------------------------------- .pt


def _parse_pt(values: Any, layout: UngroupedLayout, circuit: bool, faults: _Faults) -> MIBContent:
    faults.require_keys(values, [k for k in _PT_KEYS if not (circuit and k == "edges_scores")])
    extra = sorted({str(key) for key in values} - {*_PT_KEYS, *_PT_OPTIONAL})
    if extra:
        faults.passed_over(f"unexpected keys {extra[:8]} (MIB's loader does not read them)")
    faults.require_shape(values["cfg"], layout)
    for key, names in (("src_nodes", layout.rows), ("dst_nodes", layout.columns)):
        listed = values[key]
        if not isinstance(listed, list | tuple) or list(listed) != list(names):
            got = len(listed) if isinstance(listed, list | tuple) else type(listed).__name__
            faults.passed_over(
                f"{key} should be the graph's {len(names)} names from {names[0]!r} to "
                f"{names[-1]!r} in order, got {got} (MIB's loader does not read them: the matrices "
                "count by place)"
            )
    rows, full = [len(layout.rows)], list(layout.edge.shape)
    arrays: dict[str, NDArray[Any]] = {}
    for key in (*_PT_KEYS[3:], *_PT_OPTIONAL):
        if key not in values:
            continue
        value: Any = values[key]
        shape: list[Any] = full if key.startswith("edges") else rows
        if key.startswith("neurons"):
            shape = [*rows, values["cfg"].get("d_model", 0)]
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise faults.error(f"{key} should be a tensor {shape}, got {came}")
        require_stored(value, f"{faults.path}: {key}")
        truth = key.endswith("in_graph")
        arrays[key] = value.detach().to(torch.bool if truth else torch.float32).numpy()
    stray = arrays["edges_in_graph"] & ~layout.real
    if stray.any():
        faults.passed_over(
            f"the graph has no edge {layout.name(*np.argwhere(stray)[0])!r}, but edges_in_graph "
            "marks it (MIB's loader lets it pass, and runs nothing for it)"
        )
    return MIBContent(
        layout,
        arrays.get("edges_scores", np.where(layout.real, np.float32(0), np.float32(np.nan))),
        arrays["edges_in_graph"],
        arrays["nodes_in_graph"],
        arrays.get("nodes_scores"),
        arrays.get("neurons_in_graph"),
        arrays.get("neurons_scores"),
        faults.path,
    )
