"""Files of prompts: round trips and errors with file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import byte_bpe

from graphprune import Task
from graphprune.errors import InputError
from graphprune.tasks import read_csv, read_jsonl

RECORDS: list[dict[str, Any]] = [
    {"clean": "So Mary, the dancer, is", "corrupt": "So John, the dancer, is", "answer": " she"},
    {"clean": 'She said "no"', "corrupt": "He said\n no", "answer": [" she", " her"]},
]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    path.write_bytes("\ufeff".encode() + "\r\n\n".join(lines).encode())
    assert read_jsonl(path) == RECORDS


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["clean", "corrupt", "answer", "spans"])
        writer.writeheader()
        writer.writerow({**RECORDS[0], "spans": '{"a": [[0, 1], [0, 1]]}'})
        writer.writerow({**RECORDS[1], "answer": '[" she", " her"]'})
    first, second = read_csv(path)
    assert first == {**RECORDS[0], "spans": {"a": [[0, 1], [0, 1]]}}
    assert second == RECORDS[1]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1),
        min_size=1,
        max_size=5,
    )
)
def test_texts_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"clean": t}) + "\n" for t in texts), encoding="utf-8"
    )
    assert [r["clean"] for r in read_jsonl(folder / "a.jsonl")] == texts
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["clean"], *[[t] for t in texts]])
    assert [r["clean"] for r in read_csv(folder / "a.csv")] == texts


def test_tasks_from_files(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    (tmp_path / "mine.csv").write_text('clean,answer\n"So Mary, the dancer, is", she\n')
    for name in ("mine.jsonl", "mine.csv"):
        read = Task.from_jsonl if name.endswith("l") else Task.from_csv
        task = read(tmp_path / name, byte_bpe(), metric="accuracy")
        assert (task.name, len(task)) == ("mine", 1)
        answer = next(task.batches()).answer
        assert byte_bpe().decode(answer[0]) == " she"


GOOD = '{"clean": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.jsonl: the file has no records"),
        (b"\n  \n", "x.jsonl: the file has no records"),
        (f"{GOOD}{{clean: 1}}".encode(), "x.jsonl:2: no JSON: .* \\(column 2\\)"),
        (f"{GOOD}\n[1]".encode(), "x.jsonl:3: a record must map names to texts"),
        (b'{"corrupt": "a"}', "x.jsonl:1: 'clean' is missing"),
        (
            b'{"clean": "a", "anwser": "b", "n": 1}',
            "x.jsonl:1: unknown key 'anwser'; did you mean 'answer'",
        ),
        (b'{"clean": 5}', "x.jsonl:1: 'clean' must be a text, got 5"),
        (GOOD.encode() + b'{"clean": "\xff"}', "x.jsonl:2: the file must be UTF-8, but byte 26"),
    ],
)
def test_errors_of_jsonl(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.csv: the file is empty"),
        (b"clean,answer\n", "x.csv: the file has no records"),
        (b"prompt,answer\na,b\n", "x.csv:1: the columns must be 'clean' and any of"),
        (b"clean,clean\na,b\n", "each once; got 'clean', 'clean'"),
        (b"clean,answer\na,b\nc\n", "x.csv:3: expected 2 cells \\(clean, answer\\), got 1"),
        (b"clean,answer\n,b\n", "x.csv:2: 'clean' is missing"),
        (b"clean,spans\na,{\n", "x.csv:2: spans are no JSON"),
        (b'clean\n"a"b\n', "x.csv:2: no CSV"),
        (b"clean\n\xe9\n", "x.csv:2: the file must be UTF-8"),
    ],
)
def test_errors_of_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_csv(path)


def test_a_missing_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        read_csv(tmp_path)
