"""What a planned run is asked by and answered with: its shape, its memory parts, its operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from graphprune.errors import InputError

__all__ = [
    "PHASES",
    "CostEstimate",
    "CostEstimator",
    "MemoryPart",
    "Operations",
    "PassKind",
    "RunShape",
    "Throughput",
]

PHASES = ("reference", "forward", "backward", "contraction", "update")
PassKind = Literal["step", "forward", "attribution", "messages", "trials"]


@dataclass(frozen=True)
class Throughput:
    """What a device does: ``flops`` a second in matrix products, ``bandwidth`` in bytes a second.

    Give what is reached in practice, not the data sheet's peak: the plan's seconds are only as good
    as these two numbers.

    Example:
        >>> from graphprune.methods.costs import Operations
        >>> Throughput(flops=1e12, bandwidth=1e11).seconds(
        ...     Operations("products", flops=2e12, bytes=1e10)
        ... )
        2.0
    """

    flops: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bandwidth > 0):
            raise InputError(
                f"a device's flops and bandwidth must be positive, got {self.flops} and "
                f"{self.bandwidth}"
            )

    def seconds(self, work: Operations) -> float:
        """The work's time where either its products or its traffic take longest."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


@dataclass(frozen=True)
class MemoryPart:
    """``bytes`` that live during ``phases`` (a subset of :data:`PHASES`)."""

    name: str
    bytes: int
    phases: tuple[str, ...] = PHASES


@dataclass(frozen=True)
class Operations:
    """Floating point operations of one step's products, and bytes moved, under one name."""

    name: str
    flops: float
    bytes: float = 0.0


@dataclass(frozen=True)
class RunShape:
    """What a run is made of; see :func:`graphprune.plan`.

    ``kind`` is that of its passes: ``"step"``, a masked forward and backward; ``"forward"``, a
    masked run; ``"attribution"``, plain passes with gradients at ``points`` (``by_group``: for each
    group of senders in turn); ``"messages"``, a plain pass; ``"trials"``, of a greedy descent.

    ``copies`` masks, drawn for each example or not (trials: at most so many side by side).
    ``float64``, ``rounded``: trials are rechecked in float64, run in rounded weights. ``calibrate``
    is whether the device is measured; ``here`` whether it is this process's.
    """

    batch_size: int
    tokens: int
    answers: int
    copies: int
    per_example: bool
    dtype: torch.dtype | None
    device: torch.device
    calibrate: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: PassKind = "step"
    points: int = 1
    by_group: bool = False
    float64: bool = False
    rounded: bool = False
    here: bool = True


@dataclass(frozen=True)
class CostEstimate:
    """What an adapter answers: sizes, memory parts, work of one step and of one reference.

    ``seconds`` holds ``"step"`` (one batch's pass of the kind that was asked for: all points of an
    attribution, one try of trials) and ``"reference"`` where a calibration was asked for, and
    ``"calibration"``, what it took itself.
    """

    model: str
    dtype: torch.dtype
    edges: int
    nodes: int
    parameters: int
    memory: tuple[MemoryPart, ...]
    reference_bytes: int
    work: tuple[Operations, ...]
    reference_work: tuple[Operations, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class CostEstimator(Protocol):
    """An adapter that can say what a run costs without the model's weights."""

    def plans(self, subject: object) -> bool:
        """Whether the adapter reads this configuration, module, folder or id."""
        ...

    def plan(self, subject: Any, request: RunShape) -> CostEstimate:
        """The costs of one batch and one step."""
        ...
