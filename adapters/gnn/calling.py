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
from .replicas import Source

__all__ = ["CallPlan", "call_plan", "failures", "told"]

# What a batch knows besides its attributes; made where a module cannot be called without.
_MADE = ("batch", "batch_dict", "ptr", "num_nodes", "num_graphs", "batch_size")
# Optional parameters of PyG's modules that no attribute of edges or graphs is meant for.
_OTHERS = {*_MADE, *LABELS, "x", "pos", "size", "return_attention_weights",
           "num_sampled_nodes_per_hop", "num_sampled_edges_per_hop"}  # fmt: skip
_NOT_READ = ("edge_label", "e_id", *LABELS)

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
    """

    forward: Forward | None = None
    whole: bool = False
    names: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    first: int = 0

    def __call__(self, module: nn.Module, source: Source, copies: Copies) -> Any:
        """The module's own outputs for copies of the data."""
        if self.forward is not None:
            return self.forward(module, source.data(copies))
        if self.whole:
            return module(source.data(copies))
        more = self.several if copies.count > 1 and source.layout.batch else ()
        return self._named(module, {n: source.read(copies, n) for n in (*self.names, *more)})

    def users(
        self, module: nn.Module, source: Source, data: Any, more: dict[str, Any] | None = None
    ) -> Any:
        """The outputs of the user's own call on ``data``, which nothing of ours has touched.

        ``more``: arguments by name besides.
        """
        if self.forward is not None:
            return self.forward(module, data)
        if self.whole:
            return module(data)
        named = {name: source.own(name, data) for name in self.names}
        return self._named(module, {**named, **(more or {})})

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
        return CallPlan(whole=True)
    missing = [n for n in needed if not source.has(n) and n not in _MADE]
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
    open_ones = [p for p in named if p.name not in (*plan.names, *labels, *_OTHERS)]
    anything = [p for p in every if p.kind is p.VAR_KEYWORD]
    _require_read(plan, [*open_ones, *anything], module, source, data, ask)
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


def _require_read(
    plan: CallPlan,
    open_ones: Sequence[inspect.Parameter],
    module: nn.Module,
    source: Source,
    data: Any,
    ask: _Ask,
) -> None:
    """What belongs to edges or graphs must be read, or no parameter may wait for it."""
    for (name, axis), value in _extras(source).items():
        takers = [p for p in open_ones if _fits(p, value, axis == "edge")]
        read = name in plan.names or f"{name}_dict" in plan.names
        if read and (axis != "edge" or not takers or _felt(plan, name, module, source, data)):
            continue
        dotted = f"{name}_dict" if hasattr(source, "relations") and axis == "edge" else name
        for taker in takers:
            by = dotted if taker.kind is taker.VAR_KEYWORD else taker.name
            if _changes_nothing(plan, by, dotted, module, source, data):
                continue
            what = "a value for each edge" if axis == "edge" else "a value for the graph"
            call = "".join(f"{n}=d.{n}, " for n in plan.names if n != dotted) + f"{by}=d.{dotted}"
            raise InputError(
                ask(f"data.{dotted} has {what} and nothing reads it, while {ask.name} leaves "
                    f"{taker.name!r} unfilled; with it or without it are different numbers",
                    f"module({call})")
            )  # fmt: skip


def _changes_nothing(
    plan: CallPlan, by: str, name: str, module: nn.Module, source: Source, data: Any
) -> bool:
    """Whether outputs are the same with the data's ``name`` given as the parameter ``by``."""
    fill = {by: source.own(name, untouched(data))}
    try:
        filled = plan.users(module, source, untouched(data), fill)
        return _same(filled, plan.users(module, source, untouched(data)))
    except failures():
        return False


def _extras(source: Source) -> dict[tuple[str, str], Any]:
    """Numbers of edges and of graphs in the data, by name and axis."""
    found: dict[tuple[str, str], Any] = {}
    for key, value in source.edge.items():
        name = key if isinstance(key, str) else key[1]
        if value.dtype != torch.bool and not name.startswith(_NOT_READ):
            found.setdefault((name, "edge"), value)
    for name, value in source.globals.items():
        real = isinstance(value, float) or (
            isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0
        )
        if real and name not in LABELS:
            found[name, "graph"] = value
    return found


def _fits(parameter: inspect.Parameter, value: Any, edge: bool) -> bool:
    name = parameter.name.lower()
    if parameter.kind is parameter.VAR_KEYWORD:
        return edge
    about = "edge" in name or "weight" in name or "attr" in name
    if not edge:
        return parameter.default is None and not about
    if "weight" in name and value.ndim > 1 and value[0].numel() > 1:
        return False  # a weight is one number
    return about or parameter.default is None


def _felt(plan: CallPlan, name: str, module: nn.Module, source: Source, data: Any) -> bool:
    """Whether other values of an edge attribute change the outputs of the user's own call."""
    generator = torch.Generator().manual_seed(0)
    other = untouched(data)
    for key, value in source.edge.items():
        if name == (key if isinstance(key, str) else key[1]):
            order = torch.randperm(len(value), generator=generator).to(value.device)
            moved = value[order] * 0.5 if value.is_floating_point() else value[order]
            store = other if isinstance(key, str) else other[key[0]]
            store[name] = moved
    try:
        plain = plan.users(module, source, untouched(data))
        return not _same(plan.users(module, source, other), plain)
    except failures():
        return True  # the user's own call fails, which is told later


def _same(found: Any, wanted: Any) -> bool:
    """Whether outputs, one tensor or several, are equal but for rounding."""
    one, two = (
        list(out.values()) if isinstance(out, dict) else out if isinstance(out, tuple) else [out]
        for out in (found, wanted)
    )
    return len(one) == len(two) and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and near(a, b)
        for a, b in zip(one, two, strict=True)
    )


def failures() -> tuple[type[Exception], ...]:
    """What a module raises where it is called on what it does not take."""
    return (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)


def told(error: Exception) -> bool:
    """Whether an error is a sentence of ours, or tells of memory and not of the call."""
    return isinstance(error, GraphPruneError | torch.OutOfMemoryError)
