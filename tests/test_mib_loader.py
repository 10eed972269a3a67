"""Submissions and data sets are read as MIB's own loader reads them; where it is lenient, a remark.

What that loader does was read in hannamw/MIB-circuit-track, hannamw/EAP-IG (``Graph.from_json``,
``Graph.from_pt``) and the leaderboard's evaluator, mttk/MIB-circuit-track-autoeval: its graph
begins with scores 0 and nothing inside, and files overwrite the entries that they name.
"""

from __future__ import annotations

import json

import pytest
import torch
from support.cli import call, out_of, save_model
from support.tokenizers import byte_bpe
from test_mib_files import GRAPH, choice_row, circuits, ioi_rows, put
from transformer_graph import random_scores

import graphprune as gp
from graphprune.export import (
    MIB_MODELS,
    check_submission,
    field_graph,
    from_mib_json,
    read_submission,
    to_mib_json,
    write_submission,
)


def change(folder, edit):
    """Edits the JSON or ``.pt`` content of every file in a folder."""
    for path in folder.iterdir():
        if path.suffix == ".pt":
            content = torch.load(path, weights_only=True)
            edit(content)
            torch.save(content, path)
        else:
            content = json.loads(path.read_text())
            edit(content)
            path.write_text(json.dumps(content))


# -------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ioi_gpt2", ("ioi", "gpt2")),
        ("arc-easy_llama3", ("arc-easy", "llama3")),
        ("arc_easy_llama3", ("arc-easy", "llama3")),
        ("EAP_IOI_GPT2", ("ioi", "gpt2")),  # letters of any case
        ("gpt2_ioi", ("ioi", "gpt2")),  # any order
        ("eap-ioi-gpt2", (None, None)),  # behind an underscore or in front, not behind a dash
        ("eap-ioi_gpt2", (None, "gpt2")),
        ("ioi_mcqa_gpt2_llama3", ("ioi", "gpt2")),  # the first that the evaluator knows
        ("arithmetic_subtraction_llama3", ("arithmetic-subtraction", "llama3")),
        ("arithmetic_llama3", (None, "llama3")),
    ],
)
def test_names_are_found_as_the_evaluator_finds_them(tmp_path, name, expected):
    (tmp_path / name).mkdir()
    (tmp_path / name / "importances.json").write_text("{}")
    (found,) = check_submission(tmp_path)
    assert (found.task, found.model) == expected


def test_folders_for_one_ranking_are_looked_into(tmp_path):
    write_submission(tmp_path / "abs-True", "ioi", "interpbench", random_scores(GRAPH))
    write_submission(tmp_path / "abs-False", "ioi", "interpbench", random_scores(GRAPH))
    found = check_submission(tmp_path)
    assert [(c.folder, c.problem) for c in found] == [("ioi_interpbench", "")] * 2


# -------------------------------------------------------------------- files


def test_missing_edges_and_nodes_score_nothing(tmp_path):
    scores = random_scores(GRAPH)
    folder = write_submission(tmp_path, "ioi", "interpbench", scores)

    def edit(content):
        for name in ("input->m0", "a0.h1->a3.h2<k>"):
            content["edges"].pop(name)
        content["nodes"].pop("m3")
        content["nodes"]["m2"]["comment"] = "mine"
        content["more"] = 1

    change(folder, edit)
    read = read_submission(folder)
    expected = scores.values.clone()
    for name in ("input->m0", "a0.h1->a3.h2<k>"):
        expected[GRAPH.edge_number[name]] = 0.0
    assert read.found.values.equal(expected)
    (checked,) = check_submission(tmp_path)
    assert checked.problem == ""
    missing, node, key = checked.remarks
    assert "1106 of the graph's 1108 edges are there; the first one missing is" in missing
    assert "MIB's loader gives missing edges the score 0" in missing
    assert "nodes lack ['m3']" in node
    assert "['comment'] too" in key
    # elsewhere a file that lacks edges is an error, as a damaged file is
    with pytest.raises(gp.FormatError, match="first one missing is"):
        from_mib_json(next(folder.iterdir()), GRAPH)


def test_a_missing_node_is_always_kept(tmp_path):
    nodes = gp.NodeScores(GRAPH, torch.arange(float(GRAPH.num_nodes)) + 1)
    folder = write_submission(tmp_path, "ioi", "interpbench", nodes)
    change(folder, lambda content: content["nodes"].pop("m3"))
    read = read_submission(folder)
    assert read.level == "node"
    assert read.found.unscored == ("m3",)
    assert "always keep them" in read.remarks[0]


def test_matrices_count_by_place(tmp_path):
    scores = random_scores(GRAPH)
    folder = write_submission(tmp_path, "ioi", "interpbench", scores, form="pt")

    def edit(content):
        content["src_nodes"] = content["src_nodes"][::-1]
        content["edges_in_graph"][:] = True  # pairs that are no edge, too
        content["note"] = "mine"

    change(folder, edit)
    read = read_submission(folder)
    assert read.found.values.equal(scores.values)
    keys, names, pairs = read.remarks
    assert "unexpected keys ['note']" in keys
    assert "src_nodes should be" in names
    assert "the matrices count by place" in names
    assert "the graph has no edge" in pairs


