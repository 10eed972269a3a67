"""Word lists and wordings of the built-in tasks, and how prompts are drawn from them."""

from __future__ import annotations

import random
import re
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompts import rows, texts
from support.tokenizers import TOKENIZERS, byte_bpe

from graphprune import tasks
from graphprune.tasks.booleans import SHOTS, _expression
from graphprune.tasks.building import combinations
from graphprune.tasks.indirect_object import FRAMES
from graphprune.tasks.lookups import (
    CAPITAL_WORDINGS,
    CAPITALS,
    CYCLES,
    OPPOSITE_WORDINGS,
    OPPOSITES,
    ROWS,
    SUCCESSOR_WORDINGS,
)
from graphprune.tasks.pronouns import REASONS, TAGS
from graphprune.tasks.words import FEMALE, NOUNS
from graphprune.tasks.years import SPANS_OF_TIME

pytestmark = pytest.mark.inside


def test_pronouns_follow_the_name() -> None:
    tokenizer = byte_bpe()
    women = set(FEMALE)
    for make in (tasks.gendered_pronoun, tasks.gender_because):
        for clean, corrupt, [answer], [distractor] in texts(make(tokenizer, n=100), tokenizer):
            [changed] = [
                (a, b) for a, b in zip(clean.split(), corrupt.split(), strict=True) if a != b
            ]
            she = [name in women for name in changed]
            assert she == [answer == " she", distractor == " she"]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_boolean_expressions_stay_within_their_limits(seed: int) -> None:
    expression = _expression(random.Random(seed))
    assert expression.depth <= 3
    assert expression.nots <= 2
    assert eval(str(expression), {"__builtins__": {}}) is expression.value


def test_shots_are_right() -> None:
    for shot in SHOTS:
        expression, value = shot.strip().rsplit(" is ", 1)
        assert str(eval(expression, {"__builtins__": {}})) == value


@pytest.mark.parametrize("structure", ["simple", "phrase", "relative"])
def test_agreement_follows_the_subject(structure: Any) -> None:
    tokenizer = byte_bpe()
    number = {word: i for pair in NOUNS for i, word in enumerate(pair)}
    task = tasks.subject_verb_agreement(tokenizer, n=150, structure=structure)
    for clean, corrupt, answers, distractors in texts(task, tokenizer):
        nouns = [number[w] for w in clean.split() if w in number]
        assert nouns == ([nouns[0]] if structure == "simple" else [nouns[0], 1 - nouns[0]])
        assert (" are" in answers, " are" in distractors) == (nouns[0] == 1, nouns[0] == 0)
        changed = [number[w] for w in corrupt.split() if w in number]
        assert changed == [1 - nouns[0], *nouns[1:]]


def test_lookups_know_their_answers() -> None:
    tokenizer = byte_bpe()
    for clean, corrupt, [answer], [distractor] in texts(tasks.capitals(tokenizer), tokenizer):
        for prompt, wanted in ((clean, answer), (corrupt, distractor)):
            [country] = [c for c in CAPITALS if c in prompt]
            assert CAPITALS[country] == wanted.strip()
    days = CYCLES[0].split()
    task = tasks.successor(tokenizer, n=50, templates=[1])
    found = [row for row in texts(task, tokenizer) if row[2][0].strip() in days]
    assert found
    for clean, _, [answer], _ in found:
        run = [w for w in re.findall(r"\w+", clean) if w in days]
        place = days.index(run[0])
        assert [*run, answer.strip()] == [days[(place + i) % 7] for i in range(4)]


STYLED = {
    "capitals": CAPITAL_WORDINGS,
    "antonyms": OPPOSITE_WORDINGS,
    "successor": SUCCESSOR_WORDINGS,
}


