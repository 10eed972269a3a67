"""Records of texts to token pairs: checks, token lengths, answers, spans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graphprune.errors import InputError, unknown_name
from graphprune.tasks.encoding import Encoder, pack
from graphprune.tasks.pairs import OnMismatch, TokenPairs

__all__ = [
    "FIELDS",
    "EncodedRows",
    "FileRecord",
    "RecordEncoder",
    "check_record",
    "encode_records",
]

FIELDS = ("clean", "corrupt", "answer", "distractor", "spans")
LISTED = 5

log = logging.getLogger("graphprune.tasks")


class FileRecord(dict[str, Any]):
    """A record that knows where it stands, ``"pairs.jsonl:3"``, for errors that come later.

    ``may_share``: answer and distractor may be one token, as a benchmark that is scored with such
    rows has them; otherwise that is an error.
    """

    def __init__(self, record: Mapping[str, Any], where: str, *, may_share: bool = False) -> None:
        super().__init__(record)
        self.where = where
        self.may_share = may_share


def _label(record: Any, number: int) -> str:
    """What errors call a record: its file and line where it came from a file."""
    return record.where if isinstance(record, FileRecord) else f"record {number}"


def check_record(record: Any, where: str) -> None:
    """Raises :class:`~graphprune.errors.InputError` naming ``where`` if ``record`` is no record.

    A record maps ``clean`` and any other of ``FIELDS`` to texts; ``answer`` and ``distractor`` may
    also be a token id, or a list of texts and ids.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: a record must map names to texts, got {record!r}")
    unknown = [key for key in record if key not in FIELDS]
    if unknown:
        raise unknown_name("key", unknown[0], FIELDS, where=where)
    if record.get("clean") is None:
        raise InputError(f"{where}: 'clean' is missing; it holds the prompt")
    for name in ("clean", "corrupt"):
        text = record.get(name)
        if text is not None and (not isinstance(text, str) or not text):
            raise InputError(f"{where}: {name!r} must be a text, got {text!r}")
    for name in ("answer", "distractor"):
        value = record.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        if value is None:
            continue
        if not values or not all(type(v) in (str, int) and v != "" for v in values):
            raise InputError(
                f"{where}: {name!r} must be a text, a token id or a list of these, got {value!r}"
            )


class EncodedRows(NamedTuple):
    """Some records as rows of token ids; what no record has is ``None``."""

    clean: list[list[int]]
    corrupt: list[list[int]] | None
    answer: list[list[int]] | None
    distractor: list[list[int]] | None
    spans: list[Any]
    labels: list[str]


@dataclass
class _Told:
    """How often something happened, and its first cases."""

    count: int = 0
    cases: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.cases) < LISTED:
            self.cases.append(case)

    def __str__(self) -> str:
        return "; ".join(self.cases) + ("; ..." if self.count > len(self.cases) else "")


