"""A write that is killed (SIGKILL) before each of its file-system events, each time anew.

``every_kill`` runs in a process of its own with one thread, forked from one that has imported
everything. At the first event that changes
something under ``root`` it forks, as often as the write has events: the n-th child goes on and is
killed before its n-th event (a write of bytes is three: before, in the middle, after). The parent
looks at what each leaves, and puts everything back as it was.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

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
        """Returns in the children alone.

        Names of what is written hold the number of the process that writes: this one's where they
        were made before the fork. So another process looks, to which this one is gone.
        """
        writer = os.getpid()
        looking = os.fork()
        if looking:
            os._exit(int(os.waitpid(looking, 0)[1] != 0))
        gone = files._is_orphan
        words = []
        for limit in range(1, 1000):
            child = os.fork()
            if child == 0:
                self.limit, self.on = limit, True
                return
            status = os.waitpid(child, 0)[1]
            files._is_orphan = lambda found: found["process"] == str(writer) or gone(found)
            try:
                words.append(str(self.look()))
            except Exception as error:
                words.append(f"{type(error).__name__}: {error}"[:200])
            files._is_orphan = gone
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


def require_tidy(root):
    """No file that a write makes for itself is left."""
    left = [path.name for path in root.rglob("*") if ".tmp" in path.name or "pending" in path.name]
    assert not left, left


def looker(root, folder, old, new, load, again):
    """``raw`` first: whether the folder is whole before anything repairs it."""

    def look():
        raw = snapshot(folder)
        load()
        found = snapshot(folder)
        for path in root.iterdir():
            assert path.name.startswith(".") or path == folder, path
        word = "old" if found == old else "new" if found == new else "mixture"
        again()
        require_tidy(root)
        return word if raw == found else f"{word}, completed"

    return look
