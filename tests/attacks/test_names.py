"""Names that no file can have, given to all that reads or writes: refused by a sentence."""

from pathlib import Path

import pytest
from support import documented
from support.cli import call
from support.tokenizers import byte_bpe
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.cli.facts import graph_facts
from graphprune.errors import GraphPruneError
from graphprune.export import hub
from graphprune.mib.submission import read_submission
from graphprune.study.by_name import choose_model, choose_task


def study(**system):
    """A study in memory, whose system has these settings."""
    system = {"kind": "language", "model": "gpt2", "tasks": ["ioi"], **system}
    methods = {"EAP": {"method": "eap"}}
    plan = {"name": "s", "systems": {"a": system}, "methods": methods, "densities": [0.1]}
    return gp.Study.from_dict(plan, folder=Path.cwd())


def scores():
    return random_scores(transformer_graph(1, 2, 1))


def circuit():
    return gp.Circuit.from_mask(scores().top(5))


def checkpointed(method, place):
    return method(run_dir=place).fit(documented.model(), documented.task())


READERS = {
    "circuit": gp.Circuit.load,
    "circuit or hub": hub.load,
    "graph": lambda place: graph_facts(Path(place)),
    "scores, JSON": lambda place: gp.export.from_mib_json(place, scores().graph),
    "scores, pt": lambda place: gp.export.from_mib_pt(place, scores().graph),
    "nodes": lambda place: gp.export.from_mib_nodes(place, scores().graph),
    "submission": lambda place: read_submission(place, scores().graph),
    "prompts, lines": lambda place: gp.Task.from_jsonl(place, byte_bpe(size=256)),
    "prompts, CSV": lambda place: gp.Task.from_csv(place, byte_bpe(size=256)),
    "data set": lambda place: gp.tasks.mib(place, byte_bpe(size=256)),
    "study": gp.Study.from_yaml,
    "model by name": choose_model,
    "model": gp.wrap,
    "task by name": choose_task,
}
IN_STUDIES = {
    "task": lambda place: study(tasks=[place]),
    "file": lambda place: study(train_file=place, test_file=place),
}
WRITERS = {
    "circuit": lambda place: circuit().save(place),
    "export": lambda place: gp.export.export(circuit(), place),
    "scores": lambda place: gp.export.to_mib_json(scores(), place, d_model=8),
    "edge pruning": lambda place: checkpointed(
        lambda **run: gp.EdgePruning(size=8, steps=1, **run), place
    ),
    "ACDC": lambda place: checkpointed(lambda **run: gp.ACDC(tau=0.1, **run), place),
    "study": lambda place: study().run(place),
}
NAMES = {
    "long": "n" * 300,
    "long in a folder": "f/" + "n" * 300,
    "a long path": "/".join(["n" * 200] * 40),
    "long from here": "./" + "n" * 300,
    "NUL": "a\0b",
    "a lone surrogate": "a\ud800",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [*READERS, *(f"a study's {kind}" for kind in IN_STUDIES)])
def test_names_that_no_file_can_have_are_not_read(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("f").mkdir()
    read = READERS.get(kind) or IN_STUDIES[kind.removeprefix("a study's ")]
    for suffix in ("", ".jsonl", ".graphml", ".gguf", "/circuit.json"):
        with pytest.raises(GraphPruneError):
            read(NAMES[name] + suffix)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", WRITERS)
def test_names_that_no_file_can_have_are_not_written(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in (".csv", ".json", ""):
        with pytest.raises(GraphPruneError, match=r"no file can be|too long|suffix|format"):
            WRITERS[kind](NAMES[name] + suffix)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


COMMANDS = [
    *(["info", "--circuit"], ["info", "--graph"], ["info", "--task"], ["info", "--model"]),
    *(["show"], ["export"], ["study"], ["evaluate"], ["compare", "x"], ["export-model"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_names_that_no_file_can_have_on_the_command_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("n" * 300, "f/" + "n" * 300):
        assert call(*command, name) in (1, 2)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "fault of graphprune" not in said
