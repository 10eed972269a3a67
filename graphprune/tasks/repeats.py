"""Induction: a random sequence comes again, and the next token is known from the first time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.building import Candidate, MetricLike, build
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import PLAIN_WORDS
from graphprune.util.checks import require_one_of

ENOUGH = 40  # words of one token, below which longer ones are taken


def induction(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    of: Literal["words", "tokens"] = "words",
    length: int = 10,
    corruption: Literal["swap", "random"] = "swap",
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` sequences ``w1 .. wL w1 .. w(L-1)``, whose answer is ``wL``.

    The distractor is another word of the sequence, never its first.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: number of distinct prompts.
        seed: draws the same prompts again.
        of: ``"words"``: common English words, one token each or of one common number of tokens;
            ``"tokens"``: any ids but special tokens.
        length: ``L``, at least 4; all words of a sequence differ.
        corruption: ``"swap"``: the last word is the one that stands before the distractor, so that
            the distractor comes next; ``"random"``: the first ``L`` words are others, so that
            nothing comes again.
        metric: the task's metric.
        batch_size: used where a method names none.

    Returns:
        A task; see :func:`~graphprune.tasks.ioi` for notes and errors.

    Example:
        >>> batch = next(induction(tokenizer, n=4, length=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        (' bank shirt moon button bank shirt moon', ' button')
    """
    require_one_of(of, ("words", "tokens"), "of")
    require_one_of(corruption, ("swap", "random"), "corruption")
    encoder = Encoder(tokenizer)
    if of == "words":
        pool = [encoder.in_context(w) for w in encoder.same_length(PLAIN_WORDS, ENOUGH)]
    else:
        left_out = encoder.special_ids | {encoder.unknown_id}
        pool = [(i,) for i in range(encoder.vocabulary_size) if i not in left_out]
    most = len(pool) // 2 if corruption == "random" else len(pool)
    if type(length) is not int or not 4 <= length <= most:
        raise InputError(
            f"length must lie in 4..{most} ({len(pool)} {of} of one length are known to this "
            f"tokenizer), got {length!r}"
        )
    draw = _draw(encoder, pool, length, corruption, seed)
    notes = {"corruption": corruption, "of": of, "length": length}
    return build("induction", encoder, draw, n, seed, metric, batch_size, notes)


def _draw(
    encoder: Encoder, pool: list[tuple[int, ...]], length: int, corruption: str, seed: int
) -> Iterator[Candidate]:
    source = random.Random(seed)

    def prompt(*parts: list[tuple[int, ...]]) -> list[int]:
        body = [i for part in parts for word in part for i in word]
        return [*encoder.prefix, *body, *encoder.suffix]

    while True:
        words = source.sample(pool, 2 * length if corruption == "random" else length)
        first, fresh = words[:length], words[length:]
        wrong = source.randrange(1, length - 1)
        blanks = encoder.blanks(first[-1])
        end = [first[-1][:blanks]]
        clean = prompt(first, first[:-1], end)
        if corruption == "random":
            corrupt = prompt(fresh, first[:-1], end)
        else:
            corrupt = prompt(first, first[:-2], [first[wrong - 1]], end)
        right, other = (word[blanks : blanks + 1] for word in (first[-1], first[wrong]))
        yield Candidate(clean, corrupt, right, other)
