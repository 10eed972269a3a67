"""What a planned run is asked by and answered with: its shape, its memory parts, its operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from graphprune.errors import InputError
from graphprune.util.quantities import best_seconds

__all__ = [
    "PHASES",
    "CostEstimate",
    "CostEstimator",
    "MemoryPart",
    "Operations",
    "PassKind",
    "RunShape",
    "Throughput",
    "gate_memory",
    "gate_seconds",
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


def gate_memory(edges: int, masks: int) -> list[MemoryPart]:
    """log-alpha, its gradient and Adam's two moments; then what one draw of the masks keeps."""
    return [
        MemoryPart("gates and optimiser", 4 * 4 * edges),
        MemoryPart("drawn masks", 4 * 4 * edges * masks, ("forward", "backward")),
        MemoryPart("gate temporaries", 4 * 2 * edges * masks, ("backward", "update")),
    ]


def gate_seconds(edges: int, masks: int, device: torch.device) -> float:
    """Seconds of drawing hard-concrete masks, their gradient, and Adam over all edges."""
    alpha = torch.full((edges,), 2.0, device=device, requires_grad=True)
    adam = torch.optim.Adam([alpha], lr=0.1)

    def update() -> None:
        noise = torch.rand(masks, edges, device=device).clamp_(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((noise.logit_() + alpha) / (2 / 3))
        mask = (1.2 * soft - 0.1).clamp(0, 1)
        mask.backward(noise)
        adam.step()
        adam.zero_grad()

    return best_seconds(update, device)
