"""The kind of system that the library itself brings: language models on prompts."""

from __future__ import annotations

from typing import Literal

from graphprune.core.overlap import split_without_overlap
from graphprune.core.task import Task
from graphprune.errors import InputError

from .cases import Case
from .language import held_out_prompts, prompts, stored_model

__all__ = ["language"]


def language(
    task: str,
    *,
    train: int,
    test: int,
    seed: int,
    model: str,
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto",
    nodes: Literal["auto", "head", "block"] = "auto",
    metric: str | None = None,
    batch_size: int | None = None,
    train_file: str | None = None,
    test_file: str | None = None,
    **settings: str,
) -> Case:
    """A language model on a built-in task or files of prompts.

    Each seed draws its own prompts, from a file its own part. No clean prompt of training or test
    is a prompt of the other, clean or corrupted; a built-in task is asked for more prompts where
    too many coincide.

    Args:
        model: its folder, Hugging Face id, or ``smollm2``.
        dtype: of the weights: float32, bfloat16, float16 or float64; auto: as they are stored.
        nodes: how fine they are, as ``gp.wrap``'s.
        metric: in place of the task's own.
        batch_size: prompts at a time.
        train_file: prompts to find circuits on, beside ``test_file``; the task is then a name
            alone.
        test_file: prompts to judge circuits on; those that ``train_file`` has too are left out.
        settings: the task's, as text or numbers.
    """
    loaded = stored_model(model, dtype, nodes)
    if train_file is not None and test_file is not None:
        first, second, remarks = held_out_prompts(
            train_file, test_file, loaded, (train, test), seed, metric, batch_size, settings
        )
        return Case(loaded.load, first, second, weights=loaded.weights, remarks=remarks)
    for whole in prompts(task, loaded, train + test, seed, metric, batch_size, settings):
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
