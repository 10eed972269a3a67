"""Decides, once when a module is wrapped, how it is called on the user's data.

Whatever the user's own call would read reaches the module, unless the data's names and the module's
do not tell what it reads: then nothing is guessed, and the error asks for ``forward=``. An
attribute's axis, type and name do not tell whether the call reads it. So each unread one is put in
each place that the call leaves open: where the module runs and gives other outputs, two calls are
possible and only the user knows which is theirs.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import GraphPruneError, InputError

from .graph_data import LABELS, GraphData, plain_copy
from .module_call import ModuleCall
from .read_data import read_data

__all__ = ["attempt", "call_on_part", "find_call", "nearly_equal", "part_of"]

# What a batch knows besides its attributes; made where a module cannot be called without.
_MADE = ("batch", "batch_dict", "ptr", "num_nodes", "num_graphs", "batch_size")
# Parameters of PyG's modules that say how to run, or that neighbour loaders fill.
_SETTINGS = {*_MADE, *LABELS, "size", "return_attention_weights",
             "num_sampled_nodes_per_hop", "num_sampled_edges_per_hop"}  # fmt: skip
# Attributes that PyG keeps for itself: the edges, labels, splits, and which entry is which.
_RESERVED = {*_MADE, *LABELS, "edge_index", "edge_label", "train_mask", "val_mask", "test_mask",
             "n_id", "e_id", "idx", "input_id",
             "num_sampled_nodes", "num_sampled_edges"}  # fmt: skip
_TRIALS = 64  # calls at most; a pair of an attribute and a place is one
# What hangs on no edge in particular is tried on part of a graph that has more edges than this.
_MANY_EDGES = 100_000
# What a module raises where it is called on what it does not take.
_FAILURES = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)

_BY_POSITION = inspect.Parameter.POSITIONAL_ONLY
_REST = inspect.Parameter.VAR_POSITIONAL
_ANY_NAME = inspect.Parameter.VAR_KEYWORD


def attempt(call: Callable[[], Any], *, refusals: bool = False) -> tuple[Any, Exception | None]:
    """Outputs of a call, or the error that says that the module does not take it.

    A lack of memory says nothing of the call, and goes through. So do sentences of ours, unless
    ``refusals`` count as failures too.
    """
    try:
        return call(), None
    except _FAILURES as error:
        ours = isinstance(error, GraphPruneError) and not refusals
        if ours or isinstance(error, torch.OutOfMemoryError):
            raise
        return None, error


def nearly_equal(outputs: Any, wanted: Any, room: float | None = None) -> bool:
    """Whether outputs, one tensor or several, are equal but for rounding.

    NaN and infinities must stand in the same places. ``room``: how far a tensor's values may lie
    apart, by one more than its largest; ``None`` means 1e-9 in float64, else 1e-4.
    """
    if isinstance(outputs, Tensor) and isinstance(wanted, Tensor):
        if outputs.shape != wanted.shape:
            return False
        finite = wanted[torch.isfinite(wanted)].abs()
        size = 1.0 + float(finite.max()) if finite.numel() else 1.0
        if room is None:
            room = 1e-9 if wanted.dtype == torch.float64 else 1e-4
        outputs = outputs.to(wanted.dtype)
        return torch.allclose(outputs, wanted, rtol=0.0, atol=size * room, equal_nan=True)
    if type(outputs) is not type(wanted):
        return False
    if isinstance(outputs, Mapping):
        return outputs.keys() == wanted.keys() and all(
            nearly_equal(outputs[k], wanted[k]) for k in outputs
        )
    if isinstance(outputs, list | tuple):
        return len(outputs) == len(wanted) and all(map(nearly_equal, outputs, wanted))
    return True  # no numbers of the module's, which is told later where they are needed


def find_call(
    module: nn.Module, source: GraphData, data: Any, forward: Callable[[Any, Any], Any] | None
) -> ModuleCall:
    """How ``module`` is called on ``data``, which ``source`` describes.

    Raises:
        InputError: what the module reads cannot be told from names.
    """
    if forward is not None:
        if not callable(forward):
            raise InputError(
                f"forward is a callable (module, data) -> outputs, got {type(forward).__name__}"
            )
        return ModuleCall(module, source, forward)
    finder = _CallFinder(module, source, data, inspect.signature(module.forward))
    call = finder.by_names()
    finder.require_read(call)
    return call


def part_of(source: GraphData) -> Tensor | None:
    """``[E]`` bool: edges all over a large graph on which trials are run; ``None``: all of them."""
    if source.num_edges <= _MANY_EDGES:
        return None
    step = source.num_edges * 10 // _MANY_EDGES
    kept = torch.arange(source.num_edges, device=source.device) % step == 0
    for first, count in zip(source.first_edges, source.edge_counts, strict=True):
        kept[first : first + min(count, 10)] = True  # of small relations too
    return kept


def call_on_part(
    module: nn.Module,
    source: GraphData,
    forward: Callable[[Any, Any], Any] | None,
    part: Tensor | None,
) -> ModuleCall | None:
    """The call as it is found on the edges ``part [E]``; ``None`` where that tells nothing."""
    if part is None or forward is not None or source.either:
        return None
    data = source.copied_data(source.make_copies(kept=part))
    small = read_data(data)
    call, failed = attempt(lambda: find_call(module, small, data, None), refusals=True)
    if failed is not None:
        return None  # said of the user's own data
    _, failed = attempt(lambda: call.on_data(plain_copy(data)), refusals=True)
    return replace(call, data=source) if failed is None else None


@dataclass(frozen=True, eq=False)
class _CallFinder:
    module: nn.Module
    source: GraphData
    data: Any
    signature: inspect.Signature

    @property
    def where(self) -> str:
        return f"{type(self.module).__name__}.forward"

    @property
    def parameters(self) -> list[inspect.Parameter]:
        return list(self.signature.parameters.values())

    def asked(self, what: str, call: str = "") -> InputError:
        """The error that asks for ``forward=``."""
        several = self.source.heterogeneous
        usual = "module(d.x_dict, d.edge_index_dict)" if several else "module(d.x, d.edge_index)"
        return InputError(
            f"{what}; say how the module is called on data: "
            f"gp.wrap(module, data=data, forward=lambda module, d: {call or usual})"
        )

    # ---------------------------------------------------------------- by names

    def by_names(self) -> ModuleCall:
        """The call by the data itself, or by its attributes of the parameters' names."""
        source = self.source
        named = [p for p in self.parameters if p.kind not in (_REST, _ANY_NAME)]
        needed = [p.name for p in named if p.default is p.empty]
        if not named:
            raise self.asked(f"{self.where} takes whatever it is given")
        if len(needed) == 1 and named[0].name == needed[0] and self._takes_data(named):
            return ModuleCall(self.module, source, takes_data=True)
        missing = [n for n in needed if not source.has(n) and n not in _MADE]
        if missing:
            raise self.asked(
                f"{self.where} needs {missing[0]!r}, which the data has no attribute of"
            )
        filled = [p for p in named if source.has(p.name) or p.name in needed]
        labels = [p.name for p in filled if p.name in LABELS and p.name not in needed]
        call = ModuleCall(
            self.module,
            source,
            arguments=tuple(p.name for p in filled if p.name not in labels),
            batch_arguments=tuple(
                p.name
                for p in named
                if p not in filled and p.name in ("batch", "batch_dict") and p.default is None
            ),
            positional=sum(p.kind is _BY_POSITION for p in filled),
        )
        ahead = [p for p in named if p.kind is _BY_POSITION][: call.positional]
        lacking = [p.name for p in ahead if p not in filled]
        if lacking:
            raise self.asked(
                f"{self.where} takes {lacking[0]!r} by position, and the data has none"
            )
        return self._with_labels(call, labels) if labels else call

    def _takes_data(self, named: Sequence[inspect.Parameter]) -> bool:
        first = named[0].name
        if any(p.name.removesuffix("_dict") == "edge_index" for p in named):
            return False
        return first in ("data", "batch") or not self.source.has(first)

    def _with_labels(self, call: ModuleCall, labels: list[str]) -> ModuleCall:
        """Optional labels are left out where they change nothing, or make outputs a loss."""
        more = replace(call, arguments=(*call.arguments, *labels))
        without, failed = attempt(lambda: call.on_data(plain_copy(self.data)))
        out, failed_with = attempt(lambda: more.on_data(plain_copy(self.data)))
        if failed is None and failed_with is None:
            both = isinstance(out, Tensor) and isinstance(without, Tensor)
            if both and out.shape == without.shape and not nearly_equal(out, without):
                raise self.asked(
                    f"{self.where} gives other outputs once {labels[0]!r} is given, and whether it "
                    "is meant to read the labels is not known"
                )
        return call

    # ---------------------------------------------------------------- what the call does not read

    def require_read(self, call: ModuleCall) -> None:
        """Raises where an attribute that the call does not read could be meant for an open place.

        Raises:
            InputError: an open place gives other outputs, or there are too many to try.
        """
        filled = {self.parameters[0].name} if call.takes_data else set(call.arguments)
        places = [p for p in self.parameters if p.name not in filled | _SETTINGS]
        if not places:
            return
        plain, failed = attempt(lambda: call.on_data(plain_copy(self.data)))
        if failed is not None:
            return  # the user's own call fails, which is told later
        unread = [
            spelled
            for name, spelled in self._attributes()
            if not (call.takes_data or {name, spelled} & filled)
            or not self._is_read(call, name, plain)
        ]
        trials = [(p, names) for p in places for names in self._trials(p, unread)]
        if len(trials) > _TRIALS:
            raise self.asked(
                f"{self.where} leaves {', '.join(p.name for p in places)} unfilled and does not "
                f"read {', '.join('data.' + n for n in unread)}: more than {_TRIALS} ways to call "
                "it"
            )
        for place, names in trials:
            out, failed = attempt(lambda: self._tried(call, place, names))  # noqa: B023
            if failed is None and not nearly_equal(out, plain):
                raise self._open_place(call, place, names)

    def _tried(self, call: ModuleCall, place: inspect.Parameter, names: Sequence[str]) -> Any:
        """Outputs of the call with attributes ``names`` in an open place as well."""
        data = plain_copy(self.data)
        given = {name: self.source.user_value(name, data) for name in call.arguments}
        if call.takes_data:
            given = {self.parameters[0].name: data}
        values = {name: self.source.user_value(name, data) for name in names}
        in_place: dict[Any, Any] = {_REST: tuple(values.values()), _ANY_NAME: values}
        given[place.name] = in_place.get(place.kind, values[names[0]])
        bound = self.signature.bind_partial()
        bound.arguments.update(given)
        bound.apply_defaults()  # those that stand before what is given by position
        return self.module(*bound.args, **bound.kwargs)

    def _open_place(
        self, call: ModuleCall, place: inspect.Parameter, names: Sequence[str]
    ) -> InputError:
        """The error that says what could be meant, and spells the call that would read it."""
        given = dict(zip(call.arguments, (f"d.{n}" for n in call.arguments), strict=True))
        if call.takes_data:
            given = {self.parameters[0].name: "d"}
        values = [f"d.{name}" for name in names]
        several = " and ".join(f"data.{n}" for n in names)
        what = f"nothing reads {several}, while {self.where} leaves {place.name!r} unfilled"
        if place.kind is _REST:
            what = f"{self.where} takes whatever follows (*{place.name}), so {several} may be meant"
        elif place.kind is _ANY_NAME:
            what = f"{self.where} takes any names (**{place.name}), so {several} may be meant"
        if place.kind in (_REST, _BY_POSITION):
            ahead = self.parameters[: self.parameters.index(place)]
            spelled = [given.get(p.name, repr(p.default)) for p in ahead] + values
        else:
            spelled = ["d"] if call.takes_data else [f"{n}={text}" for n, text in given.items()]
            keys = names if place.kind is _ANY_NAME else [place.name]
            spelled += [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        it = "them" if len(names) > 1 else "it"
        return self.asked(
            f"{what}; with {it} or without {it} are different numbers",
            f"module({', '.join(spelled)})",
        )

    def _trials(self, place: inspect.Parameter, unread: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Names of the attributes that are put in a place: each alone, and all where they fit."""
        for name in unread:
            value = self.source.user_value(name, self.data)
            one = value.numel() == 1 if isinstance(value, Tensor) else not isinstance(value, dict)
            # A switch is no place for one number, which would always turn it on.
            if not (one and isinstance(place.default, bool)):
                yield (name,)
        if len(unread) > 1 and place.kind in (_REST, _ANY_NAME):
            yield tuple(unread)

    def _attributes(self) -> Iterator[tuple[str, str]]:
        """Numbers and tensors that the data holds: their names, and how a user spells them."""
        seen = set[str]()
        for store in self.data.stores:
            for name in store.keys():  # noqa: SIM118 - a store is no mapping
                kept = name in _RESERVED or name.endswith(("_batch", "_ptr"))
                if name in seen or kept or not _numeric(store[name]):
                    continue
                seen.add(name)
                several = isinstance(self.source.user_value(name, self.data), dict)
                yield name, f"{name}_dict" if several else name

    def _is_read(self, call: ModuleCall, name: str, plain: Any) -> bool:
        """Whether other values of an attribute change the outputs of the user's own call."""
        generator = torch.Generator().manual_seed(0)
        other, changed = plain_copy(self.data), False
        for store in other.stores:
            if name not in store or not _numeric(store[name]):
                continue
            value = moved = store[name]
            if isinstance(value, Tensor) and value.ndim:
                moved = value[torch.randperm(len(value), generator=generator).to(value.device)]
            if not isinstance(value, Tensor) or value.is_floating_point():
                moved = moved * 0.5
            same = torch.equal(moved, value) if isinstance(value, Tensor) else moved == value
            changed = changed or not same
            store[name] = moved
        if not changed:
            return True
        out, failed = attempt(lambda: call.on_data(other))
        return failed is not None or not nearly_equal(out, plain)


def _numeric(value: Any) -> bool:
    if isinstance(value, Tensor):
        mask = value.dtype == torch.bool
        return value.layout == torch.strided and value.numel() > 0 and not mask
    return isinstance(value, numbers.Number) and not isinstance(value, bool)
