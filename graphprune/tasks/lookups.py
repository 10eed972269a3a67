"""Tasks of plain knowledge: capitals, antonyms and what comes next in a well-known order.

The corrupted prompt asks the same of another word of equal token length; its answer is the
distractor. Each task can be asked in three styles, see :mod:`graphprune.tasks.styles`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from graphprune.core.task import Task
from graphprune.tasks.building import Candidate, MetricLike, build, choose_templates, combinations
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.styles import Style, Wordings
from graphprune.tasks.words import listed

__all__ = ["antonyms", "capitals", "successor"]

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Belgium": "Brussels",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Iraq": "Baghdad",
    "Iran": "Tehran",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "Colombia": "Bogota",
    "Ukraine": "Kiev",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Serbia": "Belgrade",
    "Syria": "Damascus",
    "Lebanon": "Beirut",
    "Jordan": "Amman",
    "Afghanistan": "Kabul",
    "Nepal": "Kathmandu",
    "Taiwan": "Taipei",
    "Scotland": "Edinburgh",
}
CAPITAL_TEXTS = (
    "The capital of {} is the city of",
    "The capital city of {} is called",
    "The government of {} sits in the capital,",
)
CAPITAL_WORDINGS = Wordings(
    statement=CAPITAL_TEXTS,
    instruction=(
        "Name the capital city of the given country.\nThe country: {}\nIts capital:",
        "Answer the question.\nQuestion: What is the capital of {0}?\n"
        "Answer: the capital of {0} is",
        "Answer with the name of a city. What is the capital of {}? The capital is",
    ),
    few_shot=("Country: {}\nCapital: {}\n\n", "In {}: {}. ", "country {}, city {}\n"),
    demonstrations=tuple(
        (country, CAPITALS[country])
        for country in ("France", "Japan", "Egypt", "Russia", "Peru", "Canada")
    ),
)
OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in listed(
        """
        good/bad hot/cold big/small high/low up/down left/right open/closed light/dark fast/slow
        happy/sad rich/poor young/old strong/weak early/late hard/soft long/short new/old full/empty
        clean/dirty wet/dry thick/thin love/hate war/peace true/false day/night black/white
        positive/negative internal/external public/private male/female win/lose buy/sell push/pull
        above/below inside/outside before/after more/less begin/end front/back north/south east/west
        near/far success/failure major/minor maximum/minimum increase/decrease
        """
    )
)
OPPOSITE_TEXTS = (
    "The opposite of {} is",
    "The antonym of the word {} is the word",
    "Words and their opposites: {} and",
)
OPPOSITE_WORDINGS = Wordings(
    statement=OPPOSITE_TEXTS,
    instruction=(
        "Read the word and write the word with the opposite meaning.\nThe word: {}\n"
        "The opposite word:",
        "Write the word that means the opposite of the given word.\nThe word: {}\nIts opposite:",
        "Answer the question with one word.\nQuestion: What is the opposite of {0}?\n"
        "Answer: the opposite of {0} is",
    ),
    few_shot=("{} / {}, ", "from {} to {}\n", "A: {} B: {}\n"),
    demonstrations=(
        ("hot", "cold"),
        ("up", "down"),
        ("good", "bad"),
        ("buy", "sell"),
        ("day", "night"),
        ("near", "far"),
    ),
)
CYCLES = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
)
ROWS = (
    "one two three four five six seven eight nine ten eleven twelve",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
)
SUCCESSOR_TEXTS = (
    "{}, {}, {},",
    "They come in this order: {}, {}, {},",
    "First comes {}, then {}, then {}, then",
)
SUCCESSOR_WORDINGS = Wordings(
    statement=SUCCESSOR_TEXTS,
    instruction=(
        "Continue the series with one word.\nThe series: {}, {}, {},",
        "What comes next?\nThe words: {}, {}, {},",
        "Write the next item of the list.\nThe list: {}, {}, {},",
    ),
    few_shot=("{}, {}, {}, {}\n", "{} - {} - {} - {}\n", "{}; {}; {}; {}\n"),
    demonstrations=(
        ("P", "Q", "R", "S"),
        ("May", "June", "July", "August"),
        ("nine", "ten", "eleven", "twelve"),
    ),
)
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
        templates: which of the style's three wordings to use; ``None``: all.
        metric: the task's metric.
        batch_size: used where a method names none.

    Returns:
        A task with the notes of :func:`~graphprune.tasks.ioi`, and ``style`` (and ``shots``).
        Raises :class:`~graphprune.errors.InputError` for an unknown style, a wrong number of shots,
        or if fewer than ``n`` prompts exist.
    """
    encoder = Encoder(tokenizer)
    texts = CAPITAL_WORDINGS.texts(style, shots)
    chosen = choose_templates(templates, len(texts), "capitals")
    shown = CAPITAL_WORDINGS.shown(style, shots)
    partners = encoder.partners(_without(CAPITALS, shown))
    draw = partial(_lookup, CAPITALS, partners, texts, chosen, seed)
    notes = {
        "corruption": "other country",
        **CAPITAL_WORDINGS.notes(style, shots),
        "templates": list(chosen),
    }
    return build(
        "capitals", encoder, draw(), n, seed=seed, metric=metric, batch_size=batch_size,
        notes=notes, every=partial(draw, tries=None), pool=len(chosen) * len(partners) or None,
    )  # fmt: skip


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
    """
    encoder = Encoder(tokenizer)
    texts = OPPOSITE_WORDINGS.texts(style, shots)
    chosen = choose_templates(templates, len(texts), "antonyms")
    known: dict[str, str] = {}
    for one, other in OPPOSITES:
        known.setdefault(one, other)
        known.setdefault(other, one)
    shown = OPPOSITE_WORDINGS.shown(style, shots)
    partners = encoder.partners(_without(known, shown))
    draw = partial(_lookup, known, partners, texts, chosen, seed)
    notes = {
        "corruption": "other word",
        **OPPOSITE_WORDINGS.notes(style, shots),
        "templates": list(chosen),
    }
    return build(
        "antonyms", encoder, draw(), n, seed=seed, metric=metric, batch_size=batch_size,
        notes=notes, every=partial(draw, tries=None), pool=len(chosen) * len(partners) or None,
    )  # fmt: skip


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
    """
    encoder = Encoder(tokenizer)
    texts = SUCCESSOR_WORDINGS.texts(style, shots)
    chosen = choose_templates(templates, len(texts), "successor")
    notes = {
        "corruption": "other run",
        **SUCCESSOR_WORDINGS.notes(style, shots),
        "templates": list(chosen),
    }
    series = _series(SUCCESSOR_WORDINGS.shown(style, shots))
    draw = partial(_runs, series, texts, chosen, seed)
    return build(
        "successor",
        encoder,
        draw(),
        n,
        metric=metric,
        batch_size=batch_size,
        seed=seed,
        notes=notes,
        every=draw,  # each run comes with all others of its series anyway
        pool=len(chosen) * sum(map(len, series)),
    )


