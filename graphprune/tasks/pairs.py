"""Clean and corrupted prompts as token ids: the examples of every language task.

Prompts are kept unpadded in int32, in memory or in memory-mapped files. A batch is padded on the
right to its longest prompt; padding holds ``pad_id`` and is masked.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.overlap import digest
from graphprune.errors import InputError
from graphprune.tasks.alignment import alignment_matrix
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.records import CHOICES, RecordEncoder
from graphprune.tasks.records import OnMismatch as OnMismatch
from graphprune.tasks.redrawing import Option, choose_options
from graphprune.tasks.spool import Spool
from graphprune.tasks.streaming import encode_stream
from graphprune.tasks.tables import (
    Ragged,
    id_table,
    integer_tensor,
    last_tokens,
    mask_array,
    overlap,
    position_table,
    row_chunks,
)


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """``N`` prompts with their corrupted twins, answers and distractors, as token ids.

    Build one with :meth:`from_tensors` or :meth:`from_records`. 100,000 prompts of 15 tokens with
    one answer and one distractor take about 15 MB.

    Args:
        clean: the prompts, token ids row by row.
        corrupt: the corrupted prompts, or ``None``.
        positions: ``[N]`` or ``[N, P]`` (``-1`` pads) token numbers, counted from the prompt's
            first token: the answer is the token that follows there.
        answer: ``[N, A]`` or ``[N, P, A]`` ids of right answers (``-1`` pads), or ``None``.
        distractor: the same for wrong answers.
        ranges: where spans align the two prompts, the half-open range of corrupted tokens that each
            clean token reads, as its starts and its stops (see :mod:`graphprune.tasks.alignment`).
            A row is empty where each token reads the one of its own number; ``None`` if all are.
        slots: where every record names the same spans, the number of each clean token's span in
            ``slot_names``; scores by position are then kept for each span.
        pad_id: fills padding.
        spool: the files behind the arrays, where they are mapped and not in memory.
        redraw: gives all corrupted prompts that the prompts can have, where their source has more
            of them.
        encoder: turned the texts into ids, and turns ids into texts again; ``None`` where ids came.

    Example:
        >>> pairs = TokenPairs.from_tensors(torch.tensor([[3, 4], [5, 6]]), answer=[7, 8])
        >>> len(pairs), pairs.batch([1]).answer.tolist()
        (2, [[8]])
    """

    clean: Ragged
    corrupt: Ragged | None
    positions: NDArray[np.int32]
    answer: NDArray[np.int32] | None = None
    distractor: NDArray[np.int32] | None = None
    ranges: tuple[Ragged, Ragged] | None = None
    slots: Ragged | None = None
    slot_names: tuple[str, ...] = ()
    pad_id: int = 0
    spool: Spool | None = None
    redraw: Callable[[], Iterator[Option]] | None = field(default=None, compare=False, repr=False)
    encoder: Encoder | None = field(default=None, compare=False, repr=False)

    # ---------------------------------------------------------------- building

    @classmethod
    def from_tensors(
        cls,
        clean: Any,
        corrupt: Any = None,
        answer: Any = None,
        distractor: Any = None,
        positions: Any = None,
        attention_mask: Any = None,
    ) -> TokenPairs:
        """Examples from token ids ``[N, T]``.

        Args:
            clean: ``[N, T]`` integer ids.
            corrupt: ``[N, T]`` ids of the corrupted prompts, under the same ``attention_mask``.
            answer: one id for each example, a list of ids for each (lists may differ in length,
                ``-1`` pads a tensor), or ``[N, P, A]`` for several positions (``[N, P, 1]`` for
                one id at each).
            distractor: the same for wrong answers.
            positions: one column number (the same or one for each example), or ``[N, P]`` with
                ``-1`` as padding; columns of the tensors as given. ``None`` takes the last token
                that is no padding.
            attention_mask: ``[N, T]`` of 1 (token) and 0 (padding, left or right, moved to the
                right). ``None`` means no padding.

        Raises:
            InputError: for wrong shapes, kinds or ranges, saying what was expected and what came.

        Example:
            >>> pairs = TokenPairs.from_tensors(
            ...     torch.tensor([[0, 7, 8], [4, 5, 6]]), answer=[1, 2],
            ...     attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
            >>> batch = pairs.batch([0, 1])
            >>> batch.clean["input_ids"].tolist(), batch.positions.tolist()
            ([[7, 8, 0], [4, 5, 6]], [1, 2])
        """
        ids = integer_tensor(clean, "clean")
        if ids.ndim != 2 or 0 in ids.shape:
            raise InputError(f"clean must be token ids [N, T], got the shape {list(ids.shape)}")
        n, width = ids.shape
        real = mask_array(attention_mask, (n, width))
        left = np.argmax(real, axis=1)
        packed = {}
        for name, given in (("clean", ids), ("corrupt", corrupt)):
            if given is None:
                continue
            table = integer_tensor(given, name).numpy()
            if table.shape != (n, width):
                raise InputError(
                    f"{name} must have clean's shape {[n, width]}, got {list(table.shape)}"
                )
            if table[real].min() < 0 or table[real].max() > np.iinfo(np.int32).max:
                first_bad = np.argwhere(real & ((table < 0) | (table > np.iinfo(np.int32).max)))[0]
                raise InputError(
                    f"{name} must hold token ids from 0 on, got {table[tuple(first_bad)]} at "
                    f"example {first_bad[0]}, column {first_bad[1]}"
                )
            packed[name] = Ragged.from_padded(table, real)
        answer_positions = position_table(positions, real, left)
        answers, distractors = (
            id_table(answer, answer_positions, "answer"),
            id_table(distractor, answer_positions, "distractor"),
        )
        shared_id = overlap(answers, distractors)
        if shared_id is not None:
            raise InputError(
                f"example {shared_id[0]} has the id {shared_id[1]} both as an answer and as a "
                "distractor"
            )
        return cls(packed["clean"], packed.get("corrupt"), answer_positions, answers, distractors)

    @classmethod
    def from_records(
        cls, records: Sequence[Any], tokenizer: Any, on_mismatch: OnMismatch = "error"
    ) -> tuple[TokenPairs, dict[str, Any]]:
        """Examples from records of texts, and notes on what was dropped or shortened.

        A record is a mapping with ``clean`` and any of ``corrupt``, ``answer``, ``distractor`` and
        ``spans``; all records have the same of the first four. Prompts are tokenised as
        ``tokenizer(text)`` does it, with the special tokens it adds by itself. Answers are texts
        that follow the prompt exactly as written (``" Mary"`` with its space), token ids, or lists
        of these; see :mod:`graphprune.tasks.encoding` for how their tokens are found. The answer
        is read at the prompt's last token (in front of an EOS that the tokenizer appends).

        A text that is more than one token stands for its first token, with a logged warning.

        Args:
            records: the records, in order.
            tokenizer: a Hugging Face tokenizer.
            on_mismatch: what happens to pairs without ``spans`` whose token lengths differ:
                ``"error"`` lists them, ``"drop"`` leaves them out.

        Returns:
            The examples, and notes: ``dropped`` (pairs left out, with ``"drop"``) and
            ``first_token_answers`` (answers and distractors cut to one token).

        Raises:
            InputError: naming the record, for records that are no such mappings, answers the
                vocabulary does not have, an answer and a distractor with one first token, spans
                that do not fit, and pairs whose lengths differ.
        """
        coder = RecordEncoder(tokenizer, on_mismatch)
        columns = coder.encode(records)
        notes = coder.finish()
        return pack(columns, coder.encoder, coder.span_names), notes

    @classmethod
    def from_stream(
        cls,
        records: Any,
        tokenizer: Any,
        *,
        length: int | None = None,
        on_mismatch: OnMismatch = "error",
        spool: str | Path | None = None,
    ) -> tuple[TokenPairs, dict[str, Any]]:
        """Examples as :meth:`from_records` makes them, kept in files; see ``Task.from_stream``."""
        coder = RecordEncoder(tokenizer, on_mismatch, chunked=True)
        folder = Spool(spool)
        try:
            columns, tables, notes = encode_stream(records, coder, length, folder)
        except BaseException:
            folder.close()
            raise
        return pack(columns, coder.encoder, coder.span_names, tables, folder), notes

    # ---------------------------------------------------------------- reading

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def _lengths(self) -> array[int]:
        lengths = array("i")
        prompts = [self.clean] if self.corrupt is None else [self.clean, self.corrupt]
        for rows in row_chunks(len(self), None if self.spool is None else self.spool.release):
            lengths.extend(np.max([p.lengths_of(rows) for p in prompts], axis=0).tolist())
        return lengths

    def lengths(self) -> Sequence[int]:
        """Tokens of each example, the longer of its two prompts."""
        return self._lengths

    def texts(self, number: int) -> dict[str, str]:
        """An example's prompts, answers and distractors as text in quotes (ids without a text)."""
        prompts = {"clean": self.clean, "corrupt": self.corrupt}
        rows = {name: [part.row(number).tolist()] for name, part in prompts.items() if part}
        for name, table in (("answer", self.answer), ("distractor", self.distractor)):
            if table is not None:
                rows[name] = [[i] for i in table[number].flatten().tolist() if i >= 0]
        text = str if self.encoder is None else self.encoder.quoted
        return {name: ", ".join(map(text, row)) for name, row in rows.items()}

    def fingerprints(self) -> NDArray[np.int64]:
        """``[N, 2]``: fingerprints of the clean and the corrupted prompts (0: none)."""
        table = np.zeros((len(self), 2), dtype=np.int64)
        for rows in row_chunks(len(self), None if self.spool is None else self.spool.release):
            for column, prompts in enumerate((self.clean, self.corrupt)):
                if prompts is None:
                    continue
                ends = prompts.starts[rows[0] : rows[-1] + 2]
                # Slices of bytes are much faster than an array for each prompt.
                raw = prompts.values[ends[0] : ends[-1]].astype("<i4").tobytes()
                offsets = (4 * (ends - ends[0])).tolist()
                table[rows, column] = [digest(raw[a:b]) for a, b in itertools.pairwise(offsets)]
        return table

    def redrawn(
        self, wanted: NDArray[np.int64], part: NDArray[np.int64], taken: Set[int]
    ) -> tuple[TokenPairs, list[int]]:
        """The examples with other corrupted prompts of those ``wanted``, and which were found.

        None of them has a fingerprint of ``taken``. Distractors change with their prompts.
        """
        if self.redraw is None or self.corrupt is None or self.distractor is None:
            return self, []
        numbers = {tuple(self.clean.row(i).tolist()): i for i in wanted.tolist()}
        chosen = choose_options(self.redraw(), numbers, taken)
        values = self.corrupt.values.copy()
        distractors: list[Sequence[int]] = [row[row >= 0].tolist() for row in self.distractor]
        for i, (corrupt, distractor) in chosen.items():  # as long as the prompt that it replaces
            values[self.corrupt.starts[i] : self.corrupt.starts[i + 1]] = corrupt
            distractors[i] = distractor
        corrupted = Ragged(values, self.corrupt.starts)
        table = Ragged.from_rows(distractors).table()
        return replace(self, corrupt=corrupted, distractor=table), list(chosen)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices``, padded on the right to the longest of them.

        ``clean`` and ``corrupt`` hold ``input_ids`` and ``attention_mask``, both ``[B, T]`` int64
        (``[B, T']`` for ``corrupt`` where spans align prompts of different length; ``alignment``
        is ``[B, T, T']`` then). Raises :class:`~graphprune.errors.InputError` for no or foreign
        numbers.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 1 or rows.size == 0:
            raise InputError("a batch needs at least one example number")
        if rows.min() < 0 or rows.max() >= len(self):
            raise InputError(
                f"example numbers must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}"
            )
        return Batch(
            clean=self._inputs(self.clean, rows),
            corrupt=None if self.corrupt is None else self._inputs(self.corrupt, rows),
            size=len(rows),
            indices=tuple(rows.tolist()),
            positions=_rows(self.positions, rows),
            answer=_rows(self.answer, rows),
            distractor=_rows(self.distractor, rows),
            alignment=self._alignment(rows),
            slots=self._slots(rows),
            slot_names=self.slot_names,
        )

    def _inputs(self, prompts: Ragged, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        lengths = prompts.lengths_of(rows)
        width = int(lengths.max())
        mask = np.arange(width) < lengths[:, None]
        ids = prompts.padded(rows, width, self.pad_id)
        if self.spool is not None:  # each row that was read has mapped 64 KiB around it
            self.spool.release()
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def _slots(self, rows: NDArray[np.int64]) -> Tensor | None:
        if self.slots is None:
            return None
        width = int(self.clean.lengths_of(rows).max())
        return torch.from_numpy(self.slots.padded(rows, width, fill=len(self.slot_names) - 1))

    @property
    def has_spans(self) -> bool:
        """``True`` if the records named spans."""
        return self.ranges is not None

    def _alignment(self, rows: NDArray[np.int64]) -> Tensor | None:
        if self.ranges is None or self.corrupt is None:
            return None
        width = int(self.clean.lengths_of(rows).max())
        start, stop = (part.padded(rows, width, fill=0) for part in self.ranges)
        real = start < stop
        own = np.arange(width)
        if bool(np.where(real, (start == own) & (stop == own + 1), True).all()):
            return None
        return alignment_matrix(start, stop, int(self.corrupt.lengths_of(rows).max()))

    def __repr__(self) -> str:
        return f"TokenPairs({len(self)} examples, up to {max(self.lengths())} tokens)"


def pack(
    columns: Mapping[str, Ragged],
    encoder: Encoder,
    span_names: Sequence[str] | None = None,
    tables: Mapping[str, NDArray[np.int32]] | None = None,
    spool: Spool | None = None,
) -> TokenPairs:
    """The columns of :meth:`RecordEncoder.encode` as :class:`TokenPairs`.

    Args:
        columns: the columns, in memory or mapped from files in ``spool``.
        encoder: made the ids; says what stands behind every prompt and what pads.
        span_names: the spans that every record has.
        tables: positions, answers and distractors, where they are in files too.
    """
    clean = columns["clean"]
    if tables is None:
        tables = {name: columns[name].table() for name in CHOICES & columns.keys()}
        tables["positions"] = last_tokens(clean.lengths, len(encoder.suffix))
    return TokenPairs(
        clean=clean,
        corrupt=columns.get("corrupt"),
        ranges=(columns["starts"], columns["stops"]) if "starts" in columns else None,
        slots=columns["slots"] if span_names else None,
        slot_names=(*span_names, "other") if span_names else (),
        pad_id=encoder.pad_id,
        encoder=encoder,
        spool=spool,
        positions=tables["positions"],
        answer=tables.get("answer"),
        distractor=tables.get("distractor"),
    )


def _rows(table: NDArray[np.int32] | None, rows: NDArray[np.int64]) -> Any:
    return None if table is None else torch.from_numpy(table[rows].astype(np.int64))
