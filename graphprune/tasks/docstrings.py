"""Docstring completion (Heimersheim and Janiak 2023): the next ``:param`` follows the signature.

``def port(self, load, size, file, last):`` and two documented parameters; the answer is the third.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.building import Candidate, MetricLike, build
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import PLAIN_WORDS, PROMPTS

PARAMETERS: tuple[str, ...] = PROMPTS["docstring"]["parameters"]
TEXT: str = PROMPTS["docstring"]["template"]
ENOUGH = 20  # parameter names of one token, below which longer ones are taken


def docstring(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` signatures with two of four parameters documented; the answer is the third parameter.

    The corrupted prompt has another third parameter, which is the distractor. Arguments, notes and
    errors are those of :func:`~graphprune.tasks.ioi`.

    Example:
        >>> batch = next(docstring(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]).splitlines()[0]
        'def price(self, output, year, limit, load):'
        >>> tokenizer.decode(batch.answer[0])
        ' limit'
    """
    encoder = Encoder(tokenizer)
    names = encoder.same_length(PARAMETERS, ENOUGH)
    if len(names) < 6:
        raise InputError(
            f"docstring needs at least 6 parameter names of the same number of tokens, and this "
            f"tokenizer has {len(names)}"
        )
    draw = _draw(names, seed)
    notes = {"corruption": "other third parameter"}
    return build("docstring", encoder, draw, n, seed, metric, batch_size, notes)


def _draw(names: list[str], seed: int) -> Iterator[Candidate]:
    source = random.Random(seed)
    while True:
        function, first, second, third, fourth, other = source.sample(names, 6)
        words = source.sample(PLAIN_WORDS, 7)
        documented = [*words[:3], first, *words[3:5], second, *words[5:]]
        clean, corrupt = (
            TEXT.format(function, first, second, name, fourth, *documented)
            for name in (third, other)
        )
        yield Candidate(clean, corrupt, (f" {third}",), (f" {other}",))
