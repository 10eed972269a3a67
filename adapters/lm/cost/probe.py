"""Seconds of a step of the engine itself, measured on a few layers and continued to all of them.

Models of one and three layers with random weights, the configuration's width and vocabulary, run
the very passes that a run will make. A layer's own work is the same at every depth; what readers
read and send back over edges grows with the number of writers before them, so that share is
measured apart, at the depth of a shallow and of a deep layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.methods.costs import RunShape
from graphprune.util.quantities import best_seconds

from ..describe.shape import Shape, random_model, truncated
from ..model import LanguageModel
from ..passes.delta_buffer import DeltaBuffer, TokenSelection

__all__ = ["calibrate", "random_batch", "step"]

SHALLOW, DEEP = 1, 3
EDGE_BYTES = 2**28


def random_batch(shape: Shape, request: RunShape) -> Batch:
    """Random clean and corrupted prompts of the request's size."""
    generator = torch.Generator().manual_seed(0)
    size, tokens = request.batch_size, request.tokens
    ids = torch.randint(shape.outputs, (2, size, tokens), generator=generator)
    positions = None
    if request.answers > 1:
        positions = torch.arange(tokens - request.answers, tokens).expand(size, -1)
    return Batch({"input_ids": ids[0]}, {"input_ids": ids[1]}, size, positions=positions)


def step(model: LanguageModel, batch: Batch, mask: Tensor, reference: Any) -> Tensor:
    """One forward and backward: KL to the full model, gradients in ``mask``."""
    mask.grad = None
    full = reference.full.log_softmax(-1)
    out = model.run(batch, mask, reference).log_softmax(-1)
    loss = nn.functional.kl_div(out, full.expand_as(out), reduction="sum", log_target=True)
    loss.backward()
    return loss.detach()


def calibrate(
    config: Any, shape: Shape, request: RunShape, *, checkpointing: bool
) -> dict[str, float]:
    """``step`` and ``reference``: seconds at the configuration's full depth."""
    start = time.perf_counter()
    per_slot = 0.0
    if request.kind == "step":
        per_slot = _edge_seconds(shape, request)
    elif request.kind == "attribution":
        per_slot = _product_seconds(shape, request)
    measured = {
        depth: _measure(config, shape, request, depth, checkpointing) for depth in (SHALLOW, DEEP)
    }
    layers = shape.layout.layers
    seconds = {}
    for name in ("reference", "step"):
        flat = {
            depth: value[name] - (per_slot * _writers(shape, depth) if name == "step" else 0.0)
            for depth, value in measured.items()
        }
        slope = max(0.0, (flat[DEEP] - flat[SHALLOW]) / (DEEP - SHALLOW))
        seconds[name] = max(0.0, flat[SHALLOW] + slope * (layers - SHALLOW))
    seconds["step"] += per_slot * _writers(shape, layers)
    seconds["calibration"] = time.perf_counter() - start
    return seconds


def _writers(shape: Shape, layers: int) -> int:
    """Writers before each layer, summed over the layers of a model with that many."""
    layout = shape.layout
    return sum(layout.head(layer) for layer in range(layers))


def _measure(
    config: Any, shape: Shape, request: RunShape, layers: int, checkpointing: bool
) -> dict[str, float]:
    device = request.device
    module = random_model(truncated(config, layers), device, shape.dtype)
    model = LanguageModel(
        module, shape.family, embedding_nodes=shape.layout.embeddings, checkpointing=checkpointing
    )
    batch = random_batch(shape, request)
    shapes: tuple[int, ...] = (model.graph.num_edges,)
    if request.per_example:
        shapes = (request.copies, request.batch_size, *shapes)
    elif request.copies > 1 and request.kind == "step":
        shapes = (request.copies, *shapes)
    mask = torch.full(shapes, 0.5, device=device, requires_grad=True)
    latest: list[Any] = []
    job = _job(model, batch, mask, request, latest)

    def make() -> None:
        latest.clear()
        reference = model.reference(batch)
        _ = reference.full, reference.stream
        latest.append(reference)

    seconds = {"reference": best_seconds(make, device)}
    seconds["step"] = best_seconds(job, device)
    if request.kind == "attribution":  # one point more, as often as there are more
        points = request.points * (1 + 2 * shape.layout.layers if request.by_group else 1)
        if points > 1:
            two = best_seconds(_job(model, batch, mask, request, latest, 2), device)
            seconds["step"] += (points - 1) * max(0.0, two - seconds["step"])
    elif request.kind == "trials":  # a try computes what comes behind its reader
        seconds["step"] /= 2
    return seconds


def _job(
    model: LanguageModel,
    batch: Batch,
    mask: Tensor,
    request: RunShape,
    latest: list[Any],
    points: int = 1,
) -> Callable[[], object]:
    """One pass of the request's kind; an attribution's at so many points."""
    if request.kind == "step":
        return lambda: step(model, batch, mask, latest[0])
    if request.kind == "messages":
        return lambda: list(model.messages(batch))
    if request.kind == "attribution":
        gates = torch.ones(points, model.graph.num_nodes)
        gates[: points - 1, list(model.graph.input_nodes)] = 0.5
        return lambda: model.edge_gradients(batch, lambda out: out[..., 0], gates=gates)
    whole = torch.ones(model.graph.num_edges, device=request.device)

    def run() -> Tensor:
        with torch.no_grad():
            return model.run(batch, whole, latest[0])

    return run


def _product_seconds(shape: Shape, request: RunShape) -> float:
    """Seconds that one more writer costs a layer's readers in an attribution's last sums."""
    writers, n = 32, request.batch_size * request.tokens
    grad = torch.ones(shape.layout.rows + 1, n * shape.width, device=request.device)
    delta = torch.ones(writers, n * shape.width, device=request.device)
    return best_seconds(lambda: grad @ delta.T, request.device) / writers


def _edge_seconds(shape: Shape, request: RunShape) -> float:
    """Seconds that one more writer costs a layer, forward and backward.

    The delta buffer's own products: reading twice, the mask's gradient, and sending back.
    """
    device, dtype, width = request.device, shape.dtype, shape.width
    each = request.batch_size * request.tokens * width * dtype.itemsize * request.copies
    deep = min(shape.layout.head(shape.layout.layers - 1), max(2, EDGE_BYTES // each))
    low = max(1, deep // 4)
    if low == deep:
        return 0.0
    tokens = TokenSelection(request.copies, request.batch_size, request.tokens)
    copies = request.copies * (request.batch_size if request.per_example else 1)
    like = torch.empty(0, width, device=device, dtype=dtype)
    box = DeltaBuffer(deep, copies, tokens, like, slot_major=False)
    box.delta.fill_(0.5)
    box.start_gradients()
    base = box.delta[:, 0].clone()

    def products(slots: int) -> None:
        weights = torch.full(
            (copies, shape.layout.rows + 1, 1 + slots), 0.5, device=device, dtype=box.wide
        )
        box.read(weights, base)
        read = box.read(weights, base).to(dtype)
        box.mask_gradients(read, slice(1, 1 + slots))
        box.spread(weights, read, slice(0, 1 + slots))

    more = best_seconds(lambda: products(deep), device) - best_seconds(
        lambda: products(low), device
    )
    return max(0.0, more / (deep - low))
