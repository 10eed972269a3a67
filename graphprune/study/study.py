"""``Study``: a table of independent jobs, run through joblib, resumable after a kill."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.core.mask import budget
from graphprune.errors import GraphPruneError, InputError, MissingExtraError, unknown_name
from graphprune.util.checks import at_least
from graphprune.util.progress import bar

from .case_contents import CaseContents
from .check import StudyCheck, check_jobs
from .entries import StudyMethod, StudySystem, methods_from, systems_from
from .job_records import NOT_OF_STUDY, JobRecords
from .jobs import StudyJob, contents_of, run_job
from .judging import require_selector
from .mistakes import MistakeCollector, StudyMistakes
from .results import Prompts, StudyResults
from .yaml_file import read_yaml

__all__ = ["Study"]

log = logging.getLogger(__name__)

_KEYS = ("name", "systems", "methods", "densities", "seeds", "train", "test", "selector")


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
        selector: chooses the circuits of all densities by every method's ranking, such as
            ``"connected"``, which keeps exactly the number of edges asked for. ``None``: the best
            edges; dead ends among them go, so that fewer may be left. Curves are always of these.

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
    selector: str | None = None

    def __post_init__(self) -> None:
        mistakes = MistakeCollector()
        for name in ("train", "test"):
            with mistakes.at(name):
                at_least(getattr(self, name), 1, name)
        for number, density in enumerate(self.densities):
            with mistakes.at("densities", number):
                if not isinstance(density, float):
                    raise InputError(f"densities are fractions of all edges, got {density!r}")
                budget(density, 10**9)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            mistakes.add(("seeds",), f"seeds must be different numbers, got {self.seeds}")
        for number, seed in enumerate(self.seeds):
            with mistakes.at("seeds", number):
                at_least(seed, 0, "a seed")
        for system in self.systems:
            system.check(mistakes)
        for method in self.methods:
            method.check(self.systems, self.seeds, mistakes)
        with mistakes.at("selector"):
            require_selector(self.selector)
        mistakes.require_none()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, folder: str | Path | None = None) -> Study:
        """A study from plain values, checked; see the page on studies for the form.

        Names of files in it start from ``folder``, the current one by default. Raises
        :class:`InputError` that lists every mistake with its place.
        """
        mistakes = MistakeCollector()
        for name in sorted(set(values) - set(_KEYS)):
            mistakes.add((name,), str(unknown_name("key of a study", name, _KEYS)))
        options = {k: values[k] for k in ("name", "train", "test", "selector") if k in values}
        for name, kind in (("densities", float), ("seeds", int)):
            with mistakes.at(name):
                if name in values:
                    options[name] = _numbers(values[name], name, kind)
        place = Path.cwd() if folder is None else Path(folder).resolve()
        systems = systems_from(values.get("systems"), str(place), mistakes)
        methods = methods_from(values.get("methods"), mistakes)
        with mistakes.at():
            study = cls(systems=systems, methods=methods, **options)
        mistakes.require_none()
        return study

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """A study from a YAML file; names of files in it start from the YAML's own folder.

        Raises :class:`InputError` that lists every mistake with its line.
        """
        file = read_yaml(path)
        try:
            return cls.from_dict(file.values, folder=Path(path).resolve().parent)
        except StudyMistakes as error:
            raise error.in_file(str(path), file.lines) from None

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
                self.selector,
            )
            for system in self.systems
            for task, seed, method in itertools.product(system.tasks, self.seeds, self.methods)
            if method.runs_on(system.name, task, seed)
        ]

    def check(self) -> StudyCheck:
        """Builds every case once and runs nothing; says what would run, and estimates its time.

        ``mistakes`` of the answer are cases that cannot be built, such as a model that is not
        there or a file with too few prompts.
        """
        return check_jobs(self.name, self.jobs())

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
        processes = None if jobs is None else at_least(jobs, 1, "jobs")
        store = JobRecords(out)
        planned = _with_contents(self.jobs(), processes)
        records = [store.load(job.key_of(contents)) for job, contents in planned]
        todo = [
            pair for pair, record in zip(planned, records, strict=True) if _is_open(record, retry)
        ]
        no_case = Counter((job.system.name, c) for job, c in todo if isinstance(c, str))
        for (system, why), count in no_case.items():
            log.warning("%d jobs of %s cannot run: %s", count, system, why)
        with bar(self.name, len(planned), len(planned) - len(todo)) as shown:
            try:
                for record in _run_all(todo, processes, store.folder):
                    store.save(record)
                    if record["state"] == "failed" and record["contents"] is not None:
                        log.warning("%s failed: %s", record["key"], record["why"])
                    shown.update(1)
            finally:
                results = self._results(store, planned)
                results.write(out)
        return results

    def results(self, out: str | Path) -> StudyResults:
        """What is finished so far of the prompts, weights and settings that there are now."""
        return self._results(JobRecords(out), _with_contents(self.jobs(), 1))

    def _results(self, store: JobRecords, planned: Sequence[PlannedJob]) -> StudyResults:
        records = []
        for job, contents in planned:
            record = store.load(job.key_of(contents))
            if record is None:
                why = {"why": contents} if isinstance(contents, str) else {}
                record = {"state": "open", **why}
            records.append((job, record))
        now = {
            tuple(job.label.values()): (
                contents.fingerprints() if isinstance(contents, CaseContents) else None
            )
            for job, contents in planned
        }
        not_shown = store.not_shown({job.key_of(contents) for job, contents in planned}, now)
        _tell_not_shown(not_shown, store.folder)
        return StudyResults(self.name, records, _prompts(planned), not_shown)


PlannedJob = tuple[StudyJob, CaseContents | str]  # a job, and what it is of or why that is unknown


def _with_contents(jobs: Sequence[StudyJob], processes: int | None) -> list[PlannedJob]:
    """The jobs with their contents. A system is read by one process, as its jobs will be."""
    groups: dict[str, list[StudyJob]] = {}
    for job in jobs:
        groups.setdefault(job.system.name, []).append(job)
    calls = [(contents_of, (group,)) for group in groups.values()]
    read = _parallel(calls, processes) if len(calls) > 1 else [contents_of(jobs)]
    contents = [one for group in read for one in group]
    ordered = [job for group in groups.values() for job in group]
    return list(zip(ordered, contents, strict=True))


def _prompts(planned: Sequence[PlannedJob]) -> Prompts:
    """The prompts of each system, task and seed."""
    return {
        (job.system.name, job.task, job.seed): contents.prompts
        for job, contents in planned
        if isinstance(contents, CaseContents)
    }


def _is_open(record: dict[str, Any] | None, retry: bool) -> bool:
    return record is None or (record["state"] == "failed" and retry)


def _tell_not_shown(not_shown: Mapping[str, int], folder: Path) -> None:
    """Says how many finished jobs of the folder are not shown, and why."""
    if not_shown:
        why = "; ".join(f"{count} {reason}" for reason, count in not_shown.items())
        level = logging.INFO if set(not_shown) == {NOT_OF_STUDY} else logging.WARNING
        message = "%d finished jobs in %s are left aside and not shown: %s"
        log.log(level, message, sum(not_shown.values()), folder, why)


def _numbers(value: Any, name: str, kind: type) -> tuple[Any, ...]:
    fits = isinstance(value, Sequence) and not isinstance(value, str)
    if not fits or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise InputError(f"{name} must be a list of numbers, got {value!r}")
    return tuple(kind(v) if kind(v) == v else v for v in value)


def _run_all(
    todo: Sequence[PlannedJob], processes: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """Records as their jobs finish."""
    several = processes is not None and processes > 1
    threads = max(1, (os.cpu_count() or 1) // processes) if several and processes else None
    calls = [(run_job, (job, threads, folder, contents)) for job, contents in todo]
    return _parallel(calls, processes, ordered=False)


def _parallel(
    calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    processes: int | None,
    ordered: bool = True,
) -> Iterator[Any]:
    """What the calls give, as they finish; a wave at a time where a backend gives lists alone."""
    try:
        import joblib as typed_joblib
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError as error:
        raise MissingExtraError('studies need joblib: pip install "graphprune[study]"') from error
    joblib: Any = typed_joblib  # whose annotations lack its defaults
    backend, _ = joblib.parallel.get_active_backend()
    at_once = getattr(backend, "supports_return_generator", False)
    how = ("generator" if ordered else "generator_unordered") if at_once else "list"
    parallel = joblib.Parallel(n_jobs=processes, return_as=how, batch_size=1)
    wave = max(len(calls) if at_once else joblib.effective_n_jobs(processes), 1)
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
