"""A program's inputs as a task: every sequence of every length, or those that are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.pairs import TokenPairs
from graphprune.tasks.tables import Ragged

from .metrics import decode, output_kl, squared_error, stands_out
from .transformer import TracrConfig, TracrTransformer

__all__ = ["MOST_INPUTS", "every_input", "program_task"]

MOST_INPUTS = 200_000


def every_input(config: TracrConfig) -> list[list[int]]:
    """Ids of every sequence, BOS first, from one token to the longest; shorter ones first."""
    own, longest = config.vocabulary, config.max_length
    total = sum(len(own) ** n for n in range(1, longest + 1))
    if total > MOST_INPUTS:
        raise InputError(
            f"{len(own)} tokens in sequences of up to {longest} make {total} inputs, more than "
            f"{MOST_INPUTS}; give inputs= a list of sequences, or compile for shorter ones"
        )
    return [
        [config.bos_id, *sequence]
        for length in range(1, longest + 1)
        for sequence in product(own, repeat=length)
    ]


def _read(config: TracrConfig, inputs: Iterable[Sequence[Any]]) -> list[list[int]]:
    """Ids of the given sequences of tokens, BOS put first."""
    numbers = {config.tokens[i]: i for i in config.vocabulary}
    rows = []
    for number_in_list, sequence in enumerate(inputs):
        tokens = list(sequence)
        if not 1 <= len(tokens) <= config.max_length:
            raise InputError(
                f"input {number_in_list} has {len(tokens)} tokens; the program takes 1 to "
                f"{config.max_length} (BOS is added)"
            )
        unknown = next((t for t in tokens if t not in numbers), None)
        if unknown is not None:
            raise InputError(
                f"input {number_in_list} holds {unknown!r}; the program's tokens: "
                f"{', '.join(repr(t) for t in numbers)} (BOS is added)"
            )
        rows.append([config.bos_id, *(numbers[t] for t in tokens)])
    if not rows:
        raise InputError("inputs is empty; give at least one sequence, or 'all'")
    return rows


def _redrawn(rows: list[list[int]], config: TracrConfig, seed: int) -> Ragged | None:
    """Every token but BOS replaced by a random other one; ``None`` where there is no other."""
    own = np.array(config.vocabulary)
    if len(own) < 2:
        return None
    generator = np.random.default_rng(seed)
    index_of = {int(t): i for i, t in enumerate(own)}
    drawn = []
    for row in rows:
        now = np.array([index_of[t] for t in row[1:]])
        step = generator.integers(1, len(own), size=len(now))
        drawn.append([config.bos_id, *own[(now + step) % len(own)].tolist()])
    return Ragged.from_rows(drawn)


def _answers(
    module: TracrTransformer, rows: list[list[int]]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where an output is asked for, ``[N, P]``, and the number of its value there, ``[N, P, 1]``.

    Every position but BOS, except where a categorical program has no value (RASP's ``None``, which
    Tracr compiles to an empty output). ``-1`` stands for nothing.
    """
    longest = max(map(len, rows))
    positions = np.full((len(rows), longest - 1), -1, dtype=np.int32)
    answers = positions[..., None].copy()
    device = module.lm_head.weight.device
    for length in sorted({len(row) for row in rows}):
        chosen = [i for i, row in enumerate(rows) if len(row) == length]
        with torch.no_grad():
            logits = module(torch.tensor([rows[i] for i in chosen], device=device)).logits
        assert logits is not None
        logits = logits[:, 1:].cpu()
        asked = torch.ones(logits.shape[:2], dtype=torch.bool)
        if not module.config.numerical:
            asked = stands_out(logits)
        at = torch.arange(1, length).expand_as(asked)
        none = torch.full_like(at, -1)
        positions[chosen, : length - 1] = torch.where(asked, at, none).numpy()
        answers[chosen, : length - 1, 0] = torch.where(asked, decode(logits), none).numpy()
    return positions, answers


def program_task(
    module: TracrTransformer,
    inputs: Literal["all"] | Iterable[Sequence[Any]] = "all",
    *,
    name: str = "rasp",
    seed: int = 0,
    batch_size: int = 64,
) -> Task:
    """The program on its inputs; every position but BOS where it has an output is asked for.

    Corrupted inputs have every token redrawn, different from the original. Shorter sequences are
    padded with the program's padding token, which nothing attends to. The metric is
    :func:`~graphprune.adapters.rasp.output_kl` (categorical) or ``squared_error`` (numerical).
    Inputs without an output at any position are left out and counted in the task's notes.
    """
    config = module.config
    if isinstance(inputs, str) and inputs != "all":
        raise InputError(f"inputs must be 'all' or a list of sequences, got {inputs!r}")
    rows = every_input(config) if isinstance(inputs, str) else _read(config, inputs)
    positions, answers = _answers(module, rows)
    asked = (positions >= 0).any(1)
    if not asked.any():
        raise InputError("the program has no output at any position of these inputs")
    rows = [rows[i] for i in np.flatnonzero(asked)]
    examples = TokenPairs(
        Ragged.from_rows(rows),
        _redrawn(rows, config, seed),
        positions[asked],
        None if config.numerical else answers[asked],
        pad_id=config.pad_id,
    )
    metric = squared_error() if config.numerical else output_kl()
    notes = {
        "inputs": "all" if isinstance(inputs, str) else "given",
        "without_output": int((~asked).sum()),
        "seed": seed,
    }
    return Task(examples, metric, name=name, batch_size=batch_size, notes=notes)