class RecordEncoder:
    """Records to token ids, all at once or chunk by chunk, with the checks that reach over chunks.

    Args:
        tokenizer: a Hugging Face tokenizer.
        on_mismatch: ``"error"`` or ``"drop"``, for pairs whose token lengths differ.
        chunked: whether more records may follow, which the error about lengths then says.
    """

    def __init__(self, tokenizer: Any, on_mismatch: OnMismatch, chunked: bool = False) -> None:
        if on_mismatch not in ("error", "drop"):
            raise unknown_name("on_mismatch", on_mismatch, ("error", "drop"))
        self.encoder = Encoder(tokenizer)
        self.seen = 0
        self._drop = on_mismatch == "drop"
        self._first = "the first " if chunked else ""
        self._with: dict[str, str] = {}
        self._without: dict[str, str] = {}
        self._apart = _Told()
        self._longer = _Told()
        self._joined = _Told()

    def encode(self, records: Sequence[Any]) -> EncodedRows:
        """The next records, in order, without those that are dropped.

        Raises :class:`~graphprune.errors.InputError` naming the record, see
        :meth:`TokenPairs.from_records`.
        """
        labels = [_label(record, self.seen + i) for i, record in enumerate(records)]
        for record, where in zip(records, labels, strict=True):
            check_record(record, where)
        given = {name: self._all_or_none(records, labels, name) for name in FIELDS[1:4]}
        if any(record.get("spans") for record in records) and not given["corrupt"]:
            raise InputError(
                "spans align a prompt with a corrupted one, but no record has 'corrupt'"
            )
        self.seen += len(records)
        clean = self._prompts(records, labels, "clean")
        corrupt = self._prompts(records, labels, "corrupt") if given["corrupt"] else None
        kept = self._fitting(records, labels, clean, corrupt)
        records, labels = [records[i] for i in kept], [labels[i] for i in kept]
        answer = self._choices(records, labels, "answer") if given["answer"] else None
        distractor = self._choices(records, labels, "distractor") if given["distractor"] else None
        if answer and distractor:
            self._check_apart(records, labels, answer, distractor)
        return EncodedRows(
            [clean[i] for i in kept],
            None if corrupt is None else [corrupt[i] for i in kept],
            answer,
            distractor,
            [record.get("spans") for record in records],
            labels,
        )

    def finish(self) -> dict[str, Any]:
        """Logs what was dropped or shortened and gives the task's notes on it.

        Raises :class:`~graphprune.errors.InputError` if there was no record, or none is left.
        """
        if not self.seen:
            raise InputError("there are no records; a task needs at least one")
        if self._apart.count == self.seen:
            raise InputError(self._mismatch("nothing is left when they are dropped", ""))
        if self._apart.count:
            log.warning(
                "dropped %d of %d pairs whose token lengths differ", self._apart.count, self.seen
            )
        if self._longer.count:
            log.warning(
                "%d answers or distractors are longer than one token; their first token stands for "
                "them (%s)",
                self._longer.count,
                self._longer,
            )
        if self._joined.count:
            log.warning(
                "%d answers or distractors continue the prompt's last word, for they have no space "
                "in front (%s)",
                self._joined.count,
                self._joined,
            )
        notes: dict[str, Any] = {"first_token_answers": self._longer.count}
        return {**notes, "dropped": self._apart.count} if self._drop else notes

    # ---------------------------------------------------------------- steps

    def _all_or_none(self, records: Sequence[Any], labels: Sequence[str], name: str) -> bool:
        """Whether the records have ``name``; raises if only some do, in this or earlier chunks."""
        for record, where in zip(records, labels, strict=True):
            found = self._without if record.get(name) is None else self._with
            found.setdefault(name, where)
        if name in self._with and name in self._without:
            raise InputError(
                f"{self._without[name]} has no {name!r}, though {self._with[name]} has; all "
                "records need it, or none"
            )
        return name in self._with

    def _prompts(self, records: Sequence[Any], labels: Sequence[str], name: str) -> list[list[int]]:
        rows = self.encoder.prompts([record[name] for record in records])
        for record, where, row in zip(records, labels, rows, strict=True):
            if len(row) <= len(self.encoder.suffix):
                raise InputError(f"{where}: {name} {record[name]!r} has no tokens")
        return rows

    def _fitting(
        self,
        records: Sequence[Any],
        labels: Sequence[str],
        clean: list[list[int]],
        corrupt: list[list[int]] | None,
    ) -> list[int]:
        """Numbers of the records that have spans, or whose prompts have equal lengths."""
        kept = []
        for i, record in enumerate(records):
            if corrupt is None or len(clean[i]) == len(corrupt[i]) or record.get("spans"):
                kept.append(i)
                continue
            self._apart.add(
                f"  {labels[i]}: {len(clean[i])} and {len(corrupt[i])} tokens: "
                f"{record['clean']!r} / {record['corrupt']!r}"
            )
        if self._apart.count and not self._drop:
            advice = "on_mismatch='drop' drops them, spans align them"
            raise InputError(self._mismatch(advice, self._first))
        return kept

    def _mismatch(self, advice: str, first: str) -> str:
        bad, cases = self._apart.count, self._apart.cases
        more = [f"  ... and {bad - len(cases)} more"] if bad > len(cases) else []
        head = (
            f"{bad} of {first}{self.seen} pairs have prompts of different token lengths ({advice}):"
        )
        return "\n".join([head, *cases, *more])

    def _choices(self, records: Sequence[Any], labels: Sequence[str], name: str) -> list[list[int]]:
        """First-token ids of each record's answers or distractors."""
        return [
            self._first_ids(record, name, where)
            for record, where in zip(records, labels, strict=True)
        ]

    def _first_ids(self, record: Any, name: str, where: str) -> list[int]:
        value, encoder = record[name], self.encoder
        ids: list[int] = []
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int):
                if not 0 <= one < encoder.vocabulary_size:
                    raise InputError(
                        f"{where}: {name} must be a token id in 0..{encoder.vocabulary_size - 1}, "
                        f"got {one}"
                    )
                ids.append(one)
                continue
            tokens = encoder.continuation(record["clean"], one)
            if not tokens:
                raise InputError(f"{where}: {name} {one!r} has no tokens")
            if tokens[0] == encoder.unknown_id:
                raise InputError(f"{where}: the vocabulary does not have the {name} {one!r}")
            if len(tokens) > 1:
                self._longer.add(f"{where}: {one!r}")
            if record["clean"][-1].isalpha() and one[0].isalpha():
                self._joined.add(f"{where}: {one!r}")
            ids.append(tokens[0])
        return list(dict.fromkeys(ids))

    def _check_apart(
        self,
        records: Sequence[Any],
        labels: Sequence[str],
        answer: list[list[int]],
        distractor: list[list[int]],
    ) -> None:
        for record, where, mine, theirs in zip(records, labels, answer, distractor, strict=True):
            allowed = isinstance(record, FileRecord) and record.may_share
            if not allowed and not set(mine).isdisjoint(theirs):
                token = self.encoder.decode(sorted(set(mine) & set(theirs))[:1])
                raise InputError(
                    f"{where}: answer {record['answer']!r} and distractor "
                    f"{record['distractor']!r} begin with the same token {token!r}, so the "
                    "model's next token cannot tell them apart"
                )


def encode_records(
    records: Sequence[Any], tokenizer: Any, on_mismatch: OnMismatch
) -> tuple[TokenPairs, dict[str, Any]]:
    """See :meth:`TokenPairs.from_records`."""
    coder = RecordEncoder(tokenizer, on_mismatch)
    rows = coder.encode(records)
    notes = coder.finish()
    return (
        pack(
            rows.clean,
            rows.corrupt,
            rows.answer,
            rows.distractor,
            coder.encoder,
            spans=rows.spans,
            labels=rows.labels,
        ),
        notes,
    )
