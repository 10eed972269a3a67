"""Files of prompts: JSON lines and CSV, with errors that name the line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from graphprune.errors import InputError
from graphprune.tasks.records import FIELDS, FileRecord, check_record

__all__ = ["read_csv", "read_jsonl"]


def _text(path: str | Path) -> str:
    """A file's text; a byte-order mark is skipped."""
    file = Path(path)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{file}:{line}: the file must be UTF-8, but byte {error.start} is "
            f"0x{raw[error.start]:02x}"
        ) from None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records from a JSON-lines file: one object a line, blank lines skipped.

    Keys: ``clean``, and any of ``corrupt``, ``answer``, ``distractor`` (a text, a token id or a
    list of these) and ``spans``. A record remembers its file and line, which later errors name.

    Raises:
        InputError: with file and line, for a file that cannot be read or is empty, bad JSON, a
            missing ``clean``, unknown keys and values of another kind.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: no JSON: {error.msg} (column {error.colno})") from None
        except RecursionError:
            raise InputError(f"{where}: the JSON is nested too deeply") from None
        check_record(record, where)
        records.append(FileRecord(record, where))
    if not records:
        raise InputError(f"{path}: the file has no records")
    return records


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Records from a CSV file with a header line.

    Columns: ``clean``, and any of ``corrupt``, ``answer``, ``distractor`` and ``spans``. Spaces
    count (``" Mary"`` is not ``"Mary"``); an empty cell is missing. An answer of the form
    ``[" he", " him"]`` or ``[123]`` is read as a JSON list, ``spans`` always as JSON.

    Raises:
        InputError: with file and line, for a file that cannot be read or is empty, unknown or
            missing columns, and rows with too few or too many cells.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    records: list[dict[str, Any]] = []
    try:
        header = next(reader, None)
        if not header:
            raise InputError(f"{path}: the file is empty; its first line must name the columns")
        _check_header(header, f"{path}:1")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{where}: expected {len(header)} cells ({', '.join(header)}), got {len(row)}"
                )
            cells = zip(header, row, strict=True)
            record = {name: _cell(name, text, where) for name, text in cells if text}
            check_record(record, where)
            records.append(FileRecord(record, where))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: no CSV: {error}") from None
    if not records:
        raise InputError(f"{path}: the file has no records")
    return records


def _check_header(header: list[str], where: str) -> None:
    unknown = [name for name in header if name not in FIELDS]
    if unknown or "clean" not in header or len(set(header)) < len(header):
        raise InputError(
            f"{where}: the columns must be 'clean' and any of {', '.join(FIELDS[1:])}, each once; "
            f"got {', '.join(map(repr, header))}"
        )


def _cell(name: str, text: str, where: str) -> Any:
    if name == "spans":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: spans are no JSON: {error.msg}") from None
        except RecursionError:
            raise InputError(f"{where}: the JSON of spans is nested too deeply") from None
    if name in ("answer", "distractor") and text.startswith("[") and text.endswith("]"):
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return text
    return text
