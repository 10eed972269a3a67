"""What a planned run is asked by and answered with: its shape, its memory parts, its operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from graphprune.errors import InputError

__all__ = [
    "PHASES",
    "CostEstimate",
    "CostEstimator",
    "MemoryPart",
    "Operations",
    "RunShape",
    "Throughput",
]

PHASES = ("reference", "forward", "backward", "update")


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

    ``copies`` masks, drawn for each example or not.
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


@dataclass(frozen=True)
class CostEstimate:
    """What an adapter answers: sizes, memory parts, work of one step and of one reference.

    ``seconds`` holds ``"step"`` (forward and backward under the mask) and ``"reference"`` where a
    calibration was asked for, and ``"calibration"``, what it took itself.
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
