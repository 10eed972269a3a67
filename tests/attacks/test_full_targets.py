"""Targets that are full, read-only or over quota: the system refuses the k-th thing that is done.

Each write must end in the library's error, with the path and what the system said; what stood there
stays as it was, and nothing is left beside it.
"""

import contextlib
import errno
import os
import sys

import pytest
import torch
from support.exporting import circuits

import graphprune as gp
from graphprune.errors import GraphPruneError
from graphprune.export import export
from graphprune.search.checkpoint import RunDirectory, RunState
from graphprune.study.job_records import JobRecords
from graphprune.study.saved_rankings import RankingCost, SavedRankings

REASONS = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "over quota": OSError(getattr(errno, "EDQUOT", errno.ENOSPC), "Disk quota exceeded"),
    "forbidden": PermissionError(errno.EACCES, "Permission denied"),
}


class _Refusing:
    """Refuses the ``at``-th change under ``root``; an audit hook, which cannot be taken away."""

    def __init__(self):
        self.root, self.at, self.count, self.reason = None, 0, 0, None
        sys.addaudithook(self)

    def __call__(self, name, arguments):
        if self.root is None or name not in ("open", "os.mkdir", "os.rename"):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(self.root):
            return
        if name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self.count += 1
        if self.count >= self.at:  # and all that follow: a disk stays full
            raise self.reason

    @contextlib.contextmanager
    def under(self, root, at, reason):
        self.root, self.at, self.count, self.reason = str(root), at, 0, reason
        try:
            yield
        finally:
            self.root = None


@pytest.fixture(scope="module")
def refusing():
    return _Refusing()


ABOUT = {"format": "graphprune-run", "version": 3}
STATE = RunState(2, {"gates": torch.arange(9.0)}, {"best": 1})
RECORD = {
    "key": "k", "label": {"task": "t"}, "contents": None, "state": "failed", "why": "a test",
}  # fmt: skip


def a_study(root):
    study = gp.Study.from_dict(
        {
            "systems": {"club": {"kind": "gcn-karate", "tasks": ["communities"]}},
            "methods": {"chance": {"method": "random"}},
            "densities": [0.5],
            "seeds": [0],
            "train": 8,
            "test": 8,
        }
    )
    study.run(root / "study")


def rankings(root):
    scores = circuits()[0].scores
    SavedRankings(root, "case").keep(gp.EAP(), scores, RankingCost())


WRITES = {
    "a circuit": lambda root: circuits()[1].save(root / "new"),
    "a circuit over one": lambda root: circuits()[1].save(root / "c", overwrite=True),
    "csv": lambda root: export(circuits()[1], root / "new" / "a.csv"),
    "graphml": lambda root: export(circuits()[1], root / "a.graphml"),
    "html": lambda root: export(circuits()[1], root / "a.html"),
    "mib json": lambda root: export(circuits()[1], root / "a.mib.json", d_model=8),
    "mib pt": lambda root: export(circuits()[1], root / "a.pt", d_model=8),
    "svg": lambda root: export(circuits()[1], root / "a.svg"),
    "a run": lambda root: RunDirectory(root / "run", ABOUT).save(STATE),
    "a record": lambda root: JobRecords(root / "records").save(RECORD),
    "a ranking": rankings,
    "a study": a_study,
}


def contents(root):
    return {p.relative_to(root): p.is_file() and p.read_bytes() for p in root.rglob("*")}


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
@pytest.mark.parametrize("what", WRITES)
def test_a_refused_write_is_told_and_leaves_what_was(what, tmp_path, refusing):
    circuits()[0].save(tmp_path / "c")
    before = contents(tmp_path)
    reasons = list(REASONS.values())
    for at in range(1, 100):
        reason = reasons[at % len(reasons)]
        told = None
        try:
            with refusing.under(tmp_path, at, reason):
                WRITES[what](tmp_path)
        except GraphPruneError as error:
            told = str(error)
        if told is None:
            assert refusing.count < at
            break
        assert reason.strerror in told
        assert str(tmp_path) in told
        now = contents(tmp_path)
        assert not [path for path in now if ".tmp" in path.name]
        assert {path: now[path] for path in before} == before
    assert at > 2, "nothing was refused"
