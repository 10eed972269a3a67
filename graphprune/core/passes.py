"""Counts of passes: the unit in which methods on one model and task are compared.

A *pass* is one forward and one backward run of one batch: a plain one that gives gradients for all
edges, or one under a mask. A method that runs several masks on a batch takes as many passes.
Forward runs alone, as searches and judgements need them, are *trials*; a *cut* is a trial of one
edge cut from a circuit, of which models compute only what the edge changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task

__all__ = ["Passes", "PlansPasses"]


@dataclass(frozen=True)
class Passes:
    """Numbers of plain passes, passes under a mask, trials and cuts, of whole batches.

    ``unknown`` names methods whose number is not known; they are not counted.

    Example:
        >>> (Passes(plain=2) + Passes(masked=60)).to_dict()
        {'passes': 62, 'trials': 0}
    """

    plain: float = 0
    masked: float = 0
    trials: float = 0
    cuts: float = 0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.plain + other.plain,
            self.masked + other.masked,
            self.trials + other.trials,
            self.cuts + other.cuts,
            tuple(dict.fromkeys([*self.unknown, *other.unknown])),
        )

    def __mul__(self, times: float) -> Passes:
        return Passes(
            self.plain * times, self.masked * times, self.trials * times, self.cuts * times,
            self.unknown,
        )  # fmt: skip

    @property
    def total(self) -> float:
        """Passes of both kinds."""
        return self.plain + self.masked

    @property
    def forward(self) -> float:
        """Forward runs alone: trials and cuts."""
        return self.trials + self.cuts

    def to_dict(self) -> dict[str, float]:
        """``passes`` and ``trials``; neither where some are not known."""
        if self.unknown:
            return {}
        return {"passes": self.total, "trials": self.forward}


@runtime_checkable
class PlansPasses(Protocol):
    """A method that says itself how many passes it takes, those of methods inside it included."""

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """At most; a batch counts by its size over that of the task's batches."""
        ...
