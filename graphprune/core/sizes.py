"""The circuit sizes of the MIB benchmark, and how much each counts in its areas."""

from __future__ import annotations

from collections.abc import Sequence

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def trapezoid_weights(sizes: Sequence[float]) -> tuple[float, ...]:
    """Weights of values in the trapezoid rule: half of the way between each one's neighbours.

    Example:
        >>> [round(weight, 4) for weight in trapezoid_weights(MIB_SIZES)[-4:]]
        [0.075, 0.2, 0.4, 0.25]
    """
    ends = [sizes[0], *sizes, sizes[-1]]
    return tuple((after - before) / 2 for before, after in zip(ends[:-2], ends[2:], strict=True))
