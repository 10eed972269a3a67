"""Tasks of plain knowledge: capitals, antonyms and what comes next in a well-known order.

The corrupted prompt asks the same of another word of equal token length; its answer is the
distractor. Each task can be asked in three styles, see :mod:`graphprune.tasks.styles`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphprune.core.task import Task
from graphprune.tasks.building import MetricLike
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.styles import Style, Wordings
from graphprune.tasks.substitution import Substitution, Words
from graphprune.tasks.words import PROMPTS

CAPITALS: dict[str, str] = dict(PROMPTS["pairs"]["capitals"])
CAPITAL_WORDINGS = Wordings(**PROMPTS["capitals"])
OPPOSITES: tuple[tuple[str, str], ...] = PROMPTS["pairs"]["opposites"]
OPPOSITE_WORDINGS = Wordings(**PROMPTS["antonyms"])
CYCLES: tuple[str, ...] = PROMPTS["series"]["cycles"]
ROWS: tuple[str, ...] = PROMPTS["series"]["rows"]
SUCCESSOR_WORDINGS = Wordings(**PROMPTS["successor"])
TRIES = 4  # corrupted prompts of a prompt that are tried, until one fits


def capitals(
    tokenizer: Any,
    n: int = 50,
    seed: int = 0,
    *,
    style: Style = "statement",
    shots: int = 3,
    templates: Sequence[int] | None = None,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "The capital of Japan is the city of" (" Tokyo").

    The corrupted prompt names another country, whose capital is the distractor. At most 129
    prompts exist, three fewer for each shot.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: number of distinct prompts.
        seed: draws the same prompts again.
        style: ``"statement"`` is a sentence to complete, ``"instruction"`` says in words what to
            do, ``"few_shot"`` shows ``shots`` examples and then asks, without any instruction.
        shots: with ``"few_shot"``, how many of the task's fixed examples stand in front (1 to 6).
            Neither their words nor their answers are ever asked, in the clean or the corrupted
            prompt.
        templates: which of the style's three wordings to use; ``None`` means all.
        metric: the task's metric.
        batch_size: used where a method names none.

    Returns:
        A task with the notes of :func:`~graphprune.tasks.ioi`, and ``style`` (and ``shots``).
        Raises :class:`~graphprune.errors.InputError` for an unknown style, a wrong number of shots,
        or if fewer than ``n`` prompts exist.

    Example:
        >>> batch = next(capitals(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('The capital city of Russia is called', ' Moscow')
    """
    encoder = Encoder(tokenizer)
    texts = CAPITAL_WORDINGS.texts(style, shots)
    answers, others = _lookup(CAPITALS, encoder, CAPITAL_WORDINGS.shown(style, shots))
    notes = {"corruption": "other country", **CAPITAL_WORDINGS.notes(style, shots)}
    draw = Substitution(texts, answers, others, TRIES)
    return draw.task("capitals", encoder, n, seed, templates, metric, batch_size, **notes)


def antonyms(
    tokenizer: Any,
    n: int = 50,
    seed: int = 0,
    *,
    style: Style = "statement",
    shots: int = 3,
    templates: Sequence[int] | None = None,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "The opposite of good is" (" bad").

    The corrupted prompt asks for another word's opposite, which is the distractor. Arguments as
    :func:`capitals`.

    Example:
        >>> batch = next(antonyms(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('The opposite of small is', ' big')
    """
    encoder = Encoder(tokenizer)
    texts = OPPOSITE_WORDINGS.texts(style, shots)
    known: dict[str, str] = {}
    for one, other in OPPOSITES:
        known.setdefault(one, other)
        known.setdefault(other, one)
    answers, others = _lookup(known, encoder, OPPOSITE_WORDINGS.shown(style, shots))
    notes = {"corruption": "other word", **OPPOSITE_WORDINGS.notes(style, shots)}
    draw = Substitution(texts, answers, others, TRIES)
    return draw.task("antonyms", encoder, n, seed, templates, metric, batch_size, **notes)


def successor(
    tokenizer: Any,
    n: int = 50,
    seed: int = 0,
    *,
    style: Style = "statement",
    shots: int = 3,
    templates: Sequence[int] | None = None,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "Monday, Tuesday, Wednesday," (" Thursday").

    Weekdays, months, numbers, ordinals and letters; the corrupted prompt is another run of the same
    series, whose next word is the distractor. Arguments as :func:`capitals`; there are three
    fixed examples, and runs that share a word with one of those shown are left out.

    Example:
        >>> batch = next(successor(tokenizer, n=4).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('First comes Q, then R, then S, then', ' T')
    """
    encoder = Encoder(tokenizer)
    texts = SUCCESSOR_WORDINGS.texts(style, shots)
    answers: dict[Words, str] = {}
    others: dict[Words, list[Words]] = {}
    for series in _series(SUCCESSOR_WORDINGS.shown(style, shots)):
        runs = {run[:3]: run[3] for run in series}
        answers |= runs
        others |= {run: [o for o in runs if runs[o] != runs[run]] for run in runs}
    notes = {"corruption": "other run", **SUCCESSOR_WORDINGS.notes(style, shots)}
    draw = Substitution(texts, answers, others)
    return draw.task("successor", encoder, n, seed, templates, metric, batch_size, **notes)


def _lookup(
    known: Mapping[str, str], encoder: Encoder, shown: frozenset[str]
) -> tuple[dict[Words, str], dict[Words, list[Words]]]:
    """Answers of the words, and the others that can stand in their place; none of those ``shown``.

    No other word has the same answer or is the answer.
    """
    usable = [word for word in known if shown.isdisjoint((word, known[word]))]
    others: dict[Words, list[Words]] = {}
    for word, group in encoder.partners(usable).items():
        others[word,] = [(o,) for o in group if known[o] not in (word, known[word])]
    return {(word,): answer for word, answer in known.items()}, others


def _series(shown: frozenset[str]) -> list[list[tuple[str, ...]]]:
    """Runs of three with what comes next, series by series, without the words ``shown``."""
    turned = [words + words[:3] for words in (text.split() for text in CYCLES)]
    return [
        [run for run in zip(*(row[i:] for i in range(4)), strict=False) if shown.isdisjoint(run)]
        for row in (*turned, *(text.split() for text in ROWS))
    ]
