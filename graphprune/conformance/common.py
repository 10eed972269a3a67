"""Helpers of the checks: a batch, drawn masks, comparisons, the state of a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import GraphPruneError


class ConformanceError(GraphPruneError, AssertionError):
    """An adapter or a method broke a promise of the contract; the message names the check."""


def a_batch(task: Task) -> Batch:
    """At most four examples."""
    return next(iter(task.batches(min(4, len(task)))))


def objective_of(task: Task, batch: Batch, full: Tensor) -> Callable[[Tensor], Tensor]:
    """The task's metric as a function of outputs."""
    return lambda outputs: task.metric(outputs, batch, full)


def require_close(got: Tensor, want: Tensor, what: str, rtol: float = 1e-3) -> None:
    """Raises :class:`ConformanceError` for values that are not equal but for rounding."""
    got, want = got.double().cpu(), want.double().cpu()
    if got.shape != want.shape:
        raise ConformanceError(f"{what}: shape {list(got.shape)}, expected {list(want.shape)}")
    gap, size = float((got - want).abs().max()), float(want.abs().max())
    if not gap <= rtol * (size + 1e-3):
        raise ConformanceError(f"{what}: differs by {gap:.3g} where values reach {size:.3g}")


def drawn(model: MaskedModel, seed: int) -> Tensor:
    """``[E]``: a random mask."""
    return torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(seed))


def state_of(module: torch.nn.Module) -> dict[str, Any]:
    """The state of a module that a call must leave as it is."""
    return {
        "weights": {k: v.detach().clone() for k, v in module.state_dict().items()},
        "gradients": [p.grad is None for p in module.parameters()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in module.modules()
        ],
        "submodules": [id(m) for m in module.modules()],
    }


def require_unchanged(module: torch.nn.Module, before: Mapping[str, Any]) -> None:
    """Raises :class:`ConformanceError` unless the module's state is what it was ``before``."""
    after = state_of(module)
    weights, old = after.pop("weights"), before["weights"]
    same = {name: part == before[name] for name, part in after.items()}
    same["weights"] = weights.keys() == old.keys() and all(
        torch.equal(old[name], value) for name, value in weights.items()
    )
    for name, equal in same.items():
        if not equal:
            raise ConformanceError(f"the user's module changed: {name}")
