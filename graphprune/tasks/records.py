"""Records of texts to token pairs: checks, token lengths, answers, spans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from graphprune.errors import InputError, unknown_name
from graphprune.tasks.alignment import span_ranges, span_slots
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.tables import Ragged
from graphprune.util.checks import require_one_of

OnMismatch = Literal["error", "drop"]
FIELDS = ("clean", "corrupt", "answer", "distractor", "spans", "decoder")
CHOICES: frozenset[str] = frozenset({"answer", "distractor"})
LISTED = 5  # cases that an error or a log line shows

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


def _spaced(record: Any, *names: str) -> str:
    """A sentence on the first of the prompts ``names`` that ends in a space; empty where none."""
    ending = next((n for n in names if str(record.get(n) or "").endswith((" ", "\t"))), None)
    if ending is None:
        return ""
    return f" ({ending!r} ends in a space: put it in front of the answer instead, as in ' Mary')"


def check_record(record: Any, where: str) -> None:
    """Raises :class:`~graphprune.errors.InputError` naming ``where`` if ``record`` is no record.

    A record maps ``clean`` and any other of ``FIELDS`` to texts; ``answer`` and ``distractor`` may
    also be a token id, or a list of texts and ids.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: a record must map names to texts, got {record!r:.300}")
    unknown = [key for key in record if key not in FIELDS]
    if unknown:
        raise unknown_name("key", unknown[0], FIELDS, where=where)
    if record.get("clean") is None:
        raise InputError(f"{where}: 'clean' is missing; it holds the prompt")
    for name in ("clean", "corrupt"):
        text = record.get(name)
        if text is not None and (not isinstance(text, str) or not text):
            raise InputError(f"{where}: {name!r} must be a text, got {text!r:.300}")
        _require_characters(text, f"{where}: {name!r}")
    if not isinstance(record.get("decoder", ""), str):  # an empty one is a text's beginning
        raise InputError(f"{where}: 'decoder' must be a text, got {record['decoder']!r:.300}")
    for name in ("answer", "distractor"):
        value = record.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        if value is None:
            continue
        if not values or not all(type(v) in (str, int) and v != "" for v in values):
            raise InputError(
                f"{where}: {name!r} must be a text, a token id or a list of these, "
                f"got {value!r:.300}"
            )
        for text in values:
            _require_characters(text, f"{where}: {name!r}")


def _require_characters(text: Any, what: str) -> None:
    """Raises for half of a surrogate pair: JSON can write one, and no tokenizer takes it."""
    if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{what} holds half of a character (a lone surrogate): {text!r:.80}")


