"""How the command line ends: bad input, Ctrl-C, usage, and the speed of --help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.cli import call, out_of, save_circuit, save_model

COMMANDS = (
    "demo", "fetch", "discover", "evaluate", "test", "compare", "show", "export", "export-model",
    "plan", "study", "submission", "info",
)  # fmt: skip
# A shell's background jobs ignore Ctrl-C, and so would their children.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PROGRAM = [sys.executable, "-c", f"{HEARS}; from graphprune.cli import main; main()"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def refused(capsys, *arguments: object, code: int = 2) -> str:
    """The sentence on stderr of a command that prints nothing else; 2: what was given is wrong."""
    assert call(*arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "unexpected" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "ioy"), "unknown task 'ioy'; did you mean 'ioi'? Known: ioi, greater_than"),
        (("--task", "missing.jsonl"), "missing.jsonl"),
        (("--task", "."), "unknown task"),
        (
            ("--method", "eapig"),
            "unknown method 'eapig'; did you mean 'eap-ig'? Known: acdc, attention-explainer",
        ),
        (
            ("--metric", "logits"),
            "unknown metric 'logits'; did you mean 'logit_diff'? Known: logit_diff",
        ),
        (("--ablation", "none"), "unknown ablation 'none'; known: counterfactual"),
        (("--set", "step=5"), "no setting 'step'; did you mean 'steps'? It has: ablation"),
        (("--set", "steps"), "--set expects NAME=VALUE"),
        (("--set", "steps=many"), "steps='many' does not fit"),
        (("--set", "steps=0"), "steps must be an integer of at least 1"),
        (("--set", "points_at=middle"), "points_at='middle' does not fit"),
        (("--set", "steps=1", "--set", "steps=2"), "'steps' twice"),
        (("--set", "ablation=zero", "--ablation", "zero"), "say the same"),
        (("--task-set", "colour=red"), "no setting 'colour'"),
        (("--task-set", "corruption=abd"), "does not fit"),
        (("--task", "capitals", "--task-set", "style=chat"), "style='chat' does not fit"),
        (("--task", "capitals", "--task-set", "colour=red"), "it has: style, shots, templates"),
        (("--size", "0"), "at least one edge"),
        (("--size", "0.0"), "density in (0, 1]"),
        (("--size", "1.5"), "density in (0, 1]"),
        (("--size", "nan"), "density in (0, 1]"),
        (("--size", "many"), "--size expects"),
        (("--size", "100000"), "from 0 to"),
        (("--select", "threshold"), "needs --threshold"),
        (("--threshold", "0.1"), "is for --select threshold"),
        (("--select", "nodes"), "scores no nodes"),
        (("--device", "cuda:9"), "the device cuda:9 cannot be used"),
        (("--device", "nonsense"), "the device nonsense cannot be used"),
        (("--export", "graphml,docx"), "unknown export 'docx'; known: graphml"),
        (("--held-out", "0.01", "-n", "4"), "both parts need at least one"),
        (("--task", "capitals", "-n", "9999"), "ask for n="),
    ],
)
def test_discover_refuses(model_dir, tmp_path, capsys, options, words):
    out = tmp_path / "c"
    arguments = {"--model": model_dir, "--task": "ioi", "-n": 4, "--out": out}
    base = [part for key, value in arguments.items() if key not in options
            for part in (key, value)]  # fmt: skip
    assert words in refused(capsys, "discover", *base, *options)
    assert list(tmp_path.iterdir()) == []


def test_pairs_that_share_all_their_prompts_need_held_out_0(model_dir, tmp_path, capsys):
    one, other = "the park and the park", "the store and the park"
    pair = {"clean": one, "corrupt": other, "answer": " park", "distractor": " store"}
    twin = {"clean": other, "corrupt": one, "answer": " store", "distractor": " park"}
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in [pair, twin] * 5))
    out = tmp_path / "c"
    arguments = ("--model", model_dir, "--task", file, "--method", "eap", "--out", out)
    assert "On the command line: --held-out 0" in refused(capsys, "discover", *arguments)
    assert call("discover", *arguments, "--size", "0.5", "--held-out", "0", "--json") == 0
    assert out_of(capsys)["train_prompts"] == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "1"), "no edge is left"),
        (("--metric", "kl", "--method", "eap"), "zero gradient at the full model"),
    ],
)
def test_a_job_that_cannot_be_done_ends_with_1(model_dir, tmp_path, capsys, options, words):
    arguments = ("--model", model_dir, "--task", "ioi", "-n", 4, "--out", tmp_path / "c")
    assert words in refused(capsys, "discover", *arguments, *options, code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "ioy"), "unknown task 'ioy'"),
        (("--method", "eapig"), "unknown method 'eapig'; did you mean 'eap-ig'?"),
        (("--metric", "logits"), "unknown metric 'logits'"),
        (("--ablation", "sum"), "unknown ablation 'sum'"),
        (("--select", "gredy"), "unknown selector 'gredy'; did you mean 'greedy'?"),
        (("--export", "grapml"), "unknown export 'grapml'; did you mean 'graphml'?"),
        (("--task-set", "corruption=abd"), "does not fit"),
        (("--device", "cuda:9"), "cannot be used"),
        (("--model", "argnn-digit"), "Did you mean 'argnn-digits'?"),
    ],
)
def test_names_are_checked_before_a_model_is_loaded(
    model_dir, tmp_path, capsys, monkeypatch, options, words
):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)
    given = {"--model": model_dir, "--task": "ioi", "--out": tmp_path / "c"}
    given |= dict([options])
    arguments = [part for pair in given.items() for part in pair]
    assert words in refused(capsys, "discover", *arguments)


def test_names_are_read_whatever_their_case(model_dir, tmp_path, capsys):
    names = ("--task", "IOI", "--method", "EAP", "--metric", "Logit-Diff", "--ablation", "Zero",
             "--select", "Greedy", "--by", "ABS", "--dtype", "Float32",
             "--export", "GraphML")  # fmt: skip
    out = tmp_path / "c"
    arguments = ("--model", model_dir, "-n", 4, "--size", "0.5", "--out", out, "--json")
    assert call("discover", *arguments, *names) == 0, capsys.readouterr().err
    found = out_of(capsys)
    assert found["method"] == "EAP(ablation='zero')"
    assert (out / "circuit.graphml").exists()
    assert call("export", out, "--to", "CSV", "--json") == 0
    assert out_of(capsys)["files"] == [str(out / "circuit.csv")]
    assert call("info", "--method", "Edge_Pruning", "--task", "Greater-Than", "--json") == 0
    found = out_of(capsys)
    assert found["method"]["method"] == "edge-pruning"
    assert found["task"]["name"] == "greater_than"
    tests = ("--tests", "Sufficiency", "--draws", 2, "--json")
    assert call("test", out, "--model", model_dir, "--task", "ioi", "-n", 4, *tests) == 0
    assert list(out_of(capsys)["findings"]) == ["sufficiency"]


@pytest.mark.parametrize("offline", [True, False])
def test_an_unknown_model_fails_at_once_and_says_where_it_was_looked_for(
    tmp_path, capsys, monkeypatch, offline
):
    """With a hub that cannot be reached too: loading would ask it again and again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.chdir(tmp_path)
    for name in ("some/model", "nonsense"):
        start = time.perf_counter()
        words = refused(capsys, "discover", "--task", "ioi", "--out", "c", "--model", name)
        assert time.perf_counter() - start < 5, "asked once it takes a tenth of a second"
        assert f"no model {name!r}: no folder of this name is in {tmp_path}" in words
        assert "the hub's cache (" in words
        assert "the hub cannot be asked" in words
        assert "smollm2" in words
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_had(model_dir, tmp_path, capsys):
    base = ("discover", "--task", "ioi", "--out", tmp_path / "c", "--model")
    assert "is not there" in refused(capsys, *base, tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"cannot load the model '{empty}'" in refused(capsys, *base, empty, code=1)
    bare = save_model(tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert "cannot load the tokenizer" in refused(capsys, *base, bare, code=1)
    broken = save_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "cannot load the model" in refused(capsys, *base, broken, code=1)
    assert not (tmp_path / "c").exists()


def test_folders_that_exist_are_left_alone(model_dir, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine", encoding="utf-8")
    base = ("--model", model_dir, "--out", mine)
    for command in (("discover", "--task", "ioi"), ("demo",)):
        for more in ((), ("--overwrite",)):
            words = refused(capsys, *command, *base, *more)
            assert "holds no graphprune circuit" in words
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    words = refused(capsys, "discover", "--task", "ioi", "--model", model_dir, "--out", file)
    assert "is a file" in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_foreign_and_broken_circuits(model_dir, tmp_path, capsys):
    folder = save_circuit(tmp_path / "c", model_dir)
    capsys.readouterr()
    none = tmp_path / "none"
    for command in (
        ("evaluate", none, "--model", model_dir, "--task", "ioi"),
        ("export", none, "--to", "dot"),
        ("info", "--circuit", none),
    ):
        assert str(none) in refused(capsys, *command)
    (folder / "tensors.safetensors").write_bytes(b"broken")
    assert "tensors.safetensors" in refused(capsys, "export", folder, "--to", "dot", code=1)
    (folder / "circuit.json").write_text("{}", encoding="utf-8")
    assert "circuit.json" in refused(capsys, "info", "--circuit", folder, code=1)


def test_debug_shows_the_traceback(capsys):
    assert call("info", "--task", "nonsense", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("discover",), ("discover", "--task"), ("info", "--colour"),
     ("demo", "--examples", "many"), ("demo", "--examples", "1"),
     ("discover", "--model", "m", "--task", "t", "--out", "o", "--select", "best")],
)  # fmt: skip
def test_wrong_usage_ends_with_2(capsys, arguments):
    assert call(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err


def test_help_and_version(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown
    for name in COMMANDS:
        assert f" {name} " in shown
        assert call(name, "--help") == 0
        helped = capsys.readouterr().out
        assert "Usage" in helped
        assert helped.count(f"\n graphprune {name}") == 2, "two examples"
        assert "─ Output ─" in helped
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("graphprune 0.")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_loads_nothing_heavy(command):
    check = (
        "import sys\nfrom graphprune.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'scipy', 'networkx'}\n"
        "sys.stderr.write(','.join(sorted(heavy & set(sys.modules))))\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", check, *command, "--help"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    assert done.stderr == ""
    assert "Usage" in done.stdout
    assert seconds < 10, "idle it takes 0.3 s"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child process")
@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [("loading", "SIGINT", 130), ("patching", "SIGINT", 130), ("patching", "SIGTERM", 143)],
)
def test_ctrl_c_and_sigterm_leave_nothing(model_dir, tmp_path, moment, number, code):
    """While torch and the model load, and while edges are patched one by one."""
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["discover", "--model", model_dir, "--task", "ioi", "-n", 500]
    arguments += ["--method", "exact-patching", "--set", "candidates=1"]
    arguments += ["--out", work / "deep" / "c"]
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    words = "loading" if moment == "loading" else "ExactPatching"
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, f"ended before: {seen}"
        seen += line
    time.sleep(0.3)
    process.send_signal(getattr(signal, number))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, seen + err
    assert out == ""
    assert "Traceback" not in seen + err
    assert "stopped" in err
    assert list(work.iterdir()) == []


def test_a_whole_size_counts_and_a_fraction_shares(model_dir, tmp_path, capsys):
    found = {}
    for size in ("1", "1.0"):
        arguments = ("--task", "ioi", "-n", 2, "--method", "random", "--size", size, "--json")
        out = ("--keep-dead-ends", "--out", tmp_path / size)
        assert call("discover", "--model", model_dir, *arguments, *out) == 0
        found[size] = out_of(capsys)
    assert found["1"]["selected"] == 1
    assert found["1.0"]["selected"] == found["1.0"]["graph_edges"]
