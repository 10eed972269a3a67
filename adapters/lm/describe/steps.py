"""Layers taken in steps: nodes whose message is what a part of the layer changes of its stream.

So a layer need not add to its stream: it may norm or scale it (post-norm), have several mixers
side by side, or a chain of mixers and MLPs. The first step runs the layer up to the stream in its
middle, the second runs the rest of it, with the mixers silent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from .carried import PackedCall, PackedLayer
from .experts import ExpertCall, ExpertNodes, expert_nodes, find_experts, with_experts
from .family import Family, LayerSteps
from .layer_shape import LayerShape
from .module_copies import Recorder, Stopped, part, replaced
from .reading.trace import Traced, first_tensor, only_first, relative, trace_model
from .reading.whole_layer import MlpBranch, NoMlp, Silent, WholeLayer

__all__ = [
    "FirstStep",
    "SecondStep",
    "Stage",
    "StepStandIns",
    "stages",
]


class _StopAt(nn.Module):
    """Ends the forward around it with what it is called with, or with what ``inner`` gives."""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        value: Any = (*args, *kwargs.values())
        if "hidden_states" in kwargs:
            value = kwargs["hidden_states"]
        if self.inner is not None:
            value = self.inner(*args, **kwargs)
        tensor = first_tensor(value)
        assert tensor is not None
        raise Stopped(tensor)


class _Middle(nn.Module):
    """Gives the stream in the middle whatever it is called with, or what ``inner`` makes of it."""

    def __init__(self, inner: nn.Module | None, output: Any) -> None:
        super().__init__()
        self.inner, self.value = inner, torch.zeros(())
        self.output = only_first(output, self.value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self.inner(self.value)
        return only_first(self.output, self.value)


class FirstStep(nn.Module):
    """What a layer changes of its stream up to the middle (or altogether): ``[B, T, D]``."""

    def __init__(self, layer: nn.Module, steps: LayerSteps) -> None:
        super().__init__()
        self.layer = layer
        if steps.middle is not None:
            inner = part(layer, steps.middle) if steps.side == "output" else None
            self.layer = replaced(layer, {steps.middle: _StopAt(inner)})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The change of the stream ``x``; other arguments are the layer's."""
        try:
            out = first_tensor(self.layer(x, *args, **kwargs))
        except Stopped as stopped:
            out = stopped.value
        assert out is not None
        return out.view_as(x) - x


