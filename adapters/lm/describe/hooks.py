"""Refuses a module that something else changes while it is taken apart: hooks and the like.

The engine reads the weights of projections and norms, calls other modules on parts of the tokens,
and runs shallow copies of layers. A hook would therefore act on some of its numbers and not on
others, and what was copied would go on as it was. So all of it is looked for at every call, on the
modules as they are then, and refused by name. Weights that are changed in place are honoured, by
whatever means; so is ``torch.compile``, which computes the same. Parametrizations and accelerate's
hooks are honoured where they stood before the model was wrapped.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooked

from graphprune.errors import InputError, UnsupportedModelError

__all__ = ["Snapshot", "forward_home", "holds_transposed", "is_plain", "uncompiled"]

_ROOT = "the model itself"
_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
# Whose hooks change no number: gathering of shards, records of outputs, counting of FLOPs.
_HARMLESS = ("torch.distributed.", "torch.utils.", "transformers.")
_PLAIN_HOMES = ("torch.", "transformers.", "graphprune.")
# Hooks before a call that set the module's own weights from other parameters; they are run.
_SETS_WEIGHTS = "torch.nn.utils."
# Numbers of a module that change no output.
_CALLED = (nn.Linear, nn.Embedding, nn.Dropout)  # whose numbers are no copy's
_IDLE = ("training", "gradient_checkpointing", "layer_idx")


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, or what ``torch.compile`` was given where it is what that gave.

    A compiled module hands everything written to it on to the original: no copy of it can be made.
    """
    while type(module).__module__.startswith("torch._dynamo."):
        module = module._modules["_orig_mod"]  # type: ignore[assignment]
    return module


class Snapshot:
    """A model's modules as they were when they were taken apart.

    Raises :class:`UnsupportedModelError` where a hook already stands on one of them.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name or _ROOT, module) for name, module in model.named_modules()]
        self._modules = [
            (name, m, type(m), tuple(m._modules.values()), m.__dict__.get("forward"))
            for name, m in named
        ]
        self._forwards = {type(m): type(m).forward for _, m in named}
        self._numbers = [
            (name, m, key, value)
            for name, m in named
            for key, value in m.__dict__.items()
            if type(value) in (int, float, bool) and key not in _IDLE and key[0] != "_"
            if not isinstance(m, _CALLED)
        ]
        self._adapters = [(name, m, state) for name, m in named if (state := _adapters(m))]
        self._parameters = [m._parameters for _, m in named if m._parameters]
        for name, m in named:
            hook = m.__dict__.get("_hf_hook")
            for part in getattr(hook, "hooks", () if hook is None else (hook,)):
                if not type(part).__module__.startswith("accelerate."):
                    _refuse(f"{name} has a hook ({_title(type(part))})")
        self.check()

    @property
    def patched(self) -> list[str]:
        """Modules whose ``forward`` was replaced on the instance before the snapshot was taken."""
        return [
            name
            for name, module, _, _, own in self._modules
            if _written(module, own) is not None and "_hf_hook" not in module.__dict__
        ]

    def derived(self, among: set[nn.Module]) -> list[tuple[str, str]]:
        """Linear maps ``among`` some modules with a ``forward`` of their own: name and class.

        Torch's, transformers' and graphprune's own classes are not meant.
        """
        return [
            (name, kind.__name__)
            for name, module, kind, _, _ in self._modules
            if module in among
            and any(base is nn.Linear or base.__name__ == "Conv1D" for base in kind.__mro__[1:])
            and not forward_home(kind).startswith(_PLAIN_HOMES)
        ]

    def weights(self) -> tuple[tuple[int, int], ...]:
        """Where every parameter lies now, and how often it was written to.

        Torch does not count what is written through ``parameter.data``.
        """
        return tuple(
            (p.data_ptr(), p._version)
            for parameters in self._parameters
            for p in parameters.values()
            if p is not None
        )

    def require_same(self, weights: tuple[tuple[int, int], ...] | None) -> None:
        """Raises :class:`InputError` if weights were changed since ``weights`` told of them."""
        if weights is not None and weights != self.weights():
            raise InputError(
                "the model's weights were changed after this reference (or compiled circuit) was "
                "made, and its values are those of the old ones: make it again"
            )

    def check(self) -> None:
        """Raises :class:`UnsupportedModelError` naming what was hooked or replaced since."""
        for name, module, kind, children, own in self._modules:
            state = module.__dict__  # as it is now: a deep copy's modules have dicts of their own
            if any(map(state.get, _HOOKS)):
                _check_hooks(name, module, state)
            if module.__class__ is not kind:
                _check_parametrized(name, module, kind)
                _changed(name, f"is a {type(module).__name__} and was a {kind.__name__}")
            if tuple(state["_modules"].values()) != children:
                _check_children(name, state["_modules"], children)
            now = state.get("forward")
            if now is not own and _written(module, now) is not _written(module, own):
                _check_offloading(name, module)
                _changed(name, "had its forward replaced")
        for kind, forward in self._forwards.items():
            if kind.forward is not forward:
                _changed(kind.__name__, "(the class) had its forward replaced")
        for name, module, key, value in self._numbers:
            if module.__dict__.get(key) != value:
                _changed(name, f"had {key}={value} and has {key}={module.__dict__.get(key)}")
        for name, module, state in self._adapters:
            if _adapters(module) != state:
                _changed(name, "had its adapters switched, merged or scaled")
        for attribute, what in _HOOKS.items():
            for hook in getattr(hooked, f"_global{attribute}").values():
                if not _home(hook).startswith(_HARMLESS):
                    _refuse(f"every module has a {what} (a global one, {_title(hook)})")


def _adapters(module: Any) -> tuple[Any, ...]:
    """Which of PEFT's adapters a module adds, and times what; nothing of other modules."""
    if not type(module).__module__.startswith("peft.tuners."):
        return ()
    state = module.__dict__
    names = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
    return tuple(copy.copy(state.get(name)) for name in names)


