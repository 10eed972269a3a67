"""Records that are streamed, and tasks that must hold the same."""

from __future__ import annotations

import random
import re
from typing import Any

import torch

from graphprune import Task

NAMES = re.findall(
    r"\w+",
    """
    Aaron Abigail Adam Albert Alexander Alice Amanda Amber Amy Andrew Angela Anna Arthur Barbara
    Betty Brian Bruce Carl Carol Charles Claire Daniel David Diana Donald Emily Emma Eric Frank
    George Grace Harry Helen Henry Jack James Jane John Julia Karen Laura Linda Louis Maria Mark
    """,
)
OBJECTS = ("ring", "book", "ball", "key", "drink", "apple")
PLACES = ("park", "store", "school", "garden", "station", "library")
PLAIN_WORDS = ("water", "music", "paper", "house", "river", "table", "light", "stone")

SPAN = {"name": [[1, 2], [1, 2]]}

FIELDS = ("clean", "corrupt")


def made(n: int, seed: int = 0, spans: str = "none") -> list[dict[str, Any]]:
    """Pairs of several lengths with one to three answers."""
    source = random.Random(seed)
    records: list[dict[str, Any]] = []
    for number in range(n):
        one, other, *rest = source.sample(NAMES, 5)
        tail = " ".join(source.choices(PLAIN_WORDS, k=source.randrange(5)))
        record: dict[str, Any] = {
            "clean": f"so {one} gave the {source.choice(OBJECTS)} {tail} to",
            "answer": [f" {name}" for name in [one, *rest[: source.randrange(3)]]],
            "distractor": f" {other}",
        }
        record["corrupt"] = record["clean"].replace(one, other)
        if spans == "all" or (spans == "some" and number % 3):
            record["spans"] = SPAN
        if spans == "late" and number == n - 1:
            record["spans"] = SPAN
        if spans == "other" and number:
            record["spans"] = {"name" if number < n - 1 else "who": [[1, 2], [1, 2]]}
        records.append(record)
    return records


def same(one: Task, other: Task) -> None:
    """Every batch, plain and shuffled, with the same tensors of the same kinds."""
    assert len(one) == len(other)
    assert one.notes == other.notes
    for order in ({}, {"shuffle": 3}):
        for a, b in zip(one.batches(7, **order), other.batches(7, **order), strict=True):
            assert (a.size, a.indices, a.slot_names) == (b.size, b.indices, b.slot_names)
            pairs = [
                (getattr(a, name), getattr(b, name))
                for name in ("positions", "answer", "distractor", "alignment", "slots")
            ]
            for mine, theirs in ((a.clean, b.clean), (a.corrupt, b.corrupt)):
                assert (mine is None) == (theirs is None)
                pairs += [(mine[k], theirs[k]) for k in mine or ()]
            for mine, theirs in pairs:
                if mine is None or theirs is None:
                    assert mine is theirs
                    continue
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)
