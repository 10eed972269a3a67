"""The kind of system that the library itself brings: language models on prompts."""

from __future__ import annotations

from graphprune.core.overlap import split_without_overlap
from graphprune.core.task import Task
from graphprune.errors import InputError

from .cases import Case
from .language import prompts, stored_model

__all__ = ["language"]


def language(
    task: str,
    *,
    train: int,
    test: int,
    seed: int,
    model: str,
    dtype: str = "auto",
    metric: str | None = None,
    batch_size: int | None = None,
    **settings: str,
) -> Case:
    """A language model by folder, hub id or ``smollm2``, on a built-in task or a file of prompts.

    ``settings`` are the task's, as text or numbers. Each seed draws its own prompts, from a file
    its own part. No clean prompt of training or test is a prompt of the other, clean or corrupted;
    a built-in task is asked for more prompts where too many coincide.
    """
    loaded = stored_model(model, dtype)
    texts = [f"{name}={value}" for name, value in settings.items()]
    for whole in prompts(task, loaded, train + test, seed, metric, batch_size, texts):
        parts = apart(whole, train, test)
        if parts is not None:
            return Case(loaded.load, *parts, weights=loaded.weights)
    raise InputError(
        f"task {task!r} has fewer than {test} test prompts that differ from {train} training "
        "prompts; ask for fewer"
    )


def apart(task: Task, train: int, test: int) -> tuple[Task, Task] | None:
    """``train`` examples and ``test`` others that share no prompt with them.

    That is, as the parts of ``Task.split``; ``None`` where there are fewer.
    """
    if len(task) <= train:
        return None
    first, rest = split_without_overlap(task.take(train), task.subset(range(train, len(task))))
    if rest.task is None or len(rest.task) < test:
        return None
    return first, rest.task.take(test)
