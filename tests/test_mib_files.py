"""MIB's data sets and submissions as files: hub-format folders, checks, and the command line."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.cli import call, out_of, save_model
from support.tokenizers import byte_bpe
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.export import (
    MIB_MODELS,
    check_submission,
    field_graph,
    from_mib_nodes,
    read_submission,
    to_mib_json,
    write_submission,
)

# -------------------------------------------------------------------- data sets

NAMES = [("Mary", "John"), ("John", "Mary"), ("Mary", "Tom")]


def ioi_rows():
    rows = []
    for io, s in NAMES:
        text = "When {} and {} went to the store, {} gave a book to"
        rows.append(
            {
                "prompt": text.format(io, s, s),
                "choices": [io, s],
                "answerKey": 0,
                "metadata": {"indirect_object": io, "subject": s, "random_c": "Anna"},
                "s2_io_flip_counterfactual": {
                    "prompt": text.format(io, s, io), "choices": [io, s], "answerKey": 1,
                },
                "abc_counterfactual": {
                    "prompt": text.format("Anna", "Paul", "James"), "choices": ["Anna", "Paul"],
                    "answerKey": 0,
                },
            }
        )  # fmt: skip
    return rows


def choice_row(key, labels=("A", "B"), others=("C", "D")):
    text = "Which is red?\n{}. red\n{}. blue\nAnswer:"
    return {
        "prompt": text.format(*labels),
        "choices": {"label": list(labels), "text": ["red", "blue"]},
        "answerKey": key,
        "symbol_counterfactual": {
            "prompt": text.format(*others),
            "choices": {"label": list(others), "text": ["red", "blue"]},
            "answerKey": key,
        },
    }


def sum_row(a, b, sign="+", label=None, other=7):
    return {
        "prompt": f"{a}{sign}{b}=",
        "label": str(a + b if label is None else label),
        "operator": sign,
        "random_counterfactual": None if other is None else {"prompt": "3+4=", "label": str(other)},
    }


def put(folder, rows, split="train", parts=1):
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        name = f"{split}-{part:05d}-of-{parts:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[part::parts]), folder / name)
    return folder


def pairs(task):
    """Clean and corrupted texts with the texts of answer and distractor, through batches alone."""
    words, out = byte_bpe(), []
    for batch in task.batches(1):
        sides = [
            words.decode(side["input_ids"][0].tolist()) for side in (batch.clean, batch.corrupt)
        ]
        out.append(
            (*sides, *(words.decode(ids[0].tolist()) for ids in (batch.answer, batch.distractor)))
        )
    return out


def test_ioi_as_the_benchmark_reads_it(tmp_path):
    folder = put(tmp_path / "ioi" / "data", ioi_rows(), "validation", parts=2).parent
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    put(folder / "data", ioi_rows()[:1], "test")
    words = byte_bpe()
    task = gp.tasks.mib(folder, words, split="validation")
    fitting = [
        (io, s) for io, s in NAMES
        if len({len(words(f" {n}", add_special_tokens=False)["input_ids"])
                for n in (io, s, "Anna")}) == 1
    ]  # fmt: skip
    assert 0 < len(task) == len(fitting)
    found = {(clean, corrupt) for clean, corrupt, _, _ in pairs(task)}
    for io, s in fitting:
        text = f"When {io} and {s} went to the store, "
        assert (text + f"{s} gave a book to", text + f"{io} gave a book to") in found
    for batch in task.batches(1):
        clean = words.decode(batch.clean["input_ids"][0].tolist())
        io, s = clean.split()[1], clean.split()[3]
        for ids, name in ((batch.answer, io), (batch.distractor, s)):
            assert int(ids[0, 0]) == words(f" {name}", add_special_tokens=False)["input_ids"][0]
    assert task.metric.name == "logit_diff"
    assert task.notes["counterfactual"] == "s2_io_flip_counterfactual"
    assert task.notes["left_out"] == len(NAMES) - len(fitting)
    assert len(gp.tasks.mib(folder, words, split="test")) == 1
    other = gp.tasks.mib(folder, words, 1, split="test", counterfactual="abc")
    assert "Paul" in pairs(other)[0][1]


def test_choices_and_sums(tmp_path):
    folder = tmp_path / "copycolors_mcqa"
    put(folder / "4_answer_choices", [choice_row(0), choice_row(1)])
    put(folder / "2_answer_choices", [choice_row(0)])
    task = gp.tasks.mib(folder, byte_bpe())
    assert sorted(row[2:] for row in pairs(task)) == [("A", "C"), ("B", "D")]
    assert len(gp.tasks.mib(folder, byte_bpe(), config="2_answer_choices")) == 1
    rows = [sum_row(2, 3), sum_row(4, 5), sum_row(9, 9), sum_row(2, 2, other=None)]
    sums = gp.tasks.mib(put(tmp_path / "sums", rows), byte_bpe())  # one digit a token
    assert sorted(row[2:] for row in pairs(sums)) == [("5", "7"), ("9", "7")]
    assert sums.notes["left_out"] == 2
    both = put(tmp_path / "both", [*rows, sum_row(9, 2, "-", 7, 3)])
    with pytest.raises(gp.InputError, match=r"operators \['\+', '-'\]; give operator="):
        gp.tasks.mib(both, byte_bpe())
    assert len(gp.tasks.mib(both, byte_bpe(), operator="-")) == 1


def test_json_lines_are_read_too(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ioi_rows())) + "\n")
    parquet = put(tmp_path / "p", ioi_rows())
    assert pairs(gp.tasks.mib(tmp_path / "p", byte_bpe())) == pairs(
        gp.tasks.mib(tmp_path, byte_bpe(), config="")
    )
    assert parquet.is_dir()


def test_data_sets_that_cannot_be_read(tmp_path):
    words = byte_bpe()
    folder = put(tmp_path / "ioi", ioi_rows())
    cases = [
        ((tmp_path / "none",), {}, "is not there"),
        ((folder,), {"split": "test"}, "no split 'test'; it has train"),
        (
            (folder,),
            {"counterfactual": "xyz"},
            "no counterfactual 'xyz'; it has s2_io_flip",
        ),
        ((folder,), {"config": "other"}, "no configuration 'other'"),
    ]
    for args, options, message in cases:
        with pytest.raises(gp.InputError, match=message):
            gp.tasks.mib(*args, words, **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(gp.InputError, match="no data set as the hub has them"):
        gp.tasks.mib(tmp_path / "empty", words)
    two = tmp_path / "two"
    put(two / "a", ioi_rows())
    put(two / "b", ioi_rows())
    with pytest.raises(gp.InputError, match=r"several configurations; give config= one of"):
        gp.tasks.mib(two, words)
    foreign = put(tmp_path / "foreign", [{"question": "?", "answer": "!"}])
    with pytest.raises(gp.InputError, match=r"none of MIB's data sets: .* these have question"):
        gp.tasks.mib(foreign, words)
    row = choice_row(0)
    row["choices"] = {"text": ["red", "blue"]}
    with pytest.raises(gp.InputError, match="row 0 is not as MIB's choice rows are: KeyError"):
        gp.tasks.mib(put(tmp_path / "half", [row]), words)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(gp.InputError, match="cannot read"):
        gp.tasks.mib(tmp_path / "broken", words)
    left = put(tmp_path / "left", [sum_row(9, 9)])
    with pytest.raises(gp.InputError, match=r"all 1 rows of .* are left out"):
        gp.tasks.mib(left, words)


# -------------------------------------------------------------------- submissions

GRAPH = field_graph(6, 4)  # InterpBench's, the smallest


@pytest.mark.parametrize(("layers", "heads", "parallel"), [(2, 3, False), (3, 2, True)])
def test_the_graph_that_a_file_describes(layers, heads, parallel):
    ours = transformer_graph(layers, heads, parallel=parallel)
    theirs = field_graph(layers, heads, parallel)
    assert sorted(theirs.edge_names) == sorted(ours.edge_names)
    assert theirs.is_acyclic
    sizes = {"gpt2": 32491, "qwen2.5": 179749, "gemma2": 74218, "interpbench": 1108}
    for name, edges in sizes.items():  # the evaluator's own table
        assert field_graph(*MIB_MODELS[name][:2]).num_edges == edges


@pytest.mark.parametrize("form", ["json", "pt"])
def test_scores_of_edges_and_nodes_come_back(tmp_path, form):
    scores = random_scores(GRAPH)
    folder = write_submission(tmp_path, "ioi", "interpbench", scores, form=form)
    assert folder == tmp_path / "ioi_interpbench"
    assert [p.name for p in folder.iterdir()] == [f"importances.{form}"]
    read = read_submission(folder)
    assert (read.task, read.model, read.level) == ("ioi", "interpbench", "edge")
    assert read.graph == GRAPH
    assert read.found.values.equal(scores.values)
    nodes = gp.NodeScores(GRAPH, torch.arange(float(GRAPH.num_nodes)))
    again = write_submission(tmp_path, "arc_easy", "interpbench", nodes, form=form)
    assert again.name == "arc-easy_interpbench"
    read = read_submission(again)
    assert read.level == "node"
    assert read.found.scores.values[:-1].equal(nodes.values[:-1])
    assert read.found.unscored == ()
    neurons = {name: torch.rand(64) for name in ("input", "m0")}
    given = gp.NodeScores(GRAPH, nodes.values, neurons)
    deep = write_submission(tmp_path, "mcqa", "interpbench", given, form=form)
    assert read_submission(deep).level == "neuron"
    assert read_submission(deep, level="node").found.scores.values[:-1].equal(nodes.values[:-1])
    with pytest.raises(gp.InputError, match="circuits of single neurons are read and written"):
        _ = read_submission(deep).found
    file = next(deep.iterdir())
    assert torch.allclose(from_mib_nodes(file, GRAPH).scores.neurons["m0"], neurons["m0"])
    assert {c.level for c in check_submission(tmp_path)} == {"edge", "node", "neuron"}
    problems = {c.folder: c.problem for c in check_submission(tmp_path)}
    assert problems.pop("ioi_interpbench") == ""
    # the evaluator runs InterpBench's model on ioi alone
    assert problems == {
        f"{task}_interpbench": f"MIB scores interpbench on ioi and skips {task}"
        for task in ("arc-easy", "mcqa")
    }


def circuits(extra=0):
    scores = random_scores(GRAPH)
    sizes = [max(1, int(s * GRAPH.num_edges)) for s in gp.MIB_SIZES[:-1]]
    return [scores.top(n + extra) for n in sizes]


@pytest.mark.parametrize("form", ["json", "pt"])
def test_nine_or_ten_circuits_come_back(tmp_path, form):
    nine = circuits()
    folder = write_submission(tmp_path / "a", "ioi", "interpbench", nine[::-1], form=form)
    assert len(list(folder.iterdir())) == 9
    assert list(read_submission(folder).found) == nine
    ten = [*nine, gp.EdgeMask.full(GRAPH)]
    folder = write_submission(tmp_path / "b", "ioi", "interpbench", ten, form=form)
    assert list(read_submission(folder).found) == ten
    (folder / "notes.md").write_text("not looked at")
    assert check_submission(tmp_path / "b")[0].level == "circuits"


def test_what_is_not_written(tmp_path):
    scores = random_scores(GRAPH)
    cases = [
        (("sorting", "gpt2", scores), "unknown task of MIB 'sorting'; known: ioi, mcqa"),
        (("ioi", "bert", scores), "unknown model of MIB 'bert'"),
        (("ioi", "gpt2", scores), "has 6 layers of 4 heads, MIB's gpt2 has 12 of 12"),
        (("ioi", "interpbench", circuits()[:5]), "expected nine circuits"),
        (("ioi", "interpbench", circuits(1)), "size 0.001 may have 1 of 1108 edges, but has 2"),
        (("ioi", "interpbench", []), "no circuits to write"),
    ]
    for args, message in cases:
        with pytest.raises(gp.InputError, match=message):
            write_submission(tmp_path, *args)
    assert not list(tmp_path.iterdir())
    write_submission(tmp_path, "ioi", "interpbench", scores)
    with pytest.raises(gp.InputError, match="has circuit files already"):
        write_submission(tmp_path, "ioi", "interpbench", scores, form="pt")


def broken(change):
    def make(folder):
        path = next(folder.iterdir())
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return make


def second_file(folder):
    to_mib_json(random_scores(GRAPH), folder / "more.json", d_model=64)


BROKEN = [
    (broken(lambda c: c.pop("nodes")), r"missing keys \['nodes'\]"),
    (broken(lambda c: c["edges"].update(x=1)), "no edge 'x'"),
    (broken(lambda c: c["edges"]["input->m0"].pop("score")), "should have score and in_graph"),
    (broken(lambda c: c["edges"]["input->m0"].update(score=float("nan"))), "no score .NaN."),
    (broken(lambda c: [e.update(score=2.0) for e in c["edges"].values()]), "constant scores"),
    (broken(lambda c: c["cfg"].update(n_heads=3)), "6 layers of 3 heads, MIB's interpbench has"),
    (broken(lambda c: c["cfg"].pop("d_model")), "cfg should say n_layers"),
    (broken(lambda c: c["cfg"].update(d_model=32)), "d_model is 32, MIB's interpbench has 64"),
    (broken(lambda c: c["nodes"].update(m9={"in_graph": True})), r"have besides \['m9'\]"),
    (lambda folder: next(folder.iterdir()).write_text("{"), "no readable JSON|can be read safely"),
    (lambda folder: next(folder.iterdir()).unlink(), "has 0 files"),
    (second_file, "has 2 files"),
    (lambda folder: folder.rename(folder.with_name("ioi_bert")), "no model of MIB's"),
    (lambda folder: folder.rename(folder.with_name("sort_interpbench")), "no task of MIB's"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_check_says_what_is_wrong(tmp_path, change, message):
    folder = write_submission(tmp_path, "ioi", "interpbench", random_scores(GRAPH))
    other = write_submission(tmp_path / "x", "ioi", "interpbench", random_scores(GRAPH))
    other.rename(tmp_path / "other_ioi_interpbench")
    (tmp_path / "x").rmdir()
    change(folder)
    found = {c.folder: c for c in check_submission(tmp_path)}
    assert not found.pop("other_ioi_interpbench").problem
    (one,) = found.values()
    assert re.search(message, one.problem), one.problem


def test_a_pickle_is_not_loaded(tmp_path):
    folder = tmp_path / "ioi_interpbench"
    folder.mkdir()
    torch.save({"cfg": print}, folder / "importances.pt")
    assert "no .pt file that can be read safely" in check_submission(folder)[0].problem


def test_folders_with_nothing_to_check(tmp_path):
    with pytest.raises(gp.InputError, match="neither circuit files nor folders"):
        check_submission(tmp_path)
    with pytest.raises(gp.InputError, match="is not there"):
        check_submission(tmp_path / "none")


# -------------------------------------------------------------------- command line


def test_checking_from_the_command_line(tmp_path, capsys):
    write_submission(tmp_path, "ioi", "interpbench", random_scores(GRAPH))
    assert call("submission", tmp_path, "--json") == 0
    told = out_of(capsys)
    assert told["folders"][0]["level"] == "edge"
    assert "at least two tasks and two models" in told["note"]
    (tmp_path / "notes").mkdir()
    assert call("submission", tmp_path) == 1
    shown = capsys.readouterr().out
    assert "notes" in shown
    assert "fine" in shown
    assert call("submission", tmp_path, "--model", "x") == 2
    assert "needs both --model and --task" in capsys.readouterr().err


def test_auroc_from_the_command_line(tmp_path, capsys):
    scores, truth = random_scores(GRAPH), random_scores(GRAPH, 3).connected(40)
    folder = write_submission(tmp_path, "ioi", "interpbench", scores)
    file = to_mib_json(truth, tmp_path / "truth.json", d_model=64)
    assert call("submission", folder, "--truth", file, "--json") == 0
    told = out_of(capsys)
    names = [GRAPH.edge_names[i] for i in range(GRAPH.num_edges)]
    assert told["true_edges"] == 40
    assert told["auroc"] == pytest.approx(gp.auroc(scores, truth))
    assert told["mib_auroc"] == pytest.approx(gp.mib_auroc(scores, truth))
    assert len(names) == 1108


def test_scoring_from_the_command_line(tmp_path, capsys):
    """A folder of no model of the benchmark's is scored all the same, and on hub-format prompts."""
    model_dir = save_model(tmp_path / "model", num_key_value_heads=4)
    data = put(tmp_path / "ioi" / "data", ioi_rows(), "test").parent
    from transformers import AutoModelForCausalLM

    model = gp.wrap(AutoModelForCausalLM.from_pretrained(model_dir).eval())
    task = gp.tasks.mib(data, byte_bpe(), split="test")
    scores = gp.EAP().score(model, task)
    folder = tmp_path / "submission"
    folder.mkdir()
    to_mib_json(scores, folder / "importances.json", d_model=16)
    capsys.readouterr()
    arguments = ("--model", model_dir, "--task", data, "--task-set", "split=test")
    assert call("submission", folder, *arguments, "--json") == 0
    told = out_of(capsys)
    expected = gp.faithfulness_curve(model, task, scores)
    assert told["cpr"] == pytest.approx(expected.cpr, abs=1e-4)
    assert told["cmd"] == pytest.approx(expected.cmd, abs=1e-4)
    assert told["cmd_log"] == pytest.approx(expected.cmd_log, abs=1e-4)
    assert told["level"] == "edge"
    assert told["prompts"] == len(task)
    assert call("submission", folder, *arguments) == 0
    assert "cpr" in capsys.readouterr().out
