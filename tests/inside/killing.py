"""A write that is killed (SIGKILL) before each of its file-system events, each time anew.

``every_kill`` runs in a process of its own with one thread, forked from one that has imported
everything. At the first event that changes
something under ``root`` it forks, as often as the write has events: the n-th child goes on and is
killed before its n-th event (a write of bytes is three: before, in the middle, after). The parent
looks at what each leaves, and puts everything back as it was.
"""

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from support.exporting import circuits

from graphprune.util import files

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class every_kill:
    """Around a write to ``root``; ``look()`` says in a word what a kill left.

    Prints the words of all kills and then of the write that was not killed, as a JSON list.
    """

    def __init__(self, root, look, exchange=True):
        self.root, self.look, self.count, self.limit = str(root), look, 0, None
        self.pristine = self.root + "-pristine"
        shutil.copytree(root, self.pristine, symlinks=True)
        self.on = False
        sys.addaudithook(self.audit)
        self.interpose(exchange)

    def interpose(self, exchange):
        fsync, swap = os.fsync, files._exchange

        def fsynced(number):
            self.event()
            return fsync(number)

        def exchanged(first, second):
            self.event()
            done = exchange and swap(first, second)
            self.event()
            return done

        def written(path, data):
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                self.event()
                file.write(data[len(data) // 2 :])
            self.event()

        os.fsync, files._exchange, Path.write_bytes = fsynced, exchanged, written

    def audit(self, name, arguments):
        if not self.on:
            return
        if name == "open":
            path, _, flags = arguments
            if not isinstance(path, str) or not flags & _WRITES or not path.startswith(self.root):
                return
        elif name not in _CHANGES or (
            self.limit is None and not str(arguments[0]).startswith(self.root)
        ):
            return
        self.event()

    def event(self):
        if not self.on:
            return
        if self.limit is None:
            self.on = False
            self.fork()
        self.count += 1
        if self.count == self.limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def fork(self):
        """Returns in the children alone."""
        words = []
        for limit in range(1, 1000):
            child = os.fork()
            if child == 0:
                self.limit, self.on = limit, True
                return
            status = os.waitpid(child, 0)[1]
            try:
                words.append(str(self.look()))
            except Exception as error:
                words.append(f"{type(error).__name__}: {error}"[:200])
            shutil.rmtree(self.root)
            shutil.copytree(self.pristine, self.root, symlinks=True)
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
                words.append(f"status {status}")
                break
        print("words", json.dumps(words), file=sys.__stdout__, flush=True)  # past redirections
        os._exit(0)

    def __enter__(self):
        self.on = True

    def __exit__(self, *error):
        if error[0] is None:
            os._exit(0)  # the last child is done


def snapshot(folder):
    """Contents by name of all files that are not hidden, and of those in a killed folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            found[name] = path.read_bytes()
    return found


# -------------------------------------------------------------------- what is killed


def looker(root, folder, old, new, load):
    """``raw`` first: whether the folder is whole before anything repairs it."""

    def look():
        raw = snapshot(folder)
        load()
        found = snapshot(folder)
        for path in root.iterdir():
            assert path.name.startswith(".") or path == folder, path
        word = "old" if found == old else "new" if found == new else "mixture"
        return word if raw == found else f"{word}, completed"

    return look


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

    with every_kill(root, looker(root, folder, snapshot(folder), after, load), exchange):
        new.save(folder, overwrite=True)


def kill_new(root, exchange, foreign):
    """The first save: nothing or the whole circuit, and no second one in its way."""
    from graphprune import Circuit

    circuit = circuits()[0]

    def look():
        if (root / "c").exists():
            assert Circuit.load(root / "c") == circuit
            return "new"
        circuit.save(root / "c")
        return "none"

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

    with every_kill(root, looker(root, folder, before, after, load), exchange):
        new.export_model(folder, overwrite=True)


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
        if found is None:
            return "none"
        assert torch.equal(found.tensors["gates"], state.tensors["gates"])
        assert (found.step, found.notes) == (2, {"best": [1, 2]})
        return "new"

    with every_kill(root, look, exchange):
        RunDirectory(root / "run", about).save(state)


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
