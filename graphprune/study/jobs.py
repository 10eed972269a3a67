"""One job: a method on a case, judged. Plain values in, plain values out."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graphprune.core.contents import fingerprint
from graphprune.core.model import MaskedModel
from graphprune.core.registry import package_of
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import GraphPruneError, InputError, MissingExtraError, UnsupportedModelError
from graphprune.util.interrupts import whole_results
from graphprune.util.plain import plain
from graphprune.util.progress import quiet

from . import job_records
from .case_contents import CaseContents, CaseSource, identify, open_case
from .cases import GROUP, Case
from .entries import StudyMethod, StudySystem
from .judging import judge
from .planned_passes import pass_seconds, planned_passes
from .saved_rankings import RankingCost, SavedRankings

__all__ = ["StudyJob", "contents_of", "run_job"]

_ALONE = threading.Lock()  # jobs of one process share a model: a backend's threads take turns


@dataclass(frozen=True)
class StudyJob:
    """A method on one task of one system, at one seed, judged at all densities.

    ``selector`` chooses the circuits of the densities; ``None``: the best edges, without dead ends.
    """

    system: StudySystem
    task: str
    method: StudyMethod
    seed: int
    train: int
    test: int
    densities: tuple[float, ...]
    selector: str | None = None

    @property
    def source(self) -> CaseSource:
        """What makes its case; raises :class:`InputError` for a file that is elsewhere."""
        return self.system.source(self.task, self.train, self.test, self.seed)

    @property
    def key(self) -> str:
        """:meth:`key_of` what there is now, which is read for it."""
        return self.key_of(contents_of([self])[0])

    def key_of(self, contents: CaseContents | str) -> str:
        """A hash of everything the answer depends on; names in tables and of files do not count.

        These are the contents (a text: why there are none), all settings, sizes, seed and version.
        """
        method, system = self.method, self.system
        named = [self.task, dict(system.options)]
        parts = [
            job_records.MADE_BY,
            package_of(GROUP, system.kind),
            package_of("graphprune.methods", method.method),
            system.kind,
            contents.fingerprints() if isinstance(contents, CaseContents) else named,
            method.build(self.seed),
            method.taus,
            method.max_edges,
            self.seed,
            self.train,
            self.test,
            self.densities,
            *([method.code] if method.code else []),
            *([f"selector {self.selector}"] if self.selector else []),
        ]
        return fingerprint(parts)[:16]

    @property
    def label(self) -> dict[str, Any]:
        """What tables call it."""
        return {
            "system": self.system.name,
            "task": self.task,
            "method": self.method.name,
            "seed": self.seed,
        }


def contents_of(jobs: Sequence[StudyJob]) -> list[CaseContents | str]:
    """The contents of each job's case, or why it has none; each case is read once."""
    sources = [_source(job) for job in jobs]
    with _ALONE:
        contents = identify([source for source in sources if isinstance(source, CaseSource)])
    return [contents[source] if isinstance(source, CaseSource) else source for source in sources]


def _source(job: StudyJob) -> CaseSource | str:
    try:
        return job.source
    except InputError as error:
        return str(error)


def run_job(
    job: StudyJob,
    threads: int | None = None,
    folder: str | Path | None = None,
    contents: CaseContents | str | None = None,
) -> dict[str, Any]:
    """The job's record: ``state`` is ``"done"``, ``"refused"`` or ``"failed"``; never raises.

    A refusal is a method that does not serve the model, or a graph above ``max_edges``. In the
    study's ``folder`` its ranking is kept, to be judged at other densities without being found
    again; those of an ensemble's members that stand there already are taken from it, their cost
    added to the ensemble's (see :class:`SavedRankings`). Where the case is not of the ``contents``
    that the study was planned with, the job fails; where these are a text, which says why there is
    no case, it fails with it at once.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    record: dict[str, Any] = {}
    try:
        if isinstance(contents, str):
            raise InputError(contents)
        with _ALONE, quiet():
            case, contents = open_case(job.source, contents)
            rankings = SavedRankings(folder, contents.of_case(), job.method.code)
            record |= _answer(job, case, rankings)
    except (UnsupportedModelError, MissingExtraError) as error:
        record |= {"state": "refused", "why": str(error)}
    except GraphPruneError as error:
        record |= {"state": "failed", "why": str(error)}
    except Exception as error:  # a job's fault must not end the others
        why = f"{type(error).__name__}: {error}"
        record |= {"state": "failed", "why": why, "traceback": traceback.format_exc()}
    record["wall_seconds"] = time.perf_counter() - started
    known = contents.fingerprints() if isinstance(contents, CaseContents) else None
    key = job.key_of(contents or "its case was not made")
    return dict(plain({"key": key, "label": job.label, "contents": known, **record}))


def _answer(job: StudyJob, case: Case, rankings: SavedRankings) -> dict[str, Any]:
    edges = case.model.graph.num_edges
    facts = {"edges": edges, "remarks": list(case.remarks)}
    if job.method.max_edges is not None and edges > job.method.max_edges:
        why = f"the graph has {edges} edges, more than the {job.method.max_edges} asked for"
        return {"state": "refused", "why": why, **facts}
    method = job.method.build(job.seed)
    facts |= planned_passes(method, case.model, case.train).to_dict()
    scores, cost = _ranking_with_cost(job, case, rankings)
    judged = judge(case, scores, method, job.densities, job.selector)
    return {"state": "done", **facts, **cost.to_dict(), **judged}


def _ranking_with_cost(
    job: StudyJob, case: Case, rankings: SavedRankings
) -> tuple[EdgeScores, RankingCost]:
    """The ranking and what it took, from the rankings or anew."""
    method, graph = job.method.build(job.seed), case.model.graph
    saved = rankings.find(method, graph, job.method.taus)
    if saved is not None:
        return saved
    ready, before = rankings.ready(method, graph)
    one_pass = pass_seconds(case)
    with _peak() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        scores = _ranking(job, ready, case.model, case.train)
        seconds = time.perf_counter() - wall
        own = RankingCost(seconds, time.process_time() - cpu, in_passes=seconds / one_pass)
    cost = before.then(replace(own, **memory))
    rankings.keep(method, scores, cost, job.method.taus)
    return scores, cost


def _ranking(job: StudyJob, method: Any, model: MaskedModel, task: Task) -> EdgeScores:
    with whole_results():  # what a stopped search leaves would be kept as the method's ranking
        if not job.method.taus:
            scores: EdgeScores = method.score(model, task)
            return scores
        swept = method.sweep(model, task, job.method.taus)
    stays = torch.stack([tau * descent.mask.values for tau, descent in swept.items()])
    return EdgeScores(model.graph, stays.amax(0), method=job.method.name)


@contextmanager
def _peak() -> Iterator[dict[str, float]]:
    """Fills ``mib``: the most that resident memory rises above its start (Linux; else nothing)."""
    memory: dict[str, float] = {}
    before = _resident()
    if before is None:
        yield memory
        return
    most, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], _resident() or 0.0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        stop.set()
        watcher.join()
        memory["mib"] = max(most[0], _resident() or 0.0) - before


def _resident() -> float | None:
    """MiB of resident memory."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * resource.getpagesize() / 2**20