@dataclass
class _Cases:
    """A count of something that happened, and its first cases."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(case)

    def __str__(self) -> str:
        return "; ".join(self.first) + ("; ..." if self.count > len(self.first) else "")


class _Labelled(NamedTuple):
    """A record and what errors call it: its file and line where it came from a file."""

    record: Any
    where: str


class RecordEncoder:
    """Records to token ids, all at once or chunk by chunk, with the checks that reach over chunks.

    ``span_names`` are the spans that every record so far has, in the first record's order.

    Args:
        tokenizer: a Hugging Face tokenizer.
        on_mismatch: ``"error"`` or ``"drop"``, for pairs whose token lengths differ.
        chunked: whether more records may follow, which the error about lengths then says.
    """

    def __init__(self, tokenizer: Any, on_mismatch: OnMismatch, chunked: bool = False) -> None:
        require_one_of(on_mismatch, ("error", "drop"), "on_mismatch")
        self.encoder = Encoder(tokenizer)
        self.seen = 0
        self.span_names: tuple[str, ...] | None = None
        self._drop = on_mismatch == "drop"
        self._first = "the first " if chunked else ""
        self._with: dict[str, str] = {}
        self._without: dict[str, str] = {}
        self._mismatched = _Cases()
        self._shortened = _Cases()
        self._unspaced = _Cases()

    def encode(self, records: Sequence[Any]) -> dict[str, Ragged]:
        """The next records, in order, without those that are dropped, as columns of rows of ids.

        ``clean`` is always there, ``corrupt``, ``answer`` and ``distractor`` where records have
        them; where some have spans, ``starts`` and ``stops`` (the range that each clean token
        reads; an empty row where a record has none), and ``slots`` where all name the same.

        Raises :class:`~graphprune.errors.InputError` naming the record, see
        :meth:`TokenPairs.from_records`.
        """
        rows = [
            _Labelled(r, r.where if isinstance(r, FileRecord) else f"record {self.seen + i}")
            for i, r in enumerate(records)
        ]
        for row in rows:
            check_record(row.record, row.where)
        for record, where in rows:
            if record.get("decoder") is not None:
                raise InputError(
                    f"{where}: 'decoder' is how an encoder-decoder's own text begins; such records "
                    "are for gp.tasks.sequences, or for a file and an encoder-decoder"
                )
        given = [name for name in FIELDS[1:4] if self._all_or_none(rows, name)]
        if any(row.record.get("spans") for row in rows) and "corrupt" not in given:
            raise InputError(
                "spans align a prompt with a corrupted one, but no record has 'corrupt'"
            )
        self.seen += len(rows)
        prompts = {"clean": self._prompts(rows, "clean")}
        if "corrupt" in given:
            prompts["corrupt"] = self._prompts(rows, "corrupt")
        fitting = self._fitting(rows, prompts)
        rows = [rows[i] for i in fitting]
        columns = {name: [ids[i] for i in fitting] for name, ids in prompts.items()}
        for name in given:
            if name != "corrupt":
                columns[name] = [self._first_ids(*row, name) for row in rows]
        if columns.keys() >= CHOICES:
            self._check_apart(rows, columns)
        spans = self._spans(rows, columns)
        return {name: Ragged.from_rows(part) for name, part in columns.items()} | spans

    def finish(self) -> dict[str, Any]:
        """Logs what was dropped or shortened and gives the task's notes on it.

        Raises :class:`~graphprune.errors.InputError` if there was no record, or none is left.
        """
        if not self.seen:
            raise InputError("there are no records; a task needs at least one")
        if self._mismatched.count == self.seen:
            raise InputError(self._mismatch("nothing is left when they are dropped", ""))
        if self._mismatched.count:
            log.warning(
                "dropped %d of %d pairs whose token lengths differ, first %s",
                self._mismatched.count,
                self.seen,
                self._mismatched.first[0].strip(),
            )
        for cases, what in (
            (self._shortened, "are longer than one token; their first token stands for them"),
            (self._unspaced, "continue the prompt's last word, for they have no space in front"),
        ):
            if cases.count:
                log.warning("%d answers or distractors %s (%s)", cases.count, what, cases)
        notes: dict[str, Any] = {"first_token_answers": self._shortened.count}
        return {**notes, "dropped": self._mismatched.count} if self._drop else notes

    # ---------------------------------------------------------------- steps

    def _all_or_none(self, rows: Sequence[_Labelled], name: str) -> bool:
        """``True`` if the records have ``name``; raises if only some do, earlier ones included."""
        for record, where in rows:
            group = self._without if record.get(name) is None else self._with
            group.setdefault(name, where)
        if name in self._with and name in self._without:
            raise InputError(
                f"{self._without[name]} has no {name!r}, though {self._with[name]} has; all "
                "records need it, or none"
            )
        return name in self._with

    def _prompts(self, rows: Sequence[_Labelled], name: str) -> list[list[int]]:
        prompts = self.encoder.prompts([row.record[name] for row in rows])
        for (record, where), ids in zip(rows, prompts, strict=True):
            if len(ids) <= len(self.encoder.suffix):
                raise InputError(f"{where}: {name} {record[name]!r} has no tokens")
        return prompts

    def _fitting(
        self, rows: Sequence[_Labelled], prompts: Mapping[str, list[list[int]]]
    ) -> list[int]:
        """Numbers of the records that have spans, or whose prompts have equal lengths."""
        fitting = []
        lengths = zip(*(map(len, ids) for ids in prompts.values()), strict=True)
        for i, ((record, where), counts) in enumerate(zip(rows, lengths, strict=True)):
            if len(set(counts)) == 1 or record.get("spans"):
                fitting.append(i)
                continue
            self._mismatched.add(
                f"  {where}: {counts[0]} and {counts[1]} tokens: "
                f"{record['clean']!r} / {record['corrupt']!r}{_spaced(record, 'clean', 'corrupt')}"
            )
        if self._mismatched.count and not self._drop:
            advice = "on_mismatch='drop' drops them, spans align them"
            raise InputError(self._mismatch(advice, self._first))
        return fitting

    def _mismatch(self, advice: str, first: str) -> str:
        bad, cases = self._mismatched.count, self._mismatched.first
        more = [f"  ... and {bad - len(cases)} more"] if bad > len(cases) else []
        head = (
            f"{bad} of {first}{self.seen} pairs have prompts of different token lengths ({advice}):"
        )
        return "\n".join([head, *cases, *more])

    def _first_ids(self, record: Any, where: str, name: str) -> list[int]:
        """First-token ids of a record's answers or distractors."""
        value, encoder, spaced = record[name], self.encoder, _spaced(record, "clean")
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
                raise InputError(f"{where}: {name} {one!r} has no tokens{spaced}")
            if tokens[0] == encoder.unknown_id:
                raise InputError(
                    f"{where}: the vocabulary does not have the {name} {one!r}{spaced}"
                )
            if len(tokens) > 1:
                self._shortened.add(f"{where}: {one!r}")
            if record["clean"][-1].isalpha() and one[0].isalpha():
                self._unspaced.add(f"{where}: {one!r}")
            ids.append(tokens[0])
        return list(dict.fromkeys(ids))

    def _check_apart(
        self, rows: Sequence[_Labelled], columns: Mapping[str, list[list[int]]]
    ) -> None:
        choices = zip(rows, columns["answer"], columns["distractor"], strict=True)
        for (record, where), answer, distractor in choices:
            shared = sorted({*answer} & {*distractor})
            if shared and not (isinstance(record, FileRecord) and record.may_share):
                raise InputError(
                    f"{where}: answer {record['answer']!r} and distractor "
                    f"{record['distractor']!r} begin with the same token "
                    f"{self.encoder.decode(shared[:1])!r}, so the model's next token cannot tell "
                    f"them apart{_spaced(record, 'clean')}"
                )

    def _spans(
        self, rows: Sequence[_Labelled], columns: Mapping[str, list[list[int]]]
    ) -> dict[str, Ragged]:
        """The range that each clean token reads and its span's number, where records have spans."""
        spans = [row.record.get("spans") for row in rows]
        ranges: list[tuple[list[int], list[int]]] = []
        if any(spans):
            lengths = (map(len, columns[name]) for name in ("clean", "corrupt"))
            for named, row, clean, corrupt in zip(spans, rows, *lengths, strict=True):
                reads = span_ranges(named, clean, corrupt, row.where) if named else ([], [])
                ranges.append(reads)
        if self.span_names is None and spans:
            self.span_names = tuple(spans[0] or ())
        names = self.span_names or ()
        if not all(named and set(named) == set(names) for named in spans):
            self.span_names = names = ()
        slots: list[list[int]] = []
        if names:
            pairs = zip(spans, columns["clean"], strict=True)
            slots = [span_slots(named, names, len(ids)) for named, ids in pairs]
        parts = {"starts": [a for a, _ in ranges], "stops": [b for _, b in ranges], "slots": slots}
        return {name: Ragged.from_rows(part) for name, part in parts.items() if part}
