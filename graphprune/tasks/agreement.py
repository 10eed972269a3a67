"""Subject-verb agreement: the verb's number follows the subject, not the noun beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from graphprune.core.task import Task
from graphprune.tasks.building import Candidate, MetricLike, build, combinations
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import NOUNS, PROMPTS
from graphprune.util.checks import require_one_of

_PARTS = PROMPTS["subject_verb_agreement"]
VERBS: tuple[tuple[str, ...], ...] = _PARTS["verbs"]
LEADS: tuple[str, ...] = _PARTS["leads"]
PHRASES: tuple[str, ...] = _PARTS["phrases"]
CLAUSES: tuple[tuple[str, str], ...] = _PARTS["clauses"]
Structure = Literal["simple", "phrase", "relative"]


def subject_verb_agreement(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    structure: Structure = "simple",
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "The teachers" (" are", " were" or " have", not " is", ...).

    The corrupted prompt has the subject in the other number, which turns the answer round.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: number of distinct prompts.
        seed: draws the same prompts again.
        structure: what stands between subject and verb: ``"simple"``: nothing; ``"phrase"``: "The
            teachers near the student"; ``"relative"``: "The teachers that the student likes". The
            second noun has the number that the subject does not have.
        metric: the task's metric.
        batch_size: used where a method names none.

    Returns:
        A task; see :func:`~graphprune.tasks.ioi` for notes and errors (the template is the number
        of the sentence's opening, 0 to 7).

    Example:
        >>> batch = next(subject_verb_agreement(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('People say that the artists', ' are')
    """
    require_one_of(structure, ("simple", "phrase", "relative"), "structure")
    encoder = Encoder(tokenizer)
    draw = _draw(encoder, structure, seed)
    notes = {"corruption": "other number", "structure": structure}
    return build("subject_verb_agreement", encoder, draw, n, seed, metric, batch_size, notes)


def _draw(encoder: Encoder, structure: str, seed: int) -> Iterator[Candidate]:
    nouns = [
        (one, many)
        for one, many in NOUNS
        if len(encoder.in_context(one)) == len(encoder.in_context(many)) > 0
    ]
    middles = {"simple": 1, "phrase": len(PHRASES), "relative": len(CLAUSES)}[structure]
    others = len(nouns) if structure != "simple" else 1
    for lead, number, noun, middle, other in combinations(
        seed, len(LEADS), 2, len(nouns), middles, others
    ):
        if structure != "simple" and other == noun:
            continue
        second = nouns[other][1 - number]
        tail = {
            "simple": "",
            "phrase": f" {PHRASES[middle % len(PHRASES)]} {second}",
            "relative": f" that the {second} {CLAUSES[middle % len(CLAUSES)][1 - number]}",
        }[structure]
        clean, corrupt = (f"{LEADS[lead]} {nouns[noun][i]}{tail}" for i in (number, 1 - number))
        yield Candidate(clean, corrupt, VERBS[number], VERBS[1 - number], lead)
