"""The passes over a model that each method makes, from which plans are made.

A method's own class says it: ``passes_of`` is a function that dispatches on it, and a package with
methods of its own registers theirs: ``passes_of.register(MyMethod, lambda method: ...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import cast

from graphprune.core.method import Method
from graphprune.errors import InputError

from .acdc import ACDC
from .calibration import CalibratedRanking
from .costs import PassKind
from .ensembles import HybridEnsemble, ParallelEnsemble, SequentialEnsemble
from .flow import InformationFlow, Random
from .gradient import EAP, EAPIG, CleanCorrupted
from .matryoshka import MatryoshkaPruning
from .nodes import NAP, NAPIG
from .optimiser import MaskOptimiser
from .pahq import PAHQ, RTNQ
from .patching import ExactPatching, IntegratedMaskGradient
from .relevance import RelP
from .ugs import UniformGradientSampling

__all__ = ["PlannedRuns", "passes_of"]


@dataclass(frozen=True)
class PlannedRuns:
    """Passes of one kind that a method makes.

    ``times`` over every batch, or ``in_all``; trials: for every edge, at most. Other fields are
    those of :class:`~graphprune.methods.costs.RunShape`. ``owner`` is the method whose they are.

    Example:
        >>> [(p.kind, p.points) for p in passes_of(gp.EAPIG(steps=7))]
        [('attribution', 7)]
    """

    kind: PassKind
    times: int = 1
    in_all: bool = False
    points: int = 1
    by_group: bool = False
    copies: int = 1
    per_example: bool = False
    float64: bool = False
    rounded: bool = False
    owner: str = ""


@singledispatch
def passes_of(method: object) -> tuple[PlannedRuns, ...]:
    """The passes of a method, those of its members first; none for scores that are known.

    Raises :class:`InputError` for a method that is not known to make any.
    """
    if isinstance(method, Method):
        raise InputError(
            f"a plan is made of a method's passes over a language model, and {method.label} says "
            "none: it works on a graph alone, or must register them with "
            "graphprune.methods.passes.passes_of"
        )
    return ()


def _add(kind: type, said: Callable[[Method], tuple[PlannedRuns, ...]]) -> None:
    def named(method: Method) -> tuple[PlannedRuns, ...]:
        label = type(method).__name__
        return tuple(p if p.owner else replace(p, owner=label) for p in said(method))

    passes_of.register(kind, named)


def _optimiser(method: Method) -> tuple[PlannedRuns, ...]:
    chosen, copies = cast("MaskOptimiser", method), 1
    if isinstance(method, MatryoshkaPruning):
        copies = method.budgets
    if isinstance(method, UniformGradientSampling):
        copies = method.samples
    each = isinstance(method, UniformGradientSampling)
    steps = PlannedRuns("step", chosen.steps, in_all=True, copies=copies, per_example=each)
    start = chosen.warm_start
    return (*(passes_of(start) if isinstance(start, Method) else ()), steps)


def _integral(method: Method) -> tuple[PlannedRuns, ...]:
    chosen = cast("EAPIG", method)
    return (PlannedRuns("attribution", points=chosen.steps, by_group=chosen.integrate != "inputs"),)


def _descent(method: Method) -> tuple[PlannedRuns, ...]:
    chosen = cast("ACDC", method)
    exact = chosen.recheck == "float64"
    low = isinstance(method, PAHQ | RTNQ)
    return (PlannedRuns("trials", copies=chosen.candidates, float64=exact, rounded=low),)


def _members(method: Method) -> tuple[PlannedRuns, ...]:
    members = cast("ParallelEnsemble", method)._members
    return tuple(p for member in dict.fromkeys(members) for p in passes_of(member))


def _sequence(method: Method) -> tuple[PlannedRuns, ...]:
    chosen = cast("SequentialEnsemble", method)
    return (*passes_of(chosen._scorer), *passes_of(chosen._optimiser))


def _calibrated(method: Method) -> tuple[PlannedRuns, ...]:
    chosen = cast("CalibratedRanking", method)
    rounds = len(chosen.sizes) * chosen.rounds
    own = (PlannedRuns("step", rounds), PlannedRuns("forward", 8 * rounds)) if rounds else ()
    return (*passes_of(chosen._scorer), *own)


_add(EAP, lambda method: (PlannedRuns("attribution"),))
_add(RelP, lambda method: (PlannedRuns("attribution"),))
_add(NAP, lambda method: (PlannedRuns("attribution"),))
_add(NAPIG, lambda method: (PlannedRuns("attribution", points=cast("NAPIG", method).steps),))
_add(CleanCorrupted, lambda method: (PlannedRuns("attribution", points=2),))
_add(EAPIG, _integral)
_add(
    IntegratedMaskGradient,
    lambda method: (PlannedRuns("step", cast("IntegratedMaskGradient", method).steps),),
)
_add(InformationFlow, lambda method: (PlannedRuns("messages"),))
_add(Random, lambda method: ())
_add(ExactPatching, lambda m: (PlannedRuns("trials", copies=cast("ExactPatching", m).candidates),))
_add(ACDC, _descent)
_add(MaskOptimiser, _optimiser)
_add(ParallelEnsemble, _members)
_add(HybridEnsemble, _members)
_add(SequentialEnsemble, _sequence)
_add(CalibratedRanking, _calibrated)
