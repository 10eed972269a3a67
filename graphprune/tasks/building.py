"""From a stream of drawn prompts to a task: the part that all generators share.

A generator draws candidates from a seeded source; :func:`build` tokenises them and keeps the first
``n`` distinct prompts that fit: both prompts have equally many tokens, they differ, and answers and
distractors begin with different tokens the vocabulary has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import prod
from typing import Any, NamedTuple

import numpy as np

from graphprune.core.metrics import Metric, as_metric
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.pairs import pack
from graphprune.tasks.redrawing import Option
from graphprune.tasks.tables import Ragged
from graphprune.util.checks import at_least, seed_checked

MetricLike = str | Metric | Callable[..., Any]

log = logging.getLogger("graphprune.tasks")

PATIENCE = 10_000  # draws without a new prompt before giving up
FIRST_PATIENCE = 1_000  # the same before there is any prompt
MOST_PERMUTED = 5_000_000  # combinations up to which each comes once, in a random order
CHUNK = 8192  # combinations drawn, or candidates encoded, at a time
NOTED_SHARE = 0.05  # share of all prompts from which on a task says that seeds share some
REDRAW_CHUNK = 512  # candidates encoded at a time in search of other corrupted prompts


class Candidate(NamedTuple):
    """A drawn pair of prompts, as texts or as token ids.

    Answers and distractors are texts or token ids. ``ends`` are tokens put behind the two texts.
    """

    clean: str | list[int]
    corrupt: str | list[int]
    answer: Sequence[str] | Sequence[int]
    distractor: Sequence[str] | Sequence[int]
    template: int = 0
    ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


Fitted = tuple[list[int], list[int], list[int], list[int], int]


def combinations(seed: int, *sizes: int) -> Iterator[tuple[int, ...]]:
    """Tuples of ``0 <= i < size`` in random order, each once.

    Beyond five million combinations they are drawn independently, so that a few may repeat.

    Example:
        >>> sorted(combinations(0, 2, 2))
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    total = prod(sizes)
    if not total:
        return
    rng = np.random.default_rng(seed)
    if total <= MOST_PERMUTED:
        yield from _split(rng.permutation(total), sizes)
        return
    while True:
        yield from _split(rng.integers(0, total, size=CHUNK), sizes)


def _split(numbers: Any, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(numbers), CHUNK):
        columns = np.unravel_index(numbers[start : start + CHUNK], sizes)
        yield from zip(*(column.tolist() for column in columns), strict=True)


def checked_templates(templates: Sequence[int] | None, count: int, name: str) -> tuple[int, ...]:
    """The template numbers to use, all for ``None``; raises for numbers that do not exist."""
    chosen = tuple(range(count)) if templates is None else tuple(dict.fromkeys(templates))
    if not chosen or not all(type(t) is int and 0 <= t < count for t in chosen):
        raise InputError(
            f"{name} has the templates 0..{count - 1}; templates={list(chosen)} was asked for"
        )
    return chosen


def build(
    name: str,
    encoder: Encoder,
    candidates: Iterator[Candidate],
    n: int,
    seed: int,
    metric: MetricLike,
    batch_size: int,
    notes: Mapping[str, Any],
    *,
    all_candidates: Callable[[], Iterator[Candidate]] | None = None,
    pool: int | None = None,
) -> Task:
    """A task of the first ``n`` distinct candidates that fit.

    ``all_candidates`` yields for each clean prompt, in the same order, every corrupted version one
    after another: parts of the task take others from there (see ``Task.split``). ``pool`` is how
    many prompts there are at most, noted and logged where seeds must share many of them.

    ``seed`` was used to draw the candidates; here it is checked and recorded. To the
    ``notes`` come ``n``, ``seed``, ``template`` (a template number for each example) and ``unfit``
    (pairs passed over because they did not fit). Raises :class:`~graphprune.errors.InputError` if
    there are fewer than ``n``, saying how many there are.
    """
    at_least(n, 1, "n")
    seed_checked(seed)
    metric = as_metric(metric)
    kept: dict[Any, Fitted] = {}
    drawn = unfit = wasted = 0
    while len(kept) < n:
        chunk = list(islice(candidates, min(max(n - len(kept), 32), CHUNK)))
        drawn += len(chunk)
        if not chunk or wasted > (PATIENCE if kept else FIRST_PATIENCE):
            raise InputError(_too_few(name, n, len(kept), drawn))
        fresh = [c for c in chunk if _key(c) not in kept]
        for candidate, fitted in zip(fresh, _fit(fresh, encoder), strict=True):
            if len(kept) == n:
                break
            if fitted is None:
                unfit += 1
                wasted += 1
            elif kept.setdefault(_key(candidate), fitted) is fitted:
                wasted = 0  # draws since the last new prompt
            else:
                wasted += 1
        wasted += len(chunk) - len(fresh)
    clean, corrupt, answer, distractor, template = (
        list(column) for column in zip(*kept.values(), strict=True)
    )
    columns = {"clean": clean, "corrupt": corrupt, "answer": answer, "distractor": distractor}
    examples = pack({name: Ragged.from_rows(rows) for name, rows in columns.items()}, encoder)
    if all_candidates is not None:
        examples = replace(examples, redraw=partial(_all_corruptions, all_candidates, encoder))
    if pool is not None:
        notes = {**notes, "pool": pool}
        if n / pool >= NOTED_SHARE:
            log.info(
                "%s: %d of at most %d prompts that there are; a task of another seed shares about "
                "%.0f %% of its prompts with this one", name, n, pool, 100 * n / pool,
            )  # fmt: skip
    notes = {"generator": name, "n": n, "seed": seed, **notes, "template": template, "unfit": unfit}
    return Task(examples, metric, name=name, batch_size=batch_size, notes=notes)


