"""Records of texts to token pairs: checks, token lengths, answers, spans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphprune.errors import InputError
from graphprune.tasks.alignment import span_ranges, span_slots
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.pairs import OnMismatch, TokenPairs
from graphprune.tasks.ragged import Ragged
from graphprune.tasks.tables import pad_rows

__all__ = ["FIELDS", "FileRecord", "check_record", "encode_records", "pack"]

FIELDS = ("clean", "corrupt", "answer", "distractor", "spans")
LISTED = 5

log = logging.getLogger("graphprune.tasks")


class FileRecord(dict[str, Any]):
    """A record that knows where it stands, ``"pairs.jsonl:3"``, for errors that come later."""

    def __init__(self, record: Mapping[str, Any], where: str) -> None:
        super().__init__(record)
        self.where = where


def _name(records: Sequence[Any], number: int) -> str:
    """What errors call a record: its file and line where it came from a file."""
    record = records[number]
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
        raise InputError(
            f"{where}: unknown {'keys' if len(unknown) > 1 else 'key'} "
            f"{', '.join(map(repr, unknown))}; known: {', '.join(FIELDS)}"
        )
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


def encode_records(
    records: Sequence[Any], tokenizer: Any, on_mismatch: OnMismatch
) -> tuple[TokenPairs, dict[str, Any]]:
    """See :meth:`TokenPairs.from_records`."""
    if on_mismatch not in ("error", "drop"):
        raise InputError(f"on_mismatch must be 'error' or 'drop', got {on_mismatch!r}")
    if not len(records):
        raise InputError("there are no records; a task needs at least one")
    encoder = Encoder(tokenizer)
    for number, record in enumerate(records):
        check_record(record, _name(records, number))
    given = {name: _all_or_none(records, name) for name in FIELDS[1:4]}
    if any(record.get("spans") for record in records) and not given["corrupt"]:
        raise InputError("spans align a prompt with a corrupted one, but no record has 'corrupt'")

    clean = encoder.prompts([record["clean"] for record in records])
    corrupt = encoder.prompts([r["corrupt"] for r in records]) if given["corrupt"] else None
    for name, rows in (("clean", clean), ("corrupt", corrupt)):
        for number, row in enumerate(rows or ()):
            if len(row) <= len(encoder.suffix):
                raise InputError(
                    f"{_name(records, number)}: {name} {records[number][name]!r} has no tokens"
                )
    kept = _fitting(records, clean, corrupt, on_mismatch)
    choices, cut = _choices(records, kept, encoder, given)
    notes: dict[str, Any] = {"first_token_answers": cut}
    if on_mismatch == "drop":
        notes["dropped"] = len(records) - len(kept)
    return (
        pack(
            [clean[i] for i in kept],
            None if corrupt is None else [corrupt[i] for i in kept],
            choices["answer"],
            choices["distractor"],
            encoder,
            spans=[records[i].get("spans") for i in kept],
            labels=[_name(records, i) for i in kept],
        ),
        notes,
    )


def pack(
    clean: list[list[int]],
    corrupt: list[list[int]] | None,
    answer: list[list[int]] | None,
    distractor: list[list[int]] | None,
    encoder: Encoder,
    spans: Sequence[Any] = (),
    labels: Sequence[str] = (),
) -> TokenPairs:
    """Checked rows of token ids as :class:`TokenPairs`; ``labels`` name records in errors."""
    ranges, slots = None, None
    names: tuple[str, ...] = ()
    if corrupt is not None and any(spans):
        parts: list[tuple[list[int], list[int]]] = []
        for where, mine, theirs, named in zip(labels, clean, corrupt, spans, strict=True):
            own = list(range(len(mine))), list(range(1, len(mine) + 1))
            parts.append(span_ranges(named, len(mine), len(theirs), where) if named else own)
        ranges = (Ragged.from_rows([a for a, _ in parts]), Ragged.from_rows([b for _, b in parts]))
        if all(named and set(named) == set(spans[0]) for named in spans):
            names = tuple(spans[0])
            pairs = zip(spans, clean, strict=True)
            slots = Ragged.from_rows([span_slots(n, names, len(mine)) for n, mine in pairs])
    rows = Ragged.from_rows(clean)
    return TokenPairs(
        clean=rows,
        corrupt=None if corrupt is None else Ragged.from_rows(corrupt),
        positions=(rows.lengths - 1 - len(encoder.suffix)).astype(np.int32),
        answer=None if answer is None else pad_rows(answer),
        distractor=None if distractor is None else pad_rows(distractor),
        ranges=ranges,
        slots=slots,
        slot_names=(*names, "other") if names else (),
        pad_id=encoder.pad_id,
    )


def _all_or_none(records: Sequence[Any], name: str) -> bool:
    """Whether the records have ``name``; raises if only some do."""
    have = [record.get(name) is not None for record in records]
    if any(have) and not all(have):
        raise InputError(
            f"{_name(records, have.index(False))} has no {name!r}, though "
            f"{_name(records, have.index(True))} has; all records need it, or none"
        )
    return have[0]


def _fitting(
    records: Sequence[Any],
    clean: list[list[int]],
    corrupt: list[list[int]] | None,
    on_mismatch: OnMismatch,
) -> list[int]:
    """Numbers of the records that have spans, or whose prompts have equal lengths."""
    everything = list(range(len(records)))
    if corrupt is None:
        return everything
    bad = [
        i for i in everything if len(clean[i]) != len(corrupt[i]) and not records[i].get("spans")
    ]
    if not bad:
        return everything
    if on_mismatch == "drop" and len(bad) < len(records):
        log.warning("dropped %d of %d pairs whose token lengths differ", len(bad), len(records))
        apart = set(bad)
        return [i for i in everything if i not in apart]
    lines = [
        f"  {_name(records, i)}: {len(clean[i])} and {len(corrupt[i])} tokens: "
        f"{records[i]['clean']!r} / {records[i]['corrupt']!r}"
        for i in bad[:LISTED]
    ]
    more = [f"  ... and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    advice = (
        "nothing is left when they are dropped"
        if on_mismatch == "drop"
        else "on_mismatch='drop' drops them, spans align them"
    )
    head = f"{len(bad)} of {len(records)} pairs have prompts of different token lengths ({advice}):"
    raise InputError("\n".join([head, *lines, *more]))


def _choices(
    records: Sequence[Any], kept: list[int], encoder: Encoder, given: Mapping[str, bool]
) -> tuple[dict[str, list[list[int]] | None], int]:
    """First-token ids of answers and distractors, and how many were longer than a token."""
    out: dict[str, list[list[int]] | None] = {"answer": None, "distractor": None}
    longer: list[str] = []
    joined: list[str] = []
    for name in out:
        if given[name]:
            out[name] = [
                _first_ids(records[i], name, _name(records, i), encoder, longer, joined)
                for i in kept
            ]
    if out["answer"] and out["distractor"]:
        for i, mine, theirs in zip(kept, out["answer"], out["distractor"], strict=True):
            if not set(mine).isdisjoint(theirs):
                token = encoder.decode(sorted(set(mine) & set(theirs))[:1])
                raise InputError(
                    f"{_name(records, i)}: answer {records[i]['answer']!r} and distractor "
                    f"{records[i]['distractor']!r} begin with the same token {token!r}, so the "
                    "model's next token cannot tell them apart"
                )
    if longer:
        log.warning(
            "%d answers or distractors are longer than one token; their first token stands for "
            "them (%s%s)",
            len(longer),
            "; ".join(longer[:LISTED]),
            "; ..." if len(longer) > LISTED else "",
        )
    if joined:
        log.warning(
            "%d answers or distractors continue the prompt's last word, for they have no space in "
            "front (%s%s)",
            len(joined),
            "; ".join(joined[:LISTED]),
            "; ..." if len(joined) > LISTED else "",
        )
    return out, len(longer)


def _first_ids(
    record: Any, name: str, where: str, encoder: Encoder, longer: list[str], joined: list[str]
) -> list[int]:
    value = record[name]
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
            longer.append(f"{where}: {one!r}")
        if record["clean"][-1].isalpha() and one[0].isalpha():
            joined.append(f"{where}: {one!r}")
        ids.append(tokens[0])
    return list(dict.fromkeys(ids))
