"""Which examples each step sees, and which references are kept.

The examples are shuffled once into batches of fixed members; every pass over them visits the
batches in a new random order. Both are functions of the seed and the step alone.

A reference (the clean and ablated values of a batch) is kept where that pays: if every batch will
be seen at least twice and all references together fit the cache. Otherwise each step makes its own.
Results do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, MaskedModel, Reference
from graphprune.core.sanity_checks import IdleAblationCheck
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.search.distributed import Workers

__all__ = ["SHARE", "MiniBatches", "available_memory"]

SHARE = 0.25  # of the free memory may go to cached references


def available_memory(device: torch.device) -> int:
    """Free bytes on a device; of the machine's memory for the CPU (a guess of 4 GiB elsewhere)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


@lru_cache(maxsize=8)
def _order(seed: int, number: int, batches: int) -> tuple[int, ...]:
    """In which order pass ``number`` over the examples visits the batches."""
    return tuple(np.random.default_rng([seed, 1, number]).permutation(batches).tolist())


@dataclass(eq=False)
class MiniBatches:
    """The batch and reference of every step.

    Args:
        model, task, ablation: what references are made of.
        batch_size: examples a step, over all workers.
        seed: of the order.
        steps: how many steps there will be, which decides whether caching pays.
        cache: bytes that references may take; ``None`` means a quarter of the free memory.
        workers: the processes that share each batch.
    """

    model: MaskedModel
    task: Task
    ablation: Ablation
    batch_size: int
    seed: int
    steps: int
    cache: int | None = None
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        total = len(self.task)
        numbers = np.arange(total) if self.task.order is None else np.asarray(self.task.order)
        members = np.random.default_rng([self.seed, 0]).permutation(numbers)
        size = min(self.batch_size, total)
        self._members = [members[i : i + size] for i in range(0, total, size)]
        self._batches: dict[int, Batch] = {}
        self._references: dict[int, Reference] = {}
        # Whether references are kept; None: decided with the first one, by all workers together.
        alone = len(self._members[0]) < self.workers.world
        never = self.passes < 2 or bool(self.ablation.parameters) or alone
        self._keep: bool | None = False if never else None

    def require_effect(self) -> None:
        """Raises :class:`InputError` where the ablation changes nothing on any example."""
        idle = IdleAblationCheck(self.model, f"task {self.task.name!r}")
        for index in range(self.num_batches):
            part = self.part(index)
            if part is not None:
                idle.see(*part)
            # All processes go on or stop together: with sharded weights all make a reference.
            if float(self.workers.mean_(torch.tensor(float(idle.settled)), 1.0)) > 0:
                return
        idle.finish()

    @property
    def num_batches(self) -> int:
        """Batches in one pass over the examples."""
        return len(self._members)

    @property
    def passes(self) -> float:
        """How often every example will be seen."""
        return self.steps / self.num_batches

    @property
    def caching(self) -> bool:
        """Whether references are kept (decided when the first one is made)."""
        return bool(self._keep)

    def _index(self, step: int) -> int:
        number, position = divmod(step, self.num_batches)
        return _order(self.seed, number, self.num_batches)[position]

    def places(self, step: int) -> tuple[int, tuple[int, ...]]:
        """How many examples the batch of a step has, and the places of this worker's in it."""
        total = len(self._members[self._index(step)])
        return total, tuple(self.workers.share(range(total)))

    def at(self, step: int) -> tuple[Batch, Reference] | None:
        """This worker's part of the batch of a step; ``None`` if others have it all."""
        return self.part(self._index(step))

    def part(self, index: int) -> tuple[Batch, Reference] | None:
        """This worker's part of batch ``index``."""
        if index in self._references:
            return self._batches[index], self._references[index]
        numbers = self.workers.share([int(i) for i in self._members[index]])
        if not numbers:
            return None
        batch = self._batches.get(index)
        if batch is None:
            batch = self.task.examples.batch(numbers)
            if batch.size != len(numbers):
                raise InputError(
                    f"the data set ended early: {len(numbers)} examples were asked for and "
                    f"{batch.size} came (task {self.task.name!r})"
                )
        reference = self.model.reference(batch, self.ablation)
        if self._keep is None:
            self._keep = self._fits(reference)
        if self._keep:
            self._batches[index], self._references[index] = batch, reference
        return batch, reference

    def _fits(self, reference: Reference) -> bool:
        room = self.cache
        if room is None:
            room = int(SHARE * available_memory(reference.full.device))
        fits = reference.nbytes * self.num_batches <= room
        # All processes decide alike: with sharded weights all make a reference, or none does.
        return bool(self.workers.mean_(torch.tensor(float(fits)), 1.0) == 1.0)
