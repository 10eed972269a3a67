"""Gendered pronouns: a name decides between " he" and " she"."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from graphprune.core.task import Task
from graphprune.tasks.building import Candidate, MetricLike, build, choose_templates, combinations
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import FEMALE, MALE

__all__ = ["REASONS", "TAGS", "gender_because", "gendered_pronoun"]

TAGS = (
    "So {} is such a good singer, isn't",
    "So {} is a really fast runner, isn't",
    "So {} is always late for dinner, isn't",
    "So {} is the best cook in town, isn't",
    "So {} is very fond of old books, isn't",
    "So {} is going to the party tonight, isn't",
    "So {} is quite a careful driver, isn't",
    "So {} is still asleep upstairs, isn't",
    "So {} is the new head of the school, isn't",
    "So {} is not afraid of the dark, is",
    "So {} was a great dancer in those days, wasn't",
    "So {} was at the meeting yesterday, wasn't",
    "So {} was the first one to arrive, wasn't",
    "So {} was very kind to the children, wasn't",
    "So {} can really play the piano, can't",
    "So {} can speak four languages, can't",
    "So {} can swim across the lake, can't",
    "So {} can fix almost anything, can't",
    "So {} will be home by Friday, won't",
    "So {} will help us with the move, won't",
    "So {} will win the race again, won't",
    "So {} has a lot of patience, doesn't",
    "So {} likes to work in the garden, doesn't",
    "So {} knows all of the answers, doesn't",
    "So {} wants to travel the world, doesn't",
    "So {} lives next to the station, doesn't",
    "So {} plays football every weekend, doesn't",
    "So {} has already left the house, hasn't",
    "So {} has been to Paris before, hasn't",
    "So {} would make a fine doctor, wouldn't",
)
REASONS = (
    "Yesterday {} went home early because",
    "Last night {} stayed awake because",
    "This morning {} was happy because",
    "On Monday {} was late for work because",
    "In the end {} left the party because",
    "After lunch {} took a long walk because",
    "That day {} called the doctor because",
    "Last year {} sold the car because",
    "Last summer {} moved to the coast because",
    "On Sunday {} did not go out because",
)


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
    """
    return _pronouns("gender_because", REASONS, tokenizer, n, seed, templates, metric, batch_size)


def _pronouns(
    name: str,
    texts: Sequence[str],
    tokenizer: Any,
    n: int,
    seed: int,
    templates: Sequence[int] | None,
    metric: MetricLike,
    batch_size: int,
) -> Task:
    chosen = choose_templates(templates, len(texts), name)
    encoder = Encoder(tokenizer)
    partners = _partners(encoder)
    draw = partial(_draw, partners, texts, chosen, seed)
    return build(
        name,
        encoder,
        draw(),
        n,
        metric=metric,
        batch_size=batch_size,
        seed=seed,
        notes={"corruption": "other gender", "templates": list(chosen)},
        every=partial(draw, every=True),
        pool=len(chosen) * len(partners) or None,
    )


def _partners(encoder: Encoder) -> dict[str, list[str]]:
    """For each name those of the other gender that can stand in its place, at least one."""
    women = set(FEMALE)
    partners = {
        name: [other for other in others if (other in women) != (name in women)]
        for name, others in encoder.partners([*MALE, *FEMALE]).items()
    }
    return {name: others for name, others in partners.items() if others}


def _draw(
    partners: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    templates: tuple[int, ...],
    seed: int,
    every: bool = False,
) -> Iterator[Candidate]:
    """Prompts with a corrupted one each; ``every``: with each that there is."""
    source, order = random.Random(seed), random.Random(seed)
    women = set(FEMALE)
    names = list(partners)
    for template, which in combinations(seed, len(templates), len(names)):
        name = names[which]
        pronouns = ((" she",), (" he",)) if name in women else ((" he",), (" she",))
        text = texts[templates[template]]
        others = partners[name]
        chosen = order.sample(others, len(others)) if every else [source.choice(others)]
        for other in chosen:
            yield Candidate(text.format(name), text.format(other), *pronouns, templates[template])
