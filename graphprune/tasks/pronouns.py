"""Gendered pronouns: a name decides between " he" and " she"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphprune.core.task import Task
from graphprune.tasks.building import MetricLike
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.substitution import Substitution, Words
from graphprune.tasks.words import FEMALE, MALE, PROMPTS

TAGS: tuple[str, ...] = PROMPTS["gendered_pronoun"]["templates"]
REASONS: tuple[str, ...] = PROMPTS["gender_because"]["templates"]
PRONOUNS: dict[Words, str] = {**{(n,): "he" for n in MALE}, **{(n,): "she" for n in FEMALE}}


def gendered_pronoun(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    templates: Sequence[int] | None = None,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "So William is such a good singer, isn't" (" he", not " she").

    The corrupted prompt has a name of the other gender with equally many tokens, which turns the
    answer round. ``templates`` chooses among 30; the other arguments, notes and errors are those
    of :func:`~graphprune.tasks.ioi`.

    Example:
        >>> batch = next(gendered_pronoun(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ("So Judith can fix almost anything, can't", ' she')
    """
    return _pronouns("gendered_pronoun", TAGS, tokenizer, n, seed, templates, metric, batch_size)


def gender_because(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    templates: Sequence[int] | None = None,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "Yesterday William went home early because" (" he", not " she").

    As :func:`gendered_pronoun`, with ten templates.

    Example:
        >>> batch = next(gender_because(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('Last night Matthew stayed awake because', ' he')
    """
    return _pronouns("gender_because", REASONS, tokenizer, n, seed, templates, metric, batch_size)


def _pronouns(name: str, texts: Sequence[str], tokenizer: Any, *settings: Any) -> Task:
    """A task of all names that have one of the other gender and the same number of tokens."""
    encoder = Encoder(tokenizer)
    others: dict[Words, list[Words]] = {}
    for one, group in encoder.partners([*MALE, *FEMALE]).items():
        unlike: list[Words] = [(o,) for o in group if PRONOUNS[o,] != PRONOUNS[one,]]
        if unlike:
            others[one,] = unlike
    draw = Substitution(texts, PRONOUNS, others, tries=1)
    return draw.task(name, encoder, *settings, corruption="other gender")
