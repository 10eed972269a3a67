"""A second device without one: tensors on ``sim`` compute on the CPU and refuse what a GPU refuses.

A tensor on ``sim`` holds a CPU tensor, and every operation on it is the CPU's own, so numbers are
the CPU's. As on a GPU, a tensor with dimensions on the CPU cannot meet one on the device, nor can a
generator of the CPU draw there, and ``.numpy()`` raises. Allowed, as CUDA allows it: CPU tensors
without dimensions beside a tensor of the device, and CPU indices into one.

:func:`install` registers the device for the rest of the process; nothing uses it unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

__all__ = ["DEVICE", "install", "synchronisations"]

DEVICE = "sim"
aten = torch.ops.aten
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_JOINING = {aten.cat.default, aten.stack.default}
_COPYING = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
_waits: list[list[str]] = []  # of every open `synchronisations()`


class SimTensor(Tensor):
    """A tensor on the simulated device; ``held`` is the CPU's that it stands for."""

    __module__ = "torch"  # whose plain tensors it stands for
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> SimTensor:
        made: SimTensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(DEVICE, 0),
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor, requires_grad: bool = False) -> None:
        super().__init__()

    def __repr__(self, **options: Any) -> str:
        return f"{self.held!r} on {DEVICE}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:  # torch's own changes the shell and not what it holds
        Tensor.data.__set__(self, value)
        self.held = value.held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@dataclass(frozen=True)
class _Rules:
    """What an operation does with its arguments, read off its schema once."""

    written: tuple[int, ...]  # places of positional arguments that are changed
    written_names: tuple[str, ...]  # the same by name, such as ``out``
    in_place: bool  # whether it gives back what it changed
    indexed: bool
    joining: bool
    copying: bool


@cache
def _rules(func: Any) -> _Rules:
    arguments = func._schema.arguments
    changed = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    returned = func._schema.returns
    return _Rules(
        tuple(i for i, write in enumerate(changed) if write and not arguments[i].kwarg_only),
        tuple(a.name for a, write in zip(arguments, changed, strict=True) if write),
        bool(returned)
        and all(r.alias_info is not None and r.alias_info.is_write for r in returned),
        func in _INDEXED,
        func in _JOINING,
        func in _COPYING,
    )


def _held(value: Any, away: list[Tensor]) -> Any:
    """The CPU's own tensors in an argument; those of the CPU are noted in ``away``."""
    if isinstance(value, SimTensor):
        return value.held
    if isinstance(value, Tensor):
        away.append(value)
    elif isinstance(value, (list, tuple)):
        return [_held(one, away) for one in value]
    return value


def _on_device(value: Any) -> Any:
    if isinstance(value, Tensor):
        return SimTensor(value)
    return type(value)(map(_on_device, value)) if isinstance(value, (list, tuple)) else value


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The CPU's answer, put on the device unless the operation leads away from it."""
    rules, away = _rules(func), list[Tensor]()
    given = [_held(value, away) for value in args]
    options = {name: _held(value, away) for name, value in kwargs.items()}
    if rules.indexed and isinstance(args[0], SimTensor):  # its indices may lie on the CPU
        away = [value for value in args[2:] if _is_away(value)]
    _refuse_mixed(func, rules, args, kwargs, away)
    target = kwargs.get("device")
    here = target is None or torch.device(target).type == DEVICE
    if target is not None and here:
        options["device"] = torch.device("cpu")
    if func is aten._local_scalar_dense.default or not here:
        for seen in _waits:
            seen.append(str(func))
    out = func(*given, **options)
    if not here:
        return out
    if rules.in_place:
        changed = [args[i] for i in rules.written if i < len(args)]
        changed += [kwargs[name] for name in rules.written_names if name in kwargs]
        return changed[0] if len(changed) == 1 else tuple(changed)
    return _on_device(out)


def _is_away(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, SimTensor)


def _refuse_mixed(
    func: Any, rules: _Rules, args: Any, kwargs: dict[str, Any], away: list[Tensor]
) -> None:
    """Raises :class:`RuntimeError`, as CUDA does, for tensors or generators of two devices."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != DEVICE:
        raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but found 'cpu'")
    if rules.copying or not away:
        return
    written = any(_is_away(args[i]) for i in rules.written if i < len(args))
    if written or rules.joining or any(value.ndim for value in away):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE}:0 and cpu! ({func})"
        )


def _empty(size: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    return SimTensor(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    return SimTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _arange(*bounds: Any, dtype: Any = None, **options: Any) -> Tensor:
    """Torch's own makes an empty tensor and lets it grow, which a shell cannot."""
    return SimTensor(torch.arange(*bounds, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """``target.copy_(source)`` between the two devices."""
    if not isinstance(target, SimTensor):
        for seen in _waits:
            seen.append("aten._copy_from")
    ours, theirs = (x.held if isinstance(x, SimTensor) else x for x in (source, target))
    theirs.copy_(ours)
    return target


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """What ``torch.sim`` offers beside the least that torch asks of it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@cache
def install() -> library.Library:
    """Registers the device, once; what it gives back must stay alive."""
    _setup_privateuseone_for_python_backend(rename=DEVICE, backend_module=_Backend())
    kernels = library.Library("aten", "IMPL")
    kernels.impl("empty.memory_format", _empty, "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step"):
        kernels.impl(name, _arange, "PrivateUse1")
    return kernels


@contextmanager
def synchronisations() -> Iterator[list[str]]:
    """The operations that read a value of the device on the CPU while the block runs."""
    seen: list[str] = []
    _waits.append(seen)
    try:
        yield seen
    finally:
        _waits.remove(seen)
