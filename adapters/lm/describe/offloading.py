"""Weights that are not always there: offloaded, on another device, or sharded over processes.

``accelerate`` leaves a hook on every module whose weights lie elsewhere; FSDP2 (``fully_shard``)
makes parameters a shard of themselves. Both bring the weights for the length of a module's own
``forward``. The engine reads the weights themselves and calls parts of layers, so it asks here:
inside :meth:`WeightLoader.__call__` the modules hold whole weights on the main device and their
hooks stand still; afterwards everything is as it was, whatever happened inside.

A module may also compute in another dtype than its weights are kept in (:func:`computes_in`): they
are then converted for the same while.

FSDP1's flat parameters are not covered. Copies between several accelerators follow the same code
as those from the CPU, and were not run on several.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from graphprune.errors import UnsupportedModelError
from graphprune.util.plain import weights_hash

from .layout import EdgeLayout

__all__ = [
    "WeightLoader",
    "computes_in",
    "identity",
    "is_sharded",
    "main_device",
    "require_loadable",
    "whole_tensor",
]

_COMPUTES_IN = "_graphprune_computes_in"


def _hook(module: nn.Module) -> Any:
    """What accelerate left on a module, or ``None``."""
    return module.__dict__.get("_hf_hook")


def computes_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Makes loaders convert the module's own weights, where they are kept in another dtype."""
    if any(p is not None and _converts(p, dtype) for p in module._parameters.values()):
        module.__dict__[_COMPUTES_IN] = dtype


def _converts(parameter: Tensor, dtype: torch.dtype) -> bool:
    return parameter.is_floating_point() and parameter.dtype != dtype


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 manages the module's own parameters."""
    return any(c.__name__ == "FSDPModule" for c in type(module).__mro__)


def _offloads(hook: Any) -> bool:
    parts = getattr(hook, "hooks", (hook,))
    return any(getattr(h, "offload", False) and h.weights_map is not None for h in parts)


def require_loadable(model: nn.Module) -> None:
    """Raises :class:`UnsupportedModelError` for meta parameters that no hook can load."""
    missing = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            path = name.split(".")[:-1]
            owners = (model.get_submodule(".".join(path[:i])) for i in range(len(path) + 1))
            if not any(_offloads(_hook(m)) for m in owners if _hook(m) is not None):
                missing.append(name)
    if missing:
        raise UnsupportedModelError(
            f"{len(missing)} of the model's weights are not loaded (meta tensors, {missing[0]} "
            "first) and no hook of accelerate's brings them; load them before wrapping, or "
            "offload with accelerate's cpu_offload, disk_offload or dispatch_model"
        )


def whole_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor ``name`` of the model's ``state_dict``, loaded or gathered if it is not whole."""
    if type(tensor).__name__ == "DTensor":
        gathered: Any = tensor
        full: Tensor = gathered.full_tensor()
        return full
    if not tensor.is_meta:
        return tensor
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    with WeightLoader(model, [owner], main_device(owner))():
        loaded: Tensor = owner.state_dict(keep_vars=True)[last]
        return loaded.detach().clone()


