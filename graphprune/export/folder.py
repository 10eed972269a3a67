"""The circuit's own format: a folder with ``circuit.json`` and ``tensors.safetensors``.

``FORMAT.md`` beside this file describes it. Nothing in it is executed on reading, no name in it is
used as a path, and whatever does not fit is a :class:`FormatError` that says what and where.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from graphprune.core.elements import Node, Ties
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.method import ablation_name
from graphprune.core.overlap import ExampleFingerprint, as_table
from graphprune.core.scores import EdgeScores
from graphprune.errors import FormatError, GraphPruneError
from graphprune.evaluation.report import EvaluationReport
from graphprune.export.schema import FORMAT, VERSION, CircuitFile, ReportFile, parse
from graphprune.search.gates import strength
from graphprune.util.checks import usable
from graphprune.util.files import atomic_folder, finish_overwriting, require_free, states_format
from graphprune.util.plain import plain
from graphprune.util.readers import file_bytes, tensors_of, validated

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit

JSON_NAME = "circuit.json"
TENSORS_NAME = "tensors.safetensors"
_DTYPES = {
    "edge_index": torch.int64,
    "edge_kind": torch.uint8,
    "fixed_edge_index": torch.int64,
    "mask": torch.float32,
    "scores": torch.float32,
    "found_on": torch.int64,
    "tied_index": torch.int64,
    "tied_kind": torch.uint8,
    "tied_edge": torch.int64,
}
_TIES = ("tied_index", "tied_kind", "tied_edge")


# -------------------------------------------------------------------- writing


def save_circuit(
    circuit: Circuit, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Writes a circuit's folder; see :meth:`graphprune.Circuit.save`."""
    target = usable(directory).resolve()
    require_free(target, overwrite, "circuit", lambda: states_format(target / JSON_NAME, FORMAT))
    tensors = _tensors(circuit)
    graph = circuit.graph
    document = {
        "format": FORMAT,
        "version": VERSION,
        "graph": {
            "fingerprint": graph.fingerprint,
            "num_nodes": graph.num_nodes,
            "num_edges": graph.num_edges,
            "num_wires": int(graph.fixed_edge_index.shape[1]),
            "edge_kinds": list(graph.edge_kinds),
            "ports": list(graph.ports),
            "groups": [list(group) for group in graph.groups],
            "inputs": list(graph.input_nodes),
            "outputs": list(graph.output_nodes),
            **({} if graph.ties is None else {"num_messages": len(graph.ties.edge)}),
        },
        "num_kept": circuit.mask.num_kept,
        "score_method": None if circuit.scores is None else circuit.scores.method,
        "digest": _digest(tensors),
        "provenance": circuit.provenance,
        "report": _report_record(circuit),
        "found_on": None if circuit.found_on is None else len(circuit.found_on),
        "ablation": circuit.ablation,
        "score_noise": 0.0 if circuit.scores is None else circuit.scores.noise,
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "layer": node.layer,
                "index": node.index,
                "attributes": plain(node.attributes),
            }
            for node in graph.nodes
        ],
    }
    text = document_text(document)
    with atomic_folder(target) as staging:
        (staging / TENSORS_NAME).write_bytes(dump_tensors(tensors))
        (staging / JSON_NAME).write_text(text, encoding="utf-8", newline="\n")
    return target


_PER_EXAMPLE = "per_example"
_SPREAD_NUMBERS = re.compile(r'\[\n[^\[\]{}"]+\]')  # no text in JSON holds a line's end


def _report_record(circuit: Circuit) -> dict[str, Any] | None:
    """The report's figures; an evaluation's with the values of each example, for intervals."""
    report = circuit.report
    if report is None:
        return None
    record = circuit.report_dict()
    if isinstance(report, EvaluationReport):
        record[_PER_EXAMPLE] = {
            "circuit": _lists(report.examples),
            "full": _lists(report.full_examples),
            "ablated": _lists(report.ablated_examples),
            "bounds": plain(report.bounds),
        }
    return record


def _lists(examples: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: plain(values.tolist()) for name, values in examples.items()}


