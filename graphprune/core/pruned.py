"""A circuit as an ordinary module, beside the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference of equal outputs, as a share of one plus the largest output."""
    return _TOLERANCE.get(dtype, 0.2)


@dataclass(frozen=True, eq=False)
class Pruned:
    """A circuit as a module of its own, and how to try it.

    Args:
        module: maps ``[B, T]`` inputs to outputs at all positions, or at the last ones asked for.
            Its weights are copies.
        whole: the user's own module.
        original: runs it on the same inputs inside ``quiet``; outputs at the same positions.
        draw: random inputs of a batch and a length, always the same.
        answers: the module's outputs on a batch, at its answer positions (as ``model.run``).
        size: ``(B, T)`` of a batch.
        quiet: a context in which the user's module evaluates; it is as before afterwards.
        gap: the largest difference to the masked run on drawn inputs, where it was tried.
        longest: the most positions there may be; ``None`` means any number.
        shortest: the fewest.
        exact: the only number of positions there may be; ``None`` means any up to ``longest``.
        options: the adapter's own settings that it was made with, plain values.

    Example:
        >>> half = gp.EAP().score(lm, prompts).top(0.5).prune_dead_ends()
        >>> pruned = lm.pruned(half, gp.Ablation("zero"))
        >>> pruned.module(pruned.draw(2, 8)).shape
        torch.Size([2, 8, 2278])
    """

    module: torch.nn.Module
    whole: torch.nn.Module
    original: Callable[[Tensor], Tensor]
    draw: Callable[[int, int], Tensor]
    answers: Callable[[Batch], Tensor]
    size: Callable[[Batch], tuple[int, int]]
    quiet: Callable[[], AbstractContextManager[None]]
    gap: float = 0.0
    longest: int | None = None
    shortest: int = 1
    exact: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def length(self, wanted: int) -> int:
        """``wanted`` positions, or as many as there may be."""
        if self.exact is not None:
            return self.exact
        wanted = max(wanted, self.shortest)
        return wanted if self.longest is None else min(wanted, self.longest)


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """The exported model that :meth:`graphprune.Circuit.export_model` wrote.

    ``module`` is the circuit in memory, ``path`` the folder, ``report`` what stands in its
    ``report.json``: ``original`` and ``exported`` with ``parameters``, ``bytes``,
    ``flops_per_token`` and ``seconds``, the ``shape`` they were run on, ``max_difference``, and
    ``performance`` on the task beside the circuit as found and the original model.

    Example:
        >>> small = circuit.export_model("small", lm, ablation="zero")  # doctest: +SKIP
        >>> small.module(input_ids)  # doctest: +SKIP
    """

    path: Path
    module: torch.nn.Module = field(repr=False)
    report: Mapping[str, Any] = field(repr=False)
