"""Running a method to find a circuit, and running it again with another seed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np

from graphprune.core.mask import EdgeMask, mask_of
from graphprune.core.method import Method
from graphprune.core.model import MaskedModel
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.interrupts import whole_results


@dataclasses.dataclass(frozen=True, eq=False)
class MethodRun:
    """A method's circuit, and its scores where it gives any."""

    mask: EdgeMask
    scores: EdgeScores | None = None


def run_method(method: Any, model: MaskedModel, task: Task, size: float | None) -> MethodRun:
    """The circuit that ``method`` finds.

    A scorer's ``size`` strongest edges without dead ends; a pruner's mask (of ``size`` where one is
    given); or what a function ``(model, task) -> EdgeMask`` gives.
    """
    if isinstance(method, Method):
        with whole_results():
            result = method.fit(model, task, size)
        if result.mask is None:
            raise InputError(f"{method.label} ranks all edges; say how many to keep: size=0.01")
        return MethodRun(result.mask, result.scores)
    if not callable(method):
        raise InputError(
            "a method is a scorer, a pruner or a function (model, task) -> EdgeMask; got "
            f"{type(method).__name__}"
        )
    try:
        return MethodRun(mask_of(method(model, task)))
    except InputError as error:
        raise InputError(f"what {label_of(method)} gave: {error}") from None


def label_of(method: Any) -> str:
    """The name that tables give a method."""
    if isinstance(method, Method):
        return method.label
    return str(getattr(method, "__name__", "function"))


def reseeded(method: Any, seed: int) -> Any | None:
    """The method with another seed; ``None`` where it has none that could be changed.

    A method's ``seed`` becomes ``seed``, and so do those of the methods inside it; each member of a
    list gets one of its own, drawn from ``seed`` and its place, so that equal members stay
    different. A function has a seed where it takes an argument of that name.

    Example:
        >>> import graphprune as gp
        >>> reseeded(gp.Random(seed=1), 7), reseeded(gp.EAP(), 7)
        (Random(ablation=None, batch_size=None, seed=7), None)
    """
    if not dataclasses.is_dataclass(method) or isinstance(method, type):
        function: Any = method
        takes_seed = callable(function) and "seed" in inspect.signature(function).parameters
        return functools.partial(function, seed=seed) if takes_seed else None
    changes: dict[str, Any] = {}
    for entry in dataclasses.fields(method):
        value = getattr(method, entry.name) if entry.init else None
        if entry.init and entry.name == "seed":
            changes["seed"] = seed
        elif isinstance(value, Method):
            changes[entry.name] = reseeded(value, seed)
        elif isinstance(value, tuple | list):
            members = [
                reseeded(member, _derived(seed, place)) if isinstance(member, Method) else None
                for place, member in enumerate(value)
            ]
            if any(member is not None for member in members):
                pairs = zip(members, value, strict=True)
                changes[entry.name] = type(value)(old if new is None else new for new, old in pairs)
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(method, **changes) if changes else None


def _derived(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0] // 2)
