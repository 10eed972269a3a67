"""Readers of circuits, graphs, scores and data, with valid files to change for test_fuzz.py."""

from __future__ import annotations

import io
import json
import zipfile
from functools import cache
from pathlib import Path

import torch
from attacks.fuzz_runs import scores_of_mib
from attacks.fuzzing import (
    TARGETS,
    Target,
    as_json,
    changed_bytes,
    changed_values,
    json_bytes,
    target,
)
from support import documented
from support.tokenizers import byte_bpe

import graphprune as gp
from graphprune.errors import FetchError
from graphprune.util.fetch import ARTIFACTS, _is_complete, _record

# -------------------------------------------------------------------- circuits


@cache
def circuit_files() -> dict[str, bytes]:
    """A circuit with everything that its folder can hold."""
    import tempfile

    model, task = documented.lm(), documented.prompts()
    found = gp.EAP().fit(model, task, size=20)
    report = gp.evaluate(model, task, found.mask)
    circuit = gp.Circuit.from_result(found, model, task, method=gp.EAP(), report=report)
    with tempfile.TemporaryDirectory() as place:
        folder = circuit.save(Path(place) / "c")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def looked_at(folder: Path) -> None:
    """Loads a circuit and goes through all that `info`, exports and notebooks show of it."""
    from graphprune.cli.facts import circuit_facts
    from graphprune.export.card import card
    from graphprune.util.plain import flatten, plain

    circuit = gp.Circuit.load(folder)
    facts = plain(circuit_facts(circuit, folder))
    flatten(facts)
    json.dumps(facts, allow_nan=False)
    repr((circuit, circuit.title, circuit.nodes(), circuit.edges(), circuit.report))
    for name in ("a.html", "a.graphml", "a.dot", "a.csv", "a.attribution.json"):
        gp.export.export(circuit, folder / name)
    card(circuit, "somebody/a", picture=False)
    if isinstance(circuit.report, gp.EvaluationReport):
        circuit.report.intervals()


def circuit_part(name: str, changed) -> None:
    def write(folder: Path, data: bytes) -> None:
        for file, whole in circuit_files().items():
            (folder / file).write_bytes(data if file == name else whole)

    TARGETS[f"circuit: {name}"] = Target(
        lambda: changed(circuit_files()[name]), write, looked_at, lambda: circuit_files()[name]
    )


circuit_part("circuit.json", as_json)
circuit_part("tensors.safetensors", changed_bytes)


# -------------------------------------------------------------------- graphs


@cache
def graph_file(suffix: str) -> bytes:
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_weighted_edges_from([(0, 1, 0.5), (1, 2, 2.0), (2, 0, 1.0), ("a", 0, 1.5)])
    graph.nodes["a"]["kind"] = "input"
    file = io.BytesIO()
    if suffix == "json":
        return json.dumps(nx.node_link_data(graph, edges="edges")).encode()
    (nx.write_graphml_xml if suffix == "graphml" else nx.write_gexf)(graph, file)
    return file.getvalue()


def read_graph(path: Path) -> None:
    from graphprune.cli.facts import graph_facts

    graph_facts(path)


for _suffix, _changed in (("graphml", changed_bytes), ("gexf", changed_bytes), ("json", as_json)):
    target(f"graph: {_suffix}", lambda s=_suffix: graph_file(s), _changed, f"g.{_suffix}")(
        read_graph
    )


# -------------------------------------------------------------------- scores of MIB


@cache
def mib_file(suffix: str) -> bytes:
    import tempfile

    scores = scores_of_mib()
    with tempfile.TemporaryDirectory() as place:
        write = gp.export.to_mib_pt if suffix == "pt" else gp.export.to_mib_json
        return write(
            scores, Path(place) / f"a.{suffix}", mask=scores.top(5), d_model=8
        ).read_bytes()


def read_scores(path: Path) -> None:
    graph = scores_of_mib().graph
    read = gp.export.from_mib_pt if path.suffix == ".pt" else gp.export.from_mib_json
    read(path, graph, unscored="zero", ungrouped="any")
    gp.export.from_mib_nodes(path, graph)


target("scores: json", lambda: mib_file("json"), as_json, "scores.json")(read_scores)
target("scores: pt", lambda: mib_file("pt"), changed_bytes, "scores.pt")(read_scores)


