"""Many circuits of one model and task: their scores, example by example.

Scores are the metric's values, turned so that higher is better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from jaxtyping import Float64
from torch import Tensor

from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, mask_of, require_same_graph
from graphprune.core.metrics import Metric, as_metric
from graphprune.core.model import Ablation, MaskedModel, Reference, require_model
from graphprune.core.sanity_checks import IdleAblationCheck, MetricRange
from graphprune.core.task import Task
from graphprune.errors import InputError, unknown_name
from graphprune.evaluation.report import check_outputs
from graphprune.util.checks import at_least
from graphprune.util.progress import bar

__all__ = [
    "Distance",
    "MetricLike",
    "RunOptions",
    "Runs",
    "circuit_of",
    "distance_of",
    "whole_circuit",
]

MetricLike = Any  # str | Metric | Callable
Distance = str
DISTANCES = ("squared", "absolute", "mean")

# References kept between calls; those beyond are made anew each time.
_CACHE_BYTES = 2**30
_LARGE = 5_000  # edges


class RunOptions(TypedDict, total=False):
    """How circuits are run, the same for all tests.

    ``batch_size``: examples at a time (``None``: the task's); ``max_candidates``: circuits at once
    (``None``: 16; on graphs of more than 5,000 edges 1, since adapters may compute a single small
    circuit alone); ``ties``: two scores are equal where they differ by less than this share of the
    largest (1e-5).
    """

    batch_size: int | None
    max_candidates: int | None
    ties: float


def whole_circuit(model: MaskedModel, mask: Any) -> EdgeMask:
    """The mask of an :class:`EdgeMask` or a circuit: zeros and ones, of this model's graph."""
    require_model(model)
    inner = mask_of(mask)
    require_same_graph(model.graph, inner.graph, "the model and the circuit")
    if not inner.is_binary:
        raise InputError(
            "a circuit that is tested keeps or drops each edge; this mask has values between 0 "
            "and 1: take mask.kept, or a selection of its scores"
        )
    return inner


def circuit_of(model: MaskedModel, mask: Any, *, full: bool = True) -> EdgeMask:
    """:func:`whole_circuit`, with at least one edge, and (unless ``full``) not all of them."""
    found = whole_circuit(model, mask)
    if found.num_kept == 0:
        raise InputError("the circuit keeps no edge; there is nothing to test")
    if not full and found.num_kept == model.graph.num_edges:
        raise InputError(
            "the circuit is the whole graph: no edge lies outside it, so there is nothing to "
            "compare it with; test a smaller one"
        )
    return found


def require_examples(task: Task, least: int, what: str) -> None:
    """Raises :class:`InputError` for a task too small to say anything about."""
    if len(task) < least:
        raise InputError(
            f"{what} needs at least {least} examples, the task {task.name!r} has {len(task)}"
        )


def distance_of(ours: Tensor, theirs: Tensor, how: Distance) -> Tensor:
    """``[...]``: how far scores ``[..., n]`` are apart.

    ``"squared"``: the mean squared difference (that of Shi et al.'s code); ``"absolute"``: the mean
    absolute one; ``"mean"``: the absolute difference of the means.
    """
    if how not in DISTANCES:
        raise unknown_name("distance", how, DISTANCES)
    gap = ours - theirs
    if how == "squared":
        return gap.square().mean(-1)
    return gap.abs().mean(-1) if how == "absolute" else gap.mean(-1).abs()


@dataclass(eq=False)
class _Held:
    batch: Batch
    reference: Reference | None = None


@dataclass(eq=False)
class Runs:
    """Scores of many masks; clean and ablated passes are kept (up to 1 GiB).

    Args:
        ablation: what stands in for edges outside a mask.
        metric: the task's own by default.
        max_candidates: masks run at once; ``None``: see :class:`RunOptions`.
        batch_size: examples at a time; ``None`` takes the task's.
        ties: differences of scores below this share of the largest score are float noise.

    Raises:
        InputError: an ablation that changes nothing, with which no circuit differs from another.
    """

    model: MaskedModel
    task: Task
    ablation: AblationLike | None = None
    metric: MetricLike = None
    max_candidates: int | None = None
    batch_size: int | None = None
    ties: float = 1e-5
    _held: list[_Held] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        require_model(self.model)
        if self.max_candidates is None:
            self._stack = 16 if self.model.graph.num_edges <= _LARGE else 1
        else:
            self._stack = at_least(self.max_candidates, 1, "max_candidates")
        self.measure: Metric = self.task.metric if self.metric is None else as_metric(self.metric)
        self._chosen: Ablation = resolve_ablation(self.model, self.task, self.ablation)
        self._held = [_Held(batch) for batch in self.task.batches(self.batch_size)]
        self._space = _CACHE_BYTES
        idle = IdleAblationCheck(self.model, f"task {self.task.name!r}")
        ends = [self._ends(held, idle) for held in self._held]
        idle.finish()
        self.full: Float64[Tensor, " n"] = torch.cat([full for full, _ in ends])
        self.ablated: Float64[Tensor, " n"] = torch.cat([ablated for _, ablated in ends])
        largest = max(float(self.full.abs().max()), float(self.ablated.abs().max()))
        self.noise = self.ties * largest
        self.unit = MetricRange.of(self.full, self.ablated)

    @property
    def settings(self) -> dict[str, Any]:
        """What a result should say about where it came from."""
        return {
            "task": self.task.name,
            "examples": len(self.full),
            "metric": self.measure.name,
            "ablation": self._chosen.name,
            "graph": self.model.graph.fingerprint,
        }

    @property
    def gap(self) -> float:
        """Mean score of the full model over that of the wholly ablated one."""
        return float((self.full - self.ablated).mean())

    def _reference(self, held: _Held) -> Reference:
        if held.reference is not None:
            return held.reference
        made = self.model.reference(held.batch, self._chosen)
        if made.nbytes <= self._space:
            self._space -= made.nbytes
            held.reference = made
        return made

    def _score(self, outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
        values = self.measure(outputs, batch, full).detach().cpu().double()
        return self.measure.sign * values

    @torch.no_grad()
    def _ends(self, held: _Held, idle: IdleAblationCheck) -> tuple[Tensor, Tensor]:
        reference = self._reference(held)
        idle.see(held.batch, reference)
        full, ablated = reference.full, reference.ablated
        check_outputs(full, held.batch, "the full model")
        return self._score(full, held.batch, full), self._score(ablated, held.batch, full)

    @torch.no_grad()
    def __call__(self, masks: Tensor, label: str = "circuits") -> Float64[Tensor, "K n"]:
        """``[K, n]`` scores of ``masks [K, E]`` on every example, in the batches' order."""
        edges = self.model.graph.num_edges
        if masks.ndim != 2 or masks.shape[1] != edges:
            raise InputError(f"masks must have the shape [K, {edges}], got {list(masks.shape)}")
        columns = []
        with bar(label, len(masks) * len(self._held)) as progress:
            for held in self._held:
                reference = self._reference(held)
                rows = []
                for some in masks.split(self._stack):
                    outputs = self.model.run(held.batch, some.float(), reference)
                    for out in outputs:
                        check_outputs(out, held.batch, "a circuit")
                        rows.append(self._score(out, held.batch, reference.full))
                    progress.update(len(some))
                columns.append(torch.stack(rows) if rows else torch.zeros(0, held.batch.size))
        return torch.cat(columns, 1)

    @torch.no_grad()
    def outputs(self, mask: Tensor | None) -> Float64[Tensor, "n feature"]:
        """``[n, P * V]``: the outputs under ``mask [E]`` (``None``: the full model's).

        Answer positions that an example does not have count 0.
        """
        found = []
        for held in self._held:
            reference = self._reference(held)
            out = reference.full if mask is None else self.model.run(
                held.batch, mask.float(), reference
            )  # fmt: skip
            check_outputs(out, held.batch, "a circuit")
            places = held.batch.positions
            if out.ndim == 3 and places is not None and places.ndim == 2:
                out = out.masked_fill((places < 0).to(out.device)[..., None], 0.0)
            found.append(out.detach().cpu().double().flatten(1))
        width = max(rows.shape[1] for rows in found)
        return torch.cat([torch.nn.functional.pad(r, (0, width - r.shape[1])) for r in found])
