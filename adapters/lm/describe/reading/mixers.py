"""Modules whose message mixes tokens and cannot be split by head."""

from __future__ import annotations

from torch import nn

from .trace import Traced, first_tensor
from .whole_layer import with_hidden

__all__ = ["letter", "mixes"]

_NO_ATTENTION = ("linear", "lightning", "delta", "rwkv")


def letter(module: nn.Module) -> str:
    """``"a"`` for attention, ``"s"`` for any other mixer, as far as its class's name tells."""
    name = type(module).__name__.lower()
    return "a" if "attention" in name and not any(x in name for x in _NO_ATTENTION) else "s"


def mixes(call: Traced) -> bool:
    """Whether a module's message at a token depends on the token before, and on none later.

    It is called again with one token turned around: the last but one, which the last must notice,
    then the last, which no other may notice.
    """
    read, gave = call.read, call.gave
    assert read is not None
    assert gave is not None
    changes = []
    for token in (-2, -1):
        moved = read.clone()
        moved[:, token] = -moved[:, token].flip(-1)
        args, kwargs = with_hidden(call.args, call.kwargs, moved)
        again = first_tensor(call.module(*args, **kwargs))
        assert again is not None
        changes.append((again - gave).abs().amax(-1))
    small = 1e-5 * float(gave.abs().max())
    return float(changes[0][:, -1].max()) > small >= float(changes[1][:, :-1].max())
