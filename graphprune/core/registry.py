"""Open registries: adapters and methods are found through entry points.

A package adds an adapter by an entry point in the group ``graphprune.adapters`` (an object with
``name``, ``matches``, ``supported`` and ``wrap``) and a method by one in ``graphprune.methods`` (a
:class:`~graphprune.Scorer` or :class:`~graphprune.Pruner` class).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from graphprune.core.model import MaskedModel
from graphprune.errors import InputError, UnsupportedModelError, unknown_name
from graphprune.util.modes import ordinary_tensors


class Adapter(Protocol):
    """The object that an entry point in ``graphprune.adapters`` must give."""

    name: str

    def matches(self, module: object) -> bool:
        """``True`` if the adapter answers for this object."""
        ...

    def supported(self) -> list[str]:
        """Names of the architectures that are known."""
        ...

    def wrap(self, module: nn.Module, **options: Any) -> MaskedModel:
        """The module as a masked model; raises :class:`UnsupportedModelError` if it cannot be."""
        ...


@runtime_checkable
class Loader(Protocol):
    """An adapter that loads models by name: a folder, a hub id, what it knows besides."""

    def load(self, name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
        """The module, or a masked model, on a device in a dtype; ``None``: as it is stored."""
        ...


def require_known_options(options: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raises :class:`InputError` for the first option of an adapter that it does not know."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise unknown_name(f"option of {what}", unknown[0], known)


@lru_cache
def _entries(group: str) -> dict[str, EntryPoint]:
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if entry.name in entries and entries[entry.name].value != entry.value:
            raise InputError(
                f"two packages register {entry.name!r} in {group}: {entries[entry.name].value} and "
                f"{entry.value}; uninstall one"
            )
        entries[entry.name] = entry
    return entries


def package_of(group: str, name: str) -> str:
    """The package and version that registers ``name``; ``""`` where nothing is known of it."""
    entry = _entries(group).get(name)
    package = None if entry is None else entry.dist
    return "" if package is None else f"{package.name} {package.version}"


def adapters() -> dict[str, Adapter]:
    """Every installed adapter by its entry point's name."""
    return {name: entry.load() for name, entry in _entries("graphprune.adapters").items()}


def _adapter_of(module: object) -> Adapter | None:
    """The installed adapter that answers for an object."""
    known = _entries("graphprune.adapters")
    home = type(module).__module__.partition(".")[0]
    # An adapter named like the package that the module comes from is asked first: the others need
    # not be imported then.
    for name in sorted(known, key=lambda name: name != home):
        adapter: Adapter = known[name].load()
        if adapter.matches(module):
            return adapter
    return None


@ordinary_tensors
def wrap(
    module: Any,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> MaskedModel:
    """A Hugging Face or PyG module as a :class:`MaskedModel`; picks the adapter.

    Args:
        module: used as it is and never changed; or the folder, GGUF file or hub id of a language
            model. Of a compiled or (distributed) data-parallel module, and of PEFT's, the model
            inside is wrapped; ``.module`` says which. So is what a class of TransformerLens's holds
            as ``original_model``, which was tried on a stand-in for its bridge.
        device: where a model given by name is loaded, ``None``: on the CPU. A module stays where
            its owner put it: another device than its own is refused.
        dtype: of the weights of a model given by name, such as ``"bfloat16"``; ``None``: as they
            are stored. Of a module as above.
        options: the adapter's: ``data`` (needed), ``forward``, ``level``, ``node_type``, ``means``,
            ``tie`` and ``name`` of a graph network; ``check``, ``checkpointing``,
            ``embedding_nodes``, ``family`` (see :func:`describe`), ``nodes`` and ``experts`` of a
            language model. ``nodes``: ``"head"``, ``"block"`` (each layer's attention is one node)
            or ``"auto"`` (the default: one node where it cannot be split by head).
            ``experts=True``: each expert of a mixture is a node, and its router a reader.

    Raises:
        UnsupportedModelError: no adapter knows the module, or its exactness check fails.
        InputError: no model has this name, or the module is elsewhere or of another dtype.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> wrap(GCNConv(4, 2), data=data).graph
        ComputationalGraph(10 nodes, 12 pairs, 24 messages)
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> size = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 50}
        >>> wrap(GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))).graph
        ComputationalGraph(5 nodes, 13 edges, acyclic)
    """
    if isinstance(module, str | os.PathLike):
        module = _loaded(os.fspath(module), device, _kind(dtype))
    if isinstance(module, MaskedModel):
        if device is not None or dtype is not None:
            raise InputError(
                f"{module!r} is wrapped already, and stays where it is: leave device= and dtype= "
                "out, or wrap a module that is where you want it"
            )
        return module
    module = _unwrapped(module)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"expected a torch module to wrap, got {type(module).__name__}; load a model first, as "
            "AutoModelForCausalLM.from_pretrained(folder) does"
        )
    _require_ordinary_weights(module)
    _require_at(module, device, _kind(dtype))
    adapter = _adapter_of(module)
    if adapter is not None:
        return adapter.wrap(module, **options)
    known = ", ".join(_entries("graphprune.adapters"))
    raise UnsupportedModelError(
        f"no adapter knows {type(module).__module__}.{type(module).__qualname__}; adapters: "
        f"{known or 'none (is graphprune installed?)'}. An adapter of three members "
        "(graph, reference, run) is enough to run the methods: CONTRIBUTING.md, 'An adapter', has "
        "one to start from"
    )


