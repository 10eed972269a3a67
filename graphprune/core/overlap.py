"""What two parts of a task, or a circuit and a task, have in common.

Each prompt (any input) has a fingerprint of its contents, whatever its place, batch or padding. Two
examples overlap where the clean prompt of one is the clean or the corrupted prompt of the other: a
method that has seen one has seen the other's prompt. What is asked of a prompt does not matter, nor
does a corrupted prompt that both have, which is nobody's question.

An example that a method has seen is old: figures on it say how well the method has fitted, not how
well the circuit does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.batch import Fingerprinted, Redrawable
from graphprune.core.contents import fingerprint
from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.core.task import Task

__all__ = [
    "Apart",
    "ExampleFingerprint",
    "apart",
    "as_table",
    "digest",
    "old_ones",
    "parted",
    "prints",
    "token_digest",
]

Table = NDArray[np.int64]


class ExampleFingerprint(NamedTuple):
    """64-bit hashes of an example's clean and corrupted inputs; 0: it has no corrupted ones."""

    clean: int
    corrupt: int = 0


def digest(raw: bytes) -> int:
    """A signed 64-bit hash of bytes that is never 0."""
    found = hashlib.blake2b(raw, digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True) or 1


def token_digest(ids: Any) -> int:
    """The fingerprint of a prompt: of its token ids without padding."""
    return digest(np.asarray(ids, dtype="<i4").tobytes())


def prints(task: Task) -> Table:
    """``[len(task), 2]``: each example's :class:`ExampleFingerprint`, in the task's order.

    Of examples that are not :class:`~graphprune.core.batch.Fingerprinted` single ones are read.
    """
    if isinstance(task.examples, Fingerprinted):
        table = task.examples.prints()
        return table if task.order is None else table[np.asarray(task.order, dtype=np.int64)]
    numbers = range(len(task.examples)) if task.order is None else task.order
    rows = [_read(task.examples.batch([number])) for number in numbers]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 2)


def _read(batch: Any) -> tuple[int, int]:
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


def as_table(found_on: HasFingerprints | Iterable[ExampleFingerprint]) -> Table:
    """``[M, 2]`` of a task or of fingerprints; raises :class:`InputError` for anything else."""
    given = found_on.example_fingerprints() if isinstance(found_on, HasFingerprints) else found_on
    try:
        rows = sorted({ExampleFingerprint(*(int(part) for part in row)) for row in given})
    except (TypeError, ValueError):
        raise InputError(
            "found_on is the task whose examples found the circuit, or their fingerprints "
            f"(task.example_fingerprints()), got {type(found_on).__name__}"
        ) from None
    return np.asarray(rows, dtype=np.int64).reshape(-1, 2)


def old_ones(own: Table, seen: Table) -> NDArray[np.bool_]:
    """``[N]``: which of the examples ``own [N, 2]`` overlap one of ``seen [M, 2]``."""
    crossed = (own[:, 1] != 0) & np.isin(own[:, 1], seen[:, 0])
    old: NDArray[np.bool_] = np.isin(own[:, 0], seen[seen != 0]) | crossed
    return old


@dataclass(frozen=True)
class Apart:
    """A task without what was seen.

    Args:
        task: what is left; ``None``: nothing.
        old: examples left out.
        redrawn: examples kept with another corrupted prompt, since theirs had been seen.
    """

    task: Task | None
    old: int
    redrawn: int


def apart(task: Task, seen: Table, *, drop: bool = True) -> Apart:
    """The part of a task that does not overlap the examples ``seen [M, 2]``.

    A corrupted prompt that is a clean one of ``seen`` is drawn again where the examples can
    (:class:`~graphprune.core.batch.Redrawable`); otherwise the example is left out, as is one whose
    clean prompt was seen. ``drop=False`` leaves none out and only draws again. Without overlap the
    task comes back as it is.
    """
    own = prints(task)
    old = np.isin(own[:, 0], seen[seen != 0]) if drop else np.zeros(len(own), dtype=bool)
    taken = seen[:, 0]
    crossed = ~old & (own[:, 1] != 0) & np.isin(own[:, 1], taken)
    examples = task.examples
    done = np.zeros(len(own), dtype=bool)
    if crossed.any() and isinstance(examples, Redrawable):
        every = range(len(own)) if task.order is None else task.order
        numbers = np.asarray(every, dtype=np.int64)
        examples, drawn = examples.redrawn(
            numbers[crossed], numbers[~old], frozenset(taken.tolist())
        )
        done = crossed & np.isin(numbers, np.asarray(drawn, dtype=np.int64))
    if drop:
        old |= crossed & ~done
    counts = {"redrawn": int(done.sum()), "dropped": int(old.sum())}
    if not any(counts.values()):
        return Apart(task, 0, 0)
    if old.all():
        return Apart(None, len(own), 0)
    kept = task.subset(np.flatnonzero(~old).tolist()) if old.any() else task
    notes = {**task.notes, "overlap": {name: n for name, n in counts.items() if n}}
    left = replace(kept, examples=examples, notes=notes)
    return Apart(left, counts["dropped"], counts["redrawn"])


def parted(first: Task, second: Task) -> tuple[Task, Apart]:
    """Two parts of a task without overlap: the first, whole, and what is left of the second.

    ``redrawn`` counts corrupted prompts of both that were drawn again.
    """
    mended = apart(first, prints(second), drop=False)
    whole = mended.task or first
    rest = apart(second, prints(whole))
    return whole, replace(rest, redrawn=rest.redrawn + mended.redrawn)
