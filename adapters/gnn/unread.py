"""What the data holds and the call does not read, tried in every place that the call leaves open.

An attribute's axis, type and name do not tell whether the user's call reads it. So each unread one
is put in each open place, once, when the module is wrapped: where the module runs and gives other
outputs, two calls are possible and only the user knows which is theirs.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import InputError

from .attributes import LABELS, near
from .edge_tensors import untouched
from .replicas import Source

__all__ = ["MADE", "require_read"]

# What a batch knows besides its attributes; made where a module cannot be called without.
MADE = ("batch", "batch_dict", "ptr", "num_nodes", "num_graphs", "batch_size")
# Parameters of PyG's modules that say how to run, or that neighbour loaders fill.
_SETTINGS = {*MADE, *LABELS, "size", "return_attention_weights",
             "num_sampled_nodes_per_hop", "num_sampled_edges_per_hop"}  # fmt: skip
# Attributes that PyG keeps for itself: the edges, labels, splits, and which entry is which.
_RESERVED = {*MADE, *LABELS, "edge_index", "edge_label", "train_mask", "val_mask", "test_mask",
             "n_id", "e_id", "idx", "input_id",
             "num_sampled_nodes", "num_sampled_edges"}  # fmt: skip
_TRIALS = 64  # calls at most; a pair of an attribute and a place is one


@dataclass(frozen=True)
class _Place:
    """A call of ``module.forward`` with values in chosen places.

    Args:
        parameters: of ``forward``, in order.
    """

    parameters: Sequence[inspect.Parameter]

    def call(self, module: nn.Module, named: dict[str, Any], more: Sequence[Any] = ()) -> Any:
        """``module`` with ``named`` by name, and ``more`` behind what is given by position."""
        left = dict(named)
        by_place: list[Any] = []
        placed = [
            p
            for p in self.parameters
            if p.kind is p.POSITIONAL_ONLY or (more and p.kind is p.POSITIONAL_OR_KEYWORD)
        ]
        last = max((i for i, p in enumerate(placed) if more or p.name in left), default=-1)
        for parameter in placed[: last + 1]:
            by_place.append(left.pop(parameter.name, parameter.default))
        return module(*by_place, *more, **left)


@dataclass(frozen=True, eq=False)
class _Trial:
    """One more way to call: the attributes ``names`` in the place ``taker``."""

    taker: inspect.Parameter
    names: tuple[str, ...]

    def run(self, module: nn.Module, place: _Place, given: dict[str, Any], values: Any) -> Any:
        if self.taker.kind is self.taker.VAR_POSITIONAL:
            return place.call(module, given, [values(n) for n in self.names])
        if self.taker.kind is self.taker.VAR_KEYWORD:
            return place.call(module, {**given, **{n: values(n) for n in self.names}})
        return place.call(module, {**given, self.taker.name: values(self.names[0])})

    def told(self, where: str, given: Sequence[str], place: _Place, whole: bool) -> tuple[str, str]:
        """What is not known, and the call that would read the attributes."""
        several = " and ".join(f"data.{n}" for n in self.names)
        it = "them" if len(self.names) > 1 else "it"
        by_name = ["d"] if whole else [f"{n}=d.{n}" for n in given]
        before = [p for p in place.parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
        if self.taker in before:
            before = before[: before.index(self.taker)]
        by_place = [f"d.{p.name}" if p.name in given else repr(p.default) for p in before]
        if whole:
            by_place[0] = "d"
        ends = f"; with {it} or without {it} are different numbers"
        if self.taker.kind is self.taker.VAR_POSITIONAL:
            what = f"{where} takes whatever follows (*{self.taker.name}), so {several} may be meant"
            return f"{what}{ends}", ", ".join([*by_place, *(f"d.{n}" for n in self.names)])
        if self.taker.kind is self.taker.VAR_KEYWORD:
            what = f"{where} takes any names (**{self.taker.name}), so {several} may be meant"
            return f"{what}{ends}", ", ".join([*by_name, *(f"{n}=d.{n}" for n in self.names)])
        what = f"nothing reads {several}, while {where} leaves {self.taker.name!r} unfilled"
        if self.taker.kind is self.taker.POSITIONAL_ONLY:
            return f"{what}{ends}", ", ".join([*by_place, f"d.{self.names[0]}"])
        return f"{what}{ends}", ", ".join([*by_name, f"{self.taker.name}=d.{self.names[0]}"])


def require_read(
    names: Sequence[str],
    whole: bool,
    parameters: Sequence[inspect.Parameter],
    module: nn.Module,
    source: Source,
    data: Any,
    ask: Callable[[str, str], str],
    failures: tuple[type[Exception], ...],
) -> None:
    """Raises where an attribute that the call does not read could be meant for an open place.

    Args:
        names: the parameters that are filled by attributes of their names.
        whole: whether the first parameter is the data itself instead.
        parameters: all of ``forward``.
        module: what is called.
        source: how the data is read.
        data: the user's.
        ask: makes the error's sentence of what is not known and of a call.
        failures: what a call raises that is none.

    Raises:
        InputError: an open place gives other outputs, or there are too many to try.
    """
    filled = (*names, *([parameters[0].name] if whole else []))
    takers = [p for p in parameters if p.name not in (*filled, *_SETTINGS)]
    if not takers:
        return
    place = _Place(parameters)

    def given(made: Any) -> dict[str, Any]:
        return {parameters[0].name: made} if whole else {n: source.own(n, made) for n in names}

    def run(made: Any) -> Any:
        return place.call(module, given(made))

    try:
        plain = run(untouched(data))
    except failures:
        return  # the user's own call fails, which is told later
    unread = [
        spelled
        for name, spelled in _held(source, data)
        if not (whole or {name, spelled} & set(names))
        or not _felt(name, data, run, plain, failures)
    ]
    trials = [t for p in takers for t in _trials(p, unread, source, data)]
    where = f"{type(module).__name__}.forward"
    if len(trials) > _TRIALS:
        raise InputError(ask(
            f"{where} leaves {', '.join(p.name for p in takers)} unfilled and does not read "
            f"{', '.join('data.' + n for n in unread)}: more than {_TRIALS} ways to call it", ""
        ))  # fmt: skip
    for trial in trials:
        made = untouched(data)
        try:
            out = trial.run(module, place, given(made), lambda n, made=made: source.own(n, made))
        except failures as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            continue
        if not _same(out, plain):
            what, call = trial.told(where, names, place, whole)
            raise InputError(ask(what, f"module({call})"))


def _trials(
    taker: inspect.Parameter, unread: Sequence[str], source: Source, data: Any
) -> Iterator[_Trial]:
    for name in unread:
        # A switch is no place for one number, which would always turn it on.
        one = not isinstance(value := source.own(name, data), Tensor | dict) or (
            isinstance(value, Tensor) and value.numel() == 1
        )
        if not (one and isinstance(taker.default, bool)):
            yield _Trial(taker, (name,))
    if len(unread) > 1 and taker.kind in (taker.VAR_POSITIONAL, taker.VAR_KEYWORD):
        yield _Trial(taker, tuple(unread))


def _held(source: Source, data: Any) -> Iterator[tuple[str, str]]:
    """Numbers and tensors that the data holds: their names, and how a user spells them."""
    seen = set[str]()
    for store in data.stores:
        for name in store.keys():  # noqa: SIM118 - a store is no mapping
            kept = name in _RESERVED or name.endswith(("_batch", "_ptr"))
            if name in seen or kept or not _numeric(store[name]):
                continue
            seen.add(name)
            several = isinstance(source.own(name, data), dict)
            yield name, f"{name}_dict" if several else name


def _numeric(value: Any) -> bool:
    if isinstance(value, Tensor):
        mask = value.dtype == torch.bool
        return value.layout == torch.strided and value.numel() > 0 and not mask
    return isinstance(value, numbers.Number) and not isinstance(value, bool)


def _felt(
    name: str,
    data: Any,
    run: Callable[[Any], Any],
    plain: Any,
    failures: tuple[type[Exception], ...],
) -> bool:
    """Whether other values of an attribute change the outputs of the user's own call."""
    generator = torch.Generator().manual_seed(0)
    other, changed = untouched(data), False
    for store in other.stores:
        if name not in store or not _numeric(store[name]):
            continue
        value = store[name]
        moved = value
        if isinstance(value, Tensor) and value.ndim:
            order = torch.randperm(len(value), generator=generator).to(value.device)
            moved = value[order]
        if not isinstance(value, Tensor) or value.is_floating_point():
            moved = moved * 0.5
        changed = changed or not (
            torch.equal(moved, value) if isinstance(value, Tensor) else moved == value
        )
        store[name] = moved
    if not changed:
        return True
    try:
        return not _same(run(other), plain)
    except failures:
        return True


def _same(found: Any, wanted: Any) -> bool:
    """Whether outputs, one tensor or several, are equal but for rounding."""
    if isinstance(found, Tensor) and isinstance(wanted, Tensor):
        return near(found, wanted)
    if type(found) is not type(wanted):
        return False
    if isinstance(found, Mapping):
        return found.keys() == wanted.keys() and all(_same(found[k], wanted[k]) for k in found)
    if isinstance(found, list | tuple):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return True  # no numbers of the module's, which is told later where they are needed
