"""A task: clean and ablated inputs, where the answer is read, and a metric."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from torch import Tensor

from graphprune.core.batch import Aligned, Batch, Examples, Readable
from graphprune.core.contents import fingerprint
from graphprune.core.metrics import METRICS, Metric, as_metric
from graphprune.core.overlap import (
    ExampleFingerprint,
    as_table,
    fingerprint_table,
    split_without_overlap,
    without_overlap,
)
from graphprune.errors import InputError
from graphprune.util.checks import at_least, is_integer, require_one_of, seed_checked
from graphprune.util.modes import ordinary_tensors
from graphprune.util.notebook import PlainText, notebook_card

if TYPE_CHECKING:
    from graphprune.tasks.pairs import OnMismatch

log = logging.getLogger("graphprune.tasks")

_ADVICE = "give pairs prompts of their own, or overlap='keep' to leave the parts as drawn"
_CHUNK = 128  # examples whose contents are read at a time


@dataclass(frozen=True, eq=False)
class Task:
    """Examples with a metric; batches are deterministic by seed.

    Args:
        examples: where batches come from.
        metric: a name, a :class:`~graphprune.Metric` or a callable; see ``as_metric``.
        name: shown in tables and provenance.
        order: which of the examples, in which order; ``None`` takes all.
        batch_size: used where a method names none.
        notes: provenance worth keeping (template pool, dropped pairs, ...), plain values.

    Example:
        >>> Task.from_tensors(torch.tensor([[3, 4], [3, 5]]), answer=[6, 7], metric="accuracy")
        Task('tensors', 2 examples, metric='accuracy')
        >>> train, held_out = prompts.split(0.5)
        >>> len(train), len(held_out)
        (4, 4)
    """

    examples: Examples
    metric: Metric
    name: str = "task"
    order: tuple[int, ...] | None = None
    batch_size: int = 32
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", as_metric(self.metric))
        object.__setattr__(self, "batch_size", at_least(self.batch_size, 1, "batch_size"))
        if len(self) == 0:
            raise InputError(f"task {self.name!r} has no examples")

    # ---------------------------------------------------------------- building

    @classmethod
    def from_tensors(
        cls,
        clean: Any,
        corrupt: Any = None,
        *,
        answer: Any = None,
        distractor: Any = None,
        positions: Any = None,
        attention_mask: Tensor | None = None,
        metric: str | Metric | Callable[..., Any] = "logit_diff",
        name: str = "tensors",
        batch_size: int = 32,
    ) -> Task:
        """A task from token ids ``[N, T]``, images (floats), or a mapping of a model's inputs.

        ``answer`` and ``distractor`` are ids, one or a list for each example. ``positions=None``
        reads the answer at the last position that is no padding. ``attention_mask`` marks padding
        (left or right; it is moved to the right).
        """
        from graphprune.tasks.tensor_examples import examples_of

        examples = examples_of(clean, corrupt, answer, distractor, positions, attention_mask)
        return cls(examples, as_metric(metric), name=name, batch_size=batch_size)

    @classmethod
    def from_pairs(
        cls,
        records: Sequence[dict[str, Any]],
        tokenizer: Any,
        *,
        metric: str | Metric | Callable[..., Any] = "logit_diff",
        name: str = "pairs",
        on_mismatch: OnMismatch = "error",
        batch_size: int = 32,
    ) -> Task:
        """A task from records with ``clean``, ``corrupt``, ``answer``, ``distractor`` texts.

        Any of the four but ``clean`` may be missing. ``on_mismatch`` says what happens to pairs
        whose token lengths differ: ``"error"`` lists them, ``"drop"`` drops and counts them. A
        record with ``spans`` (``{name: [[start, end], [start, end]]}``, token ranges in the clean
        and the corrupted prompt) is aligned span by span instead.
        """
        from graphprune.tasks.pairs import TokenPairs

        examples, notes = TokenPairs.from_records(records, tokenizer, on_mismatch=on_mismatch)
        return cls(examples, as_metric(metric), name=name, batch_size=batch_size, notes=notes)

    @classmethod
    def from_stream(
        cls,
        records: Any,
        tokenizer: Any,
        *,
        length: int | None = None,
        metric: str | Metric | Callable[..., Any] = "logit_diff",
        name: str = "stream",
        on_mismatch: OnMismatch = "error",
        batch_size: int = 32,
        spool: str | Path | None = None,
    ) -> Task:
        """A task from any number of records, in constant memory.

        The records are read once, encoded in chunks of 1,000 and written to files that are then
        memory-mapped, so that the task can be shuffled, split and indexed like any other; its
        batches equal those of :meth:`from_pairs`. 100,000 prompts of 15 tokens with their twins
        take about 15 MB of disk.

        Args:
            records: what :meth:`from_pairs` takes, as any iterable (a generator, a streamed data
                set), or a function of no arguments that gives one.
            tokenizer: a Hugging Face tokenizer.
            length: how many records to take. It is a promise: fewer are an error, and no more are
                read from a longer or endless stream. ``None`` reads to the end. Pairs that
                ``on_mismatch="drop"`` drops count as taken.
            metric: the task's metric.
            name: shown in tables and provenance.
            on_mismatch: as for :meth:`from_pairs`; ``"error"`` stops at the first chunk with such
                pairs.
            batch_size: used where a method names none.
            spool: the folder to make the files in, the system's folder for temporary files by
                default (which some systems keep in memory). They lie in a folder of their own
                there, removed when the task and all parts of it are gone, or the interpreter ends.

        Raises:
            InputError: as :meth:`from_pairs`; for a stream that ends before ``length``, saying how
                many records came; and where the files cannot be written.

        Example:
            >>> from transformers import PreTrainedTokenizerFast
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> raw = Tokenizer(models.WordLevel({"?": 0, "up": 1, "to": 2, "down": 3}, "?"))
            >>> raw.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> words = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")
            >>> def endless():
            ...     while True:
            ...         yield {"clean": "up to", "corrupt": "down to", "answer": " down"}
            >>> task = Task.from_stream(endless, words, length=2_500, metric="kl")
            >>> train, held_out = task.split(2_000, overlap="keep")  # all prompts are one
            >>> len(train), next(held_out.batches(2)).clean["input_ids"].tolist()
            (2000, [[1, 2], [1, 2]])
            >>> Task.from_stream(iter([{"clean": "up"}]), words, length=5)
            Traceback (most recent call last):
            graphprune.errors.InputError: the data set ended early: length=5 records were promised,
            1 came
        """
        from graphprune.tasks.pairs import TokenPairs

        measure = as_metric(metric)
        examples, notes = TokenPairs.from_stream(
            records, tokenizer, length=length, on_mismatch=on_mismatch, spool=spool
        )
        return cls(examples, measure, name=name, batch_size=batch_size, notes=notes)

    @classmethod
    def from_jsonl(cls, path: str | Path, tokenizer: Any, **options: Any) -> Task:
        """A task from a JSON-lines file, one record a line; options as :meth:`from_pairs`.

        A file of more than 16 MiB is read line by line, in constant memory, as
        :meth:`from_stream` does it; so is any file where ``length`` or ``spool`` is given.
        """
        from graphprune.tasks.files import iterate_jsonl, task_of

        return task_of(cls, iterate_jsonl, path, tokenizer, **options)

    @classmethod
    def from_csv(cls, path: str | Path, tokenizer: Any, **options: Any) -> Task:
        """A task from a CSV file with a header; options and large files as :meth:`from_jsonl`."""
        from graphprune.tasks.files import iterate_csv, task_of

        return task_of(cls, iterate_csv, path, tokenizer, **options)

    # ---------------------------------------------------------------- reading

    def __len__(self) -> int:
        return len(self.example_numbers)

    @property
    def example_numbers(self) -> Sequence[int]:
        """Which of ``examples`` the task has, in its order."""
        return range(len(self.examples)) if self.order is None else self.order

    @cached_property
    def aligns_spans(self) -> bool:
        """``True`` if some clean prompt reads its corrupted one span by span.

        Asked of the batches themselves, so that it holds for anyone's examples.
        """
        if isinstance(self.examples, Aligned) and not self.examples.has_spans:
            return False
        return any(batch.alignment is not None for batch in self.batches())

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits of what is asked: the examples in order, the metric, batch size.

        Clean and corrupted inputs, answers, distractors, positions and alignment count; names and
        notes do not. Computed anew each time (100,000 prompts take some seconds).
        """
        numbers, parts = self.example_numbers, []
        for start in range(0, len(numbers), _CHUNK):
            batch = self.examples.batch([*numbers[start : start + _CHUNK]])
            parts.append(fingerprint(replace(batch, indices=())))
        metric = self.metric.name if METRICS.get(self.metric.name) == self.metric else self.metric
        return fingerprint(len(numbers), parts, metric, self.batch_size)

    def num_batches(self, size: int | None = None) -> int:
        """Number of batches that :meth:`batches` makes of ``size`` examples (``None``: its own).

        Raises :class:`InputError` unless ``size`` is an integer of at least 1.
        """
        return -(-len(self) // self._size(size))

    def _size(self, size: int | None) -> int:
        return self.batch_size if size is None else at_least(size, 1, "batch_size")

    def batches(
        self, batch_size: int | None = None, *, shuffle: int | None = None
    ) -> Iterator[Batch]:
        """Every example once, in batches of similar length (``shuffle``: a seed, random order)."""
        size, numbers = self._size(batch_size), np.asarray(self.example_numbers)
        if shuffle is not None:
            seed = seed_checked(shuffle, "shuffle")
            chosen = np.random.default_rng(seed).permutation(len(self))
        else:
            lengths = np.asarray(self.examples.lengths())[numbers]
            chosen = np.argsort(lengths, kind="stable")
        chosen = numbers[chosen]
        draw = ordinary_tensors(self.examples.batch)
        for number in range(self.num_batches(size)):
            yield draw(chosen[number * size : (number + 1) * size].tolist())

    def subset(self, indices: Sequence[int]) -> Self:
        """The task on some of its examples, numbered as in this task.

        Raises :class:`InputError` for booleans: a mask would be read as the numbers 0 and 1.
        """
        base = self.example_numbers
        given: Any = indices
        chosen = list(given.tolist() if isinstance(given, np.ndarray | Tensor) else given)
        wrong = next((i for i in chosen if not is_integer(i)), None)
        if wrong is not None:
            raise InputError(
                f"a subset is a list of example numbers, got {wrong!r}; for a mask of booleans "
                "give np.flatnonzero(mask)"
            )
        if not all(0 <= i < len(base) for i in chosen):
            raise InputError(f"a subset of {len(base)} examples names one outside them")
        return replace(self, order=tuple(base[i] for i in chosen))

    def take(self, n: int) -> Task:
        """The first ``n`` examples (all, if there are fewer)."""
        return self.subset(range(min(n, len(self))))

    def split(
        self, train: float = 0.5, seed: int = 0, *, overlap: Literal["mend", "keep"] = "mend"
    ) -> tuple[Task, Task]:
        """Two disjoint random parts that share no clean prompt; ``train`` is a count or a fraction.

        No clean prompt of one part is a clean or a corrupted prompt of the other. Corrupted prompts
        that are, are drawn again where the task can (capitals, antonyms, successor, pronouns,
        boolean expressions, patterns of other classes); otherwise the pair leaves the second part,
        which is smaller then. ``notes["overlap"]`` of a part counts both, and a log line says so.

        Args:
            train: how many examples the first part has (int) or which share (float).
            seed: draws the same parts again.
            overlap: ``"keep"`` leaves the parts as they were drawn.

        Raises:
            InputError: where a part would be empty, also where all prompts of the second part are
                prompts of the first.
        """
        if (
            isinstance(train, bool)
            or not isinstance(train, int | float | np.integer | np.floating)
            or not np.isfinite(train)
        ):
            raise InputError(f"train must be a count (int) or a fraction (float), got {train!r}")
        require_one_of(overlap, ("mend", "keep"), "overlap")
        count = int(train) if is_integer(train) else round(float(train) * len(self))
        if not 0 < count < len(self):
            raise InputError(
                f"cannot split {len(self)} examples into {count} and {len(self) - count}; both "
                "parts need at least one"
            )
        order = np.random.default_rng(seed_checked(seed)).permutation(len(self))
        parts: Any = np.sort(order[:count]), np.sort(order[count:])
        first, second = self.subset(parts[0]), self.subset(parts[1])
        return (first, second) if overlap == "keep" else self._without_shared_prompts(first, second)

    def _without_shared_prompts(self, first: Task, second: Task) -> tuple[Task, Task]:
        """Two parts without overlap; the first keeps all its examples."""
        first, rest = split_without_overlap(first, second)
        if rest.task is None:
            raise InputError(
                f"cannot split task {self.name!r}: every prompt of the second part "
                f"({len(second)} examples) is a prompt of the first; {_ADVICE}"
            )
        again = f"{rest.redrawn} corrupted prompts (clean ones of the other part) drawn again"
        if rest.dropped:
            one = " (on one example no measure has an interval)" if len(rest.task) == 1 else ""
            again = f"; {again}" if rest.redrawn else ""
            log.warning(
                f"split of {self.name}: {rest.dropped} of {len(second)} held-out pairs left out, "
                f"which share a prompt with the other part{again}; {len(rest.task)} left{one}: "
                f"{_ADVICE}"
            )
        elif rest.redrawn:
            log.info("split of %s: %s", self.name, again)
        return first, rest.task

    def example_fingerprints(self) -> tuple[ExampleFingerprint, ...]:
        """Each example's fingerprint: alike for equal contents in any place, batch or padding.

        Of language tasks the token ids count, of patterns the features, of nodes of one graph the
        features and the node, of batched graphs the graph's number. 100,000 prompts take a few
        seconds at most.
        """
        return tuple(ExampleFingerprint(*row) for row in fingerprint_table(self).tolist())

    def unseen(self, found_on: Task | Iterable[ExampleFingerprint]) -> Task:
        """The examples that share no clean prompt with those of ``found_on``.

        ``task.unseen(circuit.found_on)`` is the part to judge a circuit on: of the task whose split
        found it exactly the held-out part. Corrupted prompts are drawn again as by :meth:`split`.

        Raises:
            InputError: where none is left.
        """
        remaining = without_overlap(self, as_table(found_on))
        if remaining.task is None:
            raise InputError(
                f"all {len(self)} examples of task {self.name!r} are old: their prompts found the "
                "circuit; take more examples or another seed"
            )
        return remaining.task

    def with_metric(self, metric: str | Metric | Callable[..., Any]) -> Task:
        """The same examples under another metric."""
        return replace(self, metric=as_metric(metric))

    def show(self, count: int = 3) -> PlainText:
        """The first examples, as text that Python and notebooks show line by line."""
        shown = [repr(self)]
        if isinstance(self.examples, Readable):
            rows = [self.examples.texts(number) for number in self.example_numbers[:count]]
            shown += [f"  {part:<12}{text}" for row in rows for part, text in row.items()]
        return PlainText("\n".join(shown))

    def _repr_html_(self) -> str:
        return notebook_card(repr(self), remarks=self.show().splitlines()[1:])

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self)} examples, metric={self.metric.name!r})"


def require_task(task: object) -> None:
    """Raises :class:`InputError` unless ``task`` is a task."""
    if not isinstance(task, Task):
        raise InputError(
            f"expected a task, got {type(task).__name__}; make one first: "
            "gp.Task.from_tensors(clean, corrupt, answer=...) of prompts, gp.tasks.nodes(data) or "
            "gp.tasks.graphs(labels) of graphs"
        )
