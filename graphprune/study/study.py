"""``Study``: a table of independent jobs, run through joblib, resumable after a kill."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.errors import GraphPruneError, InputError, MissingExtraError
from graphprune.mask import budget
from graphprune.methods.base import at_least
from graphprune.progress import bar

from .jobs import Job, run_job
from .results import StudyResults
from .spec import StudyMethod, StudySystem, methods_from, read_yaml, systems_from
from .store import MADE_BY, Store
from .systems import system_names

__all__ = ["Study"]

log = logging.getLogger(__name__)

_KNOWN = ("name", "systems", "methods", "densities", "seeds", "train", "test")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Systems by tasks by methods by densities by seeds.

    Args:
        name: shown in the report.
        systems: what circuits are found in; see ``gp.study.system_names()`` for kinds.
        methods: what finds them.
        densities: fractions of all edges at which circuits are judged one by one; curves have MIB's
            ten sizes in any case.
        seeds: each draws other prompts and seeds the methods.
        train: examples that methods see.
        test: others, that circuits are judged on.

    Example:
        >>> study = Study.from_dict({
        ...     "systems": {"small": {"kind": "language", "model": "DIR", "tasks": ["ioi"]}},
        ...     "methods": {"EAP": {"method": "eap"}, "chance": {"method": "random"}},
        ...     "seeds": [0, 1],
        ... })
        >>> len(study.jobs()), study.jobs()[0].label["method"]
        (4, 'EAP')
    """

    name: str = "study"
    systems: tuple[StudySystem, ...]
    methods: tuple[StudyMethod, ...]
    densities: tuple[float, ...] = (0.01, 0.05, 0.2)
    seeds: tuple[int, ...] = (0, 1, 2)
    train: int = 100
    test: int = 100

    def __post_init__(self) -> None:
        at_least(self.train, 1, "train")
        at_least(self.test, 1, "test")
        for density in self.densities:
            if not isinstance(density, float):
                raise InputError(f"densities are fractions of all edges, got {density!r}")
            budget(density, 10**9)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds must be different numbers, got {self.seeds}")
        for seed in self.seeds:
            at_least(seed, 0, "a seed")
        for system in self.systems:
            if system.kind not in system_names():
                raise InputError(
                    f"system {system.name!r}: unknown kind {system.kind!r}; known: "
                    f"{', '.join(system_names())}"
                )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Study:
        """A study from plain values, checked; see the README for the form."""
        unknown = sorted(set(found) - set(_KNOWN))
        if unknown:
            raise InputError(f"a study has no {unknown[0]!r}; it has {', '.join(_KNOWN)}")
        systems = systems_from(found.get("systems"))
        options = {k: found[k] for k in ("name", "train", "test") if k in found}
        for name, kind in (("densities", float), ("seeds", int)):
            if name in found:
                options[name] = _listed(found[name], name, kind)
        return cls(systems=systems, methods=methods_from(found.get("methods"), systems), **options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """A study from a YAML file; raises :class:`InputError` naming what is wrong in it."""
        try:
            return cls.from_dict(read_yaml(path))
        except InputError as error:
            if str(path) in str(error):
                raise
            raise InputError(f"{path}: {error}") from None

    def jobs(self) -> list[Job]:
        """All jobs; those of one system, task and seed stand together and share what they load."""
        return [
            Job(
                system,
                task,
                method,
                seed,
                system.train_on(task, self.train),
                system.test_on(task, self.test),
                self.densities,
            )
            for system in self.systems
            for task, seed, method in itertools.product(system.tasks, self.seeds, self.methods)
            if method.systems is None or system.name in method.systems
        ]

    # ---------------------------------------------------------------- running

    def run(self, out: str | Path, *, jobs: int | None = None, retry: bool = True) -> StudyResults:
        """Runs what is not finished yet, and writes tables and the report under ``out``.

        Args:
            out: a folder; naming it again goes on after a stop, a kill or a change of the study.
            jobs: processes at once; ``None``: one, or as ``joblib.parallel_config(backend=...,
                n_jobs=...)`` says. Inside that the jobs go to its backend (Dask, Ray).
            retry: whether jobs that failed before are run again.
        """
        if jobs is not None:
            at_least(jobs, 1, "jobs")
        store = Store(out)
        known = [(job, store.load(job.key)) for job in self.jobs()]
        todo = [job for job, record in known if _is_open(record, retry)]
        _tell_of_others([record for _, record in known if not _is_open(record, retry)])
        total = len(known)
        with bar(self.name, total, total - len(todo)) as shown:
            try:
                for record in _records(todo, jobs, store.folder):
                    store.save(record)
                    if record["state"] == "failed":
                        log.warning("%s failed: %s", record["key"], record["why"])
                    shown.update(1)
            finally:
                results = self.results(out)
                results.write(out)
        return results

    def results(self, out: str | Path) -> StudyResults:
        """What is finished so far."""
        store = Store(out)
        found = []
        for job in self.jobs():
            record = store.load(job.key)
            found.append((job, {"state": "open"} if record is None else record))
        return StudyResults(self.name, found)


def _is_open(record: dict[str, Any] | None, retry: bool) -> bool:
    return record is None or (record["state"] == "failed" and retry)


def _tell_of_others(finished: Sequence[dict[str, Any] | None]) -> None:
    """A warning if another version of the library made some of the records."""
    makers = [record.get("made_by", "an earlier graphprune") for record in finished if record]
    others = sorted({maker for maker in makers if maker != MADE_BY})
    if others:
        log.warning(
            "%d finished jobs were made by %s, this is %s; another folder runs them anew",
            sum(maker in others for maker in makers),
            " and ".join(others),
            MADE_BY,
        )


def _listed(value: Any, name: str, kind: type) -> tuple[Any, ...]:
    fits = isinstance(value, Sequence) and not isinstance(value, str)
    if not fits or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise InputError(f"{name} must be a list of numbers, got {value!r}")
    return tuple(kind(v) if kind(v) == v else v for v in value)


def _records(todo: Sequence[Job], jobs: int | None, folder: Path) -> Iterator[dict[str, Any]]:
    """Records as their jobs finish; where a backend gives whole lists alone, a wave at a time."""
    try:
        import joblib
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError as error:
        raise MissingExtraError('studies need joblib: pip install "graphprune[study]"') from error
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs is not None and jobs > 1 else None
    calls = [joblib.delayed(run_job)(job, threads, folder) for job in todo]
    backend, _ = joblib.parallel.get_active_backend()
    at_once = getattr(backend, "supports_return_generator", False)
    how = "generator_unordered" if at_once else "list"
    parallel = joblib.Parallel(n_jobs=jobs, return_as=how, batch_size=1)
    wave = len(calls) if at_once else joblib.effective_n_jobs(jobs)
    try:
        with warnings.catch_warnings():
            # A process that has grown, as with models, is replaced by a fresh one; no job is lost.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            for start in range(0, len(calls), max(wave, 1)):
                yield from parallel(calls[start : start + wave])
    except TerminatedWorkerError as error:
        raise GraphPruneError(
            "a process of the study was killed, out of memory perhaps; what was finished is kept, "
            "the same command goes on, and fewer jobs at once need less"
        ) from error
