"""What :class:`~inside.killing.every_kill` kills, and what must hold after each: a function each.

Run as a program with a folder and cases ``what,exchange,foreign``: whether folders can be exchanged
in one step, and whether there are files of others.
"""

import csv
import os
import shutil
import sys
from pathlib import Path

from inside.killing import every_kill, looker, require_tidy, snapshot
from support.exporting import circuits


def kill_saves(root, exchange, foreign):
    from graphprune import Circuit

    old, new = circuits()
    folder = root / "c"
    new.save(folder)
    after = snapshot(folder)
    shutil.rmtree(folder)
    old.save(folder)
    if foreign:
        (folder / "mine").mkdir()
        (folder / "mine" / "notes.txt").write_text("mine")
        after["mine/notes.txt"] = b"mine"

    def load():
        circuit = Circuit.load(folder)
        assert circuit in (old, new)

    def save():
        new.save(folder, overwrite=True)

    with every_kill(root, looker(root, folder, snapshot(folder), after, load, save), exchange):
        save()


def kill_new(root, exchange, foreign):
    """The first save: nothing or the whole circuit, and no second one in its way."""
    from graphprune import Circuit

    circuit = circuits()[0]

    def look():
        there = (root / "c").exists()
        if there:
            assert Circuit.load(root / "c") == circuit
        circuit.save(root / "c", overwrite=there)
        require_tidy(root)
        return "new" if there else "none"

    with every_kill(root, look, exchange):
        circuit.save(root / "c")


def kill_models(root, exchange, foreign):
    """The folder of ``export-model``; making the program itself is left out."""
    import torch
    from support.exporting import drawn, system

    from graphprune import Circuit
    from graphprune.export import model as exporting

    model, _ = system("gpt2", torch.float32)
    old, new = (Circuit.from_mask(drawn(model, share), model=model) for share in (0.3, 0.6))
    exporting._write_program = lambda pruned, path: path.write_bytes(
        str(exporting.parameter_count(pruned.module)).encode() * 50
    )
    exporting._read_back = lambda pruned, path: None
    exporting.compare = lambda *_: {}
    folder = root / "out"
    new.export_model(folder)
    after = snapshot(folder)
    old.export_model(folder, overwrite=True)
    before = snapshot(folder)
    assert before["model.pt2"] != after["model.pt2"]

    def load():
        assert Circuit.load(folder / "circuit").mask in (old.mask, new.mask)

    def export():
        new.export_model(folder, overwrite=True)

    with every_kill(root, looker(root, folder, before, after, load, export), exchange):
        export()


def kill_discover(root, exchange, foreign):
    import contextlib
    import io

    from support.cli import call, save_model

    from graphprune import Circuit

    model = save_model(root.parent / f"{root.name}-model", seed=3)
    folder = root / "out"
    command = (
        "discover", "--model", model, "--task", "ioi", "--method", "eap", "--examples", 4,
        "--export", "csv", "--out", folder, "--overwrite", "-q", "--size",
    )  # fmt: skip

    def look():
        circuit = Circuit.load(folder)
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        assert names == ["circuit.csv", "circuit.json", "tensors.safetensors"]
        with (folder / "circuit.csv").open(newline="") as file:
            kept = sum(float(row["kept"]) > 0 for row in csv.DictReader(file))
        assert kept == circuit.mask.num_kept
        return {30: "old", 60: "new"}[kept]

    with contextlib.redirect_stdout(io.StringIO()):
        assert call(*command, 30) == 0
    with every_kill(root, look, exchange):
        call(*command, 60)


def kill_runs(root, exchange, foreign):
    """A run's first file and its first checkpoint."""
    import torch

    from graphprune.search.checkpoint import RunDirectory, RunState

    about = {"format": "graphprune-run", "version": 3, "settings": {"steps": 4}}
    state = RunState(2, {"gates": torch.arange(9.0)}, {"best": [1, 2]})

    def look():
        found = RunDirectory(root / "run", about).load()
        require_tidy(root)
        if found is None:
            return "none"
        assert torch.equal(found.tensors["gates"], state.tensors["gates"])
        assert (found.step, found.notes) == (2, {"best": [1, 2]})
        return "new"

    with every_kill(root, look, exchange):
        RunDirectory(root / "run", about).save(state)


def kill_checkpoints(root, exchange, foreign):
    """A run's second checkpoint: the first or the second, every bit of it."""
    import torch

    from graphprune.search.checkpoint import RunDirectory, RunState

    about = {"format": "graphprune-run", "version": 3, "settings": {"steps": 4}}
    first, second = (
        RunState(step, {"gates": torch.arange(9.0) + step}, {"best": step}) for step in (2, 4)
    )
    run = RunDirectory(root / "run", about)
    run.save(first)

    def look():
        found = RunDirectory(root / "run", about).load()
        require_tidy(root)
        state = {2: first, 4: second}[found.step]
        assert torch.equal(found.tensors["gates"], state.tensors["gates"])
        assert found.notes == state.notes
        return "old" if found.step == 2 else "new"

    with every_kill(root, look, exchange):
        run.save(second)