def _old_pt() -> bytes:
    file = io.BytesIO()
    values = torch.load(io.BytesIO(mib_file("pt")), weights_only=True)
    torch.save(values, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


target("scores: pt of torch before 1.6", _old_pt, changed_bytes, "scores.pt")(read_scores)


def _repacked(data: bytes) -> bytes:
    """The archive with this pickle, its checksums right."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(mib_file("pt"))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new,
    ):
        for part in old.infolist():
            whole = data if part.filename.endswith(".pkl") else old.read(part)
            new.writestr(part.filename, whole)
    return file.getvalue()


def _pickle() -> bytes:
    with zipfile.ZipFile(io.BytesIO(mib_file("pt"))) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".pkl"))
        return archive.read(name)


target(
    "scores: pickle in a pt",
    lambda: _repacked(_pickle()),
    lambda _: changed_bytes(_pickle()).map(_repacked),
    "scores.pt",
)(read_scores)


# -------------------------------------------------------------------- prompts

RECORDS = [
    {"clean": "one two", "corrupt": "two one", "answer": "x", "distractor": ["y", 5],
     "spans": {"first": [[0, 3], [0, 3]]}},
    {"clean": "up", "corrupt": "no", "answer": 7, "distractor": "z"},
]  # fmt: skip


def _jsonl(records) -> bytes:
    return b"\n".join(json_bytes(r) for r in records) + b"\n"


def read_prompts(path: Path) -> None:
    read = gp.Task.from_jsonl if path.suffix == ".jsonl" else gp.Task.from_csv
    next(read(path, byte_bpe(size=256)).batches(1))


target(
    "prompts: jsonl",
    lambda: _jsonl(RECORDS),
    lambda _: (
        changed_values(RECORDS).map(lambda v: _jsonl(v if isinstance(v, list) else [v]))
        | changed_bytes(_jsonl(RECORDS))
    ),
    "p.jsonl",
)(read_prompts)

CSV = b'clean,corrupt,answer,distractor\none two,two one,x,"[1, ""y""]"\nup,no,a,b\n'
target("prompts: csv", lambda: CSV, changed_bytes, "p.csv")(read_prompts)

ROWS = [
    {
        "prompt": "Bob and Ann went, Ann gave it to",
        "metadata": {"indirect_object": "Bob", "subject": "Ann", "random_c": "Tom"},
        "s2_io_flip_counterfactual": {"prompt": "Bob and Ann went, Bob gave it to"},
    }
] * 2


def read_data_set(path: Path) -> None:
    gp.tasks.mib(path.parent, byte_bpe(size=256), split="train")


target(
    "data set: jsonl",
    lambda: _jsonl(ROWS),
    lambda _: (
        changed_values(ROWS).map(lambda v: _jsonl(v if isinstance(v, list) else [v]))
        | changed_bytes(_jsonl(ROWS))
    ),
    "train.jsonl",
)(read_data_set)


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


target("data set: parquet", _parquet, changed_bytes, "train.parquet")(read_data_set)


# -------------------------------------------------------------------- data that is fetched

WORM = b"pre\tpost\ttype\tsynapses\nA\tB\tchemical\t3\nB\tA\telectrical\t2\nB\tC\tchemical\t1\n"
FLY = {
    "nodes": [{"name": "R1"}, {"name": "L1"}],
    "edges": [{"src": "R1", "tar": "L1", "alpha": -1.5, "offsets": [[[0, 1], 2.0], [[1, 1], 3.0]]}],
    "input_units": ["R1"],
    "output_units": ["L1"],
}


def read_connectome(path: Path) -> None:
    from unittest import mock

    from graphprune.tasks import connectomes

    with mock.patch.object(connectomes.fetch, "fetch", return_value=path.parent):
        (connectomes.fly if path.suffix == ".json" else connectomes.celegans)()


target("fetched: worm", lambda: WORM, changed_bytes, "aconnectome_white_1986_whole.csv")(
    read_connectome
)
target("fetched: fly", lambda: json.dumps(FLY).encode(), as_json, "fib25-fib19_v2.2.json")(
    read_connectome
)


def _fetched() -> bytes:
    return json.dumps({**_record(ARTIFACTS["fly"]), "files": {}}).encode()


@target("fetched: record", _fetched, as_json, "fetched.json")
def read_fetched(path: Path) -> None:
    """What is not complete is fetched again."""
    if not _is_complete(ARTIFACTS["fly"], path.parent):
        raise FetchError("not complete")
