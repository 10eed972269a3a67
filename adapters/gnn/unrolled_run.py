"""Computes the rows of an unrolled run and their gradients, by sparse or by dense products.

Columns of the rows are examples and channels. The sparse products are torch's weighted sums of
embeddings, which read, multiply and add rows in one pass; the dense ones are a matrix for each
wave, over the rows that it reads. Which is faster depends on how much is left of the graph, on the
columns and on the machine, so both are tried once (:mod:`.unrolled_compute`).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .unroll import UnrolledRun, Wave

__all__ = ["PRODUCTS", "DenseRun", "Product", "SparseRun", "TorchRun"]

Product = Literal["sparse", "dense"]
PRODUCTS: tuple[Product, ...] = ("sparse", "dense")

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

    def rows(self, leaves: Tensor, factors: Tensor, updated: Tensor | None = None) -> Tensor:
        """``[rows, M]`` from the given rows ``[leaves, M]`` and all factors.

        ``updated [steps, n, 1]`` says which nodes of a run for any updates update.
        """
        rows = leaves.new_empty(self.run.rows, leaves.shape[1])
        given, *views = rows.split(self._sizes)
        given.copy_(leaves)
        before = leaves.index_select(0, self._held)
        updates = self._by_wave(updated)
        for wave, sums, out, now in zip(
            self.run.waves, self._sums(rows, factors), views, updates, strict=True
        ):
            self._activate(wave, sums, out)
            if now is not None:
                before = torch.where(now, out, before, out=out)
        return rows

    @cached_property
    def _held(self) -> Tensor:
        return self._numbers([] if self.run.held is None else self.run.held)

    def _by_wave(self, updated: Tensor | None) -> list[Tensor | None]:
        """``[n, 1]`` bool for each wave; ``None`` where all of it is computed."""
        if updated is None:
            return [None] * len(self.run.waves)
        steps = iter(updated.unbind())
        return [None if wave.is_sum else next(steps) for wave in self.run.waves]

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
        self,
        gradient: Tensor,
        rows: Tensor,
        factors: Tensor,
        updated: Tensor | None,
        leaves: bool,
        weights: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of leaves and factors from that of the wanted states ``[n, M]``."""

    def _split(
        self, felt: Tensor, held: Tensor | None, now: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What is felt at a wave's rows: as far as they were computed, and as far as held."""
        if now is None:
            return felt, held
        if held is not None:
            felt = felt + held
        return felt.masked_fill(~now, 0.0), felt.masked_fill(now, 0.0)

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
        self,
        gradient: Tensor,
        rows: Tensor,
        factors: Tensor,
        updated: Tensor | None,
        leaves: bool,
        weights: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """See the base class; every row collects from its readers, which come after it."""
        run, wanted = self.run, len(self._output)
        bags, sizes, factor = self._back
        weight = factors.index_select(0, factor).split(sizes)
        felt = rows.new_empty(wanted + run.computed, rows.shape[1])  # at sums, behind the wanted
        first, *views = felt.split([wanted, *self._sizes[1:]])
        first.copy_(gradient)
        values = rows.split(self._sizes)
        updates = self._by_wave(updated)
        held: Tensor | None = None
        for number in range(len(run.waves), 0, -1):
            at_rows = bags[number](felt, weight[number])
            at_rows, held = self._split(at_rows, held, updates[number - 1])
            self._derive(run.waves[number - 1], at_rows, values[number], views[number - 1])
        of_leaves = bags[0](felt, weight[0]) if leaves else None
        if of_leaves is not None and held is not None:
            of_leaves.index_add_(0, self._held, held)
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
        self,
        gradient: Tensor,
        rows: Tensor,
        factors: Tensor,
        updated: Tensor | None,
        leaves: bool,
        weights: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """See the base class; every wave gives to the rows it read."""
        run = self.run
        felt = torch.zeros_like(rows).index_add_(0, self._output, gradient)
        of_factors = torch.zeros_like(factors) if weights else None
        updates = self._by_wave(updated)[::-1]
        held: Tensor | None = None
        for wave, matrix, now in zip(run.waves[::-1], self._matrices[::-1], updates, strict=True):
            here, held = self._split(felt[wave.start : wave.stop], held, now)
            at_sums = torch.empty_like(here)
            self._derive(wave, here, rows[wave.start : wave.stop], at_sums)
            felt.index_add_(0, matrix.columns, matrix.filled(factors).T @ at_sums)
            if of_factors is not None:
                products = at_sums @ rows.index_select(0, matrix.columns).T
                read = products.flatten().index_select(0, matrix.cells)
                of_factors.index_add_(0, matrix.factor, read)
        if held is not None:
            felt.index_add_(0, self._held, held)
        return felt[: run.leaves] if leaves else None, of_factors
