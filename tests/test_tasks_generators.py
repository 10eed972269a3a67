"""The generators: equal lengths, distinct prompts, right answers, under every kind of tokenizer."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import TOKENIZERS, byte_bpe, word_level

from graphprune import Task, tasks
from graphprune.errors import InputError
from graphprune.tasks.booleans import _expression
from graphprune.tasks.building import combinations
from graphprune.tasks.encoding import Encoder
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

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ioi", {}),
    ("ioi", {"corruption": "swap", "templates": [3, 18]}),
    ("greater_than", {}),
    ("greater_than", {"corruption": "random"}),
    ("gendered_pronoun", {}),
    ("gender_because", {}),
    ("boolean_expressions", {}),
    ("boolean_expressions", {"shots": 0}),
    ("induction", {}),
    ("induction", {"of": "tokens", "length": 5}),
    ("induction", {"corruption": "random", "length": 8}),
    ("subject_verb_agreement", {}),
    ("subject_verb_agreement", {"structure": "phrase"}),
    ("subject_verb_agreement", {"structure": "relative"}),
    ("docstring", {}),
    ("capitals", {}),
    ("antonyms", {}),
    ("successor", {}),
    *(
        (name, {"style": style})
        for name in ("capitals", "antonyms", "successor")
        for style in ("instruction", "few_shot")
    ),
]
IMPOSSIBLE = {("boolean_expressions", "letters"), ("subject_verb_agreement", "letters")}


def rows(task: Task) -> Iterator[tuple[list[int], list[int], set[int], set[int], int]]:
    """Clean ids, corrupted ids, answers, distractors and position of every example."""
    for batch in task.batches(1):
        assert batch.corrupt is not None
        assert batch.positions is not None
        assert batch.answer is not None
        assert batch.distractor is not None
        yield (
            batch.clean["input_ids"][0].tolist(),
            batch.corrupt["input_ids"][0].tolist(),
            set(batch.answer[0].tolist()) - {-1},
            set(batch.distractor[0].tolist()) - {-1},
            int(batch.positions[0]),
        )


def texts(task: Task, tokenizer: Any) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Clean and corrupted prompt, answers and distractors as texts, in the task's own order."""
    for clean, corrupt, answer, distractor, _ in rows(task):
        yield (
            tokenizer.decode(clean),
            tokenizer.decode(corrupt),
            [tokenizer.decode([i]) for i in sorted(answer)],
            [tokenizer.decode([i]) for i in sorted(distractor)],
        )


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_task_with_every_tokenizer(name: str, options: dict[str, Any], kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    if (name, kind) in IMPOSSIBLE:
        with pytest.raises(InputError, match="this tokenizer can make no prompt"):
            tasks.make(name, tokenizer, n=20, **options)
        return
    task = tasks.make(name, tokenizer, n=20, seed=3, **options)
    assert len(task) == len(task.notes["template"]) == task.notes["n"] == 20
    assert task.name == task.notes["generator"] == name
    suffix = len(Encoder(tokenizer).suffix)
    seen = set()
    for clean, corrupt, answer, distractor, position in rows(task):
        assert len(clean) == len(corrupt)
        assert clean != corrupt
        assert position == len(clean) - 1 - suffix
        assert answer
        assert distractor
        assert answer.isdisjoint(distractor)
        assert tokenizer.unk_token_id not in answer | distractor
        seen.add(tuple(clean))
    assert len(seen) == 20

    again = tasks.make(name, tokenizer, n=20, seed=3, **options)
    other = tasks.make(name, tokenizer, n=20, seed=4, **options)
    assert list(rows(again)) == list(rows(task)) != list(rows(other))
    assert again.notes == task.notes


@pytest.mark.parametrize("corruption", ["abc", "swap"])
def test_ioi_asks_for_the_name_that_stands_there_once(corruption: Any) -> None:
    tokenizer = byte_bpe()
    task = tasks.ioi(tokenizer, n=200, corruption=corruption)
    known = set(tasks.words.NAMES)
    abba = []
    for clean, corrupt, [answer], [distractor] in texts(task, tokenizer):
        named = [w for w in re.findall(r"\w+", clean) if w in known]
        assert Counter(named) == {answer.strip(): 1, distractor.strip(): 2}
        abba.append(named[0] == answer.strip())
        changed = [w for w in re.findall(r"\w+", corrupt) if w in known]
        if corruption == "abc":
            assert len({*changed, *named}) == 5
        else:
            assert changed == [*named[:2], answer.strip()]
    templates = [task.notes["template"][i] for b in task.batches(1) for i in b.indices]
    assert abba == [t < len(FRAMES) for t in templates]
    assert len(set(templates)) == 30
    assert task.notes["corruption"] == corruption


def test_ioi_names_of_one_length() -> None:
    letters = TOKENIZERS["letters"]()
    task = tasks.ioi(letters, n=20, names=["Anna", "Bert", "Carl", "Dora", "Emil", "Finn", "Jo"])
    assert task.notes["names"] == 6
    with pytest.raises(InputError, match=r"needs at least 5 names .* has 1 of the 2 given"):
        tasks.ioi(letters, names=["Anna", "Jo"])
    assert tasks.ioi(byte_bpe(), n=2, names=["Anna", "Mary"], corruption="swap").notes["names"] == 2


def test_held_out_templates() -> None:
    held_out = [2, 7, 19, 24]
    task = tasks.ioi(byte_bpe(), n=50, templates=held_out)
    assert set(task.notes["template"]) == set(task.notes["templates"]) == set(held_out)


TWO_FIRST = {"byte_bpe": 1, "two_digits": 2, "three_digits": 3, "whole_years": 4, "letters": 1}


@pytest.mark.parametrize("kind", [*TWO_FIRST, "sentence_piece", "word_level"])
@pytest.mark.parametrize("corruption", ["01", "random"])
def test_greater_than_answers_are_later_years(kind: str, corruption: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    task = tasks.greater_than(tokenizer, n=60, corruption=corruption)
    assert task.metric.name == "prob_diff"
    for clean, corrupt, answers, distractors in texts(task, tokenizer):
        start, *begun = re.findall(r"\d+", clean)
        assert len(start) == 4
        shown = begun[0] if begun else ""

        def years(token: str, shown: str = shown) -> range:
            digits = shown + token.strip()
            width = 10 ** (4 - len(digits))
            return range(int(digits) * width, (int(digits) + 1) * width)

        assert all(min(years(a)) > int(start) for a in answers)
        assert all(max(years(d)) <= int(start) for d in distractors)
        width = len(years(answers[0]))
        assert len(answers) + len(distractors) >= 100 // width - 1
        if corruption == "01":
            assert re.findall(r"\d+", corrupt)[0] == start[:2] + "01"


def test_greater_than_leaves_out_the_undecided_decade() -> None:
    tokenizer = byte_bpe(digits=1)
    for clean, _, answers, distractors in texts(tasks.greater_than(tokenizer, n=300), tokenizer):
        decade, year = re.findall(r"\d\d(\d)(\d) ", clean)[0]
        digits = {*answers, *distractors}
        assert digits == set("0123456789") - (set() if year == "9" else {decade})


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


def test_boolean_expressions_have_their_value() -> None:
    tokenizer = byte_bpe()
    answers: Counter[str] = Counter()
    task = tasks.boolean_expressions(tokenizer, n=200, shots=2)
    for clean, corrupt, [answer], [distractor] in texts(task, tokenizer):
        for prompt, value in ((clean, answer), (corrupt, distractor)):
            expression = prompt.split("\n")[-1].removesuffix(" is")
            assert re.fullmatch(r"(True|False|and|or|not|[() ])+", expression)
            assert str(eval(expression, {"__builtins__": {}})) == value.strip()
        assert clean.count("\n") == 2
        answers[answer] += 1
    assert min(answers[" True"], answers[" False"]) > 80


@given(st.integers(0, 2**32 - 1))
def test_boolean_expressions_stay_within_their_limits(seed: int) -> None:
    expression = _expression(random.Random(seed))
    assert expression.depth <= 3
    assert expression.nots <= 2
    assert eval(str(expression), {"__builtins__": {}}) is expression.value


def test_shots_are_right() -> None:
    for shot in tasks.booleans.SHOTS:
        expression, value = shot.strip().rsplit(" is ", 1)
        assert str(eval(expression, {"__builtins__": {}})) == value


@pytest.mark.parametrize("of", ["words", "tokens"])
@pytest.mark.parametrize("corruption", ["swap", "random"])
def test_induction_repeats(of: Any, corruption: Any) -> None:
    task = tasks.induction(byte_bpe(), n=50, of=of, corruption=corruption, length=6)
    for clean, corrupt, answer, distractor, _ in rows(task):
        assert len(clean) == 11
        assert clean[:5] == clean[6:]
        assert answer == {clean[5]}
        assert distractor < set(clean[1:5])
        if corruption == "swap":
            assert corrupt[:10] == clean[:10]
            assert {corrupt[corrupt.index(corrupt[10]) + 1]} == distractor
        else:
            assert corrupt[6:] == clean[6:]
            assert not set(corrupt[:6]) & set(clean)


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


def test_docstring_asks_for_the_third_parameter() -> None:
    tokenizer = byte_bpe()
    for clean, corrupt, [answer], [distractor] in texts(
        tasks.docstring(tokenizer, n=50), tokenizer
    ):
        for prompt, wanted in ((clean, answer), (corrupt, distractor)):
            signature = re.findall(r"\w+", prompt.split("\n")[0])
            assert signature[5] == wanted.strip()
            assert re.findall(r":param (\w+)", prompt) == signature[3:5]


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


@pytest.mark.parametrize("kind", ["byte_bpe", "letters", "bos_and_eos"])
@pytest.mark.parametrize("name", STYLED)
@pytest.mark.parametrize("shots", [1, 2, 3])
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


def test_too_many_prompts_says_how_many_there_are() -> None:
    with pytest.raises(InputError) as caught:
        tasks.capitals(byte_bpe(), n=1000)
    found = int(
        re.search(r"only (\d+) distinct ones fit .* ask for n=\1 or fewer", str(caught.value))[1]
    )
    assert len(tasks.capitals(byte_bpe(), n=found)) == found
    with pytest.raises(InputError, match="at least 1, got 0"):
        tasks.ioi(byte_bpe(), n=0)


def test_a_vocabulary_without_the_words() -> None:
    few = word_level(known=40)
    for name in ("gendered_pronoun", "capitals", "greater_than", "subject_verb_agreement"):
        with pytest.raises(InputError, match=f"{name}: this tokenizer can make no prompt"):
            tasks.make(name, few)
    with pytest.raises(InputError, match="ioi needs at least 5 names"):
        tasks.ioi(few)
    with pytest.raises(InputError, match="docstring needs at least 6 parameter names"):
        tasks.docstring(few)
    with pytest.raises(InputError, match="length must lie in"):
        tasks.induction(few)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, "unknown task 'nope'; known: ioi, greater_than"),
        ("ioi", {"corupt": 1}, "task 'ioi' has no option 'corupt'; its options: n, seed, corrupt"),
        ("ioi", {"corruption": "abb"}, "corruption must be one of 'abc', 'swap', got 'abb'"),
        ("ioi", {"templates": [30]}, r"ioi has the templates 0..29; templates=\[30\]"),
        ("greater_than", {"templates": []}, r"templates=\[\]"),
        ("ioi", {"metric": "nope"}, "unknown metric 'nope'"),
        ("induction", {"length": 3}, r"length must lie in 4\.\."),
        ("induction", {"of": "letters"}, "of must be one of"),
        ("boolean_expressions", {"shots": 7}, r"shots must lie in 0\.\.6, got 7"),
        ("subject_verb_agreement", {"structure": "x"}, "structure must be one of"),
        ("capitals", {"style": "chat"}, "style must be one of 'statement', 'instruction', 'few_sh"),
        ("antonyms", {"style": "few_shot", "shots": 0}, r"shots must lie in 1\.\.6, got 0"),
        ("antonyms", {"style": "few_shot", "shots": True}, r"shots must lie in 1\.\.6, got True"),
        ("successor", {"style": "few_shot", "shots": 4}, r"shots must lie in 1\.\.3, got 4"),
    ],
)
def test_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks.make(name, byte_bpe(), **options)


def test_templates_are_distinct_and_complete() -> None:
    for found, count in ((FRAMES, 15), (SPANS_OF_TIME, 6), (TAGS, 30), (REASONS, 10)):
        assert len(set(found)) == count
    assert all(f.count("{}") == 3 and "{place}" in f and "{object}" in f for f in FRAMES)


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


def test_importing_the_tasks_imports_no_transformers() -> None:
    code = "import sys, graphprune.tasks; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
