"""What is refused, by an error that says what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tokenizers import byte_bpe

import graphprune as gp
from graphprune import Task
from graphprune.errors import InputError
from graphprune.tasks import TASKS, read_csv, read_jsonl


def task(n: int = 6, **options) -> Task:
    ids = torch.arange(4 * n).reshape(n, 4)
    return Task.from_tensors(ids, ids + 1, answer=[1] * n, distractor=[2] * n, **options)


# -------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", ["answer", "distractor"])
def test_ids_that_may_be_one_a_position_or_alternatives_are_refused(name):
    ids, places = torch.arange(12).reshape(3, 4), torch.tensor([[1, 3]] * 3)
    square = torch.tensor([[5, 6]] * 3)
    with pytest.raises(InputError, match=rf"{name} \[3, 2\] .* give \[3, 2, 1\]"):
        Task.from_tensors(ids, positions=places, **{name: square})
    each = Task.from_tensors(ids, positions=places, **{name: square[..., None]})
    batch = next(each.batches())
    assert getattr(batch, name).tolist() == [[[5], [6]]] * 3


def test_alternatives_beside_one_or_more_positions_stay():
    ids = torch.arange(12).reshape(3, 4)
    for places, answer in (
        (torch.tensor([[1]] * 3), torch.tensor([[5]] * 3)),
        (torch.tensor([1] * 3), torch.tensor([[5]] * 3)),
        (torch.tensor([[1, 3]] * 3), torch.tensor([[5, 6, 7]] * 3)),
        (torch.tensor([[1, 3]] * 3), torch.tensor([5] * 3)),
    ):
        batch = next(Task.from_tensors(ids, positions=places, answer=answer).batches())
        assert batch.answer.tolist() == answer.reshape(3, -1).tolist()


# -------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    "mask",
    [[False, False, True], np.array([True, False]), torch.tensor([True, False]), [0, np.True_]],
)
def test_a_subset_takes_no_booleans(mask):
    with pytest.raises(
        InputError, match=r"example numbers, got (True|False|np.True_).*flatnonzero"
    ):
        task().subset(mask)


def test_a_subset_takes_any_kind_of_integers():
    for numbers in ([4, 1], np.array([4, 1]), torch.tensor([4, 1]), (np.int64(4), 1)):
        part = task().subset(numbers)
        assert part.order == (4, 1)
        assert all(type(i) is int for i in part.order)
    for wrong in ([1.0], ["1"], [6], [-1]):
        with pytest.raises(InputError, match="subset"):
            task().subset(wrong)


def test_split_takes_numpy_numbers_and_refuses_the_rest():
    parts = [task().split(count) for count in (2, np.int64(2), np.float32(1 / 3))]
    assert {part[0].order for part in parts} == {parts[0][0].order}
    assert len(parts[0][0]) == 2
    for wrong in (True, "2", float("nan"), None):
        with pytest.raises(InputError, match="train must be a count"):
            task().split(wrong)
    with pytest.raises(InputError, match=r"cannot split 6 examples into 0 and 6"):
        task().split(np.int64(0))
    with pytest.raises(InputError, match="seed must be an integer from 0 on, got -1"):
        task().split(2, seed=-1)


@pytest.mark.parametrize("size", [0, -3, "3", 2.0, True])
def test_batch_sizes_are_checked_with_one_message(size):
    message = f"batch_size must be an integer of at least 1, got {size!r}"
    for wrong in (
        lambda: task(batch_size=size),
        lambda: task().num_batches(size),
        lambda: list(task().batches(size)),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


def test_num_batches_counts_the_batches():
    for n in (1, 5, 6):
        for size in (1, 2, 5, 7, np.int64(3)):
            assert task(n).num_batches(size) == len(list(task(n).batches(size)))
    assert task(6, batch_size=4).num_batches() == 2
    with pytest.raises(InputError, match="shuffle must be an integer from 0 on, got -2"):
        list(task().batches(shuffle=-2))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [-1, "0", 1.5, True, None])
def test_generators_refuse_a_seed_that_is_none(name, seed):
    with pytest.raises(InputError, match=f"seed must be an integer from 0 on, got {seed!r}"):
        TASKS[name](byte_bpe(), 4, seed=seed)


# -------------------------------------------------------------------- files


def test_deep_nesting_names_file_and_line(tmp_path: Path):
    deep = "[" * 100_000 + "]" * 100_000
    path = tmp_path / "a.jsonl"
    path.write_text('{"clean": "x"}\n{"clean": "x", "answer": ' + deep + "}\n")
    with pytest.raises(
        InputError,
        match=r"a\.jsonl:2: the JSON is refused: .*nested more than 100",
    ):
        read_jsonl(path)
    path = tmp_path / "a.csv"
    path.write_text(f"clean,spans\nx,{'[' * 50_000}\n")
    with pytest.raises(
        InputError,
        match=r"a\.csv:2: the JSON of spans is refused: .*nested more",
    ):
        read_csv(path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"corrupt": "one two three"}, r"{file}:3: 1 and \d+ tokens"),
        ({"corrupt": "one", "spans": {"a": [[0, 9], [0, 1]]}}, "{file}:3: span 'a' in the clean"),
        ({"corrupt": "one", "answer": " Mary"}, "{file}:1 has no 'answer', though .*{file}:3 has"),
        ({}, "{file}:3 has no 'corrupt', though .*{file}:1 has"),
    ],
)
def test_errors_that_come_after_reading_name_the_file_and_line(tmp_path: Path, second, message):
    path = tmp_path / "pairs.jsonl"
    first = {"clean": "one", "corrupt": "one"}
    path.write_text(f"{json.dumps(first)}\n\n{json.dumps({'clean': 'one', **second})}\n")
    with pytest.raises(InputError, match=message.replace("{file}", r"pairs\.jsonl")):
        Task.from_jsonl(path, byte_bpe())


def test_records_from_a_file_are_plain_dicts_to_all_else(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    path.write_text("clean,answer\none, two\n")
    (record,) = read_csv(path)
    assert record == {"clean": "one", "answer": " two"}
    assert json.loads(json.dumps(record)) == record
    assert len(gp.Task.from_csv(path, byte_bpe())) == 1
