"""Tasks whose corrupted prompt has other words in the same text, and with them another answer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphprune.core.task import Task
from graphprune.tasks.building import Candidate, MetricLike, build, checked_templates, combinations
from graphprune.tasks.encoding import Encoder

Words = tuple[str, ...]
"""The words that are put into the blanks of a text."""


@dataclass(frozen=True)
class Substitution:
    """Texts with blanks, and the words that can stand in them.

    Args:
        texts: the prompts, with ``{}`` for each word.
        answers: what follows a text, without the space in front, by the words in it.
        others: the words that are asked, each with others that may stand in the corrupted prompt.
        tries: how many of the others are tried until a prompt fits; ``None`` means all.
    """

    texts: Sequence[str]
    answers: Mapping[Words, str]
    others: Mapping[Words, Sequence[Words]]
    tries: int | None = None

    def task(
        self,
        name: str,
        encoder: Encoder,
        n: int,
        seed: int,
        templates: Sequence[int] | None,
        metric: MetricLike,
        batch_size: int,
        **notes: Any,
    ) -> Task:
        """A task of ``n`` prompts; arguments as of :func:`graphprune.tasks.building.build`.

        ``templates`` says which of the texts to use; ``None`` means all.
        """
        chosen = checked_templates(templates, len(self.texts), name)
        draw = partial(self.draw, chosen, seed)
        all_candidates, pool = partial(draw, None), len(chosen) * len(self.others) or None
        notes["templates"] = list(chosen)
        first = draw(self.tries)
        return build(
            name, encoder, first, n, seed, metric, batch_size, notes,
            all_candidates=all_candidates, pool=pool,
        )  # fmt: skip

    def draw(self, templates: Sequence[int], seed: int, tries: int | None) -> Iterator[Candidate]:
        """Prompts in random order, each with ``tries`` corrupted ones (all for ``None``)."""
        source = random.Random(seed)
        asked = list(self.others)
        for number, which in combinations(seed, len(templates), len(asked)):
            words, template = asked[which], templates[number]
            text, others = self.texts[template], self.others[words]
            count = len(others) if tries is None else min(tries, len(others))
            for other in source.sample(others, count):
                clean, corrupt = text.format(*words), text.format(*other)
                answer, distractor = (f" {self.answers[words]}",), (f" {self.answers[other]}",)
                yield Candidate(clean, corrupt, answer, distractor, template)
