"""What edges send: messages by reader, their means, and constants that start there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Messages
from graphprune.errors import InputError

from .passing import Call
from .replicas import Source

if TYPE_CHECKING:
    from .message_model import MessageModel

__all__ = ["each_reader", "learned_constants", "mean_messages"]

log = logging.getLogger(__name__)


def each_reader(
    source: Source, edge_index: Tensor, calls: list[Call], copies: int, size: int
) -> Iterator[Messages]:
    """Messages by relation and target node, of ``size`` examples in ``copies`` copies."""
    each = torch.arange(size) % copies
    wide = max(call.messages[0].numel() for call in calls if len(call.messages))
    ones = calls[0].messages.new_ones
    for relation, (first, count) in enumerate(zip(source.firsts, source.counts, strict=True)):
        mine = [call for call in calls if call.relation == relation]
        end = mine[0].end if mine else 1
        kind = source.ends[relation][end]
        start, nodes = source.starts[kind], source.types[kind]
        values = 0 * ones(size, count, max(1, len(mine)), wide if mine else 1)
        totals = 0 * ones(size, nodes, max(1, len(mine)), wide if mine else 1)
        for step, call in enumerate(mine):
            if not count:
                continue
            flat = call.messages.flatten(1)
            width = flat.shape[1]
            values[:, :, step, :width] = call.own(copies).flatten(2)[each]
            total = flat.new_zeros(copies * nodes, width).index_add(0, call.index, flat)
            totals[:, :, step, :width] = total.unflatten(0, (copies, nodes))[each]
        targets = edge_index[end, first : first + count]
        weight = ones(size, max(1, len(mine)))
        for node in targets.unique().tolist():
            at = torch.nonzero(targets == node)[:, 0]
            yield Messages(
                (first + at)[None], values[:, at].transpose(0, 1), totals[:, node - start], weight
            )


def mean_messages(model: MessageModel, batches: Iterable[Batch], whole: bool) -> list[Tensor]:
    """``[E_r, ...]`` for each call, over the batches' corrupted inputs (clean if there are none).

    ``whole``: ``[1, ...]``, over all edges of the call's relation too.
    """
    totals: list[Tensor] | None = None
    count, one = 0, not whole
    for batch in batches:
        side = batch.clean if batch.corrupt is None else batch.corrupt
        given = model.source.features(side, batch.size)
        calls, _ = model.seen(given)
        one = one and given.shared and batch.corrupt is not None
        share = batch.size // given.copies
        parts = [call.own(given.copies).sum(0) * share for call in calls]
        totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
        count += batch.size
    if totals is None:
        raise InputError("the mean over an empty reference set is not defined")
    if one:
        _say_mean_is_counterfactual()
    means = [total / count for total in totals]
    return [mean.sum(0, keepdim=True) / max(1, len(mean)) for mean in means] if whole else means


@lru_cache(maxsize=1)
def _say_mean_is_counterfactual() -> None:
    """Once in a process: a run resolves its ablation many times."""
    log.warning(
        "all examples share one corrupted input, so each edge's mean message is its message there: "
        "mean ablation is counterfactual ablation on this task"
    )


def learned_constants(model: MessageModel, start: Ablation) -> tuple[Tensor, ...]:
    """Leaf tensors that begin as the values of ``start``, a zero or a mean ablation."""
    like = torch.float64 if model._like.dtype == torch.float64 else torch.float32
    if start.kind == "mean" and not start.per_position:
        values = [value.detach().to(like).clone() for value in start.values]
    elif start.kind == "zero":
        calls, _ = model.seen(model.source.plain)
        values = [
            torch.zeros(
                (1 if model.means == "type" else model.source.counts[call.relation],
                 *call.messages.shape[1:]),
                dtype=like, device=call.messages.device,
            )
            for call in calls
        ]  # fmt: skip
    else:
        raise InputError(f"learned constants start from zero or mean ablation, got {start.name!r}")
    return tuple(value.requires_grad_(True) for value in values)
