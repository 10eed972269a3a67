"""One plain forward of the user's model, recorded: which module is called with what, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks import uncompiled
from ..module_copies import Call, model_inputs, quiet

__all__ = [
    "Traced",
    "first_tensor",
    "linear",
    "only_first",
    "record",
    "relative",
    "trace_model",
    "under",
]


@dataclass(frozen=True, eq=False)
class Traced:
    """One call of a module: its path, what it was called with and what it gave."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def read(self) -> Tensor | None:
        """The tensor it was called with: ``hidden_states``, else the first of all arguments."""
        named = self.kwargs.get("hidden_states")
        if isinstance(named, Tensor):
            return named
        return first_tensor((*self.args, *self.kwargs.values()))

    @property
    def gave(self) -> Tensor | None:
        """The (first) tensor it gave."""
        return first_tensor(self.output)

    @property
    def rest(self) -> Call:
        """What it was called with beside its hidden states."""
        if "hidden_states" in self.kwargs:
            return self.args, {k: v for k, v in self.kwargs.items() if k != "hidden_states"}
        return self.args[1:], self.kwargs

    @property
    def alone(self) -> bool:
        """Whether a tensor was all it was called with."""
        return len(self.args) + len(self.kwargs) == 1

    @property
    def repeats(self) -> bool:
        """Whether another argument holds what it reads too."""
        read = self.read
        if read is None:
            return False
        given = [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)]
        return sum(x.shape == read.shape and torch.equal(x, read) for x in given) > 1


def first_tensor(value: Any) -> Tensor | None:
    """The value itself, or the first tensor of a tuple, a list or a model's output."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((x for x in value if isinstance(x, Tensor)), None)
    return None


def only_first(output: Any, value: Tensor) -> Any:
    """The value as a module gives it whose ``output`` it replaces: alone, or first of several."""
    if isinstance(output, (tuple, list)):
        kind = list if isinstance(output, list) else tuple
        return kind([value, *[None] * (len(output) - 1)])
    return value


def linear(module: nn.Module) -> bool:
    """Whether a module is a Linear, or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or any(
        c.__name__ == "Conv1D" for c in type(module).__mro__
    )


def under(path: str, root: str) -> bool:
    """Whether a path is ``root`` or leads below it."""
    return path == root or path.startswith(f"{root}.")


def relative(path: str, root: str) -> str:
    """The path as it is counted from ``root``."""
    return path.removeprefix(f"{root}.")


def record(root: nn.Module, *args: Any, **kwargs: Any) -> tuple[list[Traced], Any]:
    """Calls ``root``; returns the calls of all modules inside it, as they end, and the output."""
    calls: list[Traced] = []
    handles = []
    for path, module in root.named_modules():

        def note(m: nn.Module, a: Any, k: Any, out: Any, path: str = path) -> None:
            calls.append(Traced(path, uncompiled(m), a, dict(k), out))

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            output = root(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def trace_model(model: nn.Module, ids: Tensor) -> list[Traced]:
    """All calls of one plain forward on ``ids [B, T]``."""
    with quiet(model):
        return record(model, **model_inputs(model, ids))[0]
