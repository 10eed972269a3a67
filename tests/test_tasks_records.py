"""Examples from texts: answers under every kind of tokenizer, mismatches, alignment, errors."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import TOKENIZERS, byte_bpe, sentence_piece, word_level

from graphprune import Task
from graphprune.errors import InputError
from graphprune.tasks import TokenPairs

MARY = {
    "clean": "When Mary and John went to the park, John gave a ball to",
    "corrupt": "When Mary and John went to the park, Mary gave a ball to",
    "answer": " Mary",
    "distractor": " John",
}
WHOLE_WORDS = ["byte_bpe", "two_digits", "bos_and_eos", "sentence_piece", "word_level"]


@pytest.mark.parametrize("kind", WHOLE_WORDS)
def test_answer_is_the_token_that_continues_the_prompt(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    pairs, notes = TokenPairs.from_records([MARY], tokenizer)
    batch = pairs.batch([0])
    assert notes == {"first_token_answers": 0}
    suffix = int(kind == "bos_and_eos")  # it puts one token behind every text
    joint = tokenizer(MARY["clean"] + " Mary")["input_ids"]
    ids = batch.clean["input_ids"][0].tolist()
    assert ids == tokenizer(MARY["clean"])["input_ids"]
    assert batch.positions.tolist() == [len(ids) - 1 - suffix]
    assert batch.answer.tolist() == [[joint[len(joint) - 1 - suffix]]]
    assert tokenizer.decode(batch.answer[0]).strip() == "Mary"
    assert tokenizer.decode(batch.distractor[0]).strip() == "John"
    assert batch.alignment is None


def test_special_tokens_are_kept_and_not_doubled() -> None:
    tokenizer = byte_bpe(bos=True, eos=True)
    pairs, _ = TokenPairs.from_records([MARY], tokenizer)
    ids = pairs.batch([0]).clean["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert pairs.batch([0]).positions.tolist() == [len(ids) - 2]


def test_sentence_piece_gets_no_second_space() -> None:
    tokenizer = sentence_piece()
    assert len(tokenizer(" Mary", add_special_tokens=False)["input_ids"]) == 2
    pairs, _ = TokenPairs.from_records([{"clean": "gave it to", "answer": " Mary"}], tokenizer)
    assert tokenizer.convert_ids_to_tokens(pairs.batch([0]).answer[0]) == ["▁Mary"]


def test_answer_that_runs_into_the_prompt_is_tokenised_alone() -> None:
    tokenizer = byte_bpe(digits=4)
    record = {"clean": "The war ran from the year 1702 to the year 17", "answer": "45"}
    pairs, _ = TokenPairs.from_records([record], tokenizer)
    assert tokenizer.decode(pairs.batch([0]).answer[0])[0] == "4"


def test_lists_and_ids_as_answers() -> None:
    tokenizer = byte_bpe()
    he, she = (tokenizer(t)["input_ids"][0] for t in (" he", " she"))
    record = {"clean": "So Mary", "answer": [" she", she, " is"], "distractor": he}
    batch = TokenPairs.from_records([record], tokenizer)[0].batch([0])
    assert batch.answer.tolist() == [[she, tokenizer(" is")["input_ids"][0]]]
    assert batch.distractor.tolist() == [[he]]


def test_longer_answers_stand_for_their_first_token(caplog: pytest.LogCaptureFixture) -> None:
    record = {"clean": "We went to", "answer": " Mary Martha", "distractor": " the"}
    with caplog.at_level(logging.WARNING, "graphprune.tasks"):
        pairs, notes = TokenPairs.from_records([record], byte_bpe())
    assert notes == {"first_token_answers": 1}
    assert "1 answers or distractors are longer than one token" in caplog.text
    assert "record 0: ' Mary Martha'" in caplog.text
    assert byte_bpe().decode(pairs.batch([0]).answer[0]) == " Mary"


def test_an_answer_without_its_space_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "graphprune.tasks"):
        TokenPairs.from_records([{"clean": "gave it to", "answer": "Mary"}], byte_bpe())
    assert "continue the prompt's last word" in caplog.text


def test_padding_without_a_pad_token() -> None:
    records = [{"clean": "The war"}, {"clean": "The war ran from"}]
    for tokenizer, pad in (
        (byte_bpe(), 0),
        (byte_bpe(bos=True, eos=True), byte_bpe(bos=True, eos=True).eos_token_id),
        (word_level(), word_level().pad_token_id),
    ):
        batch = TokenPairs.from_records(records, tokenizer)[0].batch([0, 1])
        assert batch.clean["input_ids"][0, -1] == pad
        assert batch.clean["attention_mask"][0].tolist()[-2:] == [0, 0]
        assert (batch.answer, batch.distractor, batch.corrupt) == (None, None, None)


def uneven(count: int) -> list[dict[str, str]]:
    return [MARY, *[{**MARY, "corrupt": MARY["corrupt"] + " the"} for _ in range(count)]]


def test_different_lengths_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        TokenPairs.from_records(uneven(7), byte_bpe())
    message = str(caught.value)
    length = len(byte_bpe()(MARY["clean"])["input_ids"])
    assert message.startswith("7 of 8 pairs have prompts of different token lengths")
    assert f"record 1: {length} and {length + 1} tokens: {MARY['clean']!r} / 'When Mary" in message
    assert message.count("\n  record") == 5
    assert message.endswith("... and 2 more")


def test_different_lengths_are_dropped_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "graphprune.tasks"):
        task = Task.from_pairs([*uneven(2), MARY], byte_bpe(), on_mismatch="drop")
    assert len(task) == 2
    assert task.notes["dropped"] == 2
    assert "dropped 2 of 4 pairs whose token lengths differ, first record 1: " in caplog.text
    with pytest.raises(InputError, match="nothing is left"):
        Task.from_pairs(uneven(2)[1:], byte_bpe(), on_mismatch="drop")


def test_spans_align_prompts_of_different_length() -> None:
    tokenizer = byte_bpe()
    clean, corrupt = "The war ran from Paris to the", "The war ran from the capital city to the"
    words = [tokenizer(t)["input_ids"] for t in (clean, corrupt)]
    assert [len(w) for w in words] == [7, 9]
    record = {"clean": clean, "corrupt": corrupt, "spans": {"city": [[4, 5], [4, 7]]}}
    plain = {"clean": "The war ran", "corrupt": "The reign ran"}
    pairs, _ = TokenPairs.from_records([record, plain], tokenizer)
    assert list(pairs.lengths()) == [9, 3]
    batch = pairs.batch([0, 1])
    assert batch.clean["input_ids"].shape == (2, 7)
    assert batch.corrupt["input_ids"].shape == (2, 9)
    expected = torch.zeros(7, 9)
    expected[range(4), range(4)] = 1
    expected[4, 4:7] = 1 / 3
    expected[5, 7] = expected[6, 8] = 1
    torch.testing.assert_close(batch.alignment[0], expected)
    torch.testing.assert_close(batch.alignment[1], torch.eye(7, 9))
    assert pairs.batch([1]).alignment is None


@st.composite
def spans(draw: st.DrawFn) -> tuple[dict[str, Any], int, int, list[tuple[int, int, int]]]:
    """Named spans, both lengths, and (gap, clean size, corrupted size) of each part."""
    parts = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)),
            min_size=1,
            max_size=4,
        )
    )
    end = draw(st.integers(0, 3))
    here = there = 0
    named = {}
    for i, (gap, mine, theirs) in enumerate(parts):
        here, there = here + gap, there + gap
        named[f"s{i}"] = [[here, here + mine], [there, there + theirs]]
        here, there = here + mine, there + theirs
    order = draw(st.permutations(list(named)))
    return {k: named[k] for k in order}, here + end, there + end, parts


@settings(deadline=None)
@given(spans())
def test_alignment_rows_are_means_over_spans_and_one_to_one_between(
    drawn: tuple[dict[str, Any], int, int, list[tuple[int, int, int]]],
) -> None:
    named, clean, corrupt, _ = drawn
    record = {"clean": " the" * clean, "corrupt": " the" * corrupt, "spans": named}
    pairs, _ = TokenPairs.from_records([record], byte_bpe())
    batch = pairs.batch([0])
    rows = torch.eye(clean) if batch.alignment is None else batch.alignment[0]
    assert rows.shape == (clean, corrupt)
    inside = torch.zeros(clean, dtype=torch.bool)
    for mine, theirs in named.values():
        inside[mine[0] : mine[1]] = True
        block = rows[mine[0] : mine[1], theirs[0] : theirs[1]]
        torch.testing.assert_close(block, torch.full_like(block, 1 / block.shape[1]))
    outside = rows[~inside]
    assert ((outside == 0) | (outside == 1)).all()
    reads = outside.argmax(1).tolist()
    assert reads == sorted(set(reads))
    torch.testing.assert_close(rows.sum(1), torch.ones(clean))


@settings(deadline=None)
@given(st.lists(spans(), min_size=1, max_size=4))
def test_alignment_of_a_padded_batch_has_rows_that_sum_to_one(drawn: list[Any]) -> None:
    records = [
        {"clean": " the" * clean, "corrupt": " the" * corrupt, "spans": named}
        for named, clean, corrupt, _ in drawn
    ]
    pairs, _ = TokenPairs.from_records(records, byte_bpe())
    batch = pairs.batch(range(len(records)))
    if batch.alignment is None:
        assert batch.clean["input_ids"].shape == batch.corrupt["input_ids"].shape
        return
    shape = (*batch.clean["input_ids"].shape, batch.corrupt["input_ids"].shape[1])
    assert batch.alignment.shape == shape
    torch.testing.assert_close(batch.alignment.sum(-1), torch.ones(shape[:2]))
    for row, weights in enumerate(batch.alignment):
        real = batch.clean["attention_mask"][row].bool()
        padding = ~batch.corrupt["attention_mask"][row].bool()
        assert (weights[real][:, padding] == 0).all()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["a"], "spans must be"),
        ({"a": [0, 1]}, "span 'a' in the clean prompt must be two token numbers"),
        ({"a": [[0, 1]]}, "must hold a range for the clean and one for the corrupted"),
        ({"a": [[0, 1], [1, 1]]}, "corrupted prompt must satisfy 0 <= start < end <= 6"),
        ({"a": [[0, 6], [0, 1]]}, "clean prompt must satisfy 0 <= start < end <= 5"),
        ({"a": [[0, 2], [0, 2]], "b": [[1, 3], [2, 4]]}, "span 'a' and span 'b' overlap"),
        ({"a": [[0, 1], [3, 4]], "b": [[3, 4], [0, 1]]}, "tokens|order"),
        ({"a": [[1, 2], [2, 3]]}, "prompts' start and span 'a' the clean prompt has 1 tokens"),
        ({"a": [[1, 2], [1, 2]]}, "span 'a' and the prompts' end the clean prompt has 3"),
    ],
)
def test_errors_of_spans(named: Any, message: str) -> None:
    record = {"clean": " the" * 5, "corrupt": " the" * 6, "spans": named}
    good = {**record, "spans": {"a": [[0, 1], [0, 2]]}}
    with pytest.raises(InputError, match=f"record 3.*{message}"):
        TokenPairs.from_records([good, good, good, record], byte_bpe())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "record 1: a record must map names to texts"),
        ({}, "record 1: 'clean' is missing"),
        ({"clean": ""}, "record 1: 'clean' must be a text, got ''"),
        ({"clean": "x", "corrupt": 3}, "record 1: 'corrupt' must be a text, got 3"),
        ({"clean": "x", "answer": []}, "record 1: 'answer' must be a text, a token id or a list"),
        ({"clean": "x", "answer": 1.5}, "'answer' must be a text"),
        ({"clean": "x", "distractor": [True]}, "'distractor' must be a text"),
        (
            {"clean": "x", "corrupted": "y"},
            "unknown key 'corrupted'; did you mean 'corrupt'. Known: clean, corrupt,",
        ),
        ({k: v for k, v in MARY.items() if k != "answer"}, "record 1 has no 'answer', though"),
        ({**MARY, "answer": " John"}, "' John' and distractor ' John' begin with the same token"),
        ({**MARY, "answer": " Mary John", "distractor": [" the", " Mary"]}, "the same token"),
        ({**MARY, "answer": 10**6}, r"must be a token id in 0\.\.\d+, got 1000000"),
        ({**MARY, "spans": {"a": [[0, 99], [0, 1]]}}, "record 1: span 'a' in the clean prompt"),
    ],
)
def test_errors_name_the_record(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenPairs.from_records([MARY, record], byte_bpe())


def test_other_errors() -> None:
    with pytest.raises(InputError, match="there are no records"):
        TokenPairs.from_records([], byte_bpe())
    with pytest.raises(InputError, match="unknown on_mismatch 'ignore'; known: error, drop"):
        TokenPairs.from_records([MARY], byte_bpe(), on_mismatch="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"must be a Hugging Face tokenizer.*got str 'gpt2'"):
        TokenPairs.from_records([MARY], "gpt2")
    with pytest.raises(InputError, match="does not have the answer ' Zanzibar'"):
        TokenPairs.from_records([{**MARY, "answer": " Zanzibar"}], word_level())
    with pytest.raises(InputError, match=re.escape("record 0: clean '  ' has no tokens")):
        TokenPairs.from_records([{"clean": "  "}], word_level())
    with pytest.raises(InputError, match="no record has 'corrupt'"):
        TokenPairs.from_records([{"clean": "x", "spans": {"a": [[0, 1], [0, 1]]}}], byte_bpe())


def test_a_task_shows_its_first_prompts():
    records = [
        {"clean": f"When {a} and {b}", "corrupt": f"When {b} and {a}", "answer": " to"}
        for a, b in (("Mary", "John"), ("John", "Mary"))
    ]
    task = Task.from_pairs(records, byte_bpe(), metric="kl", on_mismatch="drop", name="own")
    shown = task.show(1)
    assert repr(shown) == str(shown)
    assert shown.splitlines()[0] == repr(task)
    assert "  clean       'When Mary and John'" in shown.splitlines()
    assert "  corrupt     'When John and Mary'" in shown.splitlines()
    assert "When John" in task.subset([1]).show(1).splitlines()[1]
    ids = Task.from_tensors(torch.tensor([[3, 4]]), answer=[6])
    assert ids.show().splitlines()[1:] == ["  clean       [3, 4]", "  answer      [6]"]


@pytest.mark.parametrize(
    "record",
    [
        {"clean": "Ann and ", "corrupt": "Ann and so on", "answer": "Tom", "distractor": "Ann"},
        {"clean": "Ann and ", "corrupt": "Tom and ", "answer": "Tom", "distractor": "Tom"},
    ],
)
def test_a_refused_prompt_that_ends_in_a_space_is_named_as_such(record):
    with pytest.raises(InputError, match=r"'clean' ends in a space: put it in front of the"):
        Task.from_pairs([record], byte_bpe())
