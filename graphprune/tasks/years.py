"""Greater-than (Hanna et al. 2023, arXiv 2305.00586) for any way of splitting years.

"The war lasted from the year 1732 to the year 17": the model should go on with a later year. What
the next token says depends on the tokenizer: two digits (GPT-2: `` 17|32``), one digit (SmolLM2,
Llama-2: ``1|7|3|2``), three (Llama-3: ``173|2``) or a whole year. So for each century the one
hundred years are tokenised in place; the prompt ends where the tokens of most of them part, and the
next token of each year says which years it leads to. Tokens that lead to later years only are
answers, tokens that lead to no later year are distractors. A token that leads to both (the decade
digit of the start year itself) is neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphprune.core.task import Task
from graphprune.tasks.building import (
    Candidate,
    MetricLike,
    build,
    checked_templates,
    combinations,
)
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import PROMPTS
from graphprune.util.checks import require_one_of

SPANS_OF_TIME: tuple[str, ...] = PROMPTS["greater_than"]["templates"]
EVENTS: tuple[str, ...] = PROMPTS["greater_than"]["events"]
CENTURIES = tuple(range(11, 21))


@dataclass(frozen=True)
class Century:
    """The tokens behind ``... to the year`` in one century.

    ``shared`` are the tokens that the years share, put behind the prompt; ``years`` maps each next
    token to the years (0 to 99) it leads to.
    """

    shared: tuple[int, ...]
    years: dict[int, list[int]]

    def split(self, start: int) -> tuple[list[int], list[int]]:
        """Tokens that lead to years after ``start`` only, and tokens that lead to none."""
        later = [t for t, years in self.years.items() if min(years) > start]
        not_later = [t for t, years in self.years.items() if max(years) <= start]
        return later, not_later


def read_century(encoder: Encoder, century: int) -> Century:
    """Tokenises the years of a century in place; see the head of this module."""
    behind = {yy: encoder.continuation("to the year", f" {century}{yy:02d}") for yy in range(100)}
    shared: list[int] = []
    while True:
        years: dict[int, list[int]] = {}
        for yy, ids in behind.items():
            if len(ids) > len(shared):
                years.setdefault(ids[len(shared)], []).append(yy)
        usual = max(years, key=lambda token: len(years[token]), default=None)
        if usual is None or 2 * len(years[usual]) <= len(behind):
            break
        behind = {yy: behind[yy] for yy in years[usual]}
        shared.append(usual)
    years.pop(-1 if encoder.unknown_id is None else encoder.unknown_id, None)
    return Century(tuple(shared), years)


def greater_than(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    corruption: Literal["01", "random"] = "01",
    templates: Sequence[int] | None = None,
    metric: MetricLike = "prob_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "The war lasted from the year 1732 to the year 17".

    Answers are all next tokens that make the end year later than the start year, distractors all
    that make it earlier or equal. With single-digit tokenizers the next token is the decade digit:
    for 1732 the answers are 4 to 9, the distractors 0 to 2, and 3 (which 1731 and 1739 share) is
    left out; start years whose decade leaves no answer or no distractor do not occur.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: number of distinct prompts.
        seed: draws the same prompts again.
        corruption: ``"01"``: the start year becomes the century's year 01, behind which any year
            may come; ``"random"``: another start year of any century, the prompt's end following.
        templates: which of the six templates to use; ``None`` means all.
        metric: the task's metric: probability of the answers minus that of the distractors.
        batch_size: used where a method names none.

    Returns:
        A task; see :func:`~graphprune.tasks.ioi` for notes and errors.

    Example:
        >>> batch = next(greater_than(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('The dynasty lasted from the year 1383 to the year 13', '9')
    """
    require_one_of(corruption, ("01", "random"), "corruption")
    chosen = checked_templates(templates, len(SPANS_OF_TIME), "greater_than")
    encoder = Encoder(tokenizer)
    draw = _draw(encoder, chosen, corruption, seed)
    notes = {"corruption": corruption, "templates": list(chosen)}
    return build("greater_than", encoder, draw, n, seed, metric, batch_size, notes)


def _draw(
    encoder: Encoder, templates: tuple[int, ...], corruption: str, seed: int
) -> Iterator[Candidate]:
    source = random.Random(seed)
    centuries = {c: read_century(encoder, c) for c in CENTURIES}
    starts = [(c, yy) for c, read in centuries.items() for yy in range(100) if all(read.split(yy))]
    if not starts:
        return
    for template, event, which in combinations(seed, len(templates), len(EVENTS), len(starts)):
        century, start = starts[which]
        read = centuries[century]
        answers, distractors = read.split(start)
        other = (century, 1) if corruption == "01" else source.choice(starts)
        if other == (century, start):
            continue
        text = SPANS_OF_TIME[templates[template]]
        clean, corrupt = (
            text.format(noun=EVENTS[event], start=f"{c}{yy:02d}")
            for c, yy in ((century, start), other)
        )
        ends = read.shared, centuries[other[0]].shared
        yield Candidate(clean, corrupt, answers, distractors, templates[template], ends)
