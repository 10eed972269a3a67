"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593).

Two people do something, one of them gives a thing to the other; the answer is the other's name.
Thirty templates: fifteen frames, each with the names in ABBA and in BABA order (A is the indirect
object, the answer; B is the subject, named twice).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.building import (
    Candidate,
    MetricLike,
    build,
    checked_templates,
    combinations,
)
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import NAMES, OBJECTS, PLACES, PROMPTS
from graphprune.util.checks import require_one_of

FRAMES: tuple[str, ...] = PROMPTS["ioi"]["frames"]
ENOUGH = 20  # names of one token, below which longer ones are taken


def ioi(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    corruption: Literal["abc", "swap"] = "abc",
    templates: Sequence[int] | None = None,
    names: Sequence[str] = NAMES,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "When Mary and John went to the park, John gave a book to" (" Mary").

    The answer is the name that stands there once, the distractor the one that stands there twice.
    Names have one token each (behind a space) where the vocabulary has at least 20 such names, and
    one common number of tokens otherwise; their first tokens differ.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: number of distinct prompts.
        seed: draws the same prompts again.
        corruption: ``"abc"`` puts three other names into the three slots; ``"swap"`` names the
            other person in the second clause, so that answer and distractor change places.
        templates: which templates to use. 0 to 14 are the frames in ABBA order, 15 to 29 the same
            frames in BABA order; disjoint choices give held-out templates. ``None`` means all.
        names: first names to choose from.
        metric: the task's metric.
        batch_size: used where a method names none.

    Returns:
        A task whose notes hold the ``templates`` in use, the ``template`` of each example and the
        number of ``names``. Raises :class:`~graphprune.errors.InputError` if the vocabulary has too
        few names of one length, or fewer than ``n`` prompts exist.

    Example:
        >>> batch = next(ioi(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('When Grace and Jessica went to the school, Grace gave a letter to', ' Jessica')
    """
    require_one_of(corruption, ("abc", "swap"), "corruption")
    chosen = checked_templates(templates, 2 * len(FRAMES), "ioi")
    encoder = Encoder(tokenizer)
    usable = encoder.same_length(dict.fromkeys(names), ENOUGH)
    needed = 5 if corruption == "abc" else 2
    if len(usable) < needed:
        raise InputError(
            f"ioi needs at least {needed} names of the same number of tokens, and this tokenizer "
            f"has {len(usable)} of the {len(names)} given; pass names="
        )
    draw = _draw(usable, chosen, corruption, seed)
    notes = {"corruption": corruption, "templates": list(chosen), "names": len(usable)}
    return build("ioi", encoder, draw, n, seed, metric, batch_size, notes)


def _draw(
    names: list[str], templates: tuple[int, ...], corruption: str, seed: int
) -> Iterator[Candidate]:
    source = random.Random(seed)
    sizes = len(templates), len(names), len(names) - 1, len(PLACES), len(OBJECTS)
    for template, first, second, place, thing in combinations(seed, *sizes):
        number = templates[template]
        giver, other = names[first], names[(first + 1 + second) % len(names)]
        abba = number < len(FRAMES)
        pair = (other, giver) if abba else (giver, other)
        swapped = corruption == "swap"
        slots = (*pair, other) if swapped else _others(names, {giver, other}, source)
        fill = {"place": PLACES[place], "object": OBJECTS[thing]}
        frame = FRAMES[number % len(FRAMES)]
        clean, corrupt = frame.format(*pair, giver, **fill), frame.format(*slots, **fill)
        yield Candidate(clean, corrupt, (f" {other}",), (f" {giver}",), number)


def _others(names: list[str], taken: set[str], source: random.Random) -> tuple[str, str, str]:
    """Three different names that are not ``taken``."""
    chosen: dict[str, None] = {}
    while len(chosen) < 3:
        name = names[int(source.random() * len(names))]
        if name not in taken:
            chosen[name] = None
    first, second, third = chosen
    return first, second, third
