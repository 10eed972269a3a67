"""Layers that do more with their stream than add to it, read as steps (see ``..steps``).

Tried by running the layer: where in it the stream's middle is, and what has to be silent or handed
in so that the rest of the layer follows from the middle alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..carried import PackedCall, PackedLayer
from ..family import Carried, LayerSteps
from ..norms import HALF, is_norm
from ..steps import FirstStep, SecondStep
from .mixers import letter
from .refusal import FOREIGN, cannot_read
from .trace import Traced, first_tensor, record, under
from .whole_layer import with_hidden

__all__ = ["READS_LATER", "find_steps", "one_step"]

READS_LATER = "reads later tokens"


@dataclass(frozen=True, eq=False)
class _Run:
    """What the layer was called with and gave in one run, and so its modules, in order."""

    x: Tensor
    out: Tensor
    calls: list[Traced]


def find_steps(
    call: Traced,
    calls: list[Traced],
    at: str,
    known: dict[Any, Any],
    *,
    alone: bool,
    whole: bool = False,
) -> LayerSteps:
    """How the layer is taken in steps: two, or one where no middle is found.

    Args:
        call: how the model called the layer, with one prompt.
        calls: the calls of the modules inside it, in order, paths as they are in the layer.
        at: the layer's name, for messages.
        known: steps of layers read before, which this one adds to.
        alone: whether a second step must be a node that may read other tokens.
        whole: whether the layer is one step whatever is in it.

    ``known`` says too whether a layer's tokens read later ones (``READS_LATER``).

    Raises:
        UnsupportedModelError: a layer without gradient, or that is called in another way.
    """
    hidden, out = call.read, call.gave
    named = "hidden_states" in call.kwargs
    if (
        hidden is None
        or out is None
        or (not named and (not call.args or hidden is not call.args[0]))
    ):
        cannot_read(at, "it is called with something else before its hidden states")
    plain = _Run(hidden, out, calls)
    late, early = (_run(call, _turned(hidden, token)) for token in (-1, -2))
    if _moved(plain.out[:, :-1], late.out[:, :-1]):
        known[READS_LATER] = True
    _require_gradient(call, hidden, at)
    layer = _LayerRuns(call, plain, early)
    if whole:
        return layer.one_step()
    make = ("steps", type(call.module), *(name for name, _ in call.module.named_modules()))
    steps = known.get(make)
    if steps is None or (steps.middle is not None and not layer.follows(steps)):
        steps = next(filter(layer.follows, layer.candidates()), None) or layer.one_step()
        known[make] = steps
    if steps.middle is None:
        return steps
    return replace(steps, mixes=alone or layer.second_mixes(steps))


def one_step(
    call: Traced,
    calls: list[Traced],
    at: str,
    known: dict[Any, Any],
    carried: tuple[Carried, ...],
) -> LayerSteps:
    """A layer that hands on more than one vector a token, as one step; otherwise as above."""
    calls_of = PackedCall(carried, call.args, call.kwargs, call.output)
    x, (args, kwargs) = calls_of.entering(call.args, call.kwargs)
    layer = PackedLayer(call.module, calls_of)
    call = Traced(call.path, layer, (x, *args), kwargs, calls_of.leaving(call.output))
    calls = [replace(each, path=f"layer.{each.path}") for each in calls if each.path]
    return find_steps(call, calls, at, known, alone=True, whole=True)


def _require_gradient(call: Traced, x: Tensor, at: str) -> None:
    """Refuses a layer that computes what no gradient passes."""
    with torch.enable_grad():
        args, kwargs = with_hidden(call.args, call.kwargs, x.detach().requires_grad_(True))
        out = first_tensor(call.module(*args, **kwargs))
    if out is None or not out.requires_grad:
        name = type(getattr(call.module, "layer", call.module)).__name__
        cannot_read(
            at,
            f"{name} gives no gradient to what it reads (it runs under torch.no_grad() or a kernel "
            "without a backward), so that no edge's could be told",
        )


def _turned(x: Tensor, token: int) -> Tensor:
    """``x [B, T, D]`` with one token's features turned around."""
    x = x.clone()
    x[:, token] = -x[:, token].flip(-1)
    return x


def _run(call: Traced, x: Tensor) -> _Run:
    args, kwargs = with_hidden(call.args, call.kwargs, x)
    calls = record(call.module, *args, **kwargs)[0]
    out = calls[-1].gave  # the layer itself ends last
    assert out is not None
    return _Run(x, out, calls)


def _moved(one: Tensor, other: Tensor, small: float = 1e-5) -> bool:
    """Whether numbers differ by more than rounding."""
    return float((one - other).abs().max()) > small * float(one.abs().max())


