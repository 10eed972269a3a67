"""Memory and products of one batch of a language model, part by part, as the engine makes them.

Letters: n tokens of the batch, K copies, W writers, R attention readers of a layer, D the stream's
width, H heads of width dh, L layers, V outputs. Sizes are those of the tensors ``values`` and
``masked`` keep; every part carries the phases of a step it lives in.
"""

from __future__ import annotations

from typing import Any

from graphprune.core.registry import require_known_options
from graphprune.methods.costs import CostEstimate, MemoryPart, Operations, RunShape

from ..describe.shape import Shape, config_of, read_shape

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
    seconds = {}
    if request.calibrate:
        from .probe import calibrate

        seconds = calibrate(config, shape, request, checkpointing=checkpointing)
    reference = reference_bytes(shape, request)
    return CostEstimate(
        model=name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".")) else name,
        dtype=shape.dtype,
        edges=shape.layout.num_edges,
        nodes=shape.nodes,
        parameters=shape.parameters,
        memory=tuple(memory(shape, request, checkpointing=checkpointing)),
        reference_bytes=reference,
        work=tuple(step_work(shape, request)),
        reference_work=tuple(reference_work(shape, request)),
        seconds=seconds,
    )


def reference_bytes(shape: Shape, request: RunShape) -> int:
    """Ablated codes, messages and streams, and both ends' outputs: ``LMReference.nbytes``."""
    n, answers = request.batch_size * request.tokens, request.batch_size * request.answers
    return _values(shape) * n + 2 * 4 * shape.outputs * answers


def _values(shape: Shape) -> int:
    """Bytes that one pass leaves for a token: codes, messages, and streams (float32 at least)."""
    layers, item = shape.layout.layers, shape.dtype.itemsize
    sent = (layers + 1) * shape.width + layers * shape.layout.heads * shape.head_dim
    return sent * item + (2 * layers + 1) * shape.width * max(item, 4)


def memory(shape: Shape, request: RunShape, *, checkpointing: bool) -> list[MemoryPart]:
    """Parts of the peak: what is held, the delta buffers, what is kept, one layer's temporaries."""
    item, width, layout = shape.dtype.itemsize, shape.width, shape.layout
    n = request.batch_size * request.tokens * request.copies
    answers = request.batch_size * request.answers * request.copies
    main, tail = _slots(shape, request)
    slots = (n * main + answers * tail) * width
    heads, rows, dh = layout.heads, layout.rows, shape.head_dim
    # What a layer's graphs keep: q/k/v, rotated and repeated copies, the code, the MLP's inside.
    turned = 0 if shape.family.position is not None else (heads + layout.kv_heads) * dh
    repeated = 2 * heads * dh if layout.grouped else 0
    attention = (rows * dh + heads * dh + turned + repeated) * item + rows * 4
    fed = (3 if shape.gated else 1) * shape.hidden * item
    kept = layout.layers * n * (attention + fed)
    inputs = n * (rows + 1) * width * max(item, 4)
    folded = (rows + heads) * dh * width * item
    products = min(n, 32) * (rows + 1) * main * 4
    if item == 2:
        products += min(n, 32) * (rows + 1) * width * 4
    plain = request.batch_size * request.tokens * (3 * shape.hidden + 4 * width) * item
    clean = _values(shape) * n // request.copies
    parts = [
        MemoryPart("weights", shape.parameters * item),
        MemoryPart("reference", reference_bytes(shape, request)),
        MemoryPart("clean pass", clean, ("reference",)),
        MemoryPart("a plain layer", plain, ("reference",)),
        MemoryPart("Delta", slots * max(item, 4), ("forward", "backward")),
        MemoryPart("its gradient", slots * item, ("backward",)),
        MemoryPart("kept graphs", 0 if checkpointing else kept, ("forward", "backward")),
        MemoryPart("a layer's inputs", inputs, ("forward", "backward")),
        MemoryPart("a layer's weights", folded, ("forward", "backward")),
        MemoryPart("a layer's products", products, ("backward",)),
        MemoryPart(
            "a layer's graphs",
            2 * n * (attention + fed)
            if checkpointing
            else 2 * n * (shape.hidden + rows * dh) * item,
            ("backward",),
        ),
        MemoryPart("outputs", 3 * 4 * shape.outputs * answers, ("forward", "backward")),
    ]
    if request.device.type == "cpu":
        parts += _on_cpu(
            request, clean, 0 if checkpointing else kept, slots * item + inputs, item == 2
        )
    return parts


def _on_cpu(
    request: RunShape, clean: int, kept: int, operands: int, half: bool
) -> list[MemoryPart]:
    """What a process holds beyond its tensors: measured on Linux with glibc and oneDNN.

    The clean pass's memory is not handed back, only used again (by kept graphs); products in half
    precision copy operands whose rows do not stand together; libraries have work space.
    """
    parts = [
        MemoryPart("not handed back", max(0, clean - kept), ("forward", "backward", "update")),
        MemoryPart("work space", (24 if half else 12) * 2**20),
    ]
    if half:
        parts.append(MemoryPart("copied operands", operands, ("forward", "backward")))
    return parts


def _slots(shape: Shape, request: RunShape) -> tuple[int, int]:
    """Slots of the main delta buffer and of the answers' one (0: there is none)."""
    layout = shape.layout
    if 2 * request.answers <= request.tokens:
        return 1 + layout.head(layout.layers - 1), 1 + layout.writers
    return 1 + layout.writers, 0


def step_work(shape: Shape, request: RunShape) -> list[Operations]:
    """Products of one forward and backward, and the bytes that they move."""
    layout, width, item = shape.layout, shape.width, shape.dtype.itemsize
    n = request.batch_size * request.tokens * request.copies
    attention, mlp, final = layout.places()
    answers = request.batch_size * request.answers * request.copies
    # Queries, messages and the MLP of the last layer are computed at the answers alone.
    last = answers if _slots(shape, request)[1] else n
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