@pytest.mark.parametrize(
    ("kind", "shots"),
    [("byte_bpe", 1), ("byte_bpe", 2), ("byte_bpe", 3), ("letters", 2), ("bos_and_eos", 3)],
)
@pytest.mark.parametrize("name", STYLED)
def test_few_shot_examples_stand_in_front_and_are_never_asked(
    name: str, shots: int, kind: str
) -> None:
    tokenizer = TOKENIZERS[kind]()
    wordings = STYLED[name]
    fronts = [
        "".join(form.format(*words) for words in wordings.demonstrations[:shots])
        for form in wordings.few_shot
    ]
    used = {w for words in wordings.demonstrations[:shots] for w in words}
    task = tasks.make(name, tokenizer, n=60, style="few_shot", shots=shots)
    assert (task.notes["style"], task.notes["shots"]) == ("few_shot", shots)
    seen = set()
    for clean, corrupt, _, _ in texts(task, tokenizer):
        for prompt in (clean.removeprefix("<s>"), corrupt.removeprefix("<s>")):
            [front] = [front for front in fronts if prompt.startswith(front)]
            asked = set(re.findall(r"\w+", prompt.removeprefix(front))) - {"A", "B"}
            assert used.isdisjoint(asked)
            seen.add(front)
    assert seen == set(fronts)


def test_few_shot_answers_are_in_no_example() -> None:
    tokenizer = byte_bpe()
    opposites = {*OPPOSITES, *((b, a) for a, b in OPPOSITES)}
    for name, count in (("antonyms", 6), ("capitals", 6)):
        task = tasks.make(name, tokenizer, n=30, style="few_shot", shots=count, templates=[0])
        shown = {w for words in STYLED[name].demonstrations for w in words}
        for clean, _, [answer], [distractor] in texts(task, tokenizer):
            assert shown.isdisjoint({answer.strip(), distractor.strip()})
            asked = re.findall(r"\w+", clean)[-2 if name == "capitals" else -1]
            if name == "capitals":
                assert CAPITALS[asked] == answer.strip()
            else:
                assert (asked, answer.strip()) in opposites


def test_demonstrations_are_right() -> None:
    assert all(CAPITALS[a] == b for a, b in CAPITAL_WORDINGS.demonstrations)
    assert all(pair in OPPOSITES for pair in OPPOSITE_WORDINGS.demonstrations)
    for words in SUCCESSOR_WORDINGS.demonstrations:
        assert any(" ".join(words) in row for row in (*CYCLES, *ROWS))


@pytest.mark.parametrize("name", STYLED)
def test_styles_ask_the_same_in_other_words(name: str) -> None:
    tokenizer = byte_bpe()
    plain = list(rows(tasks.make(name, tokenizer)))
    assert list(rows(tasks.make(name, tokenizer, style="statement", shots=99))) == plain
    answers = {}
    for style in ("statement", "instruction", "few_shot"):
        prompts = list(texts(tasks.make(name, tokenizer, style=style), tokenizer))
        answers[style] = {answer for _, _, [answer], _ in prompts}
        heads = {text.split("{", 1)[0] for text in STYLED[name].instruction}
        led = [any(head in clean for head in heads) for clean, _, _, _ in prompts]
        assert all(led) if style == "instruction" else not any(led)
    assert len(set.intersection(*answers.values())) > 10


def test_templates_are_distinct_and_complete() -> None:
    for found, count in ((FRAMES, 15), (SPANS_OF_TIME, 6), (TAGS, 30), (REASONS, 10)):
        assert len(set(found)) == count
    assert all(f.count("{}") == 3 and "{place}" in f and "{object}" in f for f in FRAMES)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 9))
def test_combinations_are_all_there_once(sizes: list[int], seed: int) -> None:
    drawn = list(combinations(seed, *sizes))
    total = 1
    for size in sizes:
        total *= size
    assert len(drawn) == len(set(drawn)) == total
    assert all(0 <= i < size for row in drawn for i, size in zip(row, sizes, strict=True))
    assert drawn == list(combinations(seed, *sizes))


def test_large_combinations_are_not_all_made() -> None:
    assert len(set(islice(combinations(0, 10**6, 10**6), 1000))) == 1000