def _check_hooks(name: str, module: nn.Module, state: dict[str, Any]) -> None:
    for attribute, what in _HOOKS.items():
        for hook in list((state.get(attribute) or {}).values()):
            home = _home(hook)
            if home.startswith(_SETS_WEIGHTS) and attribute == "_forward_pre_hooks":
                if not module.training:  # spectral norms take a step where a module trains
                    with torch.no_grad():
                        hook(module, ())
            elif not home.startswith(_HARMLESS):
                _refuse(f"{name} has a {what} ({_title(hook)})")


def _home(hook: Any) -> str:
    """The module that a hook was written in."""
    hook = getattr(hook, "func", hook)  # of a functools.partial
    return str(getattr(hook, "__module__", None) or type(hook).__module__)


def _title(hook: Any) -> str:
    hook = getattr(hook, "func", hook)
    return f"{getattr(hook, '__qualname__', type(hook).__qualname__)} of {_home(hook)}"


def _refuse(what: str) -> None:
    raise UnsupportedModelError(
        f"{what}. graphprune reads weights and calls modules on parts of the tokens, so a hook "
        "would count in some numbers and not in others: take it off (handle.remove()) as long as "
        "graphprune runs, or change the weights in place instead, which is honoured"
    )


def _written(module: nn.Module, forward: Any) -> Any:
    """A module's own ``forward`` without what ``torch.compile`` made of it.

    ``None`` means that the module runs its class's, compiled or not; accelerate leaves it so.
    """
    inner = getattr(forward, "_torchdynamo_orig_callable", forward)
    usual = getattr(inner, "__func__", None) is type(module).forward
    return None if usual and getattr(inner, "__self__", None) is module else inner


def forward_home(kind: type) -> str:
    """The Python module that a class's ``forward`` was written in, and a dot."""
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return f"{owner.__module__}."


def holds_transposed(kind: type[nn.Module]) -> bool | None:
    """Whether a class holds its matrix as GPT-2's Conv1D does; ``None``: it is no linear map."""
    if any(c.__name__ == "Conv1D" for c in kind.__mro__):  # or parametrised
        return True
    return False if issubclass(kind, nn.Linear) else None


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear map that its weight tells whole.

    Quantised weights and adapters are not, nor what has a ``forward`` of its own.
    """
    kind: Any = type(module)
    if not _is_plain_kind(kind):
        return False
    held: Any = type(module.weight)
    return _is_plain_tensor(held)


@cache  # a layer's maps are asked about in every run; Snapshot looks after what is replaced
def _is_plain_kind(kind: type[nn.Module]) -> bool:
    return holds_transposed(kind) is not None and forward_home(kind).startswith(_PLAIN_HOMES)


@cache
def _is_plain_tensor(kind: type) -> bool:
    return f"{kind.__module__}.".startswith("torch.")


def _check_offloading(name: str, module: nn.Module) -> None:
    """Refuses hooks of accelerate's that came since, or went."""
    hook = module.__dict__.get("_hf_hook")
    if hook is not None:
        raise UnsupportedModelError(
            f"since gp.wrap, {name} has a hook of accelerate's ({type(hook).__name__}, as "
            "dispatch_model and cpu_offload put there): wrap the model again, which honours it, or "
            "take the hooks off by accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )


def _check_parametrized(name: str, module: nn.Module, kind: type) -> None:
    if type(module).__name__.startswith("Parametrized") and kind in type(module).__mro__:
        raise UnsupportedModelError(
            f"since gp.wrap, {name} is a {type(module).__name__} and was a "
            f"{kind.__name__}: a parametrization (weight_norm and the like) makes its weights anew "
            "at every call. Wrap the model again, which honours it, or take it off by "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


def _changed(name: str, what: str) -> None:
    raise UnsupportedModelError(
        f"since gp.wrap, {name} {what}; the masked model has parts of what "
        "was there before: undo it, or wrap the model again"
    )


def _check_children(name: str, now: dict[str, Any], before: tuple[nn.Module | None, ...]) -> None:
    """Refuses other submodules than before; compiled ones are the same."""
    same = [m if m is None else uncompiled(m) for m in now.values()]
    if len(same) == len(before) and all(
        m is (old if old is None else uncompiled(old)) for m, old in zip(same, before, strict=True)
    ):
        return
    new = [key for key, m in now.items() if not any(m is old for old in before)]
    if new:
        _changed(f"{name}.{new[0]}".removeprefix(f"{_ROOT}."), "was replaced")
    _changed(name, "lost a submodule")
