"""A method's randomness: the same method with another seed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np

from graphprune.core.method import Method

__all__ = ["reseeded"]


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
        return functools.partial(function, seed=seed) if _takes_seed(function) else None
    changes: dict[str, Any] = {}
    for entry in dataclasses.fields(method):
        if not entry.init:
            continue
        value = getattr(method, entry.name)
        if entry.name == "seed":
            changes["seed"] = seed
        elif isinstance(value, Method):
            changes[entry.name] = reseeded(value, seed)
        elif isinstance(value, tuple | list):
            inner = [
                reseeded(one, _derived(seed, place)) if isinstance(one, Method) else None
                for place, one in enumerate(value)
            ]
            if any(one is not None for one in inner):
                pairs = zip(inner, value, strict=True)
                changes[entry.name] = type(value)(old if new is None else new for new, old in pairs)
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(method, **changes) if changes else None


def _takes_seed(function: Any) -> bool:
    return callable(function) and "seed" in inspect.signature(function).parameters


def _derived(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0] // 2)