class SecondStep(nn.Module):
    """What the rest of a layer changes of the stream in its middle.

    ``outputs``: by path, what the modules that are replaced gave in a plain run. ``call``: what the
    layer is called with beside the stream, where the step is called with the stream alone.
    """

    def __init__(
        self, layer: nn.Module, steps: LayerSteps, outputs: dict[str, Any], call: Any
    ) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {path: Silent(outputs[path]) for path in steps.silent}
        self.given: _Middle | None = None
        if steps.given is not None:
            at_input = steps.given == steps.middle and steps.side == "input"
            inner = part(layer, steps.given) if at_input else None
            self.given = parts[steps.given] = _Middle(inner, outputs[steps.given])
        self.layer, self.call = replaced(layer, parts), call
        self.scale: nn.Module | None = None
        if steps.scaled and steps.middle is not None:
            self.scale = replaced(self.layer, {steps.middle: _StopAt(None)})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The change of the stream ``x [B, T, D]``."""
        shape = x.shape
        if not args and not kwargs:  # the call is one prompt's
            args, kwargs = self.call
            x = x.flatten(0, 1)[None]
        entry = x
        if self.scale is not None:
            try:
                self.scale(torch.ones_like(x[:1, :1]), *args, **kwargs)
            except Stopped as stopped:
                entry = x / stopped.value
        if self.given is not None:
            self.given.value = x
        try:
            out = first_tensor(self.layer(entry, *args, **kwargs))
        finally:
            if self.given is not None:
                self.given.value = x[:0].detach()
        assert out is not None
        return (out.view_as(x) - x).view(shape)


class StepStandIns:
    """Stand-ins for one stage of a layer that is taken in steps.

    ``mixer``: its node that reads all tokens, ``mlp``: its node that reads one. ``recorder`` keeps
    what the layer is called with; ``hollow`` stands for it in the model's own forward, and changes
    nothing (``None``: another stage's does).
    """

    def __init__(
        self, mixer: nn.Module, mlp: nn.Module, recorder: Recorder, hollow: nn.Module | None
    ) -> None:
        self.mixer, self.mlp, self.recorder, self.hollow = mixer, mlp, recorder, hollow


@dataclass(frozen=True, eq=False)
class Stage:
    """A pair of a mixer and an MLP: a layer, or a part of the layer of that ``number``.

    ``family`` describes it alone; ``whole``: how it is run where its layer is run whole.
    """

    family: Family
    number: int
    whole: WholeLayer | StepStandIns | None

    def named(self, shape: LayerShape, index: int) -> LayerShape:
        """The stage's shape as the ``index``-th, with the names of its nodes."""
        if self.number != index:  # some layers before it are two
            shape = replace(shape, number=self.number)
        if self.whole is not None and isinstance(self.whole.mixer, ExpertNodes):
            shape = replace(shape, experts=self.whole.mixer.names)
        return shape


def stages(
    model: nn.Module, layers: list[nn.Module], family: Family, same: nn.Linear
) -> list[Stage]:
    """All of the model's ``layers`` in order, from one plain forward on two tokens if need be.

    ``same``: the identity of the stream's width.
    """
    calls: list[Traced] = []
    if family.steps or family.experts or not family.mlp:
        ids = torch.zeros(1, 2, dtype=torch.int64, device=next(model.parameters()).device)
        ids[0, 1] = 1
        calls = trace_model(model, ids)
    found: list[Stage] = []
    for number, layer in enumerate(layers):
        own = family.in_layer(layer, number)
        steps = family.steps[number] if family.steps else None
        if steps is None and family.mlp and not family.experts:
            found.append(Stage(own, number, None))
            continue
        call = next(c for c in calls if c.module is layer)
        mixture = find_experts(calls, call.path) if family.experts and steps is None else None
        if mixture is not None:
            found += _attention_and_experts(layer, own, number, call, calls, mixture, same)
        elif steps is None and family.mlp:
            found.append(Stage(own, number, None))
        elif steps is None:
            attention = part(layer, own.attention)
            inner = next(c for c in calls if c.module is attention)
            found.append(Stage(own, number, WholeLayer(layer, own, call, inner)))
        else:
            found += _stages_of_steps(layer, own, number, steps, call, calls)
    if family.experts and len(found) == len(layers):
        raise UnsupportedModelError(
            "no layer has a mixture of experts that calls them all in one module with tokens, "
            "numbers of experts and weights: leave experts= out"
        )
    return found


def _attention_and_experts(
    layer: nn.Module,
    own: Family,
    number: int,
    call: Traced,
    calls: list[Traced],
    mixture: ExpertCall,
    same: nn.Linear,
) -> list[Stage]:
    """A layer's mixer, and its mixture of experts as another."""
    at = f"layer {number}"
    if own.parallel or own.mlp_post_norm is not None:
        what = "beside its attention" if own.parallel else "in front of a norm of their sum"
        raise UnsupportedModelError(
            f"{at} runs its experts {what}, where a node for each is not built: leave experts= out"
        )
    attention = part(layer, own.attention)
    inner = next(c for c in calls if c.module is attention)
    first = replace(own, mlp="", mlp_norm=None)
    whole = WholeLayer(layer, first, call, inner)

    def message(new: nn.Module) -> nn.Module:
        if own.mlp:
            return with_experts(part(layer, own.mlp), relative(mixture.path, own.mlp))(new)
        return MlpBranch(with_experts(layer, mixture.path)(new), own, call, inner)

    assert call.read is not None
    nodes = expert_nodes(mixture, message, call.read.detach()[0, :1], same, at)
    second = replace(
        replace(own, blocks=(), steps=()),
        attention=own.mlp or "",
        attention_norm=own.mlp_norm,
        attention_post_norm=None,
        mlp="",
        mlp_norm=None,
        query="read",
        fused="blocks",
        fused_order="qkv",
        output="send",
        heads=len(nodes.names),
        kv_heads=0,
        blocks=(("m", own.mlp or ""),),
        residual_multiplier=1.0,
    )
    return [
        Stage(first, number, whole),
        Stage(second, number, StepStandIns(nodes, NoMlp(), whole.recorder, None)),
    ]


def _stages_of_steps(
    layer: nn.Module,
    own: Family,
    number: int,
    steps: LayerSteps,
    call: Traced,
    calls: list[Traced],
) -> list[Stage]:
    recorder, hollow = Recorder(), replaced(layer, {})
    if own.carried:
        layer = PackedLayer(layer, PackedCall(own.carried, call.args, call.kwargs, call.output))
        hollow.__dict__["forward"] = layer.unchanged(recorder)
    else:
        hollow.__dict__["forward"] = _unchanged(recorder, call.output)
    first: nn.Module = FirstStep(layer, steps)
    if steps.middle is None:
        return [Stage(own, number, StepStandIns(first, NoMlp(), recorder, hollow))]
    outputs = {c.path.removeprefix(f"{call.path}."): c.output for c in calls}
    second = SecondStep(layer, steps, outputs, call.rest)
    if not steps.mixes:
        return [Stage(own, number, StepStandIns(first, second, recorder, hollow))]
    last = replace(own, blocks=(("m", ""),))
    return [
        Stage(own, number, StepStandIns(first, NoMlp(), recorder, hollow)),
        Stage(last, number, StepStandIns(second, NoMlp(), recorder, None)),
    ]


def _unchanged(recorder: Recorder, output: Any) -> Callable[..., Any]:
    """The forward of a layer that changes nothing and records what it is called with."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        recorder(*args, **kwargs)
        assert recorder.hidden is not None
        return only_first(output, recorder.hidden)

    return forward
