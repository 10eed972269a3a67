"""Tasks for encoders and encoder-decoders: masked tokens, classes of texts, sequences.

Pairs differ in tokens alone: both sides of a pair have the same length, padding and token
types, which no edge of a model carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphprune.core.metrics import Metric, as_metric
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.encoding import START
from graphprune.tasks.tensor_examples import examples_of

__all__ = ["masked_tokens", "sequences", "text_classes"]

Measure = str | Metric | Callable[..., Any]


def masked_tokens(
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    metric: Measure = "logit_diff",
    name: str = "masked_tokens",
    batch_size: int = 32,
) -> Task:
    """A task of texts with one masked token each, which the model fills in.

    Args:
        tokenizer: an encoder's, which has a mask token.
        records: mappings with ``clean``, and any of ``corrupt``, ``answer`` and ``distractor``.
            Texts hold the mask token once, ``"[MASK]"`` for BERT; answers are single tokens as the
            tokenizer writes them, or ids.
        metric, name, batch_size: the task's.

    Raises:
        InputError: naming the record whose texts or answers do not fit.

    Example:
        >>> records = [{"clean": "Paris is in [MASK].",  # doctest: +SKIP
        ...             "corrupt": "Rome is in [MASK].", "answer": "France", "distractor": "Italy"}]
        >>> masked_tokens(bert_tokenizer, records)  # doctest: +SKIP
        Task('masked_tokens', 1 examples, metric='logit_diff')
    """
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise InputError(
            f"{type(tokenizer).__name__} has no mask token; masked tokens are for encoders' own "
            "tokenizers, such as BERT's"
        )
    clean, corrupt = _encoded(tokenizer, records)
    for side, given in (("clean", clean), ("corrupt", corrupt)):
        count = None if given is None else (given["input_ids"] == mask).sum(1)
        if count is not None and bool((count != 1).any()):
            row = int((count != 1).nonzero()[0])
            raise InputError(
                f"the {side} text of record {row} holds {tokenizer.mask_token} "
                f"{int(count[row])} times; expected once"
            )
    places = (clean["input_ids"] == mask).int().argmax(1)
    if corrupt is not None and not torch.equal(
        places, (corrupt["input_ids"] == mask).int().argmax(1)
    ):
        raise InputError("the mask token stands at other places in some corrupted texts")
    return _task(tokenizer, records, clean, corrupt, places, metric, name, batch_size)


def text_classes(
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    metric: Measure = "logit_diff",
    name: str = "text_classes",
    batch_size: int = 32,
) -> Task:
    """A task of texts, or pairs of texts, that the model gives a class.

    Args:
        tokenizer: the model's.
        records: mappings with ``clean`` (a text, or two), and any of ``corrupt``, ``answer`` and
            ``distractor``, the latter numbers of classes.
        metric, name, batch_size: the task's.

    Raises:
        InputError: naming the record whose texts do not fit.

    Example:
        >>> records = [{"clean": ("It rains.", "It is wet."),  # doctest: +SKIP
        ...             "corrupt": ("It rains.", "It is dry."), "answer": 0, "distractor": 2}]
        >>> text_classes(mnli_tokenizer, records)  # doctest: +SKIP
        Task('text_classes', 1 examples, metric='logit_diff')
    """
    clean, corrupt = _encoded(tokenizer, records)
    return _task(tokenizer, records, clean, corrupt, None, metric, name, batch_size)


def sequences(
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    start: int | None = None,
    *,
    metric: Measure = "logit_diff",
    name: str = "sequences",
    batch_size: int = 32,
) -> Task:
    """A task of texts that an encoder-decoder answers with the next token of another text.

    Args:
        tokenizer: the model's.
        records: mappings with ``clean``, and any of ``corrupt``, ``decoder`` (how the model's own
            text begins, ``""`` by default; all of one length in tokens), ``answer`` and
            ``distractor`` (its next token, as text or id).
        start: the token that the decoder's text begins with, ``config.decoder_start_token_id``;
            ``None``: the tokenizer's attribute of this name, which the command line sets.
        metric, name, batch_size: the task's.

    Raises:
        InputError: naming the record whose texts or answers do not fit.

    Example:
        >>> records = [{"clean": "translate English to German: dog",  # doctest: +SKIP
        ...             "corrupt": "translate English to German: cat", "answer": "Hund"}]
        >>> sequences(t5_tokenizer, records, 0)  # doctest: +SKIP
        Task('sequences', 1 examples, metric='logit_diff')
    """
    start = getattr(tokenizer, START, None) if start is None else start
    if start is None:
        raise InputError(
            f"the token that a decoder's text begins with is not known of "
            f"{type(tokenizer).__name__}: give start=model.config.decoder_start_token_id"
        )
    clean, corrupt = _encoded(tokenizer, records)
    begun = [_ids(tokenizer, str(record.get("decoder") or "")) for record in records]
    if len({len(ids) for ids in begun}) > 1:
        raise InputError("the decoder's texts have different numbers of tokens; give equal ones")
    told = torch.tensor([[start, *ids] for ids in begun])
    for side in (clean, corrupt):
        if side is not None:
            side["decoder_input_ids"] = told
    places = torch.full((len(told),), told.shape[1] - 1)
    return _task(tokenizer, records, clean, corrupt, places, metric, name, batch_size)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _encoded(
    tokenizer: Any, records: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The clean and the corrupted texts as the model takes them, padded to one length."""
    if not records or not all(isinstance(r, Mapping) and "clean" in r for r in records):
        raise InputError("records are mappings with a clean text each; got none, or others")
    paired = "corrupt" in records[0]
    odd = [i for i, record in enumerate(records) if ("corrupt" in record) != paired]
    if odd:
        raise InputError(f"record {odd[0]} has a corrupted text, or lacks one, unlike the first")
    texts = [record[side] for side in ("clean", "corrupt")[: 1 + paired] for record in records]
    columns = [list(part) for part in zip(*(_texts(text) for text in texts), strict=True)]
    coded = tokenizer(*columns, padding=True, return_tensors="pt")
    inputs = {key: value for key, value in coded.items() if isinstance(value, Tensor)}
    count = len(records)
    clean = {key: value[:count] for key, value in inputs.items()}
    if not paired:
        return clean, None
    corrupt = {key: value[count:] for key, value in inputs.items()}
    for key in clean.keys() - {"input_ids"}:
        differs = (clean[key] != corrupt[key]).any(1)
        if bool(differs.any()):
            raise InputError(
                f"the texts of record {int(differs.nonzero()[0])} differ in their {key}: both "
                "need the same number of tokens, in each of two texts"
            )
    return clean, corrupt


def _texts(text: Any) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _task(
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    clean: Mapping[str, Tensor],
    corrupt: Mapping[str, Tensor] | None,
    positions: Tensor | None,
    metric: Measure,
    name: str,
    batch_size: int,
) -> Task:
    columns = {
        side: None
        if side not in records[0]
        else [_answer(tokenizer, r.get(side), i, side) for i, r in enumerate(records)]
        for side in ("answer", "distractor")
    }
    examples = examples_of(
        clean, corrupt, columns["answer"], columns["distractor"], positions, None
    )
    return Task(examples, as_metric(metric), name=name, batch_size=batch_size)


def _answer(tokenizer: Any, given: Any, row: int, side: str) -> int:
    """The id of an answer: a number is one, a text is a single token."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    ids = _ids(tokenizer, given) if isinstance(given, str) else []
    if len(ids) != 1:
        raise InputError(
            f"the {side} of record {row} must be an id, or a text of one token, got {given!r} of "
            f"{len(ids)} tokens"
        )
    return int(ids[0])
