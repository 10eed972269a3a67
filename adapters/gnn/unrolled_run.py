"""Computes the rows of an unrolled run and their gradients, by sparse or by dense products.

Columns of the rows are examples and channels. The sparse products are torch's weighted sums of
embeddings, which read, multiply and add rows in one pass; the dense ones are a matrix for each
wave, over the rows that it reads. Which is faster depends on how much is left of the graph, on the
columns and on the machine, so both are tried once (:func:`faster`).
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .unroll import UnrolledRun, Wave

__all__ = ["PRODUCTS", "DenseRun", "Product", "SparseRun", "TorchRun", "compute", "faster"]

Product = Literal["sparse", "dense"]
PRODUCTS: tuple[Product, ...] = ("sparse", "dense")
# A processor multiplies and adds at most about this many numbers while it looks one edge up: where
# matrices have more cells for an edge, they are not tried.
_CELLS_PER_EDGE = 64
_MOST_CELLS = 1 << 24
_MOST_NUMBERS = 1 << 22  # computed at a time where nothing has to be kept for gradients
_TRIALS = 3

_aten = torch.ops.aten


class _Activation(NamedTuple):
    """``apply(sum, out)`` and, from what came out, ``derive(gradient, value, out)``."""

    apply: Callable[[Tensor, Tensor], Any]
    derive: Callable[[Tensor, Tensor, Tensor], Any]


_ACTIVATIONS = {
    "tanh": _Activation(
        lambda x, out: torch.tanh(x, out=out),
        lambda g, y, out: _aten.tanh_backward.grad_input(g, y, grad_input=out),
    ),
    "sigmoid": _Activation(
        lambda x, out: torch.sigmoid(x, out=out),
        lambda g, y, out: _aten.sigmoid_backward.grad_input(g, y, grad_input=out),
    ),
    "relu": _Activation(
        lambda x, out: torch.clamp(x, min=0, out=out),
        lambda g, y, out: _aten.threshold_backward.grad_input(g, y, 0, grad_input=out),
    ),
    "identity": _Activation(
        lambda x, out: out.copy_(x),
        lambda g, y, out: out.copy_(g),
    ),
}


class TorchRun(ABC):
    """A run's rows on a device.

    Args:
        run: the rows.
        activations: names of the nodes' activation and of the outputs'.
        device: of the rows.
    """

    def __init__(
        self, run: UnrolledRun, activations: tuple[str, str], device: torch.device
    ) -> None:
        self.run, self.device = run, device
        self._first, self._last = (_ACTIVATIONS[name] for name in activations)
        self._output = self._numbers(run.output)

    def _numbers(self, values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32)).to(self.device)

    # ---------------------------------------------------------------- forwards

    def rows(self, leaves: Tensor, factors: Tensor) -> Tensor:
        """``[rows, M]`` from the given rows ``[leaves, M]`` and all factors."""
        rows = leaves.new_empty(self.run.rows, leaves.shape[1])
        given, *views = rows.split(self._sizes)
        given.copy_(leaves)
        for wave, sums, out in zip(self.run.waves, self._sums(rows, factors), views, strict=True):
            self._activate(wave, sums, out)
        return rows

    @cached_property
    def _sizes(self) -> list[int]:
        """How many rows are given, and how many each wave has."""
        return [self.run.leaves, *(wave.stop - wave.start for wave in self.run.waves)]

    def _activate(self, wave: Wave, sums: Tensor, out: Tensor) -> None:
        if wave.is_sum:
            out.copy_(sums)
        elif wave.middle == wave.stop:
            self._first.apply(sums, out)
        else:
            split = wave.middle - wave.start
            if split:
                self._first.apply(sums[:split], out[:split])
            self._last.apply(sums[split:], out[split:])

    def read(self, rows: Tensor) -> Tensor:
        """``[n, M]``: the wanted states."""
        return rows.index_select(0, self._output)

    @abstractmethod
    def _sums(self, rows: Tensor, factors: Tensor) -> Any:
        """What the rows of each wave read, wave after wave; ``rows`` fill up meanwhile."""

    # ---------------------------------------------------------------- backwards

    @abstractmethod
    def gradients(
        self, gradient: Tensor, rows: Tensor, factors: Tensor, leaves: bool, weights: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of leaves and factors from that of the wanted states ``[n, M]``."""

    def _derive(self, wave: Wave, gradient: Tensor, values: Tensor, out: Tensor) -> None:
        if wave.is_sum:
            out.copy_(gradient)
        elif wave.middle == wave.stop:
            self._first.derive(gradient, values, out)
        else:
            split = wave.middle - wave.start
            if split:
                self._first.derive(gradient[:split], values[:split], out[:split])
            self._last.derive(gradient[split:], values[split:], out[split:])


