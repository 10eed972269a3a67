"""``Study``: a table of independent jobs, run through joblib, resumable after a kill."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.core.mask import budget
from graphprune.errors import GraphPruneError, InputError, MissingExtraError, unknown_name
from graphprune.util.checks import at_least
from graphprune.util.progress import bar

from .case_contents import CaseContents
from .cases import system_names
from .entries import StudyMethod, StudySystem, methods_from, read_yaml, systems_from
from .job_records import NOT_ASKED, JobRecords
from .jobs import StudyJob, contents_of, run_job
from .results import Prompts, StudyResults

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
        seeds: each draws its own prompts, from a file of prompts its own part, and seeds the
            methods. Where seeds share prompts the tables say how many.
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
                raise unknown_name(
                    "kind", system.kind, system_names(), where=f"system {system.name!r}"
                )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], *, folder: str | Path | None = None) -> Study:
        """A study from plain values, checked; see the README for the form.

        Names of files in it start from ``folder``, the current one by default.
        """
        place = Path.cwd() if folder is None else Path(folder).resolve()
        unknown = sorted(set(found) - set(_KNOWN))
        if unknown:
            raise unknown_name("key of a study", unknown[0], _KNOWN)
        systems = systems_from(found.get("systems"), str(place))
        options = {k: found[k] for k in ("name", "train", "test") if k in found}
        for name, kind in (("densities", float), ("seeds", int)):
            if name in found:
                options[name] = _listed(found[name], name, kind)
        return cls(systems=systems, methods=methods_from(found.get("methods"), systems), **options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """A study from a YAML file; names of files in it start from the YAML's own folder.

        Raises :class:`InputError` naming what is wrong in it.
        """
        try:
            return cls.from_dict(read_yaml(path), folder=Path(path).resolve().parent)
        except InputError as error:
            if str(path) in str(error):
                raise
            raise InputError(f"{path}: {error}") from None

    def jobs(self) -> list[StudyJob]:
        """All jobs; those of one system, task and seed stand together and share what they load."""
        return [
            StudyJob(
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

        A job is finished if one of equal contents is: prompts with their answers, weights,
        settings, sizes, seed and version of the library. These are read first, once for each
        system. What the folder holds beside that is kept, and counted in a message.

        Args:
            out: a folder; naming it again goes on after a stop, a kill or a change of the study.
            jobs: processes at once; ``None``: one, or as ``joblib.parallel_config(backend=...,
                n_jobs=...)`` says. Inside that the jobs go to its backend (Dask, Ray).
            retry: whether jobs that failed before are run again.
        """
        if jobs is not None:
            at_least(jobs, 1, "jobs")
        store = JobRecords(out)
        known = _identified(self.jobs(), jobs)
        state = [(job, found, store.load(job.key_of(found))) for job, found in known]
        todo = [(job, found) for job, found, record in state if _is_open(record, retry)]
        made: dict[tuple[Any, ...], str] = {}
        with bar(self.name, len(state), len(state) - len(todo)) as shown:
            try:
                for record in _records(todo, jobs, store.folder):
                    store.save(record)
                    made[tuple(record["label"].values())] = record["key"]
                    if record["state"] == "failed":
                        log.warning("%s failed: %s", record["key"], record["why"])
                    shown.update(1)
            finally:
                results = self._results(store, known, made)
                results.write(out)
        return results

    def results(self, out: str | Path) -> StudyResults:
        """What is finished so far of the prompts, weights and settings that there are now."""
        return self._results(JobRecords(out), _identified(self.jobs(), 1), {})

    def _results(
        self,
        store: JobRecords,
        known: Sequence[tuple[StudyJob, CaseContents | str]],
        made: Mapping[tuple[Any, ...], str],
    ) -> StudyResults:
        """``made`` are keys by label, of jobs whose contents only their own process could read."""
        keys = [made.get(_label(job), job.key_of(contents)) for job, contents in known]
        records = []
        for (job, contents), key in zip(known, keys, strict=True):
            found = store.load(key)
            if found is None:
                found = {"state": "open"} | ({"why": contents} if isinstance(contents, str) else {})
            records.append((job, found))
        now = {_label(j): c.told() if isinstance(c, CaseContents) else None for j, c in known}
        aside = store.aside(set(keys), now)
        _tell_of_others(aside, store.folder)
        return StudyResults(self.name, records, _prompts(known), aside)


