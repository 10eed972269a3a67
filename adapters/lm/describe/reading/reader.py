"""A model's :class:`Family`, read off the model itself.

One plain forward is recorded: the layers are the list of modules of which each is called with what
the one before gave. Each layer is then read for itself (see ``layer``), and all must be alike. What
comes out is a description as data; the adapter's self-check proves it before anybody uses it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..family import Carried, Family, LayerSteps
from ..module_copies import part, quiet
from ..norms import HALF, describe_norm, is_norm
from .changes import READS_LATER, find_steps, one_step
from .handed_on import read_carried
from .layer import read_layer
from .refusal import FOREIGN, cannot_read, refusal
from .trace import Traced, trace_model

__all__ = ["read_family"]

_log = logging.getLogger(__name__)
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

    Layers that do more than add to their stream are taken in steps. ``split``: both are refused.
    Raises :class:`UnsupportedModelError` with the part that cannot be read, and why.
    """
    config: Any = model.config
    kind = str(getattr(config, "model_type", type(model).__name__))
    config = config.get_text_config(decoder=True)
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
    carried = read_carried(stack.calls, _TOKENS, getattr(config, "hidden_size", None))
    base = part(model, settings["base"])
    settings["position"] = settings["final_norm"] = None
    if carried:
        settings["carried"] = carried
    else:
        settings["position"] = _position(base, calls, stack, table)
        settings["final_norm"] = _final_norm(base, calls, stack)
    return settings | _together(_Layers(stack.calls, calls, config, split, carried))


class _Layers:
    """The readings of all layers, one after the other, and why those without one have none.

    ``split``: all must have one. ``carried``: as a :class:`Family` has it.
    """

    def __init__(
        self,
        layers: list[Traced],
        calls: list[Traced],
        config: Any,
        split: bool,
        carried: tuple[Carried, ...],
    ) -> None:
        self.layers, self.split, self.inside = layers, split, list[list[Traced]]()
        self.carried = carried
        self.readings: list[dict[str, Any] | None] = []
        self.refused: dict[int, UnsupportedModelError] = {}
        self.known: dict[Any, Any] = {}
        for i, call in enumerate(layers):
            inside = f"{call.path}."
            self.inside.append(
                [
                    replace(c, path=c.path.removeprefix(inside))
                    for c in calls
                    if c.path.startswith(inside)
                ]
            )
            try:
                if carried:
                    cannot_read(f"layer {i}", "its stream is more than one vector for each token")
                reading = read_layer(call, self.inside[i], config, i, self.known, split=split)
            except UnsupportedModelError as error:
                if split:
                    raise
                self.refused[i], reading = error, None
            self.readings.append(reading)

    def centred(self, reading: dict[str, Any]) -> bool:
        """Whether a norm that is read so subtracts the mean."""
        call = self.layers[self.readings.index(reading)]
        paths = filter(None, (reading["attention_norm"], reading["mlp_norm"]))
        norms = (describe_norm(part(call.module, path), path, like=call.read) for path in paths)
        return any(norm.centred for norm in norms)

    def unlike(
        self, whole: dict[str, Any], blocks: dict[int, Any]
    ) -> dict[int, UnsupportedModelError]:
        """Why layers are not as ``whole`` says; ``blocks``: by a reading's id, what is one node."""
        wrong: dict[int, UnsupportedModelError] = {}
        around = {n: v for n, v in whole.items() if n in _AROUND}
        letters: dict[str, str] = {}
        for i, reading in enumerate(self.readings):
            if reading is None:
                continue
            block = blocks[id(reading)]
            differs = _differing(around if block else whole, reading)
            if block is not None and letters.setdefault(block[1], block[0]) != block[0]:
                at = f"layer {i}'s {block[1]}"
                wrong[i] = refusal(at, "other layers have another mixer there")
            elif differs is not None:
                wrong[i] = refusal(
                    f"layer {i}",
                    f"its {differs} is {reading.get(differs)!r} and layer "
                    f"{self.readings.index(whole)}'s {whole.get(differs)!r}",
                )
        return wrong

    def steps(self, i: int, why: UnsupportedModelError, *, alone: bool) -> LayerSteps:
        """How layer ``i`` is taken in steps; raises ``why`` if it cannot be."""
        try:
            if self.carried:
                steps = one_step(
                    self.layers[i], self.inside[i], f"layer {i}", self.known, self.carried
                )
            else:
                steps = find_steps(
                    self.layers[i], self.inside[i], f"layer {i}", self.known, alone=alone
                )
        except FOREIGN as error:
            if self.carried and isinstance(error, UnsupportedModelError):
                raise
            raise why from error
        _log.info("layer %d is taken in steps: %s", i, why)
        return steps


def _together(layers: _Layers) -> dict[str, Any]:
    """What describes all layers: those split by head, and those whose mixer is one node.

    Unless ``split``, layers whose heads differ from other layers' are not split either, and those
    that cannot be read or have another structure are taken in steps.
    """
    read = [reading for reading in layers.readings if reading is not None]
    blocks = {id(reading): reading.pop("block", None) for reading in read}
    if len({reading["mlp"] for reading in read}) > 1:  # all can be run whole if some must be
        for reading in read:
            if reading["mlp_norm"] is not None:
                reading |= {"mlp": None, "mlp_post_norm": None}
    by_head = [reading for reading in read if not blocks[id(reading)]]
    if not layers.split and any(_differing(by_head[0], reading) for reading in by_head):
        for reading in by_head:
            blocks[id(reading)] = ("a", reading["attention"])
            for name in [name for name in reading if name not in _AROUND]:
                del reading[name]
        by_head = []
    whole = next(iter(by_head or read), None)
    wrong = layers.refused | ({} if whole is None else layers.unlike(whole, blocks))
    if wrong and layers.split:
        raise next(iter(wrong.values()))
    if wrong and (whole is None or layers.centred(whole)):  # all readers' inputs are alike
        why = next(iter(wrong.values()))
        wrong, whole = dict.fromkeys(range(len(layers.layers)), why), None
    settings = whole or {}
    if wrong:
        alone = bool(settings.get("parallel"))
        steps = [
            layers.steps(i, wrong[i], alone=alone) if i in wrong else None
            for i in range(len(layers.layers))
        ]
        settings = settings | {"steps": tuple(steps)}
        if READS_LATER in layers.known:
            settings |= {"causal": False}
    own = [r for i, r in enumerate(layers.readings) if r is not None and i not in wrong]
    paths = tuple(dict.fromkeys(blocks[id(r)] for r in own if blocks[id(r)] is not None))
    return settings | ({"blocks": paths} if paths else {})


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
