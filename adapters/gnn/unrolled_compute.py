"""Computes an unrolled run as a step of autograd, and tries how long ways to compute it take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .unroll import UnrolledRun
from .unrolled_run import DenseRun, Product, SparseRun, TorchRun

__all__ = ["compute", "faster", "seconds"]

# A processor multiplies and adds at most about this many numbers while it looks one edge up: where
# matrices have more cells for an edge, they are not tried.
_CELLS_PER_EDGE = 64
_MOST_CELLS = 1 << 24
_MOST_NUMBERS = 1 << 22  # computed at a time where nothing has to be kept for gradients
_TRIALS = 3


class _Compute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, leaves: Tensor, factors: Tensor, run: TorchRun, updated: Tensor | None
    ) -> Tensor:
        rows = run.rows(leaves, factors, updated)
        ctx.save_for_backward(rows, factors)
        ctx.run, ctx.updated = run, updated
        return run.read(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, factors = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        return *ctx.run.gradients(gradient, rows, factors, ctx.updated, *needed), None, None


def compute(
    run: TorchRun, leaves: Tensor, factors: Tensor, updated: Tensor | None = None
) -> Tensor:
    """``[n, M]``: the wanted states of a run, from the given rows ``[leaves, M]`` and factors.

    ``updated [steps, n, 1]`` is of a run for any updates.
    """
    if torch.is_grad_enabled() and (leaves.requires_grad or factors.requires_grad):
        computed: Tensor = _Compute.apply(leaves, factors, run, updated)  # type: ignore[no-untyped-call]
        return computed
    size = max(32, _MOST_NUMBERS // run.run.rows)
    with torch.no_grad():
        if leaves.shape[1] <= size:
            return run.read(run.rows(leaves, factors, updated))
        parts = [run.read(run.rows(part, factors, updated)) for part in leaves.split(size, 1)]
        return torch.cat(parts, 1)


def seconds(
    make: Callable[[], TorchRun], leaves: Tensor, factors: Tensor, updated: Tensor | None = None
) -> float:
    """The least time that it takes to make a run and to compute it, with gradients if wanted."""
    gradients = torch.is_grad_enabled() and (leaves.requires_grad or factors.requires_grad)
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        weights = factors.detach().requires_grad_(gradients)
        out = compute(make(), leaves.detach(), weights, updated)
        if gradients:
            out.sum().backward()
        _ = float(out.detach().sum())  # a device has then finished
        best = min(best, time.perf_counter() - start)
    return best


def faster(
    run: UnrolledRun,
    activations: tuple[str, str],
    leaves: Tensor,
    factors: Tensor,
    updated: Tensor | None = None,
) -> Product:
    """The product that computes a run in less time, with gradients where they are wanted."""
    if not 0 < _cells(run) <= min(_MOST_CELLS, _CELLS_PER_EDGE * len(run.source)):
        return "sparse"
    dense, sparse = (kind(run, activations, leaves.device) for kind in (DenseRun, SparseRun))
    given = leaves, factors, updated
    return "dense" if seconds(lambda: dense, *given) < seconds(lambda: sparse, *given) else "sparse"


def _cells(run: UnrolledRun) -> int:
    """Entries of all waves' matrices together."""
    cells = 0
    for wave in run.waves:
        first, last = wave.start - run.leaves, wave.stop - run.leaves
        read = np.unique(run.source[run.offsets[first] : run.offsets[last]])
        cells += (last - first) * len(read)
    return cells
