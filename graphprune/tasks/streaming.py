"""Records from a stream to token pairs in files, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError
from graphprune.tasks.encoding import Encoder, aligned, slotted
from graphprune.tasks.pairs import OnMismatch, TokenPairs
from graphprune.tasks.records import EncodedRows, RecordEncoder
from graphprune.tasks.spool import ArrayFile, RaggedFile, Spool
from graphprune.tasks.tables import Ragged

__all__ = ["CHUNK", "encode_stream"]

CHUNK = 1000


def encode_stream(
    records: Any,
    tokenizer: Any,
    *,
    length: int | None = None,
    on_mismatch: OnMismatch = "error",
    spool: str | Path | None = None,
) -> tuple[TokenPairs, dict[str, Any]]:
    """See :meth:`graphprune.Task.from_stream`."""
    if length is not None and (type(length) is not int or length < 1):
        raise InputError(f"length must be an integer of at least 1, or None, got {length!r}")
    coder = RecordEncoder(tokenizer, on_mismatch, chunked=True)
    source = _iterator(records)
    kept = Spool(spool)
    try:
        writer = _Writer(kept, coder.encoder)
        while chunk := list(islice(source, _next_size(length, coder.seen))):
            rows = coder.encode(chunk)
            if rows.clean:
                writer.append(rows)
        if length is not None and coder.seen < length:
            raise InputError(
                f"the data set ended early: length={length} records were promised, "
                f"{coder.seen} came"
            )
        notes = coder.finish()
        return writer.finish(), notes
    except BaseException:
        kept.close()
        raise


def _next_size(length: int | None, seen: int) -> int:
    return CHUNK if length is None else min(CHUNK, length - seen)


def _iterator(records: Any) -> Iterator[Any]:
    """An iterator over ``records``, which may be a function that gives them."""
    given = records
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


class _Writer:
    """The arrays of :class:`TokenPairs` as they grow in a spool."""

    def __init__(self, spool: Spool, encoder: Encoder) -> None:
        self._spool = spool
        self._encoder = encoder
        self._size = 0
        self._rows: dict[str, RaggedFile] = {}
        self._positions = ArrayFile(spool, "positions", np.int32)
        self._names: tuple[str, ...] = ()

    def append(self, rows: EncodedRows) -> None:
        clean = Ragged.from_rows(rows.clean)
        if rows.corrupt is not None:
            self._align(rows, rows.corrupt, clean)
        self._add("clean", clean)
        for name in ("corrupt", "answer", "distractor"):
            values = getattr(rows, name)
            if values is not None:
                self._add(name, Ragged.from_rows(values))
        self._positions.append(clean.lengths - 1 - len(self._encoder.suffix))
        self._size += len(rows.clean)

    def _add(self, name: str, rows: Ragged) -> None:
        if name not in self._rows:
            self._rows[name] = RaggedFile(self._spool, name)
        self._rows[name].append(rows)

    def _align(self, rows: EncodedRows, corrupt: list[list[int]], clean: Ragged) -> None:
        """Ranges from the first record with spans on, slots as long as all name the same spans."""
        if not self._size:
            self._names = tuple(rows.spans[0] or ())
        if any(rows.spans) and "first" not in self._rows and self._size:
            for lengths in self._rows["clean"].lengths():
                if len(lengths):
                    self._add_ranges(*_own(lengths))
        if any(rows.spans):
            self._add_ranges(*aligned(rows.clean, corrupt, rows.spans, rows.labels))
        elif "first" in self._rows:
            self._add_ranges(*_own(clean.lengths))
        slots = slotted(rows.clean, rows.spans, self._names)
        if slots is None:
            self._names = ()
        else:
            self._add("slots", slots)

    def _add_ranges(self, first: Ragged, last: Ragged) -> None:
        self._add("first", first)
        self._add("last", last)

    def finish(self) -> TokenPairs:
        """The pairs, mapped."""
        parts = self._rows
        if not self._names and "slots" in parts:
            del parts["slots"]
        return TokenPairs(
            clean=parts["clean"].map(),
            corrupt=parts["corrupt"].map() if "corrupt" in parts else None,
            positions=self._positions.map(self._size),
            answer=parts["answer"].table() if "answer" in parts else None,
            distractor=parts["distractor"].table() if "distractor" in parts else None,
            ranges=(parts["first"].map(), parts["last"].map()) if "first" in parts else None,
            slots=parts["slots"].map() if "slots" in parts else None,
            slot_names=(*self._names, "other") if self._names else (),
            pad_id=self._encoder.pad_id,
            spool=self._spool,
        )


def _own(lengths: NDArray[np.int64]) -> tuple[Ragged, Ragged]:
    """The ranges of tokens that each read the corrupted token of their own number."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    own = (np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)).astype(np.int32)
    return Ragged(own, starts), Ragged(own + np.int32(1), starts)
