"""What the full model scores above the wholly ablated one: the unit of faithfulness.

Where the two are not told apart on the examples at hand, a share of their difference is no figure:
its denominator is noise. One place decides this, for evaluation, curves, calibration, statistics
and studies.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from graphprune.intervals import ENOUGH, bootstrap_interval

__all__ = ["Gap"]

_NOISE = 1e-6  # of the scores, at least of 1: rounding of float32 outputs


@dataclass(frozen=True)
class Gap:
    """The difference of two means over the same examples, and its 95 % interval.

    ``full`` and ``ablated`` are the means, ``low`` to ``high`` the interval of ``full - ablated``
    from paired differences (NaN for one example, which has none), ``count`` the number of examples.
    ``why`` says why nothing can be measured by it, ``None`` if something can. ``note`` says, of
    fewer than 20 examples, that their interval holds 0 or that there is none.
    """

    full: float
    ablated: float
    low: float
    high: float
    count: int
    why: str | None = None
    note: str | None = None

    @classmethod
    def of(cls, full: Tensor, ablated: Tensor, idle: str | None = None) -> Gap:
        """From scores ``[n]`` of the full and of the wholly ablated model.

        They are told apart where the interval excludes 0, and the difference is larger than the
        rounding of the scores. Fewer than 20 examples are too few for an interval to decide: there
        it stands in the note. One example is taken at its word.

        Args:
            idle: why the ablation changes nothing, if it does.

        Example:
            >>> import torch
            >>> one, other = torch.tensor([1.0, 2.0, 4.0] * 8), torch.tensor([0.0, 1.5, 3.0] * 8)
            >>> Gap.of(one, other).why is None
            True
            >>> print(Gap.of(one, one.flip(0)).why)  # doctest: +ELLIPSIS
            the full model (2.333) and the wholly ablated one (2.333) score the same; ...
        """
        differences = full.detach().cpu().double() - ablated.detach().cpu().double()
        ends = float(full.double().mean()), float(ablated.double().mean())
        n, gap = len(differences), ends[0] - ends[1]
        low, high = bootstrap_interval(differences)
        why = note = None
        if abs(gap) <= _NOISE * max(1.0, *map(abs, ends)):
            why = (
                f"the full model ({ends[0]:.4g}) and the wholly ablated one ({ends[1]:.4g}) score "
                "the same; there is nothing to be faithful to"
            )
        elif n == 1:
            note = (
                f"one example: whether full - ablated ({gap:.4g}) is told apart from 0 cannot be "
                "said, and there is no interval"
            )
        elif low <= 0 <= high:
            said = (
                f"full - ablated is {gap:.4g} on average, 95 % interval {low:.4g} to {high:.4g} on "
                f"{n} examples, so the two models are not told apart"
            )
            if n >= ENOUGH:
                why = (
                    f"{said} and there is nothing to be faithful to; give more examples, or a "
                    "metric or an ablation that separates them"
                )
            else:
                note = f"{said}: a share of that difference may have any size; give more examples"
        if why and idle:
            why = f"{why} ({idle})"
        return cls(*ends, low, high, n, why, note)

    @property
    def size(self) -> float:
        """Full minus ablated."""
        return self.full - self.ablated

    def share(self, value: float) -> float:
        """Where ``value`` lies on the way from the ablated model (0) to the full one (1)."""
        return (value - self.ablated) / self.size