def identity(
    model: nn.Module, layout: EdgeLayout, width: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Model id, class, sizes, dtype and a hash of all weights, as plain values."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    kind = type(model).__name__
    tensors = sorted(model.state_dict().items())
    if Path(name).exists() or Path(name).is_absolute():
        name = Path(name).name  # the rest of a local path says nothing but who its owner is
    return {
        "model": name or kind,
        "architecture": kind,
        "n_layers": layout.layers,
        "n_heads": layout.heads,
        "n_kv_heads": layout.kv_heads,
        "d_model": width,
        "parallel_attn_mlp": layout.parallel,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": weights_hash((n, whole_tensor(model, n, t.detach())) for n, t in tensors),
    }


def main_device(module: nn.Module) -> torch.device:
    """Where a module computes: its hook's device, or that of its weights."""
    for m in module.modules():
        hook = _hook(m)
        for part in getattr(hook, "hooks", (hook,)):
            device = getattr(part, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device


class WeightLoader:
    """Brings the weights of some modules, and takes them away again.

    Args:
        model: the whole model.
        parts: whose own weights are wanted.
        device: where they are wanted.
    """

    def __init__(self, model: nn.Module, parts: list[nn.Module], device: torch.device) -> None:
        self.device = device
        self._hooked = [m for m in parts if _hook(m) is not None]
        owners = _owners(model)
        self._sharded = list(dict.fromkeys(owners[m] for m in parts if m in owners))
        self._elsewhere = bool(self._hooked) and any(
            p.device != device for m in parts for p in m.parameters(recurse=False)
        )
        self._converted = [m for m in parts if _COMPUTES_IN in m.__dict__]
        self._parts, self._depth = parts, 0

    @property
    def needed(self) -> bool:
        """Whether weights come and go at all."""
        return bool(self._sharded or self._elsewhere or self._converted)

    @contextmanager
    def __call__(self, *, lent: bool = False) -> Iterator[None]:
        """Inside, the weights are whole and on the device.

        ``lent``: graphs of autograd made inside remember where a weight is found instead of the
        weight; backward brings it once more for the one product that needs it.
        """
        if self._depth:
            yield
            return
        self._depth += 1
        try:
            with ExitStack() as stack:
                for module in self._hooked if self._elsewhere else ():
                    stack.enter_context(_loaded(module))
                for module in self._sharded:
                    stack.enter_context(_gathered(module))
                if self._elsewhere:
                    for module in self._parts:
                        stack.enter_context(_moved(module, self.device))
                for module in self._converted:
                    stack.enter_context(_moved(module, self.device, module.__dict__[_COMPUTES_IN]))
                if lent:
                    stack.enter_context(self._lent())
                yield
        finally:
            self._depth -= 1

    def _lent(self) -> saved_tensors_hooks:
        owners = {
            tensor.untyped_storage().data_ptr(): (module, name)
            for module in self._parts
            for name, tensor in module.named_parameters(recurse=False)
        }

        def pack(tensor: Tensor) -> Any:
            owner = owners.get(tensor.untyped_storage().data_ptr())
            if owner is None:
                return tensor
            return (*owner, tensor.size(), tensor.stride(), tensor.storage_offset())

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            module, name, size, stride, offset = kept
            with self():
                whole = module.get_parameter(name).detach()
                weight: Tensor = whole.as_strided(size, stride, offset)
                return weight.clone() if self._sharded else weight

        return saved_tensors_hooks(pack, unpack)


@contextmanager
def _loaded(module: nn.Module) -> Iterator[None]:
    """A hooked module with its weights, whose forward neither loads nor drops them."""
    hook, around = _hook(module), module.__dict__.get("forward")
    hook.pre_forward(module)
    try:
        if around is not None:
            module.__dict__["forward"] = module.__dict__["_old_forward"]
        yield
    finally:
        if around is not None:
            module.__dict__["forward"] = around
        hook.post_forward(module, None)


@contextmanager
def _gathered(module: Any) -> Iterator[None]:
    """An FSDP module with whole, frozen weights; those that were whole before stay so."""
    from torch.distributed.tensor import DTensor

    shards = [p for p in module.parameters() if isinstance(p, DTensor)]
    if not shards:
        yield
        return
    module.unshard()
    frozen = [p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        module.reshard()


@contextmanager
def _moved(
    module: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """A module whose own weights are copies where they lie on another device, or in a ``dtype``."""
    away = {
        name: p
        for name, p in module._parameters.items()
        if p is not None and (p.device != device or (dtype is not None and _converts(p, dtype)))
    }
    try:
        for name, parameter in away.items():
            kind = dtype if parameter.is_floating_point() else None
            copied = parameter.data.to(device, kind)
            module._parameters[name] = nn.Parameter(copied, requires_grad=False)
        yield
    finally:
        module._parameters.update(away)


def _owners(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """For each module, the FSDP module that gathers its parameters."""
    owners: dict[nn.Module, nn.Module] = {}
    if not any(is_sharded(m) for m in model.modules()):
        return owners

    def walk(module: nn.Module, owner: nn.Module | None) -> None:
        owner = module if is_sharded(module) else owner
        if owner is not None:
            owners[module] = owner
        for child in module.children():
            walk(child, owner)

    walk(model, None)
    return owners
