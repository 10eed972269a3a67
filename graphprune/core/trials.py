"""Trials of a greedy descent: a model's outputs with some more edges cut from a circuit.

A model may answer by whole runs (:class:`FullTrials`, right for any model) or compute only what the
cut edges change, where the order of the edges allows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from graphprune.core.batch import Batch
    from graphprune.core.model import MaskedModel, Reference


class EdgeTrials(ABC):
    """One batch under a circuit that loses its edges one after another.

    ``kept [E]`` bool is the circuit; it belongs to the trials. ``overhead`` is what a call costs
    beside its rows, in rows: wide calls pay where it is large; ``most`` bounds them. ``spans``:
    whether the edges of one call may have several readers.
    """

    kept: Tensor
    overhead: float = 0.3
    most: int = 16
    spans: bool = True

    @abstractmethod
    def outputs(self) -> Tensor:
        """``[B, ..., V]`` of the circuit."""

    @abstractmethod
    def without(self, edges: Tensor, cuts: Tensor) -> Tensor:
        """``[C, B, ..., V]``: each row with ``edges [n]`` cut too where ``cuts [C, n]`` is true."""

    @abstractmethod
    def cut(self, row: int) -> None:
        """Makes row ``row`` of the last call the circuit."""

    def drop(self, edges: Tensor) -> None:
        """Cuts edges into nodes that lead nowhere: outputs stay as they are."""
        self.kept[edges] = False


class FullTrials(EdgeTrials):
    """Every row is a whole run of the model: exact in any order, on any graph."""

    def __init__(
        self, model: MaskedModel, batch: Batch, kept: Tensor, reference: Reference
    ) -> None:
        self.model, self.batch, self.reference = model, batch, reference
        self.kept = kept.clone()
        self._rows = torch.zeros(0, len(kept), dtype=torch.bool)

    def outputs(self) -> Tensor:
        """One run."""
        return self.model.run(self.batch, self.kept.float(), self.reference)

    def without(self, edges: Tensor, cuts: Tensor) -> Tensor:
        """A stack of masks in one run."""
        self._rows = self.kept.repeat(len(cuts), 1)
        self._rows[:, edges] &= ~cuts
        return self.model.run(self.batch, self._rows.float(), self.reference)

    def cut(self, row: int) -> None:
        """Takes over the row's mask."""
        self.kept = self._rows[row].clone()
