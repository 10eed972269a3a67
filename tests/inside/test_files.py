"""Atomic writes: killed before each of their file-system events; digests of what was written."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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
CASES += ["discover,yes,no", "new,yes,no", "runs,yes,no", "checkpoints,yes,no"]
MORE = ["exports", "models", "fetch", "study", "pruning", "acdc"]  # by `pytest -m kill`


def run_cases(folder, cases, timeout=300):
    """What each kill of each case left, in words: all in one process, which forks."""
    done = in_a_process("-m", "inside.killed_writes", folder, *cases, timeout=timeout)
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
@pytest.mark.parametrize("what", ["saves", "discover", "checkpoints"])
def test_a_kill_at_any_event_leaves_the_old_files_or_the_new(what, kills):
    turns_once(kills[f"{what},yes,no"], ["old"], ["new"])


@LINUX
@pytest.mark.kill
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path):
    """Before every event of all else that is written."""
    words = {}
    for what in MORE:
        (tmp_path / what).mkdir()
        start = time.monotonic()
        words[what] = run_cases(tmp_path / what, [f"{what},yes,no"], 1800)[f"{what},yes,no"]
        print(f"{what}: {len(words[what])} kills in {time.monotonic() - start:.0f} s")
    turns_once(words["models"], ["old"], ["new"])
    turns_once(words["fetch"], ["none"], ["new"])
    assert words["exports"] == sorted(words["exports"])
    assert {words["exports"][0], words["exports"][-1]} == {"0 new", "8 new"}
    assert words["study"] == sorted(words["study"])
    assert {words["study"][0], words["study"][-1]} == {"0 finished", "4 finished"}
    for what in ("pruning", "acdc"):
        turns_once(words[what], ["none", "on the way"], ["found"])
        assert "on the way" in words[what]
    assert sum(map(len, words.values())) >= 200, {k: len(v) for k, v in words.items()}


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


@LINUX
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    """At once, where its process is no more; what a living one writes stays."""
    gone = in_a_process("-c", "import os; print(os.getpid())").stdout.strip()
    alive = files.beside(tmp_path / "a.csv")
    dead = alive.with_name(alive.name.replace(f"-{os.getpid()}-", f"-{gone}-"))
    elsewhere = dead.with_name(dead.name.replace(files._machine(), "0" * 6))
    assert len({alive, dead, elsewhere}) == 3
    for path in (alive, dead, elsewhere):
        path.write_text("half")
    files.write_text(tmp_path / "b.csv", "another file")
    assert dead.exists()
    files.write_text(tmp_path / "a.csv", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {
        "a.csv", "b.csv", alive.name, elsewhere.name,
    }  # fmt: skip
    with files.scratch_folder(tmp_path) as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
    files.remove_stale(tmp_path)
    assert alive.exists()


def test_a_write_that_fails_says_where_and_how_far_it_came(tmp_path):
    def write(atomic, name):
        with atomic(tmp_path / name) as path:
            (path / "a" if path.is_dir() else path).write_text("half")
            raise OSError(28, "No space left on device")

    sentence = r"No space left on device \(after 4 bytes; [\d,]+ are free there\)"
    with pytest.raises(InputError, match=rf"cannot write .*a\.csv: {sentence}"):
        write(files.atomic_path, "a.csv")
    with pytest.raises(InputError, match=rf"cannot write to .*c: {sentence}"):
        write(files.atomic_folder, "c")
    assert not list(tmp_path.iterdir())


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
    save_file(load_file(path), path)  # as any safetensors file, and one without notes
    with pytest.raises(FormatError, match=f"{path.name}: .*Delete the file"):
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
