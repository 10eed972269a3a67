"""Memory and products of one batch of a language model, part by part, as the engine makes them.

Letters: n tokens of the batch, K copies, W writers, R attention readers of a layer, D the stream's
width, H heads of width dh, L layers, V outputs. Sizes are those of the tensors ``values`` and
``masked`` keep; every part carries the phases of a step it lives in.
"""

from __future__ import annotations

from typing import Any

from graphprune.errors import InputError, UnsupportedModelError
from graphprune.planning import Cost, MemoryPart, Request, Work

from .shape import Shape, config_of, read_shape

__all__ = ["cost"]


def cost(subject: Any, request: Request) -> Cost:
    """What :func:`graphprune.plan` asks of an adapter."""
    options = dict(request.options)
    embeddings = options.pop("embedding_nodes", 1)
    if options:
        raise InputError(
            f"unknown option {sorted(options)[0]!r} for a language model's plan; known: "
            "embedding_nodes"
        )
    config = config_of(subject)
    shape = read_shape(config, embedding_nodes=embeddings, dtype=request.dtype)
    if embeddings == 2 and shape.family.position is None:
        raise UnsupportedModelError(
            "embedding_nodes=2 needs a position table; this architecture's positions are rotary"
        )
    name = str(getattr(config, "_name_or_path", "") or "") or str(config.model_type)
    seconds = {}
    if request.calibrate:
        from .probe import calibrate

        seconds = calibrate(config, shape, request)
    reference = reference_bytes(shape, request)
    return Cost(
        model=name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".")) else name,
        dtype=shape.dtype,
        edges=shape.edges,
        nodes=shape.nodes,
        parameters=shape.parameters,
        memory=tuple(memory(shape, request)),
        reference_bytes=reference,
        work=tuple(step_work(shape, request)),
        reference_work=tuple(reference_work(shape, request)),
        seconds=seconds,
    )


def reference_bytes(shape: Shape, request: Request) -> int:
    """Clean and ablated codes, messages, streams and outputs: ``LMReference.nbytes``."""
    layers, width = shape.layout.layers, shape.width
    each = (3 * layers + 2) * width + layers * shape.layout.heads * shape.head_dim
    n, answers = request.batch_size * request.tokens, request.batch_size * request.answers
    return 2 * (shape.dtype.itemsize * each * n + 4 * shape.outputs * answers)


def memory(shape: Shape, request: Request) -> list[MemoryPart]:
    """Parts of the peak: what is held, the two buffers, and one layer's own temporaries."""
    item, width, layout = shape.dtype.itemsize, shape.width, shape.layout
    n = request.batch_size * request.tokens * request.copies
    buffer = layout.writers * n * width * item
    reads = shape.rows * n * width * item
    heads = layout.heads * shape.head_dim
    scores = 4 * layout.heads * n * request.tokens
    answers = request.batch_size * request.answers * request.copies
    fed = n * (4 * shape.hidden + 4 * width) * item
    forward = 2 * reads + n * 4 * heads * item + scores
    backward = 4 * reads + n * 8 * heads * item + 2 * scores
    if item == 2:
        backward += 2 * (layout.head(layout.layers - 1) * n * width * 4)
    return [
        MemoryPart("weights", shape.parameters * item),
        MemoryPart("reference", reference_bytes(shape, request)),
        MemoryPart("plain pass", fed, ("reference",)),
        MemoryPart("Delta", buffer, ("forward", "backward")),
        MemoryPart("dDelta", buffer, ("backward",)),
        MemoryPart("one layer, forward", max(forward, fed), ("forward",)),
        MemoryPart("one layer, backward", max(backward, 2 * fed), ("backward",)),
        MemoryPart("outputs", 4 * 4 * shape.outputs * answers, ("forward", "backward")),
    ]


def step_work(shape: Shape, request: Request) -> list[Work]:
    """Products of one forward and backward, and the bytes that they move."""
    layout, width, item = shape.layout, shape.width, shape.dtype.itemsize
    n = request.batch_size * request.tokens * request.copies
    attention, mlp, final = layout.places()
    answers = request.batch_size * request.answers * request.copies
    reads = sum(p.rows * p.prefix for p in [*attention, *mlp]) * n
    reads += final.rows * final.prefix * answers
    moved = sum(p.rows + p.prefix for p in [*attention, *mlp]) * n
    project = layout.layers * shape.rows * shape.head_dim * width * n
    expand = layout.layers * layout.heads * shape.head_dim * width * n
    scores = layout.layers * 2 * layout.heads * shape.head_dim * request.tokens * n
    return [
        Work("reading over edges", 4 * 2 * reads * width, 4 * moved * width * item),
        Work(
            "projections",
            3 * 2 * project,
            3 * layout.layers * (4 * shape.rows * n * width + shape.rows * width) * item,
        ),
        Work("attention", 4 * 2 * scores),
        Work("messages", 2 * 2 * expand, 2 * layout.writers * n * width * item),
        Work("MLPs", 3 * 2 * layout.layers * shape.mlp * n, 3 * layout.layers * shape.mlp * item),
        Work("outputs", 3 * 2 * shape.outputs * width * answers, 3 * shape.outputs * width * item),
    ]


def reference_work(shape: Shape, request: Request) -> list[Work]:
    """Products of the clean and the ablated pass."""
    layout, width = shape.layout, shape.width
    n = request.batch_size * request.tokens
    per_layer = (shape.rows + layout.heads) * shape.head_dim * width + shape.mlp
    weights = layout.layers * per_layer + shape.outputs * width
    return [Work("plain passes", 2 * 2 * layout.layers * per_layer * n, 2 * weights * 2.0)]
