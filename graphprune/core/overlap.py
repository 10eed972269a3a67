"""Examples that two parts of a task, or a circuit and a task, have in common.

Each prompt (any input) has a fingerprint of its contents, whatever its place, batch or padding. Two
examples overlap where the clean prompt of one is the clean or the corrupted prompt of the other: a
method that has seen one has seen the other's prompt. What is asked of a prompt does not matter, nor
does a corrupted prompt that both have, which is nobody's question.

An example that a method has seen is old: figures on it say how well the method has fitted, not how
well the circuit does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.batch import Examples, Fingerprinted, Redrawable
from graphprune.core.contents import fingerprint
from graphprune.errors import InputError

Table = NDArray[np.int64]


class ExampleSet(Protocol):
    """A task as this module sees it: a frozen dataclass of examples in an order."""

    @property
    def examples(self) -> Examples:
        """The source of batches."""
        ...

    @property
    def example_numbers(self) -> Sequence[int]:
        """Which of the examples, in which order."""
        ...

    @property
    def notes(self) -> dict[str, Any]:
        """Provenance."""
        ...

    def subset(self, indices: Sequence[int]) -> Self:
        """Some of the examples."""
        ...


T = TypeVar("T", bound=ExampleSet)


class ExampleFingerprint(NamedTuple):
    """64-bit hashes of an example's clean and corrupted inputs; 0: it has no corrupted ones.

    Example:
        >>> found_on = circuit.found_on
        >>> len(found_on), set(prompts.example_fingerprints()) & found_on
        (10, set())
    """

    clean: int
    corrupt: int = 0


def digest(raw: bytes) -> int:
    """A signed 64-bit hash of bytes that is never 0."""
    hashed = hashlib.blake2b(raw, digest_size=8).digest()
    return int.from_bytes(hashed, "little", signed=True) or 1


def token_digest(ids: Any) -> int:
    """The fingerprint of a prompt: of its token ids without padding."""
    return digest(np.asarray(ids, dtype="<i4").tobytes())


def fingerprint_table(task: ExampleSet) -> Table:
    """``[len(task), 2]``: each example's :class:`ExampleFingerprint`, in the task's order.

    Of examples that are not :class:`~graphprune.core.batch.Fingerprinted` single ones are read.
    """
    if isinstance(task.examples, Fingerprinted):
        table: Table = task.examples.fingerprints()[np.asarray(task.example_numbers)]
        return table
    rows = [_fingerprint(task.examples.batch([number])) for number in task.example_numbers]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 2)


def _fingerprint(batch: Any) -> tuple[int, int]:
    """The fingerprint of a batch of one."""

    def one(given: Any) -> int:
        if isinstance(given, Mapping) and isinstance(given.get("input_ids"), Tensor):
            ids, mask = given["input_ids"][0], given.get("attention_mask")
            return token_digest((ids if mask is None else ids[mask[0].bool()]).cpu().numpy())
        return digest(fingerprint(given, batch.positions).encode())

    return one(batch.clean), 0 if batch.corrupt is None else one(batch.corrupt)


@runtime_checkable
class HasFingerprints(Protocol):
    """A task, or whatever else knows the fingerprints of its examples."""

    def example_fingerprints(self) -> tuple[ExampleFingerprint, ...]:
        """Each example's."""
        ...


def fingerprint_set(
    found_on: HasFingerprints | Iterable[ExampleFingerprint],
) -> frozenset[ExampleFingerprint]:
    """Those of a task, or those given; raises :class:`InputError` for anything else."""
    given = found_on.example_fingerprints() if isinstance(found_on, HasFingerprints) else found_on
    try:
        return frozenset(ExampleFingerprint(*(int(part) for part in row)) for row in given)
    except (TypeError, ValueError):
        raise InputError(
            "found_on is the task whose examples found the circuit, or their fingerprints "
            f"(task.example_fingerprints()), got {type(found_on).__name__}"
        ) from None


def as_table(found_on: HasFingerprints | Iterable[ExampleFingerprint]) -> Table:
    """``[M, 2]``: a :func:`fingerprint_set` in order."""
    return np.asarray(sorted(fingerprint_set(found_on)), dtype=np.int64).reshape(-1, 2)


def count_overlapping(task: ExampleSet, found_on: Iterable[ExampleFingerprint]) -> int:
    """Number of the task's examples that overlap those with the fingerprints ``found_on``."""
    table, seen = fingerprint_table(task), as_table(found_on)
    corrupt_seen = (table[:, 1] != 0) & np.isin(table[:, 1], seen[:, 0])
    return int((np.isin(table[:, 0], seen[seen != 0]) | corrupt_seen).sum())


@dataclass(frozen=True)
class Remaining(Generic[T]):
    """A task without the examples that were seen.

    Args:
        task: the examples that are left; ``None`` means none.
        dropped: how many examples were left out.
        redrawn: how many were kept with another corrupted prompt, since theirs had been seen.
    """

    task: T | None
    dropped: int
    redrawn: int


def without_overlap(task: T, seen: Table, *, drop: bool = True) -> Remaining[T]:
    """The part of a task that does not overlap the examples ``seen [M, 2]``.

    A corrupted prompt that is a clean one of ``seen`` is drawn again where the examples can
    (:class:`~graphprune.core.batch.Redrawable`); otherwise the example is left out, as is one whose
    clean prompt was seen. ``drop=False`` leaves none out and only draws again. Without overlap the
    task comes back as it is.
    """
    table = fingerprint_table(task)
    dropped = np.isin(table[:, 0], seen[seen != 0]) if drop else np.zeros(len(table), dtype=bool)
    seen_clean = seen[:, 0]
    corrupt_seen = ~dropped & (table[:, 1] != 0) & np.isin(table[:, 1], seen_clean)
    examples = task.examples
    drawn_again = np.zeros(len(table), dtype=bool)
    if corrupt_seen.any() and isinstance(examples, Redrawable):
        numbers = np.asarray(task.example_numbers)
        examples, successful = examples.redrawn(
            numbers[corrupt_seen], numbers[~dropped], frozenset(seen_clean.tolist())
        )
        drawn_again = corrupt_seen & np.isin(numbers, np.asarray(successful, dtype=np.int64))
    if drop:
        dropped |= corrupt_seen & ~drawn_again
    counts = {"redrawn": int(drawn_again.sum()), "dropped": int(dropped.sum())}
    if not any(counts.values()):
        return Remaining(task, 0, 0)
    if dropped.all():
        return Remaining(None, len(table), 0)
    kept: Any = task.subset(np.flatnonzero(~dropped).tolist()) if dropped.any() else task
    notes = {**task.notes, "overlap": {name: n for name, n in counts.items() if n}}
    left = cast(T, replace(kept, examples=examples, notes=notes))
    return Remaining(left, counts["dropped"], counts["redrawn"])


def split_without_overlap(first: T, second: T) -> tuple[T, Remaining[T]]:
    """Two parts of a task without overlap: the first, whole, and what is left of the second.

    ``redrawn`` counts corrupted prompts of both that were drawn again.
    """
    redrawn = without_overlap(first, fingerprint_table(second), drop=False)
    whole = redrawn.task or first
    rest = without_overlap(second, fingerprint_table(whole))
    return whole, replace(rest, redrawn=rest.redrawn + redrawn.redrawn)
