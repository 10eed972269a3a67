"""How a module is called on data: one plan, decided once when the module is wrapped.

A user calls a module by its parameters' names (``module(data.x, data.edge_index, data.u)``), by the
data itself (``module(data)``), or in a way of their own, which ``forward=`` says. Whatever that
call would read reaches the module, unless the data's names and the module's do not tell what it
reads: then nothing is guessed, and the error asks for ``forward=``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import GraphPruneError, InputError

from .attributes import LABELS, Copies, near
from .edge_tensors import untouched
from .norms import apart
from .replicas import Source
from .unread import MADE, require_read

__all__ = ["CallPlan", "call_plan", "failures", "told"]

Forward = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class CallPlan:
    """A way to call a module.

    Args:
        forward: the user's own, ``(module, data) -> outputs``; ``None``: not said.
        whole: whether the module takes the data itself.
        names: parameters that are filled by the data's attributes of those names.
        several: parameters that are filled once several copies stand side by side.
        first: how many of ``names`` must be given by position.
        bare: paths of norms over whole graphs that the user's call gives no batch vector.
    """

    forward: Forward | None = None
    whole: bool = False
    names: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    first: int = 0
    bare: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, source: Source, copies: Copies) -> Any:
        """The module's own outputs for copies of the data."""
        with apart(module, self.bare if copies.count > 1 else ()):
            return self._copies(module, source, copies)

    def _copies(self, module: nn.Module, source: Source, copies: Copies) -> Any:
        if self.forward is not None:
            return self.forward(module, source.data(copies))
        if self.whole:
            return module(source.data(copies))
        more = self.several if copies.count > 1 and source.layout.batch else ()
        return self._named(module, {n: source.read(copies, n) for n in (*self.names, *more)})

    def users(self, module: nn.Module, source: Source, data: Any) -> Any:
        """The outputs of the user's own call on ``data``, which nothing of ours has touched."""
        if self.forward is not None:
            return self.forward(module, data)
        if self.whole:
            return module(data)
        return self._named(module, {name: source.own(name, data) for name in self.names})

    def _named(self, module: nn.Module, values: dict[str, Any]) -> Any:
        by_place = [values.pop(name) for name in self.names[: self.first]]
        return module(*by_place, **values)

    def __str__(self) -> str:
        if self.forward is not None:
            return "forward(module, data)"
        return "module(data)" if self.whole else f"module({', '.join(self.names)})"


def call_plan(module: nn.Module, source: Source, data: Any, forward: Forward | None) -> CallPlan:
    """Decides how ``module`` is called on ``data``.

    Raises:
        InputError: what the module reads cannot be told from names.
    """
    if forward is not None:
        if not callable(forward):
            raise InputError(
                f"forward is a callable (module, data) -> outputs, got {type(forward).__name__}"
            )
        return CallPlan(forward=forward)
    every = list(inspect.signature(module.forward).parameters.values())
    named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in named if p.default is p.empty]
    ask = _Ask(module, source)
    if not named:
        raise InputError(ask(f"{ask.name} takes whatever it is given"))
    if len(needed) == 1 and named[0].name == needed[0] and _takes_data(named, source):
        require_read((), True, every, module, source, data, ask, failures())
        return CallPlan(whole=True)
    missing = [n for n in needed if not source.has(n) and n not in MADE]
    if missing:
        raise InputError(
            ask(f"{ask.name} needs {missing[0]!r}, which the data has no attribute of")
        )
    filled = [p for p in named if source.has(p.name) or p.name in needed]
    labels = [p.name for p in filled if p.name in LABELS and p.name not in needed]
    plan = CallPlan(
        names=tuple(p.name for p in filled if p.name not in labels),
        several=tuple(
            p.name
            for p in named
            if p not in filled and p.name in ("batch", "batch_dict") and p.default is None
        ),
        first=sum(p.kind is p.POSITIONAL_ONLY for p in filled),
    )
    skipped = [p.name for p in named if p.kind is p.POSITIONAL_ONLY and p not in filled]
    if skipped and plan.first > named.index(next(p for p in named if p.name == skipped[0])):
        raise InputError(ask(f"{ask.name} takes {skipped[0]!r} by position, and the data has none"))
    if labels:
        plan = _with_labels(plan, labels, module, source, data, ask)
    require_read(plan.names, False, every, module, source, data, ask, failures())
    return plan


def _takes_data(named: Sequence[inspect.Parameter], source: Source) -> bool:
    first = named[0].name
    if any(p.name.removesuffix("_dict") == "edge_index" for p in named):
        return False
    return first in ("data", "batch") or not source.has(first)


@dataclass(frozen=True)
class _Ask:
    """Makes the sentence that asks for ``forward=``."""

    module: nn.Module
    source: Source

    @property
    def name(self) -> str:
        return f"{type(self.module).__name__}.forward"

    def __call__(self, what: str, call: str = "") -> str:
        several = self.source.has("x_dict") and len(self.source.kinds) > 0 and hasattr(
            self.source, "relations"
        )  # fmt: skip
        usual = "module(d.x_dict, d.edge_index_dict)" if several else "module(d.x, d.edge_index)"
        return (
            f"{what}; say how the module is called on data: "
            f"gp.wrap(module, data=data, forward=lambda module, d: {call or usual})"
        )


def _with_labels(
    plan: CallPlan, labels: list[str], module: nn.Module, source: Source, data: Any, ask: _Ask
) -> CallPlan:
    """Optional labels are left out where they change nothing, or where outputs become a loss."""
    more = replace(plan, names=(*plan.names, *labels))
    try:
        without = plan.users(module, source, untouched(data))
        out = more.users(module, source, untouched(data))
    except failures():
        return plan
    both = isinstance(out, Tensor) and isinstance(without, Tensor)
    if both and out.shape == without.shape and not near(out, without):
        raise InputError(
            ask(f"{ask.name} gives other outputs once {labels[0]!r} is given, and whether it is "
                "meant to read the labels is not known")
        )  # fmt: skip
    return plan


def failures() -> tuple[type[Exception], ...]:
    """What a module raises where it is called on what it does not take."""
    return (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)


def told(error: Exception) -> bool:
    """Whether an error is a sentence of ours, or tells of memory and not of the call."""
    return isinstance(error, GraphPruneError | torch.OutOfMemoryError)