def document_text(document: dict[str, Any]) -> str:
    """JSON in ASCII, a node to a line, so that files can be read and compared line by line."""
    parts = []
    for key, value in document.items():
        if key == "nodes":
            rows = ",\n".join("  " + json.dumps(node, allow_nan=False) for node in value)
            shown = f"[\n{rows}\n ]" if value else "[]"
        else:
            nested = json.dumps(value, allow_nan=False, indent=1)
            if key == "report":  # a line for each measure, not for each example
                nested = _SPREAD_NUMBERS.sub(lambda found: " ".join(found[0].split()), nested)
            shown = nested.replace("\n", "\n ")
        parts.append(f" {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _tensors(circuit: Circuit) -> dict[str, Tensor]:
    tensors = {
        "edge_index": circuit.graph.edge_index,
        "edge_kind": circuit.graph.edge_kind,
        "fixed_edge_index": circuit.graph.fixed_edge_index,
        "mask": circuit.mask.values,
    }
    if circuit.graph.ties is not None:
        ties = circuit.graph.ties
        tensors |= dict(zip(_TIES, (ties.index, ties.kind, ties.edge), strict=True))
    if circuit.scores is not None:
        tensors["scores"] = circuit.scores.values
    if circuit.found_on is not None:
        tensors["found_on"] = torch.from_numpy(as_table(circuit.found_on))
    return {name: value.contiguous() for name, value in tensors.items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# -------------------------------------------------------------------- reading


def load_circuit(directory: str | os.PathLike[str]) -> Circuit:
    """The circuit in a folder, or beside a ``circuit.json``: :meth:`graphprune.Circuit.load`."""
    from graphprune.core.circuit import Circuit

    folder = usable(directory)
    if folder.name == JSON_NAME and folder.is_file():
        folder = folder.parent
    finish_overwriting(folder.parent)  # an exported model's folder holds its circuit's
    finish_overwriting(folder)
    about, place = folder / JSON_NAME, folder / TENSORS_NAME
    for path in (about, place):
        if not path.is_file():
            raise FormatError(
                f"expected a circuit folder with {JSON_NAME} and {TENSORS_NAME}, but {path} is "
                "not there"
            )
    file = parse(about)
    tensors = _read_tensors(place, file)
    graph = _graph(file, tensors, about)
    if graph.fingerprint != file.graph.fingerprint:
        raise FormatError(
            f"{about} names the graph {file.graph.fingerprint[:12]}, but its nodes and the edges "
            f"in {TENSORS_NAME} make the graph {graph.fingerprint[:12]}; one of the two files was "
            "changed or belongs to another circuit"
        )
    try:
        scores = None
        if "scores" in tensors:
            values = _upright(tensors["scores"], file.score_method or "")
            method = file.score_method or ""
            scores = EdgeScores(graph, values, method=method, noise=file.score_noise)
        mask = EdgeMask(graph, tensors["mask"])
    except GraphPruneError as error:
        raise FormatError(f"{place}: {error}") from error
    if _digest(tensors) != file.digest:
        raise FormatError(
            f"the mask or scores in {place} are not those that {JSON_NAME} was written with "
            "(digests differ)"
        )
    if mask.num_kept != file.num_kept:
        raise FormatError(
            f"{about}: num_kept says {file.num_kept} edges, the mask keeps {mask.num_kept}"
        )
    seen = None
    if "found_on" in tensors:
        seen = frozenset(ExampleFingerprint(*row) for row in tensors["found_on"].tolist())
    ablation = file.ablation
    if file.version == 1:  # it stood in the record of the method
        ablation = ablation_name(None, file.provenance.get("method"), file.report)
    report = _report(file.report, about)
    return Circuit(graph, mask, scores, report, file.provenance, seen, ablation)


def _report(record: dict[str, Any] | None, about: Path) -> EvaluationReport | dict[str, Any] | None:
    """The evaluation that was saved; a dict of figures where no values of examples were."""
    if record is None or _PER_EXAMPLE not in record:
        return record
    read = validated(ReportFile, record, f"{about}: the report")
    saved = read.per_example
    sides = [
        {name: torch.tensor(row, dtype=torch.float64) for name, row in side.items()}
        for side in (saved.circuit, saved.full, saved.ablated)
    ]
    return EvaluationReport(
        values=read.__pydantic_extra__,
        examples=sides[0],
        full=read.full,
        ablated=read.ablated,
        absent=read.absent,
        settings=dict(record["settings"]),
        full_examples=sides[1],
        ablated_examples=sides[2],
        notes=read.notes,
        bounds=saved.bounds,
    )


def _upright(values: Tensor, method: str) -> Tensor:
    """Scores of mask optimisers as they are written today.

    Those of 0.1.0 were below 0 outside the budget and ranked upside down by size; the order that
    they had by sign is the right one.
    """
    optimisers = ("EdgePruning", "MatryoshkaPruning", "SubnetworkProbing", "UGS")
    if method.partition("(")[0] in optimisers and bool((values < 0).any()):
        return strength(values)
    return values


def _read_tensors(path: Path, file: CircuitFile) -> dict[str, Tensor]:
    try:
        tensors, _ = tensors_of(file_bytes(path, most=None))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is no readable safetensors file: {error}") from error
    messages = file.graph.num_messages
    optional = {"scores": file.score_method, "found_on": file.found_on}
    optional |= dict.fromkeys(_TIES, messages)
    expected = set(_DTYPES) - {name for name, given in optional.items() if given is None}
    if set(tensors) != expected:
        raise FormatError(
            f"{path}: expected the tensors {sorted(expected)}; missing "
            f"{sorted(expected - set(tensors))}, unexpected {sorted(set(tensors) - expected)}"
        )
    shapes = {
        "edge_index": [2, file.graph.num_edges],
        "edge_kind": [file.graph.num_edges],
        "fixed_edge_index": [2, file.graph.num_wires],
        "mask": [file.graph.num_edges],
        "scores": [file.graph.num_edges],
        "found_on": [file.found_on, 2],
        "tied_index": [2, messages],
        "tied_kind": [messages],
        "tied_edge": [messages],
    }
    for name, value in tensors.items():
        if value.dtype != _DTYPES[name] or list(value.shape) != shapes[name]:
            raise FormatError(
                f"{path}: {name} should be {_DTYPES[name]} {shapes[name]}, got {value.dtype} "
                f"{list(value.shape)}"
            )
    return tensors


def _graph(file: CircuitFile, tensors: dict[str, Tensor], about: Path) -> ComputationalGraph:
    try:
        return ComputationalGraph(
            nodes=tuple(
                Node(node.name, node.kind, node.layer, node.index, node.attributes)
                for node in file.nodes
            ),
            edge_index=tensors["edge_index"],
            edge_kind=tensors["edge_kind"],
            edge_kinds=tuple(file.graph.edge_kinds),
            ports=tuple(file.graph.ports),
            fixed_edge_index=tensors["fixed_edge_index"],
            groups=tuple(tuple(group) for group in file.graph.groups),
            inputs=tuple(file.graph.inputs),
            outputs=tuple(file.graph.outputs),
            ties=Ties(*(tensors[name] for name in _TIES)) if "tied_edge" in tensors else None,
        )
    except GraphPruneError as error:
        raise FormatError(f"{about} and {TENSORS_NAME} make no graph: {error}") from error
