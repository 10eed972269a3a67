"""What a job works on, by contents: the model's weights and the prompts, whatever they are called.

A job's key holds these, so that prompts or weights that changed under an old name are another job,
and a renamed copy is the same one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from graphprune.capabilities import identity_of
from graphprune.core.contents import file_fingerprint, files_fingerprint, fingerprint
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import GraphPruneError, InputError
from graphprune.util.checks import is_usable
from graphprune.util.progress import quiet

from .cases import Case, make_case
from .language import ModelNotAvailableError, forget

__all__ = ["CaseContents", "CaseSource", "identify", "open_case", "prompt_hashes"]


class CaseSource(NamedTuple):
    """A case as a study names it; texts that name files are absolute. ``options`` is JSON."""

    kind: str
    task: str
    train: int
    test: int
    seed: int
    options: str

    def make(self) -> Case:
        """The case."""
        return make_case(
            self.kind,
            self.task,
            train=self.train,
            test=self.test,
            seed=self.seed,
            options=json.loads(self.options),
        )


@dataclass(frozen=True)
class CaseContents:
    """Fingerprints of what a job works on.

    Args:
        weights: the model: its graph, all parameters and what else its adapter says of it.
        options: the system's settings, files by contents.
        train, test: the examples with answers and metric; see ``Task.fingerprint``.
        truth: the known circuit.
        prompts: short hashes of the training and of the test prompts, one by one.
    """

    weights: str
    options: str
    train: str
    test: str
    truth: str
    prompts: tuple[frozenset[str], frozenset[str]] = field(compare=False, repr=False)

    def fingerprints(self) -> dict[str, str]:
        """By name, without those of single prompts."""
        return {k: v for k, v in asdict(self).items() if k != "prompts"}

    def of_case(self) -> str:
        """One hash of all: rankings of one case can be shared."""
        return fingerprint(self.fingerprints())


def identify(sources: Sequence[CaseSource]) -> dict[CaseSource, CaseContents | str]:
    """The contents of each source, or why its case cannot be made.

    Sources of one system should stand together: its model is loaded and hashed once.
    """
    forget()
    _model.cache_clear()
    contents: dict[CaseSource, CaseContents | str] = {}
    not_available: dict[tuple[str, str], str] = {}  # models, asked for once
    for source in dict.fromkeys(sources):
        system = (source.kind, source.options)
        if system in not_available:
            contents[source] = not_available[system]
            continue
        try:
            with quiet():
                contents[source] = _Opened.anew(source).contents
        except ModelNotAvailableError as error:
            contents[source] = not_available[system] = str(error)
        except GraphPruneError as error:
            contents[source] = str(error)
        except Exception as error:  # a fault in one case must not end the others
            contents[source] = f"{type(error).__name__}: {error}"
    return contents


def open_case(source: CaseSource, expected: CaseContents | None) -> tuple[Case, CaseContents]:
    """The case and its contents; made once for jobs that stand together.

    Raises :class:`InputError` if it is not what was ``expected``.
    """
    last = _Opened.last
    if last is None or last.source != source or last.contents != expected:
        last = _Opened.anew(source)
    if expected is not None and last.contents != expected:
        forget()
        last = _Opened.anew(source)
    if expected is not None and last.contents != expected:
        now, before = last.contents.fingerprints(), expected.fingerprints()
        changed = ", ".join(name for name in now if now[name] != before[name])
        raise InputError(
            f"changed while the study ran: {changed}; run the study again, it does what is new"
        )
    return last.case, last.contents


@dataclass(frozen=True, eq=False)
class _Opened:
    """The last case that this process made, with its contents at that time."""

    source: CaseSource
    case: Case
    contents: CaseContents

    last: ClassVar[_Opened | None] = None

    @classmethod
    def anew(cls, source: CaseSource) -> _Opened:
        """Makes the case from what there is now."""
        case = source.make()
        contents = CaseContents(
            weights=case.weights or _model(case.model),
            options=fingerprint(_options(source, by_contents=case.weights is None)),
            train=case.train.fingerprint,
            test=case.test.fingerprint,
            truth="" if case.truth is None else fingerprint(case.truth.values),
            prompts=(frozenset(prompt_hashes(case.train)), frozenset(prompt_hashes(case.test))),
        )
        cls.last = cls(source, case, contents)
        return cls.last


@lru_cache(maxsize=1)
def _model(model: MaskedModel) -> str:
    """Of the graph and the provenance, which holds a hash of the weights; names do not count.

    The model of a system is one object for all its cases, or small.
    """
    identity = {k: v for k, v in identity_of(model).items() if k != "model"}
    return fingerprint(model.graph, identity)


def _options(source: CaseSource, *, by_contents: bool) -> dict[str, Any]:
    """The options; of a file its contents stand for its name, of a folder those of its files.

    Without ``by_contents`` a folder counts for nothing: the case hashed what it reads of it.
    """
    options: dict[str, Any] = {}
    for name, value in json.loads(source.options).items():
        path = Path(value) if isinstance(value, str) else None
        if path is None or not path.is_absolute() or not is_usable(path) or not path.exists():
            options[name] = value
        elif path.is_file():
            options[name] = ["file", file_fingerprint(path)]
        else:
            options[name] = ["folder", files_fingerprint(path) if by_contents else ""]
    return options


def prompt_hashes(task: Task) -> list[str]:
    """A short hash of each example's clean input and where its answer is read."""
    numbers = range(len(task.examples)) if task.order is None else task.order
    last: dict[str, tuple[Any, str]] = {}  # inputs that all examples share are hashed once
    hashes = []
    for number in numbers:
        batch = task.examples.batch([number])
        parts = batch.clean if isinstance(batch.clean, Mapping) else {"": batch.clean}
        for name, part in parts.items():
            before = last.get(name)
            if before is None or before[0] is not part:
                last[name] = part, fingerprint(part)
        inputs = [last[name][1] for name in parts]
        where = batch.positions if isinstance(batch.positions, Tensor) else None
        hashes.append(fingerprint(inputs, where)[:16])
    return hashes
