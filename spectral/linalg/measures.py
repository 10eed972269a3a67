"""What is measured of a spectrum, and how it changes with the eigenvalues.

A measure F is a real function of the eigenvalues with ``dF = Re sum_k h_k dlambda_k``; ``h`` is
non-zero for one member of each conjugate pair only (the one with the positive imaginary part).

- ``sum``: the sum of \\|Im lambda\\| over all eigenvalues, conjugates included.
- ``max``: the largest \\|Im lambda\\|; at a tie the first one counts.
- ``gap``: the real part of the eigenvalue that comes after ``skip`` others in order of real parts;
  ``skip`` counts those at or below 0 in the graph as it was given. A cut that makes one more
  eigenvalue 0 (one more closed class) therefore closes the gap.

Where several eigenvalues tie for the ``max`` or the ``gap``, repeated ones among them, each counts
in equal parts: no order of nodes and no choice of eigenvectors decides between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphprune.errors import InputError

from .blocks import ComplexArray
from .names import known
from .spectra import Decomposition
from .wiring import FloatArray

__all__ = ["Measure", "MeasureName", "measure_named"]

MeasureName = Literal["sum", "max", "gap"]
TIE = 1e-10  # of the largest size: what rounding sets apart


@dataclass(frozen=True)
class Measure:
    """A real function of a spectrum."""

    name: MeasureName
    skip: int = 0

    def value(self, values: ComplexArray) -> float:
        """F of eigenvalues; 0 for an empty spectrum."""
        return float(self.values(values[None])[0])

    def values(self, values: ComplexArray) -> FloatArray:
        """F of each spectrum of a stack ``[B, k]``."""
        if self.name == "sum":
            return np.asarray(2.0 * np.maximum(values.imag, 0.0).sum(1))
        if self.name == "max":
            return np.asarray(values.imag.max(1, initial=0.0))
        if self.skip >= values.shape[1]:
            return np.zeros(len(values))
        return np.sort(values.real, axis=1)[:, self.skip]

    def pull(self, values: ComplexArray) -> ComplexArray:
        """``h`` for each eigenvalue."""
        h = np.zeros(len(values), dtype=np.complex128)
        if self.name == "sum":
            h[values.imag > 0] = -2j
            return h
        now = self.value(values)
        if self.skip >= len(values) or (self.name == "max" and now <= 0):
            return h
        part = (
            values.imag if self.name == "max" else np.where(values.imag >= 0, values.real, np.inf)
        )
        tied = np.abs(part - now) <= TIE * np.abs(values).max()
        h[tied] = (-1j if self.name == "max" else 1.0) / tied.sum()
        return h


def measure_named(name: str, start: Decomposition | None = None, laplacian: str = "out") -> Measure:
    """A measure by name; ``gap`` counts the closed classes of ``start``."""
    known(name, MeasureName, "measure")
    if name in ("sum", "max"):
        return Measure("sum" if name == "sum" else "max")
    if laplacian not in ("out", "in", "rw"):
        raise InputError(
            f"the gap is defined for Laplacians whose rows or columns sum to 0: out, in or rw, not "
            f"{laplacian!r}"
        )
    if start is None or not start.complete:
        raise InputError("the gap needs the whole spectrum: no component may be above dense_limit")
    values = start.values
    near = 1e-9 * float(np.abs(values).max(initial=0.0))
    return Measure("gap", int((values.real <= near).sum()))
