"""The prompts of a task of token pairs, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphprune import Task


def rows(task: Task) -> Iterator[tuple[list[int], list[int], set[int], set[int], int]]:
    """Clean ids, corrupted ids, answers, distractors and position of every example."""
    for batch in task.batches(1):
        assert batch.corrupt is not None
        assert batch.positions is not None
        assert batch.answer is not None
        assert batch.distractor is not None
        yield (
            batch.clean["input_ids"][0].tolist(),
            batch.corrupt["input_ids"][0].tolist(),
            set(batch.answer[0].tolist()) - {-1},
            set(batch.distractor[0].tolist()) - {-1},
            int(batch.positions[0]),
        )


def texts(task: Task, tokenizer: Any) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Clean and corrupted prompt, answers and distractors as texts, in the task's own order."""
    for clean, corrupt, answer, distractor, _ in rows(task):
        yield (
            tokenizer.decode(clean),
            tokenizer.decode(corrupt),
            [tokenizer.decode([i]) for i in sorted(answer)],
            [tokenizer.decode([i]) for i in sorted(distractor)],
        )