def _unwrapped(module: Any) -> Any:
    """What ``torch.compile`` and data parallelism were given, of what they gave."""
    while True:
        if type(module).__module__.startswith("torch._dynamo."):
            module = module._orig_mod
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def _kind(dtype: torch.dtype | str | None) -> torch.dtype | None:
    kind = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if kind is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise InputError(f"dtype is that of weights, such as 'bfloat16', got {dtype!r}")
    return kind


def _loaded(
    name: str, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Module | MaskedModel:
    """The model of a name, by the first adapter that loads some."""
    for adapter in adapters().values():
        if isinstance(adapter, Loader):
            model: nn.Module | MaskedModel = adapter.load(name, device, dtype)
            return model
    raise InputError(f"no adapter loads models by name; load {name!r} and give the module")


def _require_at(
    module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Raises :class:`InputError` where a module's weights are elsewhere, or of another dtype."""
    weights = [p for p in module.parameters() if not is_lazy(p)]
    wrong = []
    if device is not None:
        try:
            wanted = torch.device(device)
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise InputError(f"the device {device} cannot be used: {first}") from None
        there = {p.device for p in weights}
        if any(d.type != wanted.type or wanted.index not in (None, d.index) for d in there):
            wrong.append(f"on {', '.join(sorted(map(str, there)))} and not on {wanted}")
    if dtype is not None:
        kinds = {p.dtype for p in weights if p.is_floating_point()}
        if kinds - {dtype}:
            wrong.append(f"{', '.join(sorted(map(str, kinds)))} and not {dtype}")
    if wrong:
        raise InputError(
            f"the weights of {type(module).__name__} are {', and '.join(wrong)}; a module is "
            "wrapped as it is: call module.to(...) on it before wrapping, or leave device= and "
            "dtype= out"
        )


def _require_ordinary_weights(module: nn.Module) -> None:
    made = [
        name
        for name, value in module.named_parameters()
        if not is_lazy(value) and value.is_inference()
    ]
    if made:
        raise InputError(
            f"{len(made)} weights of {type(module).__name__}, such as {made[0]}, were made in "
            "torch.inference_mode(), and no gradient can ever pass through such weights: build or "
            "load the module outside that mode, or wrap a copy made outside it, "
            "copy.deepcopy(module)"
        )


@ordinary_tensors
def describe(model: Any) -> Any:
    """Where a model's parts are: a ``graphprune.adapters.lm.Family``.

    Of encoders and encoder-decoders a ``graphprune.adapters.residual.ResidualFamily``.
    For a model type that is not known it is read off the model. Printed, it is an expression that
    can be pasted into code, changed and handed to ``gp.wrap(module, family=...)``. Takes a Hugging
    Face module or a wrapped one. Raises :class:`UnsupportedModelError` with the part that cannot be
    read, and why.

    Example:
        >>> from transformers import AutoConfig, AutoModelForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 9, "pad_token_id": 0}
        >>> config = AutoConfig.for_model("cohere", **sizes, num_attention_heads=2)
        >>> print(describe(AutoModelForCausalLM.from_config(config)))
        Family(('cohere',), mlp_norm='input_layernorm', parallel=True)
    """
    module = getattr(model, "module", model) if isinstance(model, MaskedModel) else model
    module = _unwrapped(module)
    read = getattr(_adapter_of(module), "describe", None)
    if read is None:
        raise InputError(
            "only Hugging Face's language models are described; expected one, or a wrapped one, "
            f"got {type(model).__name__}"
        )
    return read(model if isinstance(model, MaskedModel) else module)


def supported() -> dict[str, list[str]]:
    """The architectures that each adapter knows, such as ``{"transformers": ["gpt2", ...]}``.

    Other residual language models are read off the model when they are wrapped: :func:`describe`
    says what was read.

    Example:
        >>> supported()["pyg"]
        ['ARGNN', 'MessagePassing']
    """
    return {name: adapter.supported() for name, adapter in adapters().items()}


def method_names() -> list[str]:
    """Names that :func:`make_method` knows.

    Example:
        >>> method_names()[:4]
        ['acdc', 'attention-explainer', 'calibrated-ranking', 'captum-explainer']
    """
    return sorted(_entries("graphprune.methods"))


def method_class(name: str) -> type[Any]:
    """The class of a registered method; raises :class:`InputError` that lists the known ones."""
    entries = _entries("graphprune.methods")
    if name not in entries:
        raise unknown_name("method", name, sorted(entries))
    kind: type[Any] = entries[name].load()
    return kind


def make_method(name: str, **settings: Any) -> Any:
    """A scorer or pruner by its registered name, such as ``make_method("eap-ig", steps=5)``.

    Example:
        >>> make_method("eap-ig", steps=3).label
        'EAPIG(steps=3)'
    """
    kind = method_class(name)
    try:
        inspect.signature(kind).bind(**settings)
    except TypeError as error:
        raise InputError(f"method {name!r} does not take these settings: {error}") from None
    return kind(**settings)  # a TypeError in here is a fault of the method, and stays one
