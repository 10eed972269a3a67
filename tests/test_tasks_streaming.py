"""Tasks from streams: the same batches as in memory, in constant memory, and what goes wrong."""

from __future__ import annotations

import copy
import csv
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import TOKENIZERS, byte_bpe

import graphprune.tasks.files as files
import graphprune.tasks.streaming as streaming
from graphprune import Task
from graphprune.errors import InputError
from graphprune.tasks import encoding
from graphprune.tasks.words import NAMES, OBJECTS, PLAIN_WORDS

SPAN = {"name": [[1, 2], [1, 2]]}
FIELDS = ("clean", "corrupt")


def made(n: int, seed: int = 0, spans: str = "none") -> list[dict[str, Any]]:
    """Pairs of several lengths with one to three answers."""
    source = random.Random(seed)
    records: list[dict[str, Any]] = []
    for number in range(n):
        one, other, *rest = source.sample(NAMES, 5)
        tail = " ".join(source.choices(PLAIN_WORDS, k=source.randrange(5)))
        record: dict[str, Any] = {
            "clean": f"so {one} gave the {source.choice(OBJECTS)} {tail} to",
            "answer": [f" {name}" for name in [one, *rest[: source.randrange(3)]]],
            "distractor": f" {other}",
        }
        record["corrupt"] = record["clean"].replace(one, other)
        if spans == "all" or (spans == "some" and number % 3):
            record["spans"] = SPAN
        if spans == "late" and number == n - 1:
            record["spans"] = SPAN
        if spans == "other" and number:
            record["spans"] = {"name" if number < n - 1 else "who": [[1, 2], [1, 2]]}
        records.append(record)
    return records


def same(one: Task, other: Task) -> None:
    """Every batch, plain and shuffled, with the same tensors of the same kinds."""
    assert len(one) == len(other)
    assert one.notes == other.notes
    for order in ({}, {"shuffle": 3}):
        for a, b in zip(one.batches(7, **order), other.batches(7, **order), strict=True):
            assert (a.size, a.indices, a.slot_names) == (b.size, b.indices, b.slot_names)
            pairs = [
                (getattr(a, name), getattr(b, name))
                for name in ("positions", "answer", "distractor", "alignment", "slots")
            ]
            for mine, theirs in ((a.clean, b.clean), (a.corrupt, b.corrupt)):
                assert (mine is None) == (theirs is None)
                pairs += [(mine[k], theirs[k]) for k in mine or ()]
            for mine, theirs in pairs:
                if mine is None or theirs is None:
                    assert mine is theirs
                    continue
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 records and a small memory of answers, so that few records need several."""
    monkeypatch.setattr(streaming, "CHUNK", 8)
    monkeypatch.setattr(encoding, "REMEMBERED", 5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("spans", ["none", "all", "some", "late", "other"])
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
        ([{"clean": "a"}], {"on_mismatch": "x"}, "on_mismatch must be"),
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


def test_a_source_that_fails_leaves_no_files(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from made(2000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Task.from_stream(broken, byte_bpe(), on_mismatch="drop", spool=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        InputError, match=r"cannot keep examples in .*; spool= names another folder"
    ):
        Task.from_stream(made(3), byte_bpe(), on_mismatch="drop", spool=tmp_path / "file")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_open = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "ab" and path.name.startswith("corrupt"):
            raise OSError(28, "No space left on device")
        return plain_open(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"cannot write examples to .*corrupt.*: No space left"):
        Task.from_stream(made(3), byte_bpe(), on_mismatch="drop", spool=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_live_as_long_as_any_part_of_the_task(tmp_path: Path) -> None:
    task = Task.from_stream(made(50), byte_bpe(), on_mismatch="drop", spool=tmp_path / "new")
    [folder] = (tmp_path / "new").iterdir()
    assert list(folder.iterdir())
    part = task.take(5)
    copied = copy.deepcopy(part)
    expected = Task.from_pairs(made(50), byte_bpe(), on_mismatch="drop", name="stream").take(5)
    del task
    gc.collect()
    same(part, expected)
    if hasattr(os, "fork"):
        child = os.fork()
        if not child:
            del part
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert folder.is_dir()
    del part
    gc.collect()
    assert not folder.exists()
    same(copied, expected)


def test_files_are_removed_when_the_interpreter_ends(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from graphprune import Task
from support.tokenizers import byte_bpe
kept = Task.from_stream([{{"clean": "so the"}}], byte_bpe(), metric="kl", spool={str(tmp_path)!r})
assert len(list(Path({str(tmp_path)!r}).iterdir())) == 1
"""
    run_python(code)
    assert list(tmp_path.iterdir()) == []


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_folder_is_the_system_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = Task.from_stream(made(3), byte_bpe(), on_mismatch="drop")
    assert len(list(tmp_path.iterdir())) == 1
    assert task.name == "stream"


# ---------------------------------------------------------------- files


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


# ---------------------------------------------------------------- memory

MEASURE = """
import random, resource, sys
from support.tokenizers import byte_bpe
from graphprune import Task
from graphprune.tasks.words import NAMES, OBJECTS, PLACES
tokenizer = byte_bpe()

def records(n, seed=0):
    source = random.Random(seed)
    for _ in range(n):
        one, other = source.sample(NAMES, 2)
        text = f"When {one} and {other} went to the {source.choice(PLACES)}, {other} gave a "
        text += source.choice(OBJECTS) + " to"
        yield {"clean": text, "corrupt": text.replace(one, "John"), "answer": " " + one,
               "distractor": " " + other}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def use(task):
    seen = sum(b.size for b in task.batches(32)) + sum(b.size for b in task.batches(32, shuffle=0))
    assert seen == 2 * len(task)

kind, n = KIND, COUNT
given = dict(on_mismatch="drop", metric="logit_diff")
use(Task.from_stream(records(2000), tokenizer, **given))
start = peak()
if kind == "stream":
    task = Task.from_stream(lambda: records(n), tokenizer, length=n, **given)
else:
    task = Task.from_pairs(list(records(n)), tokenizer, **given)
assert task.notes["dropped"] < n / 2
use(task)
print(peak() - start)
"""


def growth(kind: str, n: int) -> float:
    """MiB by which a process's peak grows over n examples that are built and read four times."""
    return float(run_python(MEASURE.replace("KIND", repr(kind)).replace("COUNT", str(n))))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_hundred_thousand_examples_take_the_memory_of_five_thousand() -> None:
    few, many, whole = growth("stream", 5_000), growth("stream", 100_000), growth("pairs", 100_000)
    print(f"\npeak grows by {few:.1f} MiB (5,000), {many:.1f} MiB (100,000), {whole:.1f} in memory")
    assert many - few < 8
    assert whole > 10 * (many - few)