def _identified(
    jobs: Sequence[StudyJob], processes: int | None
) -> list[tuple[StudyJob, CaseContents | str]]:
    """The jobs with their contents. A system is read by one process, as its jobs will be."""
    groups: dict[str, list[StudyJob]] = {}
    for job in jobs:
        groups.setdefault(job.system.name, []).append(job)
    calls = [(contents_of, (group,)) for group in groups.values()]
    read = _parallel(calls, processes) if len(calls) > 1 else [contents_of(jobs)]
    found = [contents for group in read for contents in group]
    ordered = [job for group in groups.values() for job in group]
    return list(zip(ordered, found, strict=True))


def _prompts(known: Sequence[tuple[StudyJob, CaseContents | str]]) -> Prompts:
    """The prompts of each system, task and seed."""
    return {
        (job.system.name, job.task, job.seed): contents.prompts
        for job, contents in known
        if isinstance(contents, CaseContents)
    }


def _label(job: StudyJob) -> tuple[Any, ...]:
    return tuple(job.label.values())


def _is_open(record: dict[str, Any] | None, retry: bool) -> bool:
    return record is None or (record["state"] == "failed" and retry)


def _tell_of_others(aside: Mapping[str, int], folder: Path) -> None:
    """Says how many finished jobs of the folder are not shown, and why."""
    if aside:
        why = "; ".join(f"{count} {reason}" for reason, count in aside.items())
        told = "%d finished jobs in %s are left aside and not shown: %s"
        only_others = set(aside) == {NOT_ASKED}
        log.log(
            logging.INFO if only_others else logging.WARNING, told, sum(aside.values()), folder, why
        )


def _listed(value: Any, name: str, kind: type) -> tuple[Any, ...]:
    fits = isinstance(value, Sequence) and not isinstance(value, str)
    if not fits or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise InputError(f"{name} must be a list of numbers, got {value!r}")
    return tuple(kind(v) if kind(v) == v else v for v in value)


def _records(
    todo: Sequence[tuple[StudyJob, CaseContents | str]], jobs: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """Records as their jobs finish."""
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs is not None and jobs > 1 else None
    calls = [(run_job, (job, threads, folder, contents)) for job, contents in todo]
    return _parallel(calls, jobs, ordered=False)


def _parallel(
    calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    jobs: int | None,
    ordered: bool = True,
) -> Iterator[Any]:
    """What the calls give, as they finish; a wave at a time where a backend gives lists alone."""
    try:
        import joblib
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError as error:
        raise MissingExtraError('studies need joblib: pip install "graphprune[study]"') from error
    backend, _ = joblib.parallel.get_active_backend()
    at_once = getattr(backend, "supports_return_generator", False)
    how = ("generator" if ordered else "generator_unordered") if at_once else "list"
    parallel = joblib.Parallel(n_jobs=jobs, return_as=how, batch_size=1)
    wave = max(len(calls) if at_once else joblib.effective_n_jobs(jobs), 1)
    tasks = [joblib.delayed(function)(*given) for function, given in calls]
    try:
        with warnings.catch_warnings():
            # A process that has grown, as with models, is replaced by a fresh one; no job is lost.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            for start in range(0, len(tasks), wave):
                yield from parallel(tasks[start : start + wave])
    except TerminatedWorkerError as error:
        raise GraphPruneError(
            "a process of the study was killed, out of memory perhaps; what was finished is kept, "
            "the same command goes on, and fewer jobs at once need less"
        ) from error
