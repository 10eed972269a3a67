"""Modes that are switched for a call and come back: autograd's, and those of a user's module.

A notebook may switch gradients off for all of its cells, and ``torch.inference_mode`` marks each
tensor made in it so that autograd refuses the tensor for ever. Methods take gradients, and models
and references keep tensors from one call to the next. So each function that a user can enter
through says here which modes its body runs in; the caller's modes come back when it returns.

:func:`quiet` makes the only changes that there ever are to a user's module; they undo themselves in
``finally``. :func:`on_device` brings what a user gives to where a model computes.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _modes(gradients: bool) -> Iterator[None]:
    """Outside inference mode; gradients on, or as the caller has them."""
    enabled = gradients or torch.is_grad_enabled()  # read first: leaving the mode turns them on
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


def _in_modes(function: Callable[P, R], gradients: bool) -> Callable[P, R]:
    def as_it_is() -> bool:
        on = torch.is_grad_enabled() or not gradients
        return on and not torch.is_inference_mode_enabled()

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if as_it_is():
            return function(*args, **options)
        with _modes(gradients):
            return function(*args, **options)

    @functools.wraps(function)
    def generate(*args: P.args, **options: P.kwargs) -> Any:
        items: Any = function(*args, **options)
        while True:  # the modes are the caller's again between two items
            with _modes(gradients):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    return generate if inspect.isgeneratorfunction(function) else call


def ordinary_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """The function, making tensors that autograd takes later, whatever mode it is called in.

    Example:
        >>> with torch.inference_mode():
        ...     torch.ones(1).is_inference(), ordinary_tensors(torch.ones)(1).is_inference()
        (True, False)
    """
    return _in_modes(function, gradients=False)


def with_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run with gradients on, whatever mode it is called in."""
    return _in_modes(function, gradients=True)


def ordinary(values: Tensor) -> Tensor:
    """``values``; a copy that autograd takes where they were made in inference mode."""
    if not values.is_inference():
        return values
    with _modes(gradients=False):
        return values.clone()


def decorate(kind: type, names: tuple[str, ...], decorator: Callable[[Any], Any]) -> None:
    """Decorates those functions and properties among ``names`` that the class itself defines."""
    for name in names:
        own = vars(kind).get(name)
        if inspect.isfunction(own):
            setattr(kind, name, decorator(own))
        elif isinstance(own, property) and own.fget is not None:
            setattr(kind, name, property(decorator(own.fget), own.fset, own.fdel, own.__doc__))


_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_GUARD = threading.Lock()
_ROUNDS = "support_avx512bf16_for_cpu"  # bitsandbytes' name for it


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights, both restored afterwards whatever happens.

    On processors that multiply in bfloat16, bitsandbytes' 4-bit maps do so in evaluation mode, with
    rounded inputs and without gradients; here they multiply in the dtype that they were made for.

    Threads take turns: the modules that run around a masked model's parts hold the values of one
    run at a time, and two threads would restore each other's modes.
    """
    with _turn(module):
        modes = [(m, m.training) for m in module.modules() if m.training]
        trainable = [p for p in module.parameters() if p.requires_grad]
        rounding = [m for m in module.modules() if getattr(m, _ROUNDS, False)]
        try:
            for m in rounding:
                setattr(m, _ROUNDS, False)
                if getattr(getattr(m.weight, "quant_state", None), "packing_format_for_cpu", False):
                    m.state_dict()  # which lays the weights out as they were made
            for m, _ in modes:
                m.training = False
            for p in trainable:
                p.requires_grad_(False)
            yield
        finally:
            for m, mode in modes:
                m.training = mode
            for m in rounding:
                setattr(m, _ROUNDS, True)
            for p in trainable:
                p.requires_grad_(True)


def _turn(module: nn.Module) -> AbstractContextManager[bool | None]:
    """The module's lock, which one thread may take again and again."""
    # Autograd's threads of devices work for a thread that waits for them and may hold the lock;
    # Python did not start them, so it knows them as dummies.
    if isinstance(threading.current_thread(), threading._DummyThread):
        return nullcontext()
    with _GUARD:
        return _LOCKS.setdefault(module, threading.RLock())


def on_device(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a mapping's tensors, on a device; the value itself where nothing has to move."""
    if isinstance(value, Tensor):
        return value.to(device)
    if not isinstance(value, Mapping):
        return value
    moved = {key: on_device(part, device) for key, part in value.items()}
    return moved if any(moved[key] is not part for key, part in value.items()) else value
