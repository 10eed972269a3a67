"""Atomic writes: killed before each of their file-system events; digests of what was written."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.exporting import circuits
from support.processes import in_a_process
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.errors import FormatError, InputError
from graphprune.search.checkpoint import RunDirectory, RunState
from graphprune.study.saved_rankings import RankingCost, SavedRankings
from graphprune.util import files

pytestmark = pytest.mark.inside
LINUX = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


# -------------------------------------------------------------------- kills


# What is written, whether folders can be exchanged, whether there are files of others.
CASES = ["saves,yes,no", "saves,no,no", "saves,no,yes", "saves,yes,yes"]
CASES += ["discover,yes,no", "new,yes,no", "runs,yes,no"]


def run_cases(folder, cases):
    """What each kill of each case left, in words: all in one process, which forks."""
    done = in_a_process("-m", "inside.killing", folder, *cases)
    assert done.returncode == 0, done.stderr
    words = {}
    for part in done.stdout.split("case ")[1:]:
        case, said = part.split("\n", 1)
        words[case] = json.loads(said.split("words", 1)[1])
        assert words[case].pop() == "status 0", done.stderr
    return words


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("kills"), CASES)


def turns_once(words, before, after):
    """All kills up to some event leave ``before``, all later ones ``after``; both do occur."""
    turn = words.index(after[0]) if after[0] in words else len(words)
    first = min([turn, *(words.index(word) for word in after if word in words)])
    assert set(words[:first]) <= set(before), words
    assert set(words[first:]) <= set(after), words
    assert 0 < first < len(words), words


@LINUX
@pytest.mark.parametrize("what", ["saves", "discover"])
def test_a_kill_at_any_event_leaves_the_old_files_or_the_new(what, kills):
    turns_once(kills[f"{what},yes,no"], ["old"], ["new"])


@LINUX
@pytest.mark.slow
def test_kills_of_export_model(tmp_path):
    turns_once(run_cases(tmp_path, ["models,yes,no"])["models,yes,no"], ["old"], ["new"])


@LINUX
@pytest.mark.parametrize("case", CASES[1:4])
def test_where_folders_cannot_be_exchanged_reading_completes(case, kills):
    words = kills[case]
    turns_once(words, ["old"], ["new, completed", "new"])
    assert "new, completed" in words  # of the events after the one that decides


@LINUX
@pytest.mark.parametrize("what", ["new", "runs"])
def test_kills_of_a_first_write(what, kills):
    turns_once(kills[f"{what},yes,no"], ["none"], ["new"])


def test_what_kills_left_goes_after_a_day_and_is_in_nobodys_way(tmp_path):
    old, new = circuits()
    left = files.beside(tmp_path / "c"), files.beside(tmp_path / "c" / "circuit.csv")
    for path in left:
        path.mkdir(parents=True)
    old.save(tmp_path / "c")  # a folder with nothing but leftovers is empty
    for path in left:
        path.mkdir(parents=True, exist_ok=True)
    new.save(tmp_path / "c", overwrite=True)
    for path in left:
        os.utime(path, (0, 0)) if path.exists() else None
    mine = tmp_path / ".c.notes.tmp"
    mine.write_text("mine")
    os.utime(mine, (0, 0))
    old.save(tmp_path / "c", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [mine.name, "c"]


# -------------------------------------------------------------------- flipped bits


def flips(path):
    """The file with one bit flipped, in every 8th byte."""
    whole = path.read_bytes()
    for number, place in enumerate(range(0, len(whole), 8)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << number % 8
        path.write_bytes(damaged)
        yield place
    path.write_bytes(whole)


def told(read):
    """The sentence of a refusal; nothing where there is none."""
    try:
        read()
    except FormatError as error:
        return str(error)
    return ""


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    about = {"format": "graphprune-run", "version": 3}
    run = RunDirectory(tmp_path, about)
    tensors = {"gates": torch.randn(50), "optimiser.0.step": torch.tensor(3.0)}
    run.save(RunState(7, tensors, {"best": [0.25, None], "words": "é"}))
    path = tmp_path / "checkpoint.safetensors"
    for place in flips(path):
        assert re.search(r"checkpoint\.safetensors: .*delete it and the run", told(run.load)), place
    found = run.load()
    assert found.step == 7
    assert found.notes == {"best": [0.25, None], "words": "é"}
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)


def test_checkpoints_without_a_digest_are_refused(tmp_path):
    from safetensors.torch import save

    about = {"format": "graphprune-run", "version": 3}
    run = RunDirectory(tmp_path, about)
    old = save({"gates": torch.zeros(3)}, {"graphprune": json.dumps({"step": 1})})
    (tmp_path / "checkpoint.safetensors").write_bytes(old)
    with pytest.raises(FormatError, match="no checkpoint"):
        run.load()
    (tmp_path / "run.json").write_text(json.dumps({**about, "version": 2}))
    with pytest.raises(FormatError, match=r"version 2 .* cannot be resumed.*name another folder"):
        RunDirectory(tmp_path, about)


def test_a_flipped_bit_of_a_ranking_is_found(tmp_path):
    graph = transformer_graph(1, 2, 1)
    scores, rankings = random_scores(graph), SavedRankings(tmp_path, "case")
    rankings.keep(gp.EAP(), scores, RankingCost(1.0, 2.0))
    (path,) = (tmp_path / "scores").iterdir()
    for place in flips(path):
        words = told(lambda: rankings.find(gp.EAP(), graph))
        assert re.search(f"{path.name}: .*Delete the file, and the study", words), place
    found, cost = rankings.find(gp.EAP(), graph)
    assert torch.equal(found.values, scores.values)
    assert (cost.seconds, cost.cpu_seconds, cost.mib) == (1.0, 2.0, None)
    with np.load(path) as parts:  # as any .npz file
        contents = dict(parts)
    np.savez_compressed(path, **contents)  # as it was before there was a digest
    with pytest.raises(FormatError, match="of a version that wrote no digest"):
        rankings.find(gp.EAP(), graph)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupted_save_leaves_what_was(tmp_path, monkeypatch, error, exists):
    target = tmp_path / "c"
    if exists:
        circuits()[0].save(target)

    def interrupted(*_):
        raise error("stop")

    monkeypatch.setattr(files, "_exchange", interrupted)
    monkeypatch.setattr(Path, "rename", interrupted)
    other = circuits()[1]
    with pytest.raises(InputError if error is OSError else error):
        other.save(target, overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["c"] if exists else [])
    if exists:
        assert gp.Circuit.load(target) == circuits()[0]


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    place = tmp_path / "a.txt"
    place.write_text("old")

    def write() -> None:
        with files.atomic_path(place) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]
