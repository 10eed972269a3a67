"""A model's :class:`Family`, read off the model itself.

One plain forward is recorded: the layers are the list of modules of which each is called with what
the one before gave. Each layer is then read for itself (see ``layer``), and all must be alike. What
comes out is a description as data; the adapter's self-check proves it before anybody uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..family import Family
from ..module_copies import part, quiet
from ..norms import HALF, is_norm
from .layer import read_layer
from .refusal import cannot_read
from .trace import Traced, trace_model

__all__ = ["read_family"]

_TOKENS = 6
# Settings that say what stands around a layer's mixer, whatever it is.
_AROUND = (
    "attention_norm",
    "attention_post_norm",
    "mlp",
    "mlp_norm",
    "mlp_post_norm",
    "parallel",
    "residual_multiplier",
)


def read_family(model: nn.Module, *, split: bool = False) -> Family:
    """The family that describes the model; mixers that cannot be split by head are one node.

    ``split``: such mixers are refused.
    Raises :class:`UnsupportedModelError` with the part that cannot be read, and why.
    """
    config: Any = model.config
    kind = str(getattr(config, "model_type", type(model).__name__))
    try:
        with quiet(model), torch.no_grad():
            return Family((kind,), **_settings(model, config, split))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"model type {kind!r} ({type(model).__name__}) is not known, and {error}"
        ) from error


def _settings(model: nn.Module, config: Any, split: bool) -> dict[str, Any]:
    causal: Any = model
    table = causal.get_input_embeddings()
    count = int(table.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(count, (1, _TOKENS), generator=generator).to(table.weight.device)
    try:
        calls = trace_model(model, ids)
    except Exception as error:
        cannot_read(
            "the model",
            f"it could not be run on {_TOKENS} random tokens: {type(error).__name__}: {error}",
        )
    stack = _find_stack(model, calls, table)
    settings = stack.settings
    base = part(model, settings["base"])
    settings["position"] = _position(base, calls, stack, table)
    settings["final_norm"] = _final_norm(base, calls, stack)
    readings = []
    known: dict[Any, Any] = {}
    for i, call in enumerate(stack.calls):
        inside = f"{call.path}."
        parts = [
            replace(c, path=c.path.removeprefix(inside)) for c in calls if c.path.startswith(inside)
        ]
        readings.append(read_layer(call, parts, config, i, known, split=split))
    return settings | _together(readings, split)


def _together(readings: list[dict[str, Any]], split: bool) -> dict[str, Any]:
    """What describes all layers: those split by head, and those whose mixer is one node.

    Unless ``split``, layers whose heads differ from other layers' are not split either.
    """
    blocks = [reading.pop("block", None) for reading in readings]
    if len({reading["mlp"] for reading in readings}) > 1:  # all can be run whole if some must be
        for reading in readings:
            reading |= {"mlp": None, "mlp_post_norm": None}
    by_head = [reading for reading, block in zip(readings, blocks, strict=True) if not block]
    if not split and any(_differing(by_head[0], reading) for reading in by_head):
        blocks = [b or ("a", r["attention"]) for r, b in zip(readings, blocks, strict=True)]
        readings = [{n: v for n, v in reading.items() if n in _AROUND} for reading in readings]
    whole = next((r for r, block in zip(readings, blocks, strict=True) if not block), readings[0])
    for i, reading in enumerate(readings):
        around = {n: v for n, v in whole.items() if n in _AROUND}
        wrong = _differing(around if blocks[i] else whole, reading)
        if wrong is not None:
            cannot_read(
                f"layer {i}",
                f"its {wrong} is {reading.get(wrong)!r} and layer {readings.index(whole)}'s "
                f"{whole.get(wrong)!r}; layers of different structure are not supported yet",
            )
    paths = tuple(dict.fromkeys(block for block in blocks if block is not None))
    return whole | ({"blocks": paths} if paths else {})


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first setting in which two layers differ."""
    names = (name for name in one | other if not _alike(one.get(name), other.get(name)))
    return next(names, None)


def _alike(one: Any, other: Any) -> bool:
    """Whether two settings are the same; measured numbers but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)
    return bool(one == other)


@dataclass(frozen=True, eq=False)
class _Stack:
    """The list of layers: its calls, and the paths of the base model and of the list in it."""

    calls: list[Traced]
    settings: dict[str, Any]

    @property
    def entry(self) -> Tensor:
        """What enters the first layer."""
        entry = self.calls[0].read
        assert entry is not None
        return entry

    @property
    def exit(self) -> Tensor:
        """What the last layer gives."""
        out = self.calls[-1].gave
        assert out is not None
        return out


def _find_stack(model: nn.Module, calls: list[Traced], table: nn.Module) -> _Stack:
    """The longest list of modules that the stream passes one after the other."""
    best: _Stack | None = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        paths = {f"{path}.{name}" for name, _ in module.named_children()}
        own = [c for c in calls if c.path in paths]
        if len(own) != len(paths) or (best is not None and len(own) <= len(best.calls)):
            continue
        chain = all(
            c.gave is not None
            and d.read is not None
            and c.gave.shape == d.read.shape
            and torch.equal(c.gave, d.read)
            for c, d in pairwise(own)
        )
        first, last = own[0].read, own[-1].gave
        if chain and first is not None and last is not None and first.shape == last.shape:
            best = _Stack(own, _base_of(model, path, table))
    if best is None:
        cannot_read(
            "the layers",
            "there is no list of modules of which each is called with what the one before gave",
        )
    return best


def _base_of(model: nn.Module, layers: str, table: nn.Module) -> dict[str, Any]:
    """The smallest module around the layers and the token embedding, and their paths in it."""
    base = layers
    while base:
        base = base.rpartition(".")[0]
        for path, each in part(model, base).named_modules():
            if each is table:
                inner = layers.removeprefix(f"{base}.") if base else layers
                return {"base": base, "layers": inner, "embedding": path}
    cannot_read("the token embedding", "it is not among the modules of the model")


def _position(base: nn.Module, calls: list[Traced], stack: _Stack, table: nn.Module) -> str | None:
    """The path of a position table whose vectors are added to the tokens' and nothing else."""
    entry = stack.entry
    tokens = next((c.gave for c in calls if c.module is table), None)
    if tokens is None or tokens.shape != entry.shape:
        return None
    loose = (3e-2 if entry.dtype in HALF else 1e-5) * float(entry.abs().max())
    path: str
    for path, module in base.named_modules():
        call = next((c for c in calls if c.module is module), None)
        if call is None or module is table or call.gave is None or not path:
            continue
        position = call.gave
        if position.shape[-2:] != entry.shape[-2:] or position.numel() != entry[0].numel():
            continue
        if next(module.children(), None) is not None:
            continue
        rest = (entry - position).double().reshape(-1)
        plain = tokens.double().reshape(-1)
        scale = float(rest @ plain / (plain @ plain))
        if scale > 1e-3 and float((rest - scale * plain).abs().max()) <= loose:
            return path
    return None


def _final_norm(base: nn.Module, calls: list[Traced], stack: _Stack) -> str | None:
    """The path of the norm that reads what the last layer gives."""
    after = calls[calls.index(stack.calls[-1]) + 1 :]
    paths: dict[nn.Module, str] = {m: path for path, m in base.named_modules() if path}
    for call in after:
        read = call.read
        if call.module not in paths or read is None or read.shape != stack.exit.shape:
            continue
        if torch.equal(read, stack.exit) and is_norm(call.module, stack.exit):
            return paths[call.module]
    return None
