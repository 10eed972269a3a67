"""Systems for studies whose answers, or whose training, are known: see ``graphprune.study``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from graphprune.errors import InputError
from graphprune.study import Case

__all__ = ["tracr", "trained_gpt2"]


def tracr(task: str, *, train: int, test: int, seed: int, ablation_seed: int = 0) -> Case:
    """The RASP program ``task``, compiled by Tracr, on its own inputs; its circuit is known.

    Inputs are drawn without replacement, so that train and test share none; programs with too few
    take all their inputs for both. Of categorical programs methods see the cross entropy.
    """
    from . import rasp_programs
    from . import tracr as wrapped
    from .rasp import cross_entropy

    programs = rasp_programs()
    if task not in programs:
        raise InputError(f"unknown program {task!r}; known: {', '.join(programs)}")
    model, whole, truth = _compiled(task, wrapped, ablation_seed)
    drawn = whole.subset(np.random.default_rng(seed).permutation(len(whole)).tolist())
    first, second = drawn, drawn
    if len(drawn) >= train + test:
        first, second = drawn.take(train), drawn.subset(range(train, train + test))
    if drawn.metric.flat_at_full and drawn.examples.batch([0]).answer is not None:
        first = first.with_metric(cross_entropy())  # whose gradient does not vanish
    return Case(model, first, second, truth)


@lru_cache(maxsize=2)
def _compiled(task: str, wrapped: Any, seed: int) -> Any:
    from . import rasp_programs, tracr_truth

    model, whole = wrapped(rasp_programs()[task].compile(), name=task, seed=seed)
    return model, whole, tracr_truth(model, whole)


def trained_gpt2(
    task: str,
    *,
    train: int,
    test: int,
    seed: int,
    weights: int = 0,
    layers: int = 4,
    heads: int = 8,
) -> Case:
    """A small GPT-2 that learns indirect object identification when first asked for (1-2 minutes).

    ``weights`` seeds its training. Test prompts are of a part of all prompts that neither training
    nor methods see. The one task is ``ioi``.
    """
    from graphprune.registry import wrap

    from .lm.trained import Settings, trained_ioi, trained_task

    if task != "ioi":
        raise InputError(f"the trained GPT-2 knows the task ioi, not {task!r}")
    module, tokenizer = trained_ioi(weights, Settings(layers=layers, heads=heads))
    return Case(
        wrap(module),
        trained_task(tokenizer, train, 1000 + seed, held_out=False),
        trained_task(tokenizer, test, 2000 + seed),
    )
