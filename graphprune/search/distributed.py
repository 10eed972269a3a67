"""Several processes that share every batch, as `accelerate launch` or `torchrun` starts them.

Each process draws the same masks (the same seed), runs its own share of the examples, and the
gradients are averaged with the number of examples as weights: shares of unequal size, an empty one
too, still give the exact mean over the whole batch. One process alone is the same code without
communication.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from graphprune.errors import InputError, MissingExtraError

__all__ = ["Workers"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """The processes of a run: this one's ``rank`` among ``world``.

    ``device`` is where collectives take their tensors; ``sharded`` says that each process holds a
    part of the weights only, so that all of them must run every batch.

    Example:
        >>> Workers(rank=1, world=3).share([10, 11, 12, 13])
        [11]
        >>> Workers().share([10, 11]), Workers().is_main
        ([10, 11], True)
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    sharded: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank {self.rank} is not one of {self.world} workers")

    @classmethod
    def current(cls, module: nn.Module | None = None) -> Workers:
        """The processes this one was started with; one alone where there are no others.

        ``module`` tells whether the weights are sharded. Joins the process group if the launcher's
        environment names one that is not joined yet. Raises :class:`MissingExtraError` where that
        needs `accelerate` and it is not installed.
        """
        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not joined and int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError:
            raise MissingExtraError(
                "a run over several processes needs accelerate, not installed here; run: "
                'pip install "graphprune[scale]"'
            ) from None
        state: Any = PartialState(cpu=not torch.cuda.is_available())
        return cls(
            int(state.process_index), int(state.num_processes), str(state.device),
            module is not None and _sharded(module),
        )  # fmt: skip

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's items: every ``world``-th from ``rank`` on; none where there are too few.

        Raises :class:`InputError` where the weights are sharded and some process would get none: it
        would not take part in gathering them, and the others would wait for ever.
        """
        if self.sharded and len(items) < self.world:
            raise InputError(
                f"a batch of {len(items)} examples cannot be shared by {self.world} processes that "
                "each hold a part of the weights; use batches of at least one example for each "
                "(the last batch of the examples too)"
            )
        return list(items[self.rank :: self.world])

    def mean_(self, tensor: Tensor, weight: float) -> Tensor:
        """In place: the mean of every process's ``tensor``, weighted; sums run in float64.

        ``weight`` is this process's number of examples. A process of weight 0 adds nothing,
        whatever its tensor holds. Where all weights are 0 the tensor becomes 0.
        """
        if self.world == 1:
            return tensor
        total = torch.zeros(tensor.numel() + 1, dtype=torch.float64, device=self.device)
        if weight:
            total[:-1] = tensor.detach().reshape(-1)
            total[:-1] *= weight
            total[-1] = weight
        torch.distributed.all_reduce(total)
        with torch.no_grad():
            mean = total[:-1] / total[-1].clamp(min=torch.finfo(torch.float64).tiny)
            tensor.copy_(mean.view(tensor.shape))
        return tensor

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world > 1:
            self.mean_(torch.zeros(1), 1.0)


def _sharded(module: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in module.parameters())
