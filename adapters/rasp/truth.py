"""The circuit a compiled program is known to have, read off its weights.

Tracr gives every variable its own directions of the residual stream, so what a node sends is known
part by part and each reader can be asked what it makes of each part. An edge u -> v is true if

1. u's message matters to v: v's own message, computed by v's weights from what it reads in the full
   program, changes on some input when u's part of what it reads is taken away; and
2. v's message matters: it is the output, or some true edge carries it on.

A message is told apart by position: a head may compute something at BOS that no later key or value
reads, and the program's output is not asked for everywhere. A change counts from 1e-3 of the node's
largest value on: a softmax of finite sharpness leaks less than that to keys that the program does
not select.

Each edge is judged by its reader alone. No circuit is run, none is searched for, and no output of a
smaller circuit is compared with the program's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphprune.capabilities import module_of
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError

from ..lm import LanguageModel
from ..lm.describe.architecture import DecoderBlock
from ..lm.describe.layout import Place
from .inputs import program_task
from .transformer import TracrAttention, TracrTransformer

__all__ = ["program_of", "tracr_truth", "tracr_wiring"]

_CHANGE = 1e-3


def program_of(model: MaskedModel) -> TracrTransformer:
    """The compiled program behind a masked model; raises :class:`InputError` if there is none."""
    module = module_of(model)
    if isinstance(model, LanguageModel) and isinstance(module, TracrTransformer):
        return module
    raise InputError(
        "expected the model that gp.adapters.tracr(compiled) gives, got one around "
        f"{type(module).__name__}"
    )


@dataclass(frozen=True, eq=False)
class _ReaderEdges:
    """The edges into one reader.

    ``effect [W, P]`` bool: whether the source's message, from all positions together, changes what
    the target sends at each position. ``at [W, P, P]``: whether its share at one position does so
    alone. ``used [W, D]``: the residual directions both written by the source and read.
    """

    edges: range
    effect: Tensor
    at: Tensor
    used: Tensor


def tracr_truth(model: MaskedModel, task: Task | None = None) -> EdgeMask:
    """The true circuit of a compiled program, from its weights alone; see the module.

    Args:
        model: what ``gp.adapters.tracr(compiled)`` gives.
        task: the inputs the program is for; ``None`` means every input.

    Example:
        >>> program, inputs = tracr(rasp_programs()["reverse"].compile())  # doctest: +SKIP
        >>> tracr_truth(program, inputs)  # doctest: +SKIP
    """
    return _true_circuit(model, _rows(model, task))


def tracr_wiring(model: MaskedModel, task: Task | None = None) -> dict[str, list[str]]:
    """What each edge of the true circuit carries: labels of directions both written and read.

    Labels are Tracr's, such as ``"tokens:a"`` or ``"one"``; edges are named as in the graph.

    Example:
        >>> program, inputs = tracr(rasp_programs()["reverse"].compile())  # doctest: +SKIP
        >>> tracr_wiring(program, inputs)  # doctest: +SKIP
    """
    directions = program_of(model).config.directions
    rows = _rows(model, task)
    truth = _true_circuit(model, rows).kept
    out: dict[str, list[str]] = {}
    for row in rows:
        for number, used in zip(row.edges, row.used, strict=True):
            if truth[number]:
                labels = [directions[i] for i in torch.nonzero(used)[:, 0].tolist()]
                out[model.graph.edge_names[number]] = labels
    return out


def _true_circuit(model: MaskedModel, rows: list[_ReaderEdges]) -> EdgeMask:
    graph = model.graph
    wanted = torch.zeros(graph.num_nodes, rows[0].effect.shape[1], dtype=torch.bool)
    wanted[list(graph.output_nodes)] = True
    values = torch.zeros(graph.num_edges)
    for row in reversed(rows):  # readers in order of depth: what a node sends is asked for first
        sources, targets = graph.edge_index[:, row.edges.start : row.edges.stop]
        serves = row.effect & wanted[targets]
        values[row.edges.start : row.edges.stop] = serves.any(1).float()
        at = (row.at & serves[:, None]).any(2)
        # No share changes anything alone: all are needed.
        wanted[sources] |= torch.where(at.any(1, keepdim=True), at, serves.any(1, keepdim=True))
    return EdgeMask(graph, values).prune_dead_ends()


def _rows(model: MaskedModel, task: Task | None) -> list[_ReaderEdges]:
    program = program_of(model)
    assert isinstance(model, LanguageModel)
    task = program_task(program) if task is None else task
    total: list[_ReaderEdges] = []
    for batch in task.batches():
        rows = list(_batch_rows(model, program, batch))
        if total:
            rows = [
                _ReaderEdges(a.edges, a.effect | b.effect, a.at | b.at, a.used | b.used)
                for a, b in zip(total, rows, strict=True)
            ]
        total = rows
    return total


@torch.no_grad()
def _batch_rows(
    model: LanguageModel, program: TracrTransformer, batch: Batch
) -> Iterator[_ReaderEdges]:
    arch = model.arch
    ids = batch.clean["input_ids"].to(arch.device)
    reference = model.reference(batch, Ablation("zero"))
    sent = reference.clean.deltas(reference.ablated_values, arch)
    allowed = program.model.allowed(ids)
    # ``sides [P, B, T, 1]``: 1 where a token stands at a position and is no padding.
    real = (ids != program.config.pad_id).to(sent)
    position = torch.eye(program.config.max_length + 1, ids.shape[1]).to(sent)
    sides = (position[:, None] * real)[..., None]
    attention, mlp, final = model.layout.places()
    for block in arch.blocks:
        place = attention[block.index]
        yield from _attention(block, place, sent[: place.prefix], allowed, sides)
        place = mlp[block.index]
        parts = sent[: place.prefix]
        stream = parts.sum(0)
        changed = block.mlp(stream - parts) - block.mlp(stream)
        read = block.mlp.get_submodule("fc_in").weight
        assert isinstance(read, Tensor)
        yield _pointwise(place, parts, changed, block.mlp(stream), sides, read)
    parts, weight = sent[: final.prefix], program.lm_head.weight
    out = parts @ weight.T
    answers, shape = reference.inputs.answers, reference.inputs.shape
    asked = torch.zeros_like(real)
    asked.view(-1)[answers.view(shape)[torch.as_tensor(batch.positions).to(ids) >= 0]] = 1
    yield _pointwise(final, parts, out, out.sum(0), sides * asked[..., None], weight)


def _sizes(changed: Tensor, message: Tensor, sides: Tensor) -> Tensor:
    """``[W, P]`` bool: whether ``changed [W, B, T, D]`` counts at each position."""
    size = changed.abs().amax(-1)
    most = torch.stack([(size * side[..., 0]).amax((1, 2)) for side in sides], 1)
    return most > _CHANGE * max(float((message * sides).abs().max()), 1.0)


def _used(parts: Tensor, weight: Tensor) -> Tensor:
    """``[W, D]`` bool: directions that are written in ``parts`` and read by ``weight [n, D]``."""
    written = parts.flatten(1, 2).abs().amax(1)
    return (written > _CHANGE * written.max().clamp(min=1.0)) & (weight != 0).any(0)


def _pointwise(
    place: Place, parts: Tensor, changed: Tensor, message: Tensor, sides: Tensor, weight: Tensor
) -> _ReaderEdges:
    """A reader that works position by position: what is changed at a place stays there."""
    effect = _sizes(changed, message, sides).cpu()
    edges = range(place.edges.start, place.edges.start + place.prefix)
    return _ReaderEdges(edges, effect, torch.diag_embed(effect), _used(parts, weight).cpu())


def _attention(
    block: DecoderBlock, place: Place, parts: Tensor, allowed: Tensor, sides: Tensor
) -> Iterator[_ReaderEdges]:
    """The readers q of each head, then k, then v; ``parts [W, B, T, D]``."""
    layer: nn.Module = block.attention
    assert isinstance(layer, TracrAttention)
    mix: Callable[..., Tensor] = layer.mix
    stream = parts.sum(0)
    weights = [reader.weight for reader in block.readers]
    every = allowed.repeat(len(parts), 1, 1, 1)
    for port in range(3):
        for head in range(block.heads):
            maps = [w[head] for w in weights]
            whole = [stream @ m.T for m in maps]
            out = block.output_weight[head]
            message = mix(*whole, allowed, 1) @ out
            effects = []
            for share in (sides.sum(0), *sides):
                less = [x.expand(len(parts), *x.shape) for x in whole]
                less[port] = whole[port] - (parts * share) @ maps[port].T
                mixed = mix(*(x.flatten(0, 1) for x in less), every, 1) @ out
                effects.append(_sizes(mixed.view_as(parts) - message, message, sides).cpu())
            effect, at = effects[0], torch.stack(effects[1:], 1)
            row = port * block.heads + head
            offset = place.edges.start + row * place.prefix
            edges = range(offset, offset + place.prefix)
            yield _ReaderEdges(edges, effect, at, _used(parts, maps[port]).cpu())