def _key(candidate: Candidate) -> Any:
    """The clean prompt of a candidate, as a key."""
    return candidate.clean if isinstance(candidate.clean, str) else tuple(candidate.clean)


def _too_few(name: str, n: int, kept: int, drawn: int) -> str:
    if kept:
        return (
            f"{name}: n={n} prompts were asked for, but only {kept} distinct ones fit this "
            f"tokenizer and these options; ask for n={kept} or fewer"
        )
    reason = (
        f"none of {drawn} drawn pairs has prompts of equal token length whose answers begin with "
        "different known tokens"
        if drawn
        else "its vocabulary leaves too few words of equal token length to choose from"
    )
    return f"{name}: this tokenizer can make no prompt: {reason}"


def _all_corruptions(
    all_candidates: Callable[[], Iterator[Candidate]], encoder: Encoder
) -> Iterator[Option]:
    """All corrupted prompts of each prompt, encoded, without those that do not fit."""
    candidates = all_candidates()
    while chunk := list(islice(candidates, REDRAW_CHUNK)):
        for fitted in _fit(chunk, encoder):
            if fitted is not None:
                clean, corrupt, _, distractor, _ = fitted
                yield clean, corrupt, distractor


def _fit(chunk: list[Candidate], encoder: Encoder) -> Iterator[Fitted | None]:
    """Token ids of each candidate, or ``None`` where it does not fit."""
    texts = [t for c in chunk for t in (c.clean, c.corrupt) if isinstance(t, str)]
    coded = iter(encoder.prompts(texts) if texts else [])
    for candidate in chunk:
        clean, corrupt = (
            encoder.extended(next(coded), end) if isinstance(t, str) else t
            for t, end in zip((candidate.clean, candidate.corrupt), candidate.ends, strict=True)
        )
        shared, answer, distractor = _first_tokens(candidate, encoder)
        fits = (
            len(clean) == len(corrupt)
            and clean != corrupt
            and answer
            and distractor
            and set(answer).isdisjoint(distractor)
        )
        if not fits:
            yield None
            continue
        clean, corrupt = (encoder.extended(row, shared) for row in (clean, corrupt))
        yield clean, corrupt, answer, distractor, candidate.template


def _first_tokens(
    candidate: Candidate, encoder: Encoder
) -> tuple[Sequence[int], list[int], list[int]]:
    """First tokens of answers and distractors; empty if one of them is unknown.

    Where all of them begin with the same tokens for a space, these go behind the prompts (the first
    value returned) and the tokens after them count.
    """
    prompt = candidate.clean if isinstance(candidate.clean, str) else ""
    tokens = [
        [encoder.continuation(prompt, v) if isinstance(v, str) else [v] for v in values]
        for values in (candidate.answer, candidate.distractor)
    ]
    known = [ids for group in tokens for ids in group]
    if not all(known) or not known:
        return (), [], []
    shared = known[0][: encoder.blanks(known[0])]
    depth = len(shared)
    if any(len(ids) <= depth or ids[:depth] != shared for ids in known):
        shared, depth = [], 0
    if any(ids[depth] == encoder.unknown_id for ids in known):
        return (), [], []
    answer, distractor = (list(dict.fromkeys(ids[depth] for ids in group)) for group in tokens)
    return shared, answer, distractor