def _without(known: Mapping[str, str], shown: frozenset[str]) -> dict[str, str]:
    """The entries that have no word in common with ``shown``."""
    return {word: other for word, other in known.items() if shown.isdisjoint((word, other))}


def _lookup(
    known: Mapping[str, str],
    partners: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    templates: tuple[int, ...],
    seed: int,
    tries: int | None = TRIES,
) -> Iterator[Candidate]:
    """Prompts, each with ``tries`` corrupted ones in turn; ``None``: with all that there are."""
    source = random.Random(seed)
    words = list(partners)
    for template, which in combinations(seed, len(templates), len(words)):
        word = words[which]
        text = texts[templates[template]]
        others = [o for o in partners[word] if known[o] != word and known[o] != known[word]]
        most = len(others) if tries is None else min(tries, len(others))
        for other in source.sample(others, most):
            yield Candidate(
                text.format(word),
                text.format(other),
                (f" {known[word]}",),
                (f" {known[other]}",),
                templates[template],
            )


def _series(shown: frozenset[str]) -> list[list[list[str]]]:
    """Runs of three with what comes next, series by series, without the words ``shown``."""
    series = []
    for words in (text.split() for text in CYCLES):
        turned = words + words
        series.append([turned[i : i + 4] for i in range(len(words))])
    for words in (text.split() for text in ROWS):
        series.append([words[i : i + 4] for i in range(len(words) - 3)])
    return [[run for run in row if shown.isdisjoint(run)] for row in series]


def _runs(
    series: Sequence[Sequence[Sequence[str]]],
    texts: Sequence[str],
    templates: tuple[int, ...],
    seed: int,
) -> Iterator[Candidate]:
    """Runs of three with what comes next; each prompt with the other runs in turn."""
    source = random.Random(seed)
    runs = [(row, i) for row in series for i in range(len(row))]
    for template, which in combinations(seed, len(templates), len(runs)):
        row, place = runs[which]
        text = texts[templates[template]]
        others = [other for other in row if other[3] != row[place][3]]
        for other in source.sample(others, len(others)):
            yield Candidate(
                text.format(*row[place][:3]),
                text.format(*other[:3]),
                (f" {row[place][3]}",),
                (f" {other[3]}",),
                templates[template],
            )