def kill_exports(root, exchange, foreign):
    """A file in every format that a circuit is exported to: each the old or the new one."""
    from graphprune.export import export

    old, new = circuits()
    names = ["a.csv", "a.dot", "a.graphml", "a.gexf", "a.json", "a.html", "a.mib.json", "a.pt"]
    whole = {}
    for circuit in (new, old):
        for name in names:
            width = {"d_model": 8} if name in ("a.mib.json", "a.pt") else {}
            whole.setdefault(name, []).append(export(circuit, root / name, **width).read_bytes())

    def write():
        for name in names:
            export(new, root / name, **({"d_model": 8} if name in ("a.mib.json", "a.pt") else {}))

    def look():
        states = [whole[name].index((root / name).read_bytes()) for name in names]
        write()
        require_tidy(root)
        assert states == sorted(states)  # in this order they are written
        return f"{states.count(0)} new"

    with every_kill(root, look, exchange):
        write()


def kill_search(root, exchange, foreign, *method):
    """A search with checkpoints: whatever a kill left, the same command ends in the same bits."""
    import contextlib
    import io

    from support.cli import call, save_model

    from graphprune import Circuit

    model = save_model(root.parent / f"{root.name}-model", seed=3)
    command = (
        "discover", "--model", model, "--task", "ioi", "--examples", 4, "-q", "--overwrite",
        *method,
    )  # fmt: skip

    def run(name):
        folders = ("--run-dir", root / f"{name}-run", "--out", root / name)
        with contextlib.redirect_stdout(io.StringIO()):
            assert call(*command, *folders) == 0
        return (root / name / "tensors.safetensors").read_bytes()

    straight = run("straight")

    def look():
        whole = (root / "out").exists()
        if whole:
            Circuit.load(root / "out")
        resumed = (root / "out-run" / "checkpoint.safetensors").exists()
        assert run("out") == straight
        require_tidy(root)
        return "found" if whole else "on the way" if resumed else "none"

    with every_kill(root, look, exchange):
        run("out")


def kill_pruning(root, exchange, foreign):
    options = ("--method", "edge-pruning", "--size", 40, "--set", "steps=3")
    kill_search(root, exchange, foreign, *options, "--set", "checkpoint_every=1")


def kill_acdc(root, exchange, foreign):
    kill_search(root, exchange, foreign, "--method", "acdc", "--set", "tau=0.01")


def kill_study(root, exchange, foreign):
    """Jobs that were finished stay, byte by byte, and the tables are those of one run."""
    import logging

    from support.studies import figures, small_plan

    from graphprune.study import Study

    logging.disable(logging.WARNING)
    plan = {**small_plan(root.parent / f"{root.name}-study"), "densities": [0.5]}
    study = Study.from_dict(plan)
    straight = [figures(record) for _, record in study.run(root / "straight").records]

    def look():
        jobs = root / "out" / "jobs"
        finished = {p: p.read_bytes() for p in jobs.glob("[!.]*.json")} if jobs.exists() else {}
        records = [figures(record) for _, record in study.run(root / "out").records]
        assert records == straight
        assert all(path.read_bytes() == data for path, data in finished.items())
        require_tidy(root)
        return f"{len(finished)} finished"

    with every_kill(root, look, exchange):
        study.run(root / "out")


def kill_fetch(root, exchange, foreign):
    """A fetch whose download is a copy: nothing, or all of the result, and the next one has it."""
    import hashlib
    import zipfile

    from graphprune.util import fetch

    wheel = root.parent / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_data/numbers.txt", "1 2 3")
    fetch.ARTIFACTS["tiny"] = fetch.Artifact(
        name="tiny", package="tiny-data", version="1.0", wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size, members=("tiny_data/numbers.txt",), licence="CC0-1.0",
        about="three numbers",
    )  # fmt: skip

    def download(artifact, scratch, *_):
        (scratch / "done").mkdir()
        (scratch / "done" / wheel.name).write_bytes(wheel.read_bytes())
        return scratch / "done" / wheel.name

    fetch._pip_download = download

    def look():
        there = (root / "tiny-1.0").exists()
        result = fetch.fetch("tiny", cache=root, quiet=True)
        assert (result / "numbers.txt").read_text() == "1 2 3"
        left = [p.name for p in (root / "wheels").iterdir()]
        require_tidy(root)
        assert there or not left, left
        return "new" if there else "none"

    with every_kill(root, look, exchange):
        fetch.fetch("tiny", cache=root, quiet=True)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    for number, case in enumerate(sys.argv[2:]):
        what, exchange, foreign = case.split(",")
        print("case", case, flush=True)
        child = os.fork()
        if child == 0:
            root = place / str(number)
            root.mkdir()
            globals()[f"kill_{what}"](root, exchange == "yes", foreign == "yes")
            os._exit(1)  # every_kill ends the process
        assert os.waitpid(child, 0)[1] == 0, case
