"""Checks of methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from graphprune.capabilities import module_of
from graphprune.core.mask import EdgeMask
from graphprune.core.method import Method, Pruner, Scorer
from graphprune.core.model import MaskedModel
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError

from .common import ConformanceError, require_close, require_unchanged, state_of

# A check raises, or gives the reason why it could not look.
MethodCheck = Callable[[Method, MaskedModel, Task], str | None]


def settings_are_frozen(method: Method, model: MaskedModel, task: Task) -> None:
    """A method is a frozen dataclass that can be rebuilt from its fields."""
    if not dataclasses.is_dataclass(method):
        raise ConformanceError(f"{type(method).__name__} is no dataclass")
    again = dataclasses.replace(method)
    if again != method or again.label != method.label:
        raise ConformanceError(f"{type(method).__name__} is not rebuilt from its own settings")
    try:
        setattr(method, dataclasses.fields(method)[0].name, None)
    except dataclasses.FrozenInstanceError:
        return
    raise ConformanceError(f"{type(method).__name__} is not frozen")


def result_is_of_this_graph(method: Method, model: MaskedModel, task: Task) -> None:
    """The result is an EdgeScores or EdgeMask over the model's graph."""
    if _run(method, model, task).graph != model.graph:
        raise ConformanceError("the result belongs to another graph")


def result_is_reproducible(method: Method, model: MaskedModel, task: Task) -> None:
    """Two runs with the same settings give the same bits."""
    first, second = (_run(method, model, task).values for _ in range(2))
    if not torch.equal(first, second):
        raise ConformanceError(f"two runs of {method.label} differ")


def method_leaves_the_module_alone(method: Method, model: MaskedModel, task: Task) -> str | None:
    """The user's module is as before."""
    module = module_of(model)
    if module is None:
        return "the model has no module"
    before = state_of(module)
    _run(method, model, task)
    require_unchanged(module, before)
    return None


def scores_do_not_depend_on_batching(method: Method, model: MaskedModel, task: Task) -> str | None:
    """A scorer's means over examples are the same for every batch size.

    Not asked of mask optimisers (scorers that prune too): a batch is one of their steps.
    """
    if not isinstance(method, Scorer) or isinstance(method, Pruner):
        return "asked of scorers alone"
    one = dataclasses.replace(method, batch_size=1)
    whole = dataclasses.replace(method, batch_size=len(task))
    require_close(
        _run(one, model, task).values,
        _run(whole, model, task).values,
        f"{method.label} with batches of 1 against one batch",
        rtol=1e-2,
    )
    return None


def sizes_are_kept(method: Method, model: MaskedModel, task: Task) -> str | None:
    """A size is refused, or the circuit keeps no more edges than it says, each whole or not."""
    size = max(1, model.graph.num_edges // 2)
    try:
        mask = method.prune(model, task, size)
    except InputError as error:
        return f"it refuses sizes: {error}"
    if mask.num_kept > size:
        raise ConformanceError(f"prune(size={size}) kept {mask.num_kept} edges")
    if not mask.is_binary:
        raise ConformanceError("prune: a circuit keeps an edge or cuts it, got values between")
    return None


def _run(method: Method, model: MaskedModel, task: Task) -> EdgeScores | EdgeMask:
    if isinstance(method, Scorer):
        scores = method.score(model, task)
        if not isinstance(scores, EdgeScores):
            raise ConformanceError(f"score gave {type(scores).__name__}, expected EdgeScores")
        return scores
    if isinstance(method, Pruner):
        mask = method.prune(model, task)
        if not isinstance(mask, EdgeMask):
            raise ConformanceError(f"prune gave {type(mask).__name__}, expected EdgeMask")
        return mask
    raise ConformanceError(f"{type(method).__name__} is neither a Scorer nor a Pruner")


METHOD_CHECKS: tuple[MethodCheck, ...] = (
    settings_are_frozen,
    result_is_of_this_graph,
    result_is_reproducible,
    method_leaves_the_module_alone,
    scores_do_not_depend_on_batching,
    sizes_are_kept,
)
