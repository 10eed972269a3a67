"""What layers hand on, read off one run: one vector a token, or more (see ``..carried``)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..family import Carried
from .refusal import FOREIGN, cannot_read
from .trace import Traced, first_tensor

__all__ = ["read_carried"]


def read_carried(layers: list[Traced], tokens: int, width: int | None) -> tuple[Carried, ...]:
    """The tensors of the stream; none if it is one vector a token, as usual.

    Args:
        layers: their calls with one prompt, in order.
        tokens: how many it has.
        width: of a vector, as the configuration says (``None``: it does not).

    Raises:
        UnsupportedModelError: what is no sum of numbers for each token.
    """
    _require_no_history(layers)
    found = list[Carried]()
    for one, other in pairwise(layers):
        _require_no_choice(one, other)
        for each in _between(one, other, tokens):
            if each not in found:
                found.append(each)
    if not found:  # one layer alone
        found = [_described(layers[0], *_main(layers[0]), layers[0].read, tokens)]
    if len({each.argument for each in found}) < len(found):
        cannot_read(
            "the layers", "what they hand on changes its shape or place from one to another"
        )
    if len(found) == 1 and found[0].axes == "usual":
        (shape,) = (each.shape for each in found)
        if len(shape) == 1 and width in (None, *shape):
            return ()
    return tuple(found)


def _main(call: Traced) -> tuple[int | str, int | None]:
    """Where a layer reads its stream, and where it gives it."""
    argument = "hidden_states" if isinstance(call.kwargs.get("hidden_states"), Tensor) else 0
    if argument == 0 and not call.args:
        argument = next(k for k, v in call.kwargs.items() if v is call.read)
    if not isinstance(call.output, (tuple, list)):
        return argument, None
    return argument, next(i for i, x in enumerate(call.output) if isinstance(x, Tensor))


def _between(one: Traced, other: Traced, tokens: int) -> list[Carried]:
    """What a layer hands on to the next: the stream, and other numbers that the next is given."""
    argument, output = _main(other)[0], _main(one)[1]
    found = [_described(other, argument, output, other.read, tokens)]
    given: list[tuple[int | str, Any]] = [*enumerate(other.args), *other.kwargs.items()]
    more: Any = one.output if output is not None else ()
    for place, x in enumerate(more):
        if not isinstance(x, Tensor) or place == output or not x.is_floating_point():
            continue
        found += [_described(other, key, place, x, tokens) for key, y in given if y is x]
    return found


def _described(
    call: Traced, argument: int | str, output: int | None, x: Tensor | None, tokens: int
) -> Carried:
    assert x is not None
    shape = tuple(x.shape)
    if shape[:2] == (1, tokens) and x.ndim > 2:
        return Carried(argument, output, shape[2:])
    if shape[:2] == (tokens, 1) and x.ndim > 2:
        return Carried(argument, output, shape[2:], "tokens first")
    if shape[1:3] == (1, tokens) and x.ndim == 4:
        return Carried(argument, output, (shape[0], shape[3]), "vectors first")
    if shape[0] == 1 and x.ndim == 3 and not shape[1] % tokens:
        return Carried(argument, output, (shape[1] // tokens, shape[2]), "vectors as tokens")
    cannot_read(
        f"the layers ({call.path})",
        f"they hand on {list(shape)} for 1 prompt of {tokens} tokens; expected numbers for each "
        "token and nothing else",
    )


def _require_no_history(layers: list[Traced]) -> None:
    """Refuses layers that are called with what several layers before gave."""
    for call in layers:
        assert call.read is not None
        shape = list(call.read.shape)
        tensors = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor)]
        if any(x.ndim == 4 and [*x.shape[:2], x.shape[3]] == shape for x in tensors):
            cannot_read(call.path, "it reads states of several layers before it, not of the last")


def _require_no_choice(one: Traced, other: Traced) -> None:
    """Refuses a layer that needs whole numbers which the layer before handed on.

    They are a choice (such as which tokens to read), and no edge can carry a part of one.
    """
    given = one.output if isinstance(one.output, (tuple, list)) else ()
    chosen = [x for x in given if isinstance(x, Tensor) and not x.is_floating_point()]
    names = [name for name, y in other.kwargs.items() if any(y is x for x in chosen)]
    if not names:
        return
    try:
        without = other.module(*other.args, **{**other.kwargs, **dict.fromkeys(names)})
        same = torch.equal(first_tensor(without), other.gave)  # type: ignore[arg-type]
    except FOREIGN:
        same = False
    if not same:
        cannot_read(
            other.path,
            f"it reads {', '.join(names)}, whole numbers that the layer before chose, of which no "
            "edge can carry a part",
        )
