"""Metrics: one number for each example from a model's outputs at the answer positions.

Outputs are ``[B, V]`` or ``[B, P, V]`` (several answer positions, averaged). ``full`` are the
outputs of the unmasked model, which the KL divergence compares with.

``accuracy`` and ``exact_match`` look at a task's answers and distractors alone, which is easier
than ``top1_accuracy`` and ``top1_match``: those look at all outputs (the whole vocabulary, all
classes). Without distractors the two are one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.divergence import divergence
from graphprune.errors import InputError
from graphprune.util.checks import require_one_of
from graphprune.util.numbers import NOISE, UNBOUNDED, levels, require_finite

MetricFunction = Callable[[Tensor, Batch, Tensor | None], Tensor]


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Args:
        name: shown in tables.
        function: ``(outputs, batch, full) -> [B]``; prompts may lie on another device than the
            outputs, ``batch.to(outputs.device)`` is beside them.
        higher_is_better: the direction of a better model.
        needs: what the batch must bring: ``"answer"``, ``"distractor"``, ``"full"``.
        flat_at_full: whether its gradient vanishes at the full model, as the KL divergence's does.
        differentiable: whether gradients mean anything.
        same: ``(outputs, batch, full) -> [B]`` booleans, what counts as the same output as the
            full model's (see :meth:`same_as_full`); ``None`` takes the same choice.
        choices: whether it reads outputs as scores of at least two choices.
        beside: ``full -> function``, the same function with what ``full`` alone decides computed
            once; ``None`` computes it each time.
        bounds: the least and the largest value that it can have; intervals of its mean stay inside,
            and values that all lie at an end (right or wrong) are counted.
        quantities: whether outputs are quantities, as in a regression, and no scores of choices:
            evaluations leave out measures of choices then, and ``loss="auto"`` is ``"mse"``.

    Example:
        >>> first = Metric("first_logit", lambda outputs, batch, full: outputs[:, 0], needs=())
        >>> gp.evaluate(model, task.with_metric(first), mask, metrics=[first])["first_logit"]
        0.421
    """

    name: str
    function: MetricFunction
    higher_is_better: bool = True
    needs: tuple[str, ...] = ()
    flat_at_full: bool = False
    differentiable: bool = True
    same: MetricFunction | None = None
    choices: bool = False
    beside: Callable[[Tensor], MetricFunction] | None = None
    bounds: tuple[float, float] = UNBOUNDED
    quantities: bool = False

    def fixed(self, full: Tensor) -> Metric:
        """The metric for many outputs beside one ``full``, which must not change meanwhile."""
        return self if self.beside is None else replace(self, function=self.beside(full))

    def missing(self, batch: Batch, full: Tensor | None) -> str | None:
        """Why this batch cannot have the metric, or ``None`` if it can."""
        have = {
            "answer": batch.answer is not None,
            "distractor": batch.distractor is not None,
            "full": full is not None,
        }
        if self.choices and full is not None and full.shape[-1] < 2:
            return "the task has one number for an output, no choices"
        lacking = [need for need in self.needs if not have[need]]
        return f"the task has no {' and no '.join(lacking)}" if lacking else None

    def __call__(self, outputs: Tensor, batch: Batch, full: Tensor | None = None) -> Tensor:
        """``[B]`` values.

        Raises :class:`NumericalError` naming the examples that are not finite, and
        :class:`InputError` where the batch lacks something or the shape is wrong.
        """
        reason = self.missing(batch, full)
        if reason:
            raise InputError(f"metric {self.name!r} cannot be computed: {reason}")
        values = self.function(outputs, batch, full)
        if values.shape != (batch.size,):
            raise InputError(
                f"metric {self.name!r} must give one value for each of the {batch.size} examples, "
                f"got the shape {list(values.shape)}"
            )
        finite = torch.isfinite(values.detach())
        require_finite(finite, batch.indices, f"metric {self.name!r} is NaN or infinite")
        return values

    def same_as_full(self, outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
        """``[B]`` bool: the examples on which ``outputs`` say the same as the full model's.

        Unless the metric brings its own ``same``, that is the same choice at every answer position:
        among the batch's answers and distractors where it has both, among all outputs otherwise.
        Outputs that are NaN are never the same.

        Raises :class:`InputError` for outputs of a single number without a ``same``.
        """
        if self.same is None and full.shape[-1] < 2:
            raise InputError(
                f"metric {self.name!r} does not say which single numbers count as the same output; "
                "give it one: gp.Metric(..., same=function)"
            )
        function = _same_choice if self.same is None else self.same
        return function(outputs, batch, full).bool() & ~torch.isnan(outputs).flatten(1).any(1)

    @property
    def sign(self) -> float:
        """1 if higher is better, -1 if lower is."""
        return 1.0 if self.higher_is_better else -1.0


def _average(values: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
    """``[B]``: values at the answer positions as their mean; those of a single one as they are."""
    if outputs.ndim == 2:
        return values
    if batch.positions is None or batch.positions.ndim == 1:
        weights = torch.full_like(outputs[..., 0], 1.0 / outputs.shape[1], requires_grad=False)
    else:
        valid = (batch.positions >= 0).to(outputs)
        weights = valid / valid.sum(1, keepdim=True).clamp(min=1)
    return (values * weights).sum(1)


def _gather(values: Tensor, ids: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Values at ``ids`` and which of them are real; ids are ``[B, A]`` or ``[B, P, A]``."""
    if ids.numel() and int(ids.max()) >= values.shape[-1]:
        count = values.shape[-1]
        raise InputError(
            f"answers and distractors are numbers of outputs, and the model has {count}, 0 to "
            f"{count - 1}; got {int(ids.max())}. "
            + (
                "One output can be asked about classes by a callable metric(outputs, batch) -> [B]"
                if count == 1
                else "Are these the labels, or the tokenizer, of another model?"
            )
        )
    ids = _at_positions(ids, values)
    real = ids >= 0
    return values.gather(-1, ids.clamp(min=0)).masked_fill(~real, fill), real


def _at_positions(ids: Tensor, values: Tensor) -> Tensor:
    """``ids`` with the axes of ``values``: the same ones at each position, where not said."""
    ids = ids.to(values.device)
    if values.ndim == 3 and ids.ndim == 2:
        return ids[:, None].expand(-1, values.shape[1], -1)
    return ids


def _mean_at(values: Tensor, ids: Tensor) -> Tensor:
    picked, real = _gather(values, ids, 0.0)
    return picked.sum(-1) / real.sum(-1).clamp(min=1)


def _logit_diff(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    assert batch.answer is not None
    assert batch.distractor is not None
    gap = _mean_at(outputs, batch.answer) - _mean_at(outputs, batch.distractor)
    return _average(gap, outputs, batch)


def _prob_diff(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    assert batch.answer is not None
    assert batch.distractor is not None
    chances = outputs.softmax(-1)
    answer, distractor = (
        _gather(chances, ids, 0.0)[0].sum(-1) for ids in (batch.answer, batch.distractor)
    )
    return _average(answer - distractor, outputs, batch)


def _kl(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    assert full is not None
    return _kl_beside(full)(outputs, batch, full)


def _kl_beside(full: Tensor) -> MetricFunction:
    target = full.detach().log_softmax(-1)
    chances = target.exp()

    def beside(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
        return _average(divergence(outputs.log_softmax(-1), target, chances), outputs, batch)

    return beside


def _accuracy(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    """1 where an answer beats every distractor; without distractors :func:`_top1_accuracy`.

    A tie is no answer, so it counts as wrong.
    """
    assert batch.answer is not None
    if batch.distractor is None:
        return _top1_accuracy(outputs, batch, full)
    best = _gather(outputs, batch.answer, float("-inf"))[0].amax(-1)
    hit = best > _gather(outputs, batch.distractor, float("-inf"))[0].amax(-1)
    return _average(hit.to(outputs.dtype), outputs, batch)


def _top1_accuracy(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    """1 where the largest of all outputs is an answer.

    An answer that shares the first place with another output counts as wrong, as it does against a
    distractor. By the first of the largest, outputs that are all alike would have the accuracy of
    class 0.
    """
    assert batch.answer is not None
    best, real = _gather(outputs, batch.answer, float("-inf"))
    top = outputs.amax(-1, keepdim=True)
    ids = _at_positions(batch.answer, outputs)
    ids = torch.where(real, ids, ids.amax(-1, keepdim=True)).clamp(min=0)  # padding: a real one
    others = (outputs == top).scatter_(-1, ids, False)
    hit = (best.amax(-1) == top[..., 0]) & ~others.any(-1)
    return _average(hit.to(outputs.dtype), outputs, batch)


def _exact_match(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    """1 where the choice is the full model's: among answers and distractors, or all outputs."""
    assert full is not None
    return _average(_agreed(outputs, batch, full).to(outputs.dtype), outputs, batch)


def _top1_match(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    """1 where the largest of all outputs is the full model's; of equal ones the first counts.

    That is the choice of greedy decoding, and the full model matches itself.
    """
    assert full is not None
    same = outputs.argmax(-1) == full.argmax(-1)
    return _average(same.to(outputs.dtype), outputs, batch)


def _agreed(outputs: Tensor, batch: Batch, full: Tensor) -> Tensor:
    """``[B]`` or ``[B, P]`` bool: where both choose the same."""
    if batch.answer is not None and batch.distractor is not None:
        ids = torch.cat([batch.answer, batch.distractor], -1)
        mine = _gather(outputs, ids, float("-inf"))[0].argmax(-1)
        theirs = _gather(full, ids, float("-inf"))[0].argmax(-1)
    else:
        mine, theirs = outputs.argmax(-1), full.argmax(-1)
    return mine == theirs


def _same_choice(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    assert full is not None
    return everywhere(_agreed(outputs, batch, full), batch)


def everywhere(holds: Tensor, batch: Batch) -> Tensor:
    """``[B]`` bool from ``holds [B]`` or ``[B, P]``: whether it holds at every real position."""
    if holds.ndim == 1:
        return holds
    if batch.positions is not None and batch.positions.ndim == 2:
        holds = holds | (batch.positions < 0).to(holds.device)
    return holds.all(1)


def kendall_tau(ours: Tensor, theirs: Tensor) -> Tensor:
    """Kendall's tau-b between the last axes of two models' outputs (scipy's; NaN where undefined).

    Outputs that only rounding tells apart are ties, see :mod:`graphprune.util.numbers`.
    """
    from scipy.stats import kendalltau

    pairs = zip(ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, theirs.shape[-1]), strict=True)
    taus = []
    for pair in pairs:
        noise = NOISE * max(float(row.detach().abs().max()) for row in pair)
        first, second = (levels(row, noise) for row in pair)
        result: Any = kendalltau(first, second)
        taus.append(float(result.statistic))
    return torch.tensor(taus).reshape(ours.shape[:-1])


_right_or_wrong = partial(Metric, differentiable=False, choices=True, bounds=(0.0, 1.0))

METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", _logit_diff, needs=("answer", "distractor")),
        Metric("prob_diff", _prob_diff, needs=("answer", "distractor"), bounds=(-1.0, 1.0)),
        Metric(
            "kl",
            _kl,
            higher_is_better=False,
            needs=("full",),
            flat_at_full=True,
            choices=True,
            beside=_kl_beside,
            bounds=(0.0, math.inf),
        ),
        _right_or_wrong("accuracy", _accuracy, needs=("answer",)),
        _right_or_wrong("exact_match", _exact_match, needs=("full",)),
        _right_or_wrong("top1_accuracy", _top1_accuracy, needs=("answer",)),
        _right_or_wrong("top1_match", _top1_match, needs=("full",)),
    )
}


def _require_two_arguments(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of C's functions do not say
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise InputError(
            "a metric is called as metric(outputs, batch) and gives [B] values; "
            f"{getattr(function, '__name__', function)!r} takes {signature}: {error}"
        ) from None


def as_metric(metric: str | Metric | Callable[..., Any]) -> Metric:
    """A :class:`Metric` from a name, a metric, or a callable ``(outputs, batch) -> [B]``.

    A callable must carry ``higher_is_better`` (an attribute, or wrap it in :class:`Metric`).
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        require_one_of(metric, METRICS, "metric")
        return METRICS[metric]
    direction = getattr(metric, "higher_is_better", None)
    if not callable(metric) or not isinstance(direction, bool):
        raise InputError(
            f"a metric is one of {', '.join(METRICS)}, a gp.Metric, or a callable with an "
            f"attribute higher_is_better = True or False; got {metric!r}"
        )
    function = metric
    name = getattr(metric, "__name__", type(metric).__name__)
    _require_two_arguments(function)

    def wrapped(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
        values = function(outputs, batch.to(outputs.device))
        if not isinstance(values, Tensor) or values.is_complex():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"metric {name!r} must give a tensor of {batch.size} real numbers, one for each "
                f"example; got {got}"
            )
        return values

    return Metric(name, wrapped, higher_is_better=direction)
