"""Costs of one batch of a language model: memory (see ``memory``) and products, part by part.

Letters: n tokens of the batch, K copies, W writers, R attention readers of a layer, D the stream's
width, H heads of width dh, L layers, V outputs.
"""

from __future__ import annotations

from typing import Any

from graphprune.core.registry import require_known_options
from graphprune.methods.costs import CostEstimate, Operations, RunShape

from ..describe.shape import Shape, config_of, read_shape
from .memory import LayerFacts, Memory

__all__ = ["cost"]


def cost(subject: Any, request: RunShape) -> CostEstimate:
    """What :func:`graphprune.plan` asks of an adapter."""
    options = dict(request.options)
    require_known_options(options, ("checkpointing", "embedding_nodes"), "a language model's plan")
    embeddings = options.get("embedding_nodes", 1)
    checkpointing = bool(options.get("checkpointing", False))
    config = config_of(subject)
    shape = read_shape(config, embedding_nodes=embeddings, dtype=request.dtype)
    name = str(getattr(config, "_name_or_path", "") or "") or str(config.model_type)
    held = Memory(shape, request, checkpointing, LayerFacts.of(config, shape.family))
    seconds = {}
    if request.calibrate:
        from .probe import calibrate

        seconds = calibrate(config, shape, request, checkpointing=checkpointing)
    return CostEstimate(
        model=name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".")) else name,
        dtype=shape.dtype,
        edges=shape.layout.num_edges,
        nodes=shape.nodes,
        parameters=shape.parameters,
        memory=tuple(held.parts()),
        reference_bytes=held.reference,
        work=tuple(pass_work(shape, request)),
        reference_work=tuple(reference_work(shape, request)),
        seconds=seconds,
    )


def pass_work(shape: Shape, request: RunShape) -> list[Operations]:
    """Products of one pass of the request's kind, and the bytes that they move."""
    if request.kind == "attribution":
        return _attribution_work(shape, request)
    if request.kind == "messages":
        return reference_work(shape, request)[:1]
    work = step_work(shape, request)
    if request.kind == "step":
        return work
    # Without a backward, a third; a try computes what comes behind its reader, half on average.
    share = 1 / 3 if request.kind == "forward" else 1 / 6
    return [Operations(w.name, w.flops * share, w.bytes * share) for w in work]


def _attribution_work(shape: Shape, request: RunShape) -> list[Operations]:
    """Plain forward and backward at every point, then sums against the messages."""
    layout, width = shape.layout, shape.width
    n = request.batch_size * request.tokens
    points = request.points * (1 + 2 * layout.layers if request.by_group else 1)
    (plain,) = reference_work(shape, request)
    attention, mlp, final = layout.places()
    pairs = sum(p.rows * p.prefix for p in [*attention, *mlp]) * n
    pairs += final.prefix * request.batch_size * request.answers
    made = layout.layers * (layout.heads + layout.rows) * shape.head_dim * width * n
    return [
        # The pass, and its way back: half of what a clean and an ablated pass take, each.
        Operations("plain passes", points * plain.flops, points * plain.bytes),
        Operations("messages", 2 * made, layout.writers * n * width * 4),
        Operations("products over edges", 2 * pairs * width, 4 * pairs),
    ]


def step_work(shape: Shape, request: RunShape) -> list[Operations]:
    """Products of one forward and backward, and the bytes that they move."""
    layout, width, item = shape.layout, shape.width, shape.dtype.itemsize
    n = request.batch_size * request.tokens * request.copies
    attention, mlp, final = layout.places()
    answers = request.batch_size * request.answers * request.copies
    # Queries, messages and the MLP of the last layer are computed at the answers alone.
    last = answers if 2 * request.answers <= request.tokens else n
    whole = n * (layout.layers - 1) + last
    reads = sum(p.rows * p.prefix for p in [*attention[:-1], *mlp[:-1]]) * n
    reads += 2 * layout.kv_heads * attention[-1].prefix * n
    reads += (layout.heads * attention[-1].prefix + mlp[-1].prefix + final.prefix) * last
    moved = sum(p.rows + p.prefix for p in [*attention, *mlp]) * n
    project = (layout.heads * whole + 2 * layout.kv_heads * n * layout.layers) * shape.head_dim
    project *= width
    expand = layout.heads * shape.head_dim * width * whole
    scores = layout.layers * 2 * layout.heads * shape.head_dim * request.tokens * n
    return [
        Operations("reading over edges", 4 * 2 * reads * width, 4 * moved * width * item),
        Operations(
            "projections",
            2 * 2 * project,
            3 * layout.layers * (4 * layout.rows * n * width + layout.rows * width) * item,
        ),
        Operations("attention", 4 * 2 * scores),
        Operations("messages", 2 * 2 * expand, 2 * layout.writers * n * width * item),
        Operations("MLPs", 2 * 2 * shape.mlp * whole, 3 * layout.layers * shape.mlp * item),
        Operations(
            "outputs", 3 * 2 * shape.outputs * width * answers, 3 * shape.outputs * width * item
        ),
    ]


def reference_work(shape: Shape, request: RunShape) -> list[Operations]:
    """Products of the clean and the ablated pass."""
    layout, width = shape.layout, shape.width
    n = request.batch_size * request.tokens
    per_layer = (layout.rows + layout.heads) * shape.head_dim * width + shape.mlp
    weights = layout.layers * per_layer + shape.outputs * width
    return [Operations("plain passes", 2 * 2 * layout.layers * per_layer * n, 2 * weights * 2.0)]
