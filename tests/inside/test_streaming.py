"""Streams in chunks of a few records: the same batches as in memory, and errors of any chunk."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import FIELDS, made, same
from support.tokenizers import TOKENIZERS, byte_bpe

from graphprune import Task
from graphprune.errors import InputError
from graphprune.tasks import encoding, files, streaming

pytestmark = pytest.mark.inside


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 records and a small memory of answers, so that few records need several."""
    monkeypatch.setattr(streaming, "CHUNK", 8)
    monkeypatch.setattr(encoding, "REMEMBERED", 5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(
    ("kind", "spans"),
    [
        *(("byte_bpe", spans) for spans in ("none", "all", "late", "other")),
        *((kind, "some") for kind in TOKENIZERS),
    ],
)
def test_batches_equal_those_in_memory(kind: str, spans: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    records = made(45, spans=spans)
    if kind == "letters":  # distractors would begin with the answers' space, names differ in length
        records = [{k: v for k, v in r.items() if k != "distractor"} for r in records]
        tokens = {r["clean"]: [len(tokenizer(r[k])["input_ids"]) for k in FIELDS] for r in records}
        records = [r for r in records if "spans" not in r or len({*tokens[r["clean"]]}) == 1]
    options: dict[str, Any] = {"on_mismatch": "drop", "name": "x", "metric": "kl"}
    streamed = Task.from_stream(iter(records), tokenizer, **options)
    whole = Task.from_pairs(records, tokenizer, **options)
    same(streamed, whole)
    for part, expected in zip(streamed.split(0.5, seed=1), whole.split(0.5, seed=1), strict=True):
        same(part, expected)
    same(streamed.subset([9, 3, 3]), whole.subset([9, 3, 3]))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("fields", [(), ("answer",), ("corrupt",), ("answer", "distractor")])
def test_records_without_some_fields(fields: tuple[str, ...]) -> None:
    records = [{k: r[k] for k in ("clean", *fields)} for r in made(20)]
    options: dict[str, Any] = {"metric": "kl", "name": "x", "on_mismatch": "drop"}
    same(
        Task.from_stream(records, byte_bpe(), **options),
        Task.from_pairs(records, byte_bpe(), **options),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 50), st.sampled_from(["none", "some"])
)
def test_any_size_of_chunk(n: int, seed: int, chunk: int, spans: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CHUNK", chunk)
        records = made(n, seed, spans)
        whole = made_or_error(Task.from_pairs, records)
        streamed = made_or_error(Task.from_stream, iter(records))
    if isinstance(whole, str) or isinstance(streamed, str):
        assert streamed == whole
    else:
        same(streamed, whole)


def made_or_error(build: Any, records: Any) -> Task | str:
    try:
        made_task: Task = build(records, byte_bpe(), on_mismatch="drop", name="x")
    except InputError as error:
        return str(error)
    return made_task


class Endless:
    """A source that counts what is taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record in itertools.cycle(made(30)):
            self.taken += 1
            yield record


@pytest.mark.usefixtures("chunks")
def test_a_length_is_taken_and_no_more() -> None:
    source = Endless()
    task = Task.from_stream(source, byte_bpe(), length=21, on_mismatch="drop")
    assert source.taken == 21
    assert len(task) == 21 - task.notes["dropped"]
    again = Task.from_stream(lambda: made(30), byte_bpe(), length=21, on_mismatch="drop")
    same(task, again)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("came", [0, 5, 8, 16, 20])
def test_a_stream_that_ends_early(came: int) -> None:
    with pytest.raises(
        InputError, match=rf"ended early: length=21 records were promised, {came} c"
    ):
        Task.from_stream(made(came), byte_bpe(), length=21, on_mismatch="drop")


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (5, {}, "records must be an iterable of mappings, or a function .*, got int 5"),
        (lambda: None, {}, "that gives one, got NoneType"),
        ("pairs.jsonl", {}, "got str 'pairs.jsonl'"),
        ({"clean": "a"}, {}, "got dict"),
        ([], {}, "there are no records"),
        (
            [{"clean": "a"}],
            {"length": 0},
            "length must be an integer of at least 1, or None, got 0",
        ),
        ([{"clean": "a"}], {"length": True}, "got True"),
        ([{"clean": "a"}], {"length": 1.5}, r"got 1\.5"),
        ([{"clean": "a"}], {"metric": "nope"}, "unknown metric"),
        ([{"clean": "a"}], {"on_mismatch": "x"}, "unknown on_mismatch"),
        ([*made(9), {"clean": 1}], {"on_mismatch": "drop"}, "record 9: 'clean' must be a text"),
        (
            [*made(9), {"clean": "a"}],
            {"on_mismatch": "drop"},
            "record 9 has no 'corrupt', though record 0",
        ),
        (
            [{"clean": "a"}] * 9 + made(1),
            {"on_mismatch": "drop"},
            "record 0 has no 'corrupt', though record 9",
        ),
        ([{"clean": "the a", "corrupt": "a"}] * 11, {}, "8 of the first 8 pairs have .*\n.*\n"),
        (
            [{"clean": "the a", "corrupt": "a"}] * 11,
            {"on_mismatch": "drop"},
            "11 of 11 .*nothing is",
        ),
    ],
)
@pytest.mark.usefixtures("chunks")
def test_errors(records: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Task.from_stream(records, byte_bpe(), spool=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def write_both(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with (folder / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["clean", "corrupt", "answer", "distractor"])
        writer.writeheader()
        writer.writerows({**r, "answer": json.dumps(r["answer"])} for r in records)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv"])
def test_large_files_are_streamed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(tmp_path, made(40))
    read = Task.from_jsonl if name.endswith("l") else Task.from_csv
    whole = read(tmp_path / name, byte_bpe(), on_mismatch="drop")
    assert whole.examples.spool is None
    few = read(tmp_path / name, byte_bpe(), on_mismatch="drop", length=10)
    assert few.examples.spool is not None
    assert len(few) == 10 - few.notes["dropped"]
    with pytest.raises(InputError, match="length=41 records were promised, 40 came"):
        read(tmp_path / name, byte_bpe(), on_mismatch="drop", length=41)
    monkeypatch.setattr(files, "LARGE_FILE", 1000)
    streamed = read(tmp_path / name, byte_bpe(), on_mismatch="drop")
    assert streamed.examples.spool is not None
    same(streamed, whole)
    assert (streamed.name, streamed.metric.name) == ("mine", "logit_diff")


@pytest.mark.usefixtures("chunks")
def test_errors_in_large_files_name_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE_FILE", 10)
    write_both(tmp_path, made(40))
    for name, bad, message in (
        ("mine.jsonl", b'{"clean": 5}\n', r"mine\.jsonl:41: 'clean' must be a text, got 5"),
        ("mine.jsonl", b'{"clean": "\xff"}\n', r"mine\.jsonl:41: the file must be UTF-8, but byte"),
        ("mine.jsonl", b'{"clean": "a"}\n', r"mine\.jsonl:41 has no 'corrupt', though .*jsonl:1 h"),
        ("mine.csv", b"a\n", r"mine\.csv:42: expected 4 cells"),
        ("mine.csv", b"the a,a,b,c\n", r"mine\.csv:42: 2 and 1 tokens: 'the a' / 'a'"),
    ):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(good + bad)
        read = Task.from_jsonl if name.endswith("l") else Task.from_csv
        with pytest.raises(InputError, match=message):
            read(tmp_path / name, byte_bpe())
        (tmp_path / name).write_bytes(good)
