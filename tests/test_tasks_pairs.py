"""Examples from tensors: what a batch holds, padding, and every error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune import Examples, Task
from graphprune.errors import InputError
from graphprune.tasks import TokenPairs

CLEAN = torch.tensor([[0, 0, 11, 12], [21, 22, 23, 24]])
CORRUPT = torch.tensor([[0, 0, 13, 12], [21, 29, 23, 24]])
LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def test_batch_of_left_padded_tensors_is_right_padded() -> None:
    pairs = TokenPairs.from_tensors(
        CLEAN, CORRUPT, answer=[5, [6, 7]], distractor=torch.tensor([8, 9]), attention_mask=LEFT
    )
    assert isinstance(pairs, Examples)
    assert len(pairs) == 2
    assert list(pairs.lengths()) == [2, 4]
    batch = pairs.batch([0, 1])
    assert batch.clean["input_ids"].tolist() == [[11, 12, 0, 0], [21, 22, 23, 24]]
    assert batch.corrupt["input_ids"].tolist() == [[13, 12, 0, 0], [21, 29, 23, 24]]
    assert batch.clean["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.positions.tolist() == [1, 3]
    assert batch.answer.tolist() == [[5, -1], [6, 7]]
    assert batch.distractor.tolist() == [[8], [9]]
    assert batch.indices == (0, 1)
    assert batch.size == 2
    assert batch.alignment is None
    for tensor in (*batch.clean.values(), batch.positions, batch.answer, batch.distractor):
        assert tensor.dtype == torch.int64


def test_batch_is_trimmed_to_its_longest_prompt() -> None:
    pairs = TokenPairs.from_tensors(CLEAN, answer=[1, 2], attention_mask=LEFT)
    batch = pairs.batch([0])
    assert batch.clean["input_ids"].tolist() == [[11, 12]]
    assert batch.corrupt is None
    assert batch.distractor is None


def test_positions_name_columns_of_the_tensors_as_given() -> None:
    pairs = TokenPairs.from_tensors(
        CLEAN, positions=torch.tensor([[2, -1], [0, 3]]), attention_mask=LEFT
    )
    assert pairs.batch([1, 0]).positions.tolist() == [[0, 3], [0, -1]]
    assert TokenPairs.from_tensors(CLEAN, positions=3).batch([0, 1]).positions.tolist() == [3, 3]


def test_answers_for_each_of_several_positions() -> None:
    answer = torch.tensor([[[1, 2], [3, -1]], [[4, -1], [5, -1]]])
    pairs = TokenPairs.from_tensors(CLEAN, answer=answer, positions=[[2, 3], [0, 1]])
    assert torch.equal(pairs.batch([0, 1]).answer, answer)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), min_size=1, max_size=12),
    st.booleans(),
    st.data(),
)
def test_padding_round_trip(rows: list[list[int]], left: bool, data: st.DataObject) -> None:
    width = max(map(len, rows)) + data.draw(st.integers(0, 2))
    ids = torch.zeros(
        len(rows), width, dtype=data.draw(st.sampled_from([torch.int32, torch.int64]))
    )
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=ids.dtype)
        mask[i, place] = True
    pairs = TokenPairs.from_tensors(ids, ids, attention_mask=mask)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    batch = pairs.batch(chosen)
    assert batch.clean["input_ids"].shape[1] == max(len(rows[i]) for i in chosen)
    for inputs in (batch.clean, batch.corrupt):
        for k, i in enumerate(chosen):
            real = inputs["attention_mask"][k].bool()
            assert inputs["input_ids"][k][real].tolist() == rows[i]
            assert real.tolist() == sorted(real.tolist(), reverse=True)
            assert batch.positions[k] == len(rows[i]) - 1


ONES = torch.ones_like(CLEAN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clean": CLEAN.float()}, "clean must hold integers, got torch.float32"),
        ({"clean": CLEAN[0]}, r"clean must be token ids \[N, T\], got the shape \[4\]"),
        ({"clean": CLEAN[:, :0]}, r"got the shape \[2, 0\]"),
        ({"clean": "texts"}, "clean must be a tensor of integers"),
        (
            {"clean": CLEAN - 1},
            "clean must hold token ids from 0 on, got -1 at example 0, column 0",
        ),
        ({"clean": CLEAN + 2**31}, "clean must hold token ids"),
        ({"corrupt": CORRUPT[:, 1:]}, r"corrupt must have clean's shape \[2, 4\], got \[2, 3\]"),
        ({"corrupt": CORRUPT > 3}, "corrupt must hold integers, got torch.bool"),
        ({"attention_mask": LEFT[:1]}, r"attention_mask must have clean's shape"),
        ({"attention_mask": LEFT * 2}, "must hold 0 and 1 only, got 0 to 2"),
        ({"attention_mask": LEFT * 0}, "leaves example 0 no token"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])}, "example 1 has padding"),
        ({"answer": [1]}, r"one id or a list of ids for each of the 2 examples"),
        ({"answer": [[1], []]}, "answer of example 1 is empty"),
        ({"answer": [[1], [2.5, 3]]}, "answer must"),
        ({"answer": torch.tensor([1.0, 2.0])}, "answer must hold integers"),
        ({"answer": [1, -2]}, "got -2 to 1"),
        ({"answer": torch.ones(2, 3, 1, dtype=torch.int64)}, r"got the shape \[2, 3, 1\]"),
        ({"answer": [1, 2], "distractor": [[3], [4, 2]]}, "example 1 has the id 2 both as"),
        (
            {
                "answer": torch.ones(2, 2, 1, dtype=torch.int64),
                "distractor": [3, 4],
                "positions": [[0, 1], [0, 1]],
            },
            "both for each position",
        ),
        ({"positions": [0, 4]}, "got 4 for example 1"),
        ({"positions": [-1, 1]}, "None takes the last token"),
        ({"positions": [0, 1], "attention_mask": LEFT}, "got 0 for example 0"),
        ({"positions": [1, 2, 3]}, r"got the shape \[3\]"),
        ({"positions": [[0, 1], [-1, -1]]}, "positions of example 1 are all -1"),
        ({"positions": [0.5, 1]}, "positions must hold integers"),
    ],
)
def test_errors_of_tensors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenPairs.from_tensors(**{"clean": CLEAN, **arguments})


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], "at least one"), ([2], r"0\.\.1, got 2\.\.2"), ([-1], "got -1")],
)
def test_errors_of_batches(indices: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenPairs.from_tensors(CLEAN).batch(indices)


def test_task_from_tensors() -> None:
    task = Task.from_tensors(CLEAN, CORRUPT, answer=[1, 2], distractor=[3, 4], attention_mask=LEFT)
    batches = list(task.batches(1))
    assert [b.indices for b in batches] == [(0,), (1,)]
    assert batches[0].clean["input_ids"].shape == (1, 2)
