"""A study before it runs: every case built once, and an estimate of what its jobs take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.capabilities import require
from graphprune.core.method import Method, ablation_of
from graphprune.core.passes import Passes
from graphprune.core.sizes import MIB_SIZES
from graphprune.errors import GraphPruneError, UnsupportedModelError
from graphprune.util.progress import quiet
from graphprune.util.quantities import time_text

from .cases import Case
from .jobs import StudyJob
from .language import ModelNotAvailableError, forget
from .mistakes import Mistake
from .planned_passes import PassSeconds, planned_passes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CheckedCase", "StudyCheck", "check_jobs"]


@dataclass(frozen=True)
class CheckedCase:
    """One task of one system: its sizes, and what its jobs (one for each method and seed) take.

    ``passes`` are forward and backward runs of one batch, ``trials`` forward runs of one batch
    under a mask, the judging of circuits included; at most as many. ``seconds`` is how long both
    take in one process, by one pass and one trial that were measured. ``remarks`` name methods
    that will be refused, methods whose passes are not known and not counted, and what was left out
    of the prompts.

    Example:
        >>> CheckedCase("small", "ioi", 532, 64, 64, jobs=6, passes=48, trials=60, seconds=9).edges
        532
    """

    system: str
    task: str
    edges: int
    train: int
    test: int
    jobs: int
    passes: int
    trials: int
    seconds: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyCheck:
    """What :meth:`Study.check` finds: ``cases`` that were built and ``mistakes`` of the others.

    Example:
        >>> check = StudyCheck("two methods", (), (Mistake(("seeds",), "no numbers", line=3),))
        >>> check.mistakes[0].line
        3
    """

    name: str
    cases: tuple[CheckedCase, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def jobs(self) -> int:
        """Jobs of the cases that were built."""
        return sum(case.jobs for case in self.cases)

    @property
    def seconds(self) -> float:
        """Seconds of all jobs in one process."""
        return sum(case.seconds for case in self.cases)

    def to_frame(self) -> pd.DataFrame:
        """A row for each case."""
        import pandas as pd

        return pd.DataFrame([vars(case) for case in self.cases])

    def __str__(self) -> str:
        lines = [
            f"{case.system}, {case.task}: {case.edges} edges, {case.train} + {case.test} prompts, "
            f"{case.jobs} jobs, {case.passes} passes and {case.trials} trials, about "
            f"{time_text(case.seconds)}"
            for case in self.cases
        ]
        lines += [f"{case.system}, {case.task}: {r}" for case in self.cases for r in case.remarks]
        lines += map(str, self.mistakes)
        return "\n".join(
            [f"{self.name}: {self.jobs} jobs, about {time_text(self.seconds)}", *lines]
        )


def check_jobs(name: str, jobs: Sequence[StudyJob]) -> StudyCheck:
    """Builds the case of each system and task once, at its first seed.

    A model that cannot be had is one mistake, whatever the number of its tasks.
    """
    forget()
    groups: dict[tuple[str, str], list[StudyJob]] = {}
    for job in jobs:
        groups.setdefault((job.system.name, job.task), []).append(job)
    cases: list[CheckedCase] = []
    mistakes: list[Mistake] = []
    without_model: set[str] = set()
    for (system, task), group in groups.items():
        if system in without_model:
            continue
        place = ("systems", system, "tasks", group[0].system.tasks.index(task))
        try:
            with quiet():
                cases.append(_checked(group))
        except ModelNotAvailableError as error:
            without_model.add(system)
            mistakes.append(Mistake(("systems", system, "model"), str(error)))
        except GraphPruneError as error:
            mistakes.append(Mistake(place, str(error)))
        except Exception as error:  # as a job would fail with it
            mistakes.append(Mistake(place, f"{type(error).__name__}: {error}"))
    return StudyCheck(name, tuple(cases), tuple(mistakes))


def _checked(jobs: Sequence[StudyJob]) -> CheckedCase:
    case, first = jobs[0].source.make(), jobs[0]
    model, remarks = case.model, list(case.remarks)
    total = Passes()
    of_method = {job.method.name: job for job in reversed(jobs)}  # at its first seed
    seeds = Counter(job.method.name for job in jobs)
    ablation = ablation_of(first.method.build(first.seed))
    if ablation in ("optimal", "delete"):  # whose passes take as long
        ablation = "zero"
    for name, job in reversed(of_method.items()):
        method = job.method.build(job.seed)
        try:
            _require_served(job, method, case)
            passes = planned_passes(method, model, case.train)
        except UnsupportedModelError as error:
            remarks.append(f"{job.method.name} will be refused: {error}")
            continue
        if passes.unknown:
            remarks.append(f"{job.method.name}: passes not known, time not counted")
        total += (passes + _judging(job, case)) * seeds[name]
    seconds = PassSeconds.measured(model, case.train, ablation, cuts=total.cuts > 0)
    return CheckedCase(
        system=first.system.name,
        task=first.task,
        edges=model.graph.num_edges,
        train=len(case.train),
        test=len(case.test),
        jobs=len(jobs),
        passes=round(total.total),
        trials=round(total.forward),
        seconds=seconds.of(total),
        remarks=tuple(remarks),
    )


def _require_served(job: StudyJob, method: Any, case: Case) -> None:
    """Raises :class:`UnsupportedModelError` where the job would be refused."""
    edges, most = case.model.graph.num_edges, job.method.max_edges
    if most is not None and edges > most:
        raise UnsupportedModelError(f"the graph has {edges} edges, more than max_edges: {most}")
    for capability in method.needs if isinstance(method, Method) else ():
        require(case.model, capability, method.label)


def _judging(job: StudyJob, case: Case) -> Passes:
    """Circuits at the densities and, by two rankings, at MIB's sizes, on the test prompts."""
    circuits = len(job.densities) + 2 * (len(MIB_SIZES) - 1)
    size = min(case.train.batch_size, len(case.train))  # in which batches are counted
    return Passes(trials=circuits * len(case.test) / size)
