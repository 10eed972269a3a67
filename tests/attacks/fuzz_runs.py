"""Readers of runs, studies and settings, with valid files to change for test_fuzz.py."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from attacks.fuzzing import (
    TARGETS,
    Target,
    as_json,
    changed_bytes,
    changed_json,
    changed_values,
    json_bytes,
    target,
)
from safetensors.torch import save
from support import documented
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.util.sealed import Seal


@cache
def scores_of_mib():
    return random_scores(transformer_graph(1, 2, 1))


# -------------------------------------------------------------------- runs

ABOUT = {"format": "graphprune-run", "version": 3, "settings": {"steps": 4}}


@target("run.json", lambda: json.dumps(ABOUT).encode(), as_json, "run.json")
def read_run(path: Path) -> None:
    from graphprune.search.checkpoint import RunDirectory

    RunDirectory(path.parent, ABOUT)


METHODS = {
    "edge-pruning": lambda folder: gp.EdgePruning(size=8, steps=1, run_dir=folder, seed=0),
    "acdc": lambda folder: gp.ACDC(tau=0.1, run_dir=folder),
}


@cache
def run_files(method: str) -> dict[str, bytes]:
    """What a finished run leaves."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        METHODS[method](folder).fit(documented.model(), documented.task())
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def sealed(data: bytes, name: str) -> bytes:
    """A changed file, sealed anew where its digest still stands somewhere."""
    digest = Seal(name).blank.encode()
    return Seal(name).closed(data) if digest in data else data


def unsealed_notes(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    from graphprune.util.readers import tensors_of

    tensors, metadata = tensors_of(data)
    return tensors, json.loads(metadata["graphprune"])


def resealed(tensors, notes: Any, name: str) -> bytes:
    text = json_bytes(notes).decode("utf-8", "surrogatepass")
    return sealed(save(tensors, {"graphprune": text}), name)


def changed_sealed(data: bytes, name: str):
    """Notes or tensors changed by somebody who knows how to seal a file."""
    tensors, notes = unsealed_notes(data)
    notes["sha256"] = Seal(name).blank
    raw = data.replace(json.loads(_metadata(data))["sha256"].encode(), notes["sha256"].encode())
    return changed_values(notes).map(lambda n: resealed(tensors, n, name)) | changed_bytes(raw).map(
        lambda d: sealed(d, name)
    )


def _metadata(data: bytes) -> str:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header["__metadata__"]["graphprune"]


def checkpoint(method: str) -> None:
    def write(folder: Path, data: bytes) -> None:
        for name, whole in run_files(method).items():
            (folder / name).write_bytes(data if name.startswith("checkpoint") else whole)

    def valid() -> bytes:
        return run_files(method)["checkpoint.safetensors"]

    def read(folder: Path) -> None:
        METHODS[method](folder).fit(documented.model(), documented.task())

    TARGETS[f"checkpoint: {method}"] = Target(
        lambda: changed_sealed(valid(), "graphprune-run"), write, read, valid
    )


for _method in METHODS:
    checkpoint(_method)


# -------------------------------------------------------------------- studies

STUDY = {
    "name": "two",
    "systems": {"club": {"kind": "gcn-karate", "tasks": ["communities"]}},
    "methods": {"chance": {"method": "random"}, "EAP": {"method": "eap", "ablation": "zero"}},
    "densities": [0.1, 0.5],
    "seeds": [0, 1],
    "train": 8,
    "test": 8,
}
ALIASES = b"a: &a [1, 2]\nmethods: &m {x: *a}\nsystems: {<<: *m, 1: !!str 5}\n"


def _yaml() -> bytes:
    return yaml.safe_dump(STUDY, sort_keys=False).encode()


@target("study: yaml", _yaml, lambda d: changed_bytes(d) | changed_bytes(d + ALIASES), "s.yaml")
def read_study(path: Path) -> None:
    gp.Study.from_yaml(path)


@target("study: values", lambda: json.dumps(STUDY).encode(), as_json, "s.json")
def read_study_values(path: Path) -> None:
    """JSON is YAML."""
    gp.Study.from_yaml(path)


@cache
def record() -> bytes:
    """The record of a job, as a study wrote it."""
    import tempfile

    from support.studies import small_plan

    with tempfile.TemporaryDirectory() as place:
        plan = {**small_plan(Path(place)), "seeds": [0], "methods": {"EAP": {"method": "eap"}}}
        gp.Study.from_dict(plan).run(Path(place) / "out")
        (path,) = (Path(place) / "out" / "jobs").iterdir()
        return path.read_bytes()


def blank_record() -> dict[str, Any]:
    return {**json.loads(record()), "sha256": Seal("graphprune-job").blank}


def write_record(folder: Path, data: bytes) -> None:
    (folder / "jobs").mkdir(exist_ok=True)
    (folder / "jobs" / "key.json").write_bytes(sealed(data, "graphprune-job"))


def read_record(folder: Path) -> None:
    """Loads a record and makes every table of it."""
    from graphprune.study.job_records import JobRecords
    from graphprune.study.results import StudyResults

    store = JobRecords(folder)
    store.not_shown([], {})
    found = store.load("key")
    if found is None:
        return
    (job,) = gp.Study.from_dict(
        {**STUDY, "seeds": [0], "methods": {"EAP": {"method": "eap"}}}
    ).jobs()
    results = StudyResults("s", [(job, found)])
    results.to_frame()
    results.write(folder)


TARGETS["study: record"] = Target(
    lambda: changed_json(blank_record()), write_record, read_record, record
)


def _ranking() -> bytes:
    notes = {"seconds": 1.0, "cpu_seconds": 2.0, "mib": None, "in_passes": 3.0}
    scores = scores_of_mib()
    head = {"method": "EAP", "noise": 0.0, "fingerprint": scores.graph.fingerprint, "cost": notes}
    return Seal("graphprune-ranking").tensors({"values": scores.values}, head)


@target("study: ranking", _ranking, lambda d: changed_sealed(d, "graphprune-ranking"), "r")
def read_ranking(path: Path) -> None:
    from graphprune.study.saved_rankings import SavedRankings

    rankings = SavedRankings(path.parent, "case")
    rankings._path = lambda *_: path
    rankings.find(gp.EAP(), scores_of_mib().graph)


# -------------------------------------------------------------------- settings in texts


@target("settings: members", lambda: b'[{"name": "eap-ig", "steps": 3}, "eap"]', as_json, "m")
def read_members(path: Path) -> None:
    from graphprune.methods.members import as_member, as_members

    text = path.read_bytes().decode("utf-8", "replace")
    for member in as_members(text, "members"):
        as_member(member, "a member")


@target("settings: values", lambda: b"[0.5, 1]", as_json, "v")
def read_setting(path: Path) -> None:
    from graphprune.study.settings import typed

    text = path.read_bytes().decode("utf-8", "replace")
    typed("taus", text, list[float], "a method")


@target(
    "weights' index", lambda: b'{"weight_map": {"a": "b.safetensors"}}', as_json, "w.index.json"
)
def read_index(path: Path) -> None:
    from graphprune.study.language import _parts

    _parts(path.parent)
