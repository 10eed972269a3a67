"""Where a study's models and tasks come from: open, by entry points of ``graphprune.systems``.

An entry point is a function ``(task, *, train, test, seed, **options) -> Case``. It draws ``train``
examples to find circuits on and ``test`` others to judge them on, by ``seed``; the model is the
same for every seed. What it reads is read anew at each call: contents decide whether a job is done.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphprune.core.mask import EdgeMask
from graphprune.core.model import MaskedModel
from graphprune.core.registry import _entries
from graphprune.core.task import Task
from graphprune.errors import InputError, unknown_name

from .settings import hints_of

__all__ = ["Case", "SystemOptions", "case_of", "make_case", "system_names", "system_options"]

GROUP = "graphprune.systems"


class Case:
    """A model and examples of one task: what one job works on.

    Args:
        model: the wrapped model, or a function that loads it when it is first asked for.
        train: examples that methods see.
        test: others, that circuits are judged on.
        truth: the true circuit, where it is known.
        measure: further figures of a circuit on the test examples, by name.
        weights: a fingerprint of everything that a model which is loaded later is made of, so that
            finished jobs are found without it. ``None``: the model's own provenance says.
        remarks: sentences about the examples for the report, such as how many were left out.

    Raises :class:`InputError` for a model to be loaded without ``weights``.

    Example:
        >>> case = Case(model, task.take(6), task.subset(range(6, 10)))
        >>> case.model is model, len(case.train), len(case.test)
        (True, 6, 4)
    """

    def __init__(
        self,
        model: MaskedModel | Callable[[], MaskedModel],
        train: Task,
        test: Task,
        truth: EdgeMask | None = None,
        measure: Callable[[EdgeMask], Mapping[str, float]] | None = None,
        weights: str | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        if not isinstance(model, MaskedModel) and weights is None:
            raise InputError("a case whose model is loaded later needs weights=, a fingerprint")
        self._model = model
        self.train, self.test, self.truth, self.measure = train, test, truth, measure
        self.weights, self.remarks = weights, tuple(remarks)

    @property
    def model(self) -> MaskedModel:
        """The wrapped model."""
        if not isinstance(self._model, MaskedModel):
            self._model = self._model()
        return self._model


def system_names() -> list[str]:
    """Kinds of systems that are installed.

    Example:
        >>> system_names()[:3]
        ['argnn-digits', 'block-model', 'gcn-karate']
    """
    return sorted(_entries(GROUP))


@dataclass(frozen=True)
class SystemOptions:
    """What a kind of system takes beside its task, the numbers of examples and the seed.

    ``types`` and ``defaults`` are by name, those without a default ``required``. ``others``: it
    takes further ones, such as a language model's settings of its task.
    """

    types: Mapping[str, Any]
    defaults: Mapping[str, Any]
    required: tuple[str, ...]
    others: bool


def system_function(kind: str) -> Callable[..., Case]:
    """The function that makes a kind's cases; raises :class:`InputError` for an unknown kind."""
    entries = _entries(GROUP)
    if kind not in entries:
        raise unknown_name("kind of system", kind, sorted(entries))
    make: Callable[..., Case] = entries[kind].load()
    return make


def system_options(kind: str) -> SystemOptions:
    """The options of a kind of system, from its function's signature."""
    make = system_function(kind)
    parameters = list(inspect.signature(make).parameters.values())[1:]
    hints = hints_of(make)
    named = {
        p.name: p
        for p in parameters
        if p.kind is not p.VAR_KEYWORD and p.name not in ("train", "test", "seed")
    }
    defaults = {name: p.default for name, p in named.items() if p.default is not p.empty}
    return SystemOptions(
        types={name: hints.get(name, Any) for name in named},
        defaults=defaults,
        required=tuple(name for name in named if name not in defaults),
        others=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def make_case(
    kind: str, task: str, *, train: int, test: int, seed: int, options: Mapping[str, Any]
) -> Case:
    """The case of a system; raises :class:`InputError` for unknown kinds and options.

    Example:
        >>> sizes = {"train": 8, "test": 8, "seed": 0}
        >>> case = gp.study.make_case("gcn-karate", "communities", **sizes, options={})
        >>> case.model.graph, len(case.train), len(case.test)
        (ComputationalGraph(34 nodes, 156 edges, directed), 8, 8)
    """
    make = system_function(kind)
    try:
        case: object = make(task, train=train, test=test, seed=seed, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise InputError(f"systems of kind {kind!r} do not take these options: {error}") from None
    if not isinstance(case, Case):
        raise InputError(f"the system {kind!r} gave a {type(case).__name__}, expected a Case")
    return case


def case_of(kind: str, task: str | None, **options: Any) -> Case:
    """:func:`make_case`; ``task=None`` is the one that the kind's function names first."""
    if task is None:
        make = system_function(kind)
        first = next(iter(inspect.signature(make).parameters.values()))
        if first.default is first.empty:
            raise InputError(f"a system of kind {kind!r} has no task of its own; use a study")
        task = str(first.default)
    return make_case(kind, task, **options)
