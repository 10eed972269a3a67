"""The metric of many circuits on every example of a task.

Values are turned so that higher is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Float64
from torch import Tensor

from graphprune.core.ablation import AblationLike
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, binary_mask
from graphprune.core.metrics import as_metric
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.sanity_checks import IdleAblationCheck, MetricRange
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.evaluation.reference_cache import ReferenceCache, require_mask_rows
from graphprune.util.checks import at_least, require_one_of
from graphprune.util.numbers import check_outputs
from graphprune.util.progress import bar

MetricLike = Any  # str | Metric | Callable
Distance = str
DISTANCES = ("squared", "absolute", "mean")
_LARGE = 5_000  # edges


class RunOptions(TypedDict, total=False):
    """Options of how circuits are run and judged, the same for all tests.

    ``metric``: the task's own by default; ``ablation``: what stands in for edges outside a circuit
    (``None`` takes what the circuit was found under, else counterfactual); ``batch_size``: examples
    at a time (``None`` takes the task's); ``max_candidates``: circuits at once (``None`` means 16;
    on graphs of more than 5,000 edges 1, since adapters may compute a single small circuit alone);
    ``ties``: two values are equal where they differ by less than this share of the largest (1e-5).
    """

    metric: MetricLike
    ablation: AblationLike | None
    batch_size: int | None
    max_candidates: int | None
    ties: float


def require_circuit(model: MaskedModel, mask: Any, *, full: bool = True) -> EdgeMask:
    """The circuit that is tested: zeros and ones, some edges and (unless ``full``) not all."""
    require_model(model)
    circuit = binary_mask(model.graph, mask)
    if circuit.num_kept == 0:
        raise InputError("the circuit keeps no edge; there is nothing to test")
    if not full and circuit.num_kept == model.graph.num_edges:
        raise InputError(
            "the circuit is the whole graph: no edge lies outside it, so there is nothing to "
            "compare it with; test a smaller one"
        )
    return circuit


def require_examples(task: Task, least: int, what: str) -> None:
    """Raises :class:`InputError` for a task too small to say anything about."""
    if len(task) < least:
        raise InputError(
            f"{what} needs at least {least} examples, the task {task.name!r} has {len(task)}"
        )


@dataclass(eq=False)
class MaskEvaluator:
    """Runs masks on a task; clean and ablated passes are kept (up to 1 GiB).

    ``full [n]`` and ``ablated [n]`` are the metric of the full and of the wholly ablated model,
    ``gap`` the mean difference of the two, and differences below ``noise`` are rounding.

    Args:
        circuit: the one that is tested, whose own ablation counts where none is given.
        ablation, metric, max_candidates, batch_size, ties: see :class:`RunOptions`.

    Raises:
        InputError: an ablation that changes nothing, with which no circuit differs from another.
    """

    model: MaskedModel
    task: Task
    circuit: object = None
    ablation: AblationLike | None = None
    metric: MetricLike = None
    max_candidates: int | None = None
    batch_size: int | None = None
    ties: float = 1e-5

    def __post_init__(self) -> None:
        self._cache = ReferenceCache(
            self.model, self.task, self.ablation, self.batch_size, self.circuit
        )
        if self.max_candidates is None:
            self._stack = 16 if self.model.graph.num_edges <= _LARGE else 1
        else:
            self._stack = at_least(self.max_candidates, 1, "max_candidates")
        self.measure = self.task.metric if self.metric is None else as_metric(self.metric)
        self.full, self.ablated = self._end_values()
        largest = max(float(self.full.abs().max()), float(self.ablated.abs().max()))
        self.noise = self.ties * largest
        self.gap = float((self.full - self.ablated).mean())
        self.metric_range = MetricRange.of(self.full, self.ablated)

    def settings(self, circuit: EdgeMask, **more: Any) -> dict[str, Any]:
        """The origin of a result as plain values, with ``more`` settings of the test."""
        return {
            "task": self.task.name,
            "examples": len(self.full),
            "metric": self.measure.name,
            "ablation": self._cache.ablation.name,
            "graph": self.model.graph.fingerprint,
            **more,
            "edges": circuit.num_kept,
        }

    def range_remarks(self, what: str) -> list[str]:
        """Why ``what``, a share of the gap, is not defined or uncertain; empty where it is not."""
        return [
            f"{what}: {note}" for note in (self.metric_range.why, self.metric_range.note) if note
        ]

    def _values(self, outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
        values = self.measure(outputs, batch, full).detach().cpu().double()
        return self.measure.sign * values

    @torch.no_grad()
    def _end_values(self) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """The full and the wholly ablated model's values."""
        idle = IdleAblationCheck(self.model, f"task {self.task.name!r}")
        ends = []
        for batch, reference in self._cache:
            idle.see(batch, reference)
            full, ablated = reference.full, reference.ablated
            check_outputs(full, batch.indices, "the full model")
            ends.append([self._values(outputs, batch, full) for outputs in (full, ablated)])
        idle.finish()
        full, ablated = (torch.cat(side) for side in zip(*ends, strict=True))
        return full, ablated

    @torch.no_grad()
    def __call__(self, masks: Tensor, label: str = "circuits") -> Float64[Tensor, "K n"]:
        """``[K, n]`` values of ``masks [K, E]`` on every example, in the batches' order."""
        require_mask_rows(masks, self.model.graph)
        columns = []
        with bar(label, len(masks) * len(self._cache)) as progress:
            for batch, reference in self._cache:
                rows = []
                for stack in masks.split(self._stack):
                    for outputs in self.model.run(batch, stack.float(), reference):
                        check_outputs(outputs, batch.indices, "a circuit")
                        rows.append(self._values(outputs, batch, reference.full))
                    progress.update(len(stack))
                columns.append(torch.stack(rows) if rows else torch.zeros(0, batch.size))
        return torch.cat(columns, 1)

    @torch.no_grad()
    def outputs(self, mask: Tensor | None) -> Float64[Tensor, "n feature"]:
        """``[n, P * V]``: the outputs under ``mask [E]`` (``None`` takes the full model's).

        Answer positions that an example does not have count 0.
        """
        parts = []
        for batch, reference in self._cache:
            out = reference.full
            if mask is not None:
                out = self.model.run(batch, mask.float(), reference)
            check_outputs(out, batch.indices, "a circuit")
            places = batch.positions
            if out.ndim == 3 and places is not None and places.ndim == 2:
                out = out.masked_fill((places < 0).to(out.device)[..., None], 0.0)
            parts.append(out.detach().cpu().double().flatten(1))
        width = max(part.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.cat(padded)

    def distance(
        self, ours: Tensor, theirs: Tensor, how: Distance
    ) -> tuple[Float64[Tensor, " K"], float]:
        """``[...]``: how far values ``[..., n]`` are apart; and below what that is rounding.

        ``"squared"``: the mean squared difference (that of Shi et al.'s code); ``"absolute"``: the
        mean absolute one; ``"mean"``: the absolute difference of the means.
        """
        require_one_of(how, DISTANCES, "distance")
        gap = ours - theirs
        if how == "squared":
            return gap.square().mean(-1), self.noise**2
        apart = gap.abs().mean(-1) if how == "absolute" else gap.mean(-1).abs()
        return apart, self.noise