class _LayerRuns:
    """A layer and two runs of it, ``plain`` and with the last token but one ``turned``."""

    def __init__(self, call: Traced, plain: _Run, turned: _Run) -> None:
        self.call, self.layer, self.plain, self.turned = call, call.module, plain, turned
        self.loose = 3e-2 if plain.x.dtype in HALF else 1e-4
        self.outputs = {c.path: c.output for c in plain.calls}
        twins: dict[str, list[Traced]] = {}
        for each in turned.calls:
            twins.setdefault(each.path, []).append(each)
        self.pairs = [
            (each, twins[each.path].pop(0))
            for each in plain.calls
            if each.path and twins.get(each.path)
        ]
        self.mixing = [one for one, twin in self.pairs if self._mixes(one, twin)]

    def _mixes(self, one: Traced, twin: Traced) -> bool:
        """Whether a module's output at the last token changed though its input there did not."""
        ends = []
        for a, b in ((one.read, twin.read), (one.gave, twin.gave)):
            if a is None or b is None or a.ndim < 3 or a.shape != b.shape:
                return False
            if a.shape[:2] != self.plain.x.shape[:2]:
                return False
            ends.append(_moved(a[:, -1], b[:, -1]) if a.is_floating_point() else True)
        return ends == [False, True]

    def silent(self, *kept: str | None) -> tuple[str, ...]:
        """The outermost modules that mix tokens, without those around the modules ``kept``."""
        paths: list[str] = []
        free = [c.path for c in self.mixing if not any(p and under(p, c.path) for p in kept)]
        for path in sorted(dict.fromkeys(free), key=lambda p: p.count(".")):
            if not any(under(path, chosen) for chosen in paths):
                paths.append(path)
        return tuple(paths)

    def node(self, silent: tuple[str, ...]) -> str:
        """The letter of a step in which the ``silent`` modules are not."""
        kinds = {letter(self.layer.get_submodule(path)) for path in silent}
        return kinds.pop() if len(kinds) == 1 else "s"

    def candidates(self) -> Iterator[LayerSteps]:
        """Steps that may be, those first that change least of how the layer works."""
        if not self.mixing:
            return
        shape, calls = self.plain.x.shape, self.plain.calls
        behind = calls[1 + calls.index(self.mixing[0]) :]
        reads = [c.path for c in behind if c.path and c.read is not None and c.read.shape == shape]
        gives = [c.path for c in behind if c.path and c.gave is not None and c.gave.shape == shape]
        entering = [
            c.path
            for c in calls[: calls.index(self.mixing[0])]
            if c.read is not None and c.read.shape == shape and torch.equal(c.read, self.plain.x)
            if c.path and is_norm(c.module, self.plain.x)
        ]
        tries = [LayerSteps("", path, "input") for path in reads]
        tries += [LayerSteps("", path, "input", given=path) for path in reads]
        tries += [LayerSteps("", path, "output", given=path) for path in gives]
        tries += [LayerSteps("", path, "input", given=g) for g in entering for path in reads]
        tries += [LayerSteps("", path, "input", scaled=True) for path in reads]
        for steps in tries:
            silent = self.silent(steps.middle, steps.given)
            if steps.middle and not any(under(steps.middle, path) for path in silent):
                yield replace(steps, node=self.node(silent or self.silent()), silent=silent)

    def one_step(self) -> LayerSteps:
        """The whole layer as one node."""
        mixes = _moved(self.plain.out[:, -1], self.turned.out[:, -1])
        return LayerSteps(self.node(self.silent()) if mixes else "m")

    def follows(self, steps: LayerSteps) -> bool:
        """Whether the steps' changes add up to the layer's, the second told by the middle alone."""
        try:
            second = self._second(steps)
            for run in (self.turned, self.plain):
                middle = self._middle(steps, run)
                change = second(middle, *self.call.rest[0], **self.call.rest[1])
                nothing = not _moved(run.out, middle) or not _moved(middle, run.x)
                if nothing or not self._same(middle + change, run.out):
                    return False
            rest = self.call.rest
            first = FirstStep(self.layer, steps)(self.plain.x, *rest[0], **rest[1])
        except (*FOREIGN, AssertionError):
            return False
        return self._same(self.plain.x + first, self._middle(steps, self.plain))

    def second_mixes(self, steps: LayerSteps) -> bool:
        """Whether the second step reads other tokens, or cannot be called with a token alone."""
        second, (args, kwargs) = self._second(steps), self.call.rest
        middles = [self._middle(steps, run) for run in (self.plain, self.turned)]
        each = [second(middle, *args, **kwargs) for middle in middles]
        turned = second(_turned(middles[0], -2), *args, **kwargs)
        if _moved(turned[:, -1], each[0][:, -1]):
            return True
        try:
            together = second(torch.cat(middles, 1))
        except (*FOREIGN, AssertionError):
            return True
        return not self._same(together, torch.cat(each, 1))

    def _second(self, steps: LayerSteps) -> SecondStep:
        return SecondStep(self.layer, steps, self.outputs, self.call.rest)

    def _middle(self, steps: LayerSteps, run: _Run) -> Tensor:
        own = next(c for c in run.calls if c.path == steps.middle)
        middle = own.read if steps.side == "input" else own.gave
        assert middle is not None
        return middle.view_as(run.x)

    def _same(self, one: Tensor, other: Tensor) -> bool:
        size = max(float(one.abs().max()), float(other.abs().max()))
        return float((one - other).abs().max()) <= self.loose * size
