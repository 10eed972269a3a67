"""``graphprune test`` on a tiny saved model."""

import pytest
from support.cli import call, out_of, save_model

import graphprune as gp


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def circuit_dir(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuits") / "circuit"
    options = ("--method", "eap", "-n", 4, "--size", "0.2", "--out", folder, "-q", "--json")
    assert call("discover", "--model", model_dir, "--task", "ioi", *options) == 0
    return folder


def arguments(circuit_dir, model_dir):
    # Prompts of another seed than the circuit's: those that found it would be left out.
    base = ("test", circuit_dir, "--model", model_dir, "--task", "ioi", "--seed", 1)
    return (*base, "-n", 6, "--draws", 8)


def test_the_default_tests(circuit_dir, model_dir, capsys):
    assert call(*arguments(circuit_dir, model_dir), "--json") == 0
    document = out_of(capsys)
    assert list(document["findings"]) == [
        "equivalence", "independence", "minimality", "sufficiency", "necessity",
    ]  # fmt: skip
    circuit = gp.Circuit.load(circuit_dir)
    minimality = document["findings"]["minimality"]
    assert len(minimality["rows"]) == circuit.mask.num_kept
    assert 0 < minimality["p_value"] <= 1
    assert minimality["correction"] == f"Bonferroni over {circuit.mask.num_kept} edges"
    for found in document["findings"].values():
        assert found["rejected"] == (found["p_value"] <= 0.05)
        assert found["settings"]["examples"] == 6
        assert found["settings"]["ablation"] == "counterfactual"


def test_chosen_tests_and_a_table(circuit_dir, model_dir, capsys):
    base = arguments(circuit_dir, model_dir)
    assert call(*base, "--tests", "equivalence, controls", "--ablation", "zero", "-q") == 0
    said = capsys.readouterr()
    assert "zero ablation" in said.out
    # Eight controls of two kinds cannot reach .05: the smallest p-value is 2/9.
    assert "controls: underpowered: with these settings p is at least 0.22" in said.out
    assert said.out.count("draws=40 or more would tell") == 1
    assert 0.6**6 + 0.4**6 > 0.05  # six examples, all on one side
    assert "equivalence: underpowered: with these settings p is at least 0.051" in said.out
    assert "controls" in said.out
    assert "minimality" not in said.out
    assert said.err == ""
    assert call(*base, "--tests", "equivalence", "--metric", "kl", "--alpha", "0.5", "--json") == 0
    found = out_of(capsys)["findings"]["equivalence"]
    assert found["settings"]["metric"] == "kl"
    assert found["alpha"] == 0.5


def test_the_same_seed_gives_the_same_numbers(circuit_dir, model_dir, capsys):
    base = (*arguments(circuit_dir, model_dir), "--tests", "minimality,sufficiency", "--json")
    base += ("-n", 4, "--draws", 4)
    documents = []
    for seed in (1, 1, 2):
        assert call(*base, "--seed", seed) == 0
        documents.append(out_of(capsys))
    assert documents[0] == documents[1] != documents[2]


def test_what_cannot_be_tested(circuit_dir, model_dir, tmp_path, capsys):
    base = arguments(circuit_dir, model_dir)
    for options, words, code in (
        (("--tests", "beauty"), "--tests: unknown test 'beauty'; known: equivalence, indep", 2),
        (("--tests", ","), "--tests: unknown test", 2),
        (("--alpha", "2"), "Invalid value for '--alpha'", 2),
        (("--ablation", "sum"), "unknown ablation", 2),
        (("--tests", "independence", "-n", "2"), "at least 4 examples", 1),
    ):
        assert call(*base, *options) == code
        assert words in capsys.readouterr().err
    deeper = save_model(tmp_path / "deeper", num_hidden_layers=3)
    assert call("test", circuit_dir, "--model", deeper, "--task", "ioi") == 1
    assert "different graphs" in capsys.readouterr().err
    assert call(*base, "--draws", "0") == 2