class _Bags:
    """Weighted sums of rows of a table, several at once."""

    def __init__(self, index: Tensor, offsets: Tensor) -> None:
        self.index, self.offsets = index, offsets

    def __call__(self, table: Tensor, weight: Tensor) -> Tensor:
        return torch.embedding_bag(table, self.index, self.offsets, False, 0, False, weight, True)[
            0
        ]


class SparseRun(TorchRun):
    """Reads row by row."""

    @cached_property
    def _factor(self) -> Tensor:
        return self._numbers(self.run.factor)

    @cached_property
    def _bags(self) -> tuple[list[_Bags], list[int]]:
        return self._cut(self.run.source, self.run.offsets, self._sizes[1:])

    def _cut(self, index: Any, offsets: Any, sizes: list[int]) -> tuple[list[_Bags], list[int]]:
        """Bags for each span of so many rows, and how many numbers each has."""
        first = offsets[np.cumsum([0, *sizes])]
        # Each span's offsets begin with 0 and end with its length, in one tensor for all.
        spans = np.repeat(np.arange(len(sizes)), [size + 1 for size in sizes] or 0)
        own = self._numbers(offsets[np.arange(len(spans)) - spans] - first[spans])
        lengths = np.diff(first).tolist()
        parts = zip(
            self._numbers(index).split(lengths), own.split([n + 1 for n in sizes]), strict=True
        )
        return [_Bags(*part) for part in parts], lengths

    def _sums(self, rows: Tensor, factors: Tensor) -> Any:
        bags, sizes = self._bags
        weights = factors.index_select(0, self._factor).split(sizes)
        for bag, weight in zip(bags, weights, strict=True):
            yield bag(rows, weight)

    @cached_property
    def _back(self) -> tuple[list[_Bags], list[int], Tensor]:
        """Bags of the readers of the leaves, then of each wave."""
        offsets, readers, factor = self.run.readers
        return *self._cut(readers, offsets, self._sizes), self._numbers(factor)

    def gradients(
        self, gradient: Tensor, rows: Tensor, factors: Tensor, leaves: bool, weights: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See the base class; every row collects from its readers, which come after it."""
        run, wanted = self.run, len(self._output)
        bags, sizes, factor = self._back
        weight = factors.index_select(0, factor).split(sizes)
        felt = rows.new_empty(wanted + run.computed, rows.shape[1])  # at sums, behind the wanted
        first, *views = felt.split([wanted, *self._sizes[1:]])
        first.copy_(gradient)
        values = rows.split(self._sizes)
        for number in range(len(run.waves), 0, -1):
            at_sums = bags[number](felt, weight[number])
            self._derive(run.waves[number - 1], at_sums, values[number], views[number - 1])
        of_leaves = bags[0](felt, weight[0]) if leaves else None
        if not weights or not len(run.source):
            return of_leaves, torch.zeros_like(factors) if weights else None
        products = torch.sparse.sampled_addmm(
            self._pattern(rows.dtype), felt[wanted:], rows.T, beta=0.0
        ).values()
        return of_leaves, torch.zeros_like(factors).index_add_(0, self._factor, products)

    def _pattern(self, dtype: torch.dtype) -> Tensor:
        """``[computed, rows]``: zeros where a row reads another."""
        if dtype not in self._patterns:
            run = self.run
            with warnings.catch_warnings():  # torch says once that the format is in beta
                warnings.simplefilter("ignore", UserWarning)
                self._patterns[dtype] = torch.sparse_csr_tensor(
                    self._numbers(run.offsets),
                    self._numbers(run.source),
                    torch.zeros(len(run.source), dtype=dtype, device=self.device),
                    (run.computed, run.rows),
                    check_invariants=False,
                )
        return self._patterns[dtype]

    @cached_property
    def _patterns(self) -> dict[torch.dtype, Tensor]:
        return {}


class _Matrix(NamedTuple):
    """A wave's matrix over the rows that it reads."""

    shape: tuple[int, int]
    columns: Tensor
    cells: Tensor
    factor: Tensor

    def filled(self, factors: Tensor) -> Tensor:
        weight = factors.index_select(0, self.factor)
        flat = factors.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_add_(0, self.cells, weight).view(self.shape)


class DenseRun(TorchRun):
    """Multiplies matrices."""

    @cached_property
    def _matrices(self) -> list[_Matrix]:
        run, matrices = self.run, []
        place = np.zeros(run.rows, dtype=np.int64)
        for wave in run.waves:
            first, last = wave.start - run.leaves, wave.stop - run.leaves
            span = slice(run.offsets[first], run.offsets[last])
            read = np.zeros(run.rows, dtype=bool)
            read[run.source[span]] = True
            columns = np.flatnonzero(read)
            place[columns] = np.arange(len(columns))
            row = np.repeat(np.arange(last - first), np.diff(run.offsets[first : last + 1]))
            cells = row * len(columns) + place[run.source[span]]
            numbers = (self._numbers(n) for n in (columns, cells, run.factor[span]))
            matrices.append(_Matrix((last - first, len(columns)), *numbers))
        return matrices

    def _sums(self, rows: Tensor, factors: Tensor) -> Any:
        for matrix in self._matrices:
            yield matrix.filled(factors) @ rows.index_select(0, matrix.columns)

    def gradients(
        self, gradient: Tensor, rows: Tensor, factors: Tensor, leaves: bool, weights: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """See the base class; every wave gives to the rows it read."""
        run = self.run
        felt = torch.zeros_like(rows).index_add_(0, self._output, gradient)
        of_factors = torch.zeros_like(factors) if weights else None
        for wave, matrix in zip(run.waves[::-1], self._matrices[::-1], strict=True):
            here = felt[wave.start : wave.stop]
            at_sums = torch.empty_like(here)
            self._derive(wave, here, rows[wave.start : wave.stop], at_sums)
            felt.index_add_(0, matrix.columns, matrix.filled(factors).T @ at_sums)
            if of_factors is not None:
                products = at_sums @ rows.index_select(0, matrix.columns).T
                read = products.flatten().index_select(0, matrix.cells)
                of_factors.index_add_(0, matrix.factor, read)
        return felt[: run.leaves] if leaves else None, of_factors


class _Compute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaves: Tensor, factors: Tensor, run: TorchRun) -> Tensor:
        rows = run.rows(leaves, factors)
        ctx.save_for_backward(rows, factors)
        ctx.run = run
        return run.read(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, factors = ctx.saved_tensors
        leaves, weights = ctx.needs_input_grad[:2]
        return *ctx.run.gradients(gradient, rows, factors, leaves, weights), None


def compute(run: TorchRun, leaves: Tensor, factors: Tensor) -> Tensor:
    """``[n, M]``: the wanted states of a run, from the given rows ``[leaves, M]`` and factors."""
    if torch.is_grad_enabled() and (leaves.requires_grad or factors.requires_grad):
        computed: Tensor = _Compute.apply(leaves, factors, run)  # type: ignore[no-untyped-call]
        return computed
    size = max(32, _MOST_NUMBERS // run.run.rows)
    with torch.no_grad():
        if leaves.shape[1] <= size:
            return run.read(run.rows(leaves, factors))
        parts = [run.read(run.rows(part, factors)) for part in leaves.split(size, 1)]
        return torch.cat(parts, 1)


def faster(
    run: UnrolledRun, activations: tuple[str, str], leaves: Tensor, factors: Tensor
) -> Product:
    """The product that computes a run in less time, with gradients where they are wanted."""
    if not 0 < _cells(run) <= min(_MOST_CELLS, _CELLS_PER_EDGE * len(run.source)):
        return "sparse"
    gradients = torch.is_grad_enabled() and (leaves.requires_grad or factors.requires_grad)

    def seconds(tried: TorchRun) -> float:
        best = float("inf")
        for _ in range(_TRIALS):
            start = time.perf_counter()
            out = compute(tried, leaves.detach(), factors.detach().requires_grad_(gradients))
            if gradients:
                out.sum().backward()
            _ = float(out.detach().sum())  # a device has then finished
            best = min(best, time.perf_counter() - start)
        return best

    dense, sparse = (kind(run, activations, leaves.device) for kind in (DenseRun, SparseRun))
    return "dense" if seconds(dense) < seconds(sparse) else "sparse"


def _cells(run: UnrolledRun) -> int:
    """Entries of all waves' matrices together."""
    cells = 0
    for wave in run.waves:
        first, last = wave.start - run.leaves, wave.stop - run.leaves
        read = np.unique(run.source[run.offsets[first] : run.offsets[last]])
        cells += (last - first) * len(read)
    return cells
