"""Schedules: pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from graphprune.errors import InputError, unknown_name

__all__ = ["Shape", "learning_rate", "ramp"]

Shape = Literal["linear", "geometric", "cosine"]


def ramp(step: int, start: float, stop: float, over: int, shape: Shape = "linear") -> float:
    """From ``start`` at step 0 to ``stop`` at step ``over``, and ``stop`` from there on.

    Example:
        >>> [round(ramp(s, 1.0, 0.01, 4, "geometric"), 3) for s in range(5)]
        [1.0, 0.316, 0.1, 0.032, 0.01]
    """
    t = 1.0 if over <= 0 else min(step / over, 1.0)
    if shape == "linear":
        return start + t * (stop - start)
    if shape == "cosine":
        return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * t))
    if shape == "geometric":
        if start <= 0 or stop <= 0:
            raise InputError(f"a geometric ramp needs positive ends, got {start} and {stop}")
        return float(start * (stop / start) ** t)
    raise unknown_name("ramp", shape, ("linear", "geometric", "cosine"))


def learning_rate(step: int, steps: int, warmup: int, decay: bool = True) -> float:
    """A factor: linear from 0 over ``warmup`` steps, then linear down to 0 at ``steps``.

    Example:
        >>> [round(learning_rate(s, 10, 2), 2) for s in (0, 1, 2, 6, 9)]
        [0.0, 0.5, 1.0, 0.5, 0.12]
    """
    if step < warmup:
        return step / warmup
    if not decay:
        return 1.0
    return max(0.0, (steps - step) / max(1, steps - warmup))
