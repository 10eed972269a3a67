"""What a model's edges weigh: their own weights, or what flows along them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.capabilities import PlacedMessages, WeightedEdges, require
from graphprune.core.ablation import AblationLike
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.methods import EAP
from graphprune.util.progress import track

__all__ = ["EdgeWeights", "edge_weights", "message_norms"]

EdgeWeights = Literal["auto", "module", "message_norm", "attribution"]


def edge_weights(
    model: MaskedModel,
    task: Task,
    how: EdgeWeights | Any = "auto",
    *,
    ablation: AblationLike | None = None,
) -> Tensor:
    """``[E]`` float64.

    ``"module"``: the signed weights of the model's own edges; ``"message_norm"``: see
    :func:`message_norms`; ``"attribution"``: sizes of EAP's scores on the task, under
    ``ablation``; ``"auto"``: the first where the model has weights, else the second. Numbers
    ``[E]`` are taken as they are.
    """
    if not isinstance(how, str):
        values = torch.as_tensor(how, dtype=torch.float64)
        if values.shape != (model.graph.num_edges,):
            raise InputError(
                f"edge_weights: expected {model.graph.num_edges} numbers, got {list(values.shape)}"
            )
        return values
    if how in ("auto", "module") and isinstance(model, WeightedEdges):
        own = model.edge_weights()
        if own is not None:
            return own.detach().double().cpu()
    if how == "module":
        raise UnsupportedModelError(
            "edge_weights='module' needs a model whose edges have weights of their own, and those "
            f"of {type(model).__name__} have none; use 'message_norm' or 'attribution'"
        )
    if how == "attribution":
        return EAP(ablation=ablation).score(model, task).values.abs().double()
    if how in ("auto", "message_norm"):
        return message_norms(model, task)
    raise InputError(
        "edge_weights must be 'auto', 'module', 'message_norm', 'attribution' or numbers, got "
        f"{how!r}"
    )


@torch.no_grad()
def message_norms(model: MaskedModel, task: Task) -> Tensor:
    """``[E]`` float64: the norm of each edge's clean message, averaged over real positions."""
    inside = require(model, PlacedMessages, "edge_weights='message_norm'")
    total = torch.zeros(model.graph.num_edges, dtype=torch.float64)
    count = 0.0
    for batch in track(task.batches(), "message norms", task.num_batches()):
        seen = 0.0
        for group in inside.messages(batch):
            weight = group.weight.double()
            norms = group.values.double().norm(dim=-1)
            mean = (norms * weight).flatten(1).sum(1).cpu()
            seen = float(weight.sum())
            total[group.edges.flatten()] += mean.expand(group.edges.shape).flatten()
        count += seen
    return total / max(count, 1.0)
