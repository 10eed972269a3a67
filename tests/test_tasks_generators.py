"""The generators: equal lengths, distinct prompts, right answers, under every kind of tokenizer."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from support.marks import quick
from support.prompts import rows, texts
from support.tokenizers import TOKENIZERS, byte_bpe, word_level

from graphprune import tasks
from graphprune.errors import InputError

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


# Every option with one tokenizer, and every tokenizer with every task.
EVERY = [(name, options, kind) for name, options in CASES for kind in TOKENIZERS]
FEW = [case for case in EVERY if not case[1] or case[2] == "byte_bpe"]


@pytest.mark.parametrize(("name", "options", "kind"), quick(EVERY, FEW), ids=str)
def test_every_task_with_every_tokenizer(name: str, options: dict[str, Any], kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    if (name, kind) in IMPOSSIBLE:
        with pytest.raises(InputError, match="this tokenizer can make no prompt"):
            tasks.make(name, tokenizer, n=20, **options)
        return
    task = tasks.make(name, tokenizer, n=20, seed=3, **options)
    assert len(task) == len(task.notes["template"]) == task.notes["n"] == 20
    assert task.name == task.notes["generator"] == name
    suffix = int(kind == "bos_and_eos")  # it puts one token behind every text
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
    abba = []
    for clean, corrupt, [answer], [distractor] in texts(task, tokenizer):
        named = [w for w in re.findall(r"\w+", clean) if w in (answer.strip(), distractor.strip())]
        assert Counter(named) == {answer.strip(): 1, distractor.strip(): 2}
        abba.append(named[0] == answer.strip())
        pairs = zip(re.findall(r"\w+", clean), re.findall(r"\w+", corrupt), strict=True)
        changed = [(a, b) for a, b in pairs if a != b]
        if corruption == "abc":
            assert [a for a, _ in changed] == named
            assert len({*named, *(b for _, b in changed)}) == 5
        else:
            assert changed == [(distractor.strip(), answer.strip())]
    templates = [task.notes["template"][i] for b in task.batches(1) for i in b.indices]
    assert abba == [t < 15 for t in templates]
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


def test_docstring_asks_for_the_third_parameter() -> None:
    tokenizer = byte_bpe()
    for clean, corrupt, [answer], [distractor] in texts(
        tasks.docstring(tokenizer, n=50), tokenizer
    ):
        for prompt, wanted in ((clean, answer), (corrupt, distractor)):
            signature = re.findall(r"\w+", prompt.split("\n")[0])
            assert signature[5] == wanted.strip()
            assert re.findall(r":param (\w+)", prompt) == signature[3:5]


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
        ("nope", {}, "unknown task 'nope'; .*nown: ioi, greater_than"),
        ("ioi", {"corupt": 1}, "unknown option of task 'ioi' 'corupt'; did you mean 'corruption'"),
        (
            "ioi",
            {"corruption": "abb"},
            "unknown corruption 'abb'; did you mean 'abc'. Known: abc, swap",
        ),
        ("ioi", {"templates": [30]}, r"ioi has the templates 0..29; templates=\[30\]"),
        ("greater_than", {"templates": []}, r"templates=\[\]"),
        ("ioi", {"metric": "nope"}, "unknown metric 'nope'"),
        ("induction", {"length": 3}, r"length must lie in 4\.\."),
        ("induction", {"of": "letters"}, "unknown of 'letters'"),
        ("boolean_expressions", {"shots": 7}, r"shots must lie in 0\.\.6, got 7"),
        ("subject_verb_agreement", {"structure": "x"}, "unknown structure 'x'"),
        (
            "capitals",
            {"style": "chat"},
            "unknown style 'chat'; known: statement, instruction, few_sh",
        ),
        ("antonyms", {"style": "few_shot", "shots": 0}, r"shots must lie in 1\.\.6, got 0"),
        ("antonyms", {"style": "few_shot", "shots": True}, r"shots must lie in 1\.\.6, got True"),
        ("successor", {"style": "few_shot", "shots": 4}, r"shots must lie in 1\.\.3, got 4"),
    ],
)
def test_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks.make(name, byte_bpe(), **options)


def test_importing_the_tasks_imports_no_transformers() -> None:
    code = "import sys, graphprune.tasks; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
