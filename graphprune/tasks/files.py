"""Files of prompts: JSON lines and CSV, with errors that name the line."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import InputError
from graphprune.tasks.encoding import START
from graphprune.tasks.inputs import masked_tokens, sequences
from graphprune.tasks.records import FIELDS, FileRecord, check_record
from graphprune.util.checks import usable
from graphprune.util.readers import csv_rows, json_value

if TYPE_CHECKING:
    from graphprune.core.task import Task

LARGE_FILE = 16 * 2**20  # bytes; text and records of a larger file are never in memory at once


def is_large(path: str | Path) -> bool:
    """``True`` for a file read line by line into files (:meth:`Task.from_stream`), not at once."""
    try:
        return usable(path).stat().st_size > LARGE_FILE
    except OSError:
        return False


def task_of(
    kind: type[Task],
    iterate: Callable[[str | Path], Iterator[dict[str, Any]]],
    path: str | Path,
    tokenizer: Any,
    **options: Any,
) -> Task:
    """A task from a file's records: at once, or of a large file in constant memory.

    Of a file that is read at once: where the tokenizer is an encoder-decoder's, as the command line
    loads it, or records have ``decoder``, the answer is that model's next token
    (:func:`graphprune.tasks.sequences`); where every clean text holds the tokenizer's mask token,
    it is what stands in its place (:func:`graphprune.tasks.masked_tokens`).
    """
    options = {"name": Path(path).stem, **options}
    if is_large(path) or "length" in options or "spool" in options:
        return kind.from_stream(iterate(path), tokenizer, **options)
    records, mask = list(iterate(path)), getattr(tokenizer, "mask_token", None)
    answers = hasattr(tokenizer, START) or any("decoder" in record for record in records)
    if answers or (mask and all(mask in record["clean"] for record in records)):
        if options.pop("on_mismatch", "error") != "error":
            raise InputError("pairs of an encoder are of one length; none can be dropped")
        return (sequences if answers else masked_tokens)(tokenizer, records, **options)
    return kind.from_pairs(records, tokenizer, **options)


def _lines(path: str | Path) -> Iterator[str]:
    """A file's lines with their ends, one at a time; a byte-order mark is skipped."""
    file = usable(path)
    place = 0
    try:
        with file.open("rb") as opened:
            for number, raw in enumerate(opened, start=1):
                mark = len(codecs.BOM_UTF8) if not place and raw.startswith(codecs.BOM_UTF8) else 0
                try:
                    text = raw[mark:].decode("utf-8")
                except UnicodeDecodeError as error:
                    byte = mark + error.start
                    raise InputError(
                        f"{file}:{number}: the file must be UTF-8, but byte {place + byte} is "
                        f"0x{raw[byte]:02x}"
                    ) from None
                place += len(raw)
                yield text
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _checked(path: str | Path, rows: Iterable[tuple[int, Any]]) -> Iterator[dict[str, Any]]:
    """Records from values with their line numbers; raises for what is no record, and for none."""
    any_record = False
    for number, value in rows:
        where = f"{path}:{number}"
        check_record(value, where)
        any_record = True
        yield FileRecord(value, where)
    if not any_record:
        raise InputError(f"{path}: the file has no records")


def _json(text: str, where: str, name: str = "") -> Any:
    """The value of a JSON text; errors say where it stands, and in which column."""
    try:
        return json_value(text)
    except json.JSONDecodeError as error:
        subject = name and f"{name} are "
        raise InputError(f"{where}: {subject}no JSON: {error.msg} (column {error.colno})") from None
    except ValueError as error:
        of = name and f" of {name}"
        raise InputError(f"{where}: the JSON{of} is refused: {error}") from None


def iterate_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of :func:`read_jsonl` one by one; the file is read as they are taken."""
    lines = ((n, line) for n, line in enumerate(_lines(path), start=1) if line.strip())
    return _checked(path, ((n, _json(line, f"{path}:{n}")) for n, line in lines))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records from a JSON-lines file: one object a line, blank lines skipped.

    Keys: ``clean``, and any of ``corrupt``, ``answer``, ``distractor`` (a text, a token id or a
    list of these), ``spans`` and ``decoder`` (how an encoder-decoder's own text begins). A record
    remembers its file and line, which later errors name.

    Raises:
        InputError: with file and line, for a file that cannot be read or is empty, bad JSON, a
            missing ``clean``, unknown keys and values of another kind.

    Example:
        >>> file = folder / "pairs.jsonl"
        >>> _ = file.write_text('{"clean": "up to", "answer": " down"}\\n', encoding="utf-8")
        >>> read_jsonl(file)
        [{'clean': 'up to', 'answer': ' down'}]
    """
    return list(iterate_jsonl(path))


def iterate_csv(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of :func:`read_csv` one by one; the file is read as they are taken."""
    return _checked(path, _csv_rows(path))


def _csv_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their line numbers, without empty cells."""
    # StringIO also ends lines at a lone carriage return, as csv files from elsewhere have them.
    lines = (part for line in _lines(path) for part in io.StringIO(line, newline=""))
    rows = csv_rows(lines)
    try:
        first, header = next(rows, (0, []))
        if not header:
            raise InputError(f"{path}: the file is empty; its first line must name the columns")
        _check_header(header, f"{path}:{first}")
        for number, row in rows:
            where = f"{path}:{number}"
            if len(row) != len(header):
                raise InputError(
                    f"{where}: expected {len(header)} cells ({', '.join(header)}), got {len(row)}"
                )
            cells = zip(header, row, strict=True)
            yield number, {name: _cell(name, text, where) for name, text in cells if text}
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}:{error}") from None


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Records from a CSV file with a header line.

    Columns: ``clean``, and any of ``corrupt``, ``answer``, ``distractor``, ``spans`` and
    ``decoder``. Spaces
    count (``" Mary"`` is not ``"Mary"``); an empty cell is missing. An answer of the form
    ``[" he", " him"]`` or ``[123]`` is read as a JSON list, ``spans`` always as JSON.

    Raises:
        InputError: with file and line, for a file that cannot be read or is empty, unknown or
            missing columns, and rows with too few or too many cells.

    Example:
        >>> file = folder / "pairs.csv"
        >>> _ = file.write_text("clean,corrupt,answer\\nup to,down to, down\\n", encoding="utf-8")
        >>> read_csv(file)
        [{'clean': 'up to', 'corrupt': 'down to', 'answer': ' down'}]
    """
    return list(iterate_csv(path))


def _check_header(header: list[str], where: str) -> None:
    unknown = [name for name in header if name not in FIELDS]
    if unknown or "clean" not in header or len(set(header)) < len(header):
        raise InputError(
            f"{where}: the columns must be 'clean' and any of {', '.join(FIELDS[1:])}, each once; "
            f"got {', '.join(map(repr, header)):.300}"
        )


def _cell(name: str, text: str, where: str) -> Any:
    if name == "spans":
        return _json(text, where, "spans")
    if name in ("answer", "distractor") and text.startswith("[") and text.endswith("]"):
        with suppress(InputError):  # an answer may look like a list and be none
            return _json(text, where)
    return text
