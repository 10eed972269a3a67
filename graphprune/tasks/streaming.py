"""Records from a stream to token pairs in files, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError
from graphprune.tasks.records import CHOICES, RecordEncoder
from graphprune.tasks.spool import RaggedFile, Spool
from graphprune.tasks.tables import Ragged, last_tokens, row_chunks

CHUNK = 1000  # records encoded at a time


def encode_stream(
    records: Any, coder: RecordEncoder, length: int | None, folder: Spool
) -> tuple[dict[str, Ragged], dict[str, NDArray[np.int32]], dict[str, Any]]:
    """Writes encoded records to files in ``folder``; see :meth:`graphprune.Task.from_stream`.

    Returns:
        The columns of :meth:`RecordEncoder.encode` but answers and distractors, these and the
        positions as tables, all mapped from the files, and the task's notes.
    """
    if length is not None and (type(length) is not int or length < 1):
        raise InputError(f"length must be an integer of at least 1, or None, got {length!r}")
    source = islice(_iterator(records), length)
    files: dict[str, RaggedFile] = {}
    size = 0
    while chunk := list(islice(source, CHUNK)):
        columns = coder.encode(chunk)
        count = len(columns["clean"])
        for name in files | columns:  # ranges and slots may begin late, or end early
            if name not in files:
                files[name] = RaggedFile(folder, name, blank=size)
            files[name].append(columns.get(name, Ragged.from_rows([()] * count)))
        size += count
    if length is not None and coder.seen < length:
        raise InputError(
            f"the data set ended early: length={length} records were promised, {coder.seen} came"
        )
    notes = coder.finish()
    tables = {name: files.pop(name).table() for name in CHOICES & files.keys()}
    columns = {name: file.map() for name, file in files.items()}
    for rows in row_chunks(size, folder.release):
        lengths = columns["clean"].lengths_of(rows)
        folder.append("positions", last_tokens(lengths, len(coder.encoder.suffix)))
    tables["positions"] = folder.map("positions", np.int32, size)
    return columns, tables, notes


def _iterator(records: Any) -> Iterator[Any]:
    """An iterator over ``records``, which may be a function that gives them."""
    given: Any = records
    if callable(records) and not isinstance(records, Iterable):
        given = records()
    if not isinstance(given, str | bytes | Mapping):
        try:
            return iter(given)
        except TypeError:
            pass
    raise InputError(
        "records must be an iterable of mappings, or a function of no arguments that gives one, "
        f"got {type(given).__name__} {repr(given)[:40]}"
    )