@pytest.mark.parametrize("form", ["json", "pt"])
def test_circuits_need_no_scores(tmp_path, form):
    """The benchmark's README: the format of circuits is the same without the scores."""
    nine = circuits()
    folder = write_submission(tmp_path, "ioi", "interpbench", nine, form=form)

    def edit(content):
        if form == "pt":
            content.pop("edges_scores")
            return
        for entry in content["edges"].values():
            entry.pop("score")

    change(folder, edit)
    read = read_submission(folder)
    assert list(read.found) == nine
    assert read.remarks == ()
    assert [c.problem for c in check_submission(tmp_path)] == [""]


@pytest.mark.parametrize(
    ("model", "task", "skipped"),
    [("gpt2", "mcqa", True), ("interpbench", "mcqa", True), ("interpbench", "ioi", False)],
)
def test_pairs_that_the_benchmark_skips(tmp_path, model, task, skipped):
    graph = field_graph(*MIB_MODELS[model][:2])
    write_submission(tmp_path, task, model, random_scores(graph), form="pt")
    (found,) = check_submission(tmp_path)
    assert (f"skips {task}" in found.problem) == skipped


# -------------------------------------------------------------------- data sets


def shared_row():
    """An answer and a distractor that are one text: the counterfactual has the same label."""
    return choice_row(0, others=("A", "C"))


def test_a_row_that_shares_a_token_stays(tmp_path, caplog):
    rows = [choice_row(0), shared_row(), choice_row(1)]
    task = gp.tasks.mib(put(tmp_path / "mcqa", rows), byte_bpe())
    assert len(task) == 3
    assert task.notes["shared_token"] == 1
    assert "1 of 3 rows of mcqa have an answer and a distractor" in caplog.text
    (batch,) = task.batches()
    same = batch.answer[:, 0] == batch.distractor[:, 0]
    assert int(same.sum()) == 1
    # its logit difference is 0 whatever the outputs are, as the benchmark's is
    outputs = torch.randn(3, 300)
    values = task.metric(outputs, batch)
    found = outputs.gather(1, batch.answer) - outputs.gather(1, batch.distractor)
    assert values.tolist() == pytest.approx(found[:, 0].tolist())
    assert values[same].tolist() == [0.0]


def test_elsewhere_a_shared_token_is_an_error():
    record = {"clean": "a b", "corrupt": "a c", "answer": " b", "distractor": " b"}
    with pytest.raises(gp.InputError, match="begin with the same token"):
        gp.Task.from_pairs([record], byte_bpe())


# -------------------------------------------------------------------- the split


def scored(tmp_path, capsys, splits, *more):
    model_dir = save_model(tmp_path / "model", num_key_value_heads=4)
    data = tmp_path / "ioi"
    for split, rows in splits.items():
        put(data / "data", rows, split)
    from transformers import AutoModelForCausalLM

    model = gp.wrap(AutoModelForCausalLM.from_pretrained(model_dir).eval())
    folder = tmp_path / "submission"
    folder.mkdir()
    to_mib_json(random_scores(model.graph), folder / "importances.json", d_model=16)
    capsys.readouterr()
    arguments = ("submission", folder, "--model", model_dir, "--task", data, *more)
    return arguments, call(*arguments, "--json")


def test_the_test_split_is_scored(tmp_path, capsys):
    rows = ioi_rows()
    splits = {"train": rows * 3, "validation": rows * 2, "test": rows}
    arguments, code = scored(tmp_path, capsys, splits)
    assert code == 0
    told = out_of(capsys)
    train = len(gp.tasks.mib(tmp_path / "ioi", byte_bpe(), split="train"))
    assert told["split"] == "test"
    assert told["prompts"] * 3 == train
    assert told["shared_token"] == 0
    assert told["remarks"] == []
    assert call(*arguments) == 0
    shown = capsys.readouterr()
    assert "prompts of ioi, split test" in shown.out
    assert "leaderboard" not in shown.err
    assert call(*arguments, "--split", "train", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["prompts"] == train
    assert "the benchmark's leaderboard scores on a test split, not on train" in shown.err


def test_without_a_test_split(tmp_path, capsys):
    rows = ioi_rows()
    arguments, code = scored(tmp_path, capsys, {"train": rows * 2, "validation": rows})
    assert code == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["split"] == "validation"
    assert "not on validation" in shown.err
    for path in (tmp_path / "ioi" / "data").glob("validation*"):
        path.unlink()
    assert call(*arguments) == 2
    assert "neither a test nor a validation split, only train" in capsys.readouterr().err
    assert call(*arguments, "--task-set", "split=train", "--json") == 0
    assert out_of(capsys)["split"] == "train"
