"""``graphprune compare``: tables, files, JSON, and what it refuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from support.cli import call, out_of
from transformer_graph import random_scores, transformer_graph

import graphprune as gp

FILES = [
    "comparison.csv", "overlap.png", "profile.csv", "profile.png", "profile_differences.csv",
    "profile_distances.csv",
]  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    made = {}
    for name, graph, seed in (
        ("one", transformer_graph(3, 2), 1),
        ("two", transformer_graph(3, 2), 2),
        ("deep", transformer_graph(5, 2), 3),
    ):
        scores = random_scores(graph, seed)
        made[name] = gp.Circuit.from_mask(scores.top(30), scores=scores).save(tmp_path / name)
    plain = gp.EdgeMask.from_edges(transformer_graph(3, 2), ["input->m0", "m0->logits"])
    made["plain"] = gp.Circuit.from_mask(plain).save(tmp_path / "plain")
    return made


def test_json_and_files(folders, tmp_path, capsys):
    out = tmp_path / "out"
    code = call("compare", *(folders[n] for n in ("one", "two", "plain")), "--out", out, "--json",
                "--samples", 5)  # fmt: skip
    assert code == 0
    document = out_of(capsys)
    circuits = {name: gp.Circuit.load(folders[name]) for name in ("one", "two", "plain")}
    found = gp.compare_circuits(circuits, samples=5)
    assert document["comparison"] == json.loads(json.dumps(found.to_dict()))
    assert document["not_compared"] is None
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert document["files"] == [str(out / name) for name in FILES]
    table = pd.read_csv(out / "comparison.csv")
    assert list(table["shared"]) == [pair.shared for pair in found.pairs]
    assert table["jaccard"].to_numpy() == pytest.approx([p.jaccard for p in found.pairs])
    profile = pd.read_csv(out / "profile.csv")
    assert set(profile["circuit"]) == set(circuits)
    assert profile.groupby(["circuit", "axis"])["kept"].sum()["one", "kind"] == 30
    assert (out / "overlap.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*folders, "out"])


def test_tables(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert call("compare", folders["one"], folders["two"], "--quiet", "--samples", 0) == 0
    said = capsys.readouterr()
    pair = gp.compare_circuits(
        {name: gp.Circuit.load(folders[name]) for name in ("one", "two")}, samples=0
    ).pairs[0]
    assert "one | two" in said.out
    assert f"{pair.jaccard:.3f}" in said.out
    assert f"{pair.nulls['uniform'].jaccard:.4f}" in said.out
    assert said.err == ""


def test_models_that_differ_are_compared_by_profile(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "out"
    assert call("compare", folders["one"], folders["two"], "--out", out, "--quiet") == 0
    capsys.readouterr()
    arguments = ("compare", folders["one"], folders["deep"], "--out", out, "--json")
    assert call(*arguments) == 2
    assert "not empty; name another, or say --overwrite" in capsys.readouterr().err
    assert call(*arguments, "--overwrite", "--bins", 2) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["comparison"] is None
    assert "one and deep belong to graphs with other edges" in document["not_compared"]
    assert "Their profiles by relative depth and kind follow" in said.err
    assert document["profiles"]["axes"][0] == "source_depth"
    # Nothing of the first comparison is left that does not belong to this one.
    left = ["profile.csv", "profile.png", "profile_differences.csv", "profile_distances.csv"]
    assert sorted(path.name for path in out.iterdir()) == left
    differences = pd.read_csv(out / "profile_differences.csv")
    assert {"0-50%", "50-100%"} <= set(differences["group"])
    distances = pd.read_csv(out / "profile_distances.csv").set_index("axis")
    found = document["profiles"]["differences"][0]
    assert distances["corrected"].to_dict() == pytest.approx(found["corrected"])
    assert distances["graph_distance"].to_dict() == pytest.approx(found["graph_distance"])
    # What the table shows: beyond chance, and the whole graphs beside it.
    assert call("compare", folders["one"], folders["deep"], "--quiet") == 0
    shown = capsys.readouterr().out
    assert "how differently one and deep choose" in shown
    assert "beyond chance" in shown
    assert "whole graphs" in shown


def test_kinds_without_a_like_are_said_to_have_no_distance(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    graph = gp.ComputationalGraph.from_edges(
        [(f"{n}.{i}", f"{n + 1}.{j}") for n in range(4) for i in range(3) for j in range(3)]
    )
    plain = gp.Circuit.from_mask(random_scores(graph).top(8)).save(tmp_path / "network")
    assert call("compare", folders["one"], plain) == 0
    shown = capsys.readouterr()
    words = "one | network: no distance by source kind: no group in common: embed, head, mlp in the"
    assert words in shown.out
    assert "depth is not measured alike: layer in one, depth in network" in shown.err


def test_strata(folders, capsys):
    pair = (folders["one"], folders["two"])
    assert call("compare", *pair, "--strata", "kind", "--json", "--samples", 0) == 0
    assert out_of(capsys)["comparison"]["strata"] == ["kind"]
    assert call("compare", *pair, "--strata", "layer") == 2
    assert "unknown axis" in capsys.readouterr().err


def test_refusals(folders, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine", encoding="utf-8")
    for arguments, words in (
        ((folders["one"],), "at least two circuits' folders"),
        ((folders["one"], folders["one"]), "a folder is named twice"),
        ((folders["one"], tmp_path / "nowhere"), "nowhere"),
        ((folders["one"], folders["two"], "--out", mine), "exists and is not empty"),
        ((folders["one"], folders["two"], "--out", mine, "--overwrite"), "is not empty"),
        ((folders["one"], folders["two"], "--out", mine / "notes.txt"), "is a file"),
    ):
        assert call("compare", *arguments) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert said.out == ""
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_a_failed_write_leaves_nothing(folders, tmp_path, capsys, monkeypatch):
    from graphprune.comparison import ProfileComparison

    def broken(self, path=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ProfileComparison, "plot", broken)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert call("compare", folders["one"], folders["two"], "--out", tmp_path / "out") == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_folders_of_one_name_go_by_their_paths(folders, tmp_path, capsys):
    other = tmp_path / "deeper" / "one"
    gp.Circuit.load(folders["two"]).save(other)
    assert call("compare", folders["one"], other, "--json", "--samples", 0) == 0
    assert list(out_of(capsys)["circuits"]) == [str(folders["one"]), str(other)]


def test_tables_fit_eighty_columns_with_every_number_in_one_piece(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert call("compare", folders["one"], folders["two"], "--samples", 0, "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("distance", "beyond", "chance", "whole", "graphs", "Jaccard", "degrees"):
        assert f"{word} " in text
    profiles = gp.compare_profiles({n: gp.Circuit.load(folders[n]) for n in ("one", "two")}, seed=0)
    for row in profiles.distances_frame().itertuples():
        if row.distance == row.distance:
            assert any(
                f" {row.axis.replace('_', ' ')} " in line and f" {row.distance:.3f} " in line
                for line in lines
            )
