"""Checks that there is anything to measure: idle ablations, models not told apart, rounding.

*Ablations that change nothing*, so that no edge matters: no message differs, or none that counts.
Scores would be all zero, a mask of the best edges arbitrary, and an optimiser would find that any
circuit is perfect. It happens where corrupted inputs are the clean ones, where features are alike
on all nodes and are shuffled, where a mean is taken over equal inputs, and where no edge leads to
the nodes that are asked about (:class:`IdleAblationCheck`).

*Models not told apart.* Faithfulness is a share of what the full model scores above the wholly
ablated one. Where the two are not told apart on the examples at hand that is no figure: its
denominator is noise (:class:`MetricRange`). One place decides this, for evaluation, curves,
calibration, statistics and studies.

*Runs that are not the module's.* At wrap time an adapter compares four runs with the user's own
module (:func:`runs_beside`, :func:`require_alike`).

*Rounding.* The open mask is the model, up to the rounding of its dtype. A figure no larger than the
one it gets says nothing of a circuit (:func:`note_rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from graphprune.capabilities import MeanMessages, module_of, require
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask
from graphprune.core.metrics import METRICS
from graphprune.core.model import Ablation, AblationKind, MaskedModel, Reference
from graphprune.core.task import Task
from graphprune.errors import GraphPruneError, InputError, UnsupportedModelError
from graphprune.util.numbers import ENOUGH, bootstrap_interval

_DRAWN_MASKS = 4  # where an adapter cannot compare messages
_ALTERNATIVES: tuple[AblationKind, ...] = ("zero", "delete", "mean")


@runtime_checkable
class ComparesMessages(Protocol):
    """A reference that can tell whether its ablation changes any message."""

    def changes_nothing(self) -> bool | None:
        """``True`` if every ablated message is the clean one (a mean: but for its rounding).

        ``None`` means that only runs can tell.
        """
        ...


def equal_inputs(batch: Batch) -> bool:
    """``True`` if a batch's corrupted inputs are its clean ones, tensor by tensor."""
    clean, corrupt = batch.clean, batch.corrupt
    if isinstance(clean, Tensor) and isinstance(corrupt, Tensor):
        return torch.equal(clean, corrupt)
    if not isinstance(clean, Mapping) or not isinstance(corrupt, Mapping):
        return False
    # What a corrupted side does not name (a mask of padding) is the clean side's.
    return batch.alignment is None and all(
        key in clean and isinstance(value, Tensor) and torch.equal(clean[key], value)
        for key, value in corrupt.items()
    )


def equal_but_for_rounding(one: Tensor, other: Tensor) -> bool:
    """``True`` if two tensors are equal but for the rounding of a mean."""
    one, other = torch.broadcast_tensors(one, other)
    if not one.numel():
        return True
    kind = one.dtype if one.is_floating_point() else torch.float32
    size = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) <= 16 * torch.finfo(kind).eps * size


@torch.no_grad()
def changes_nothing(model: MaskedModel, batch: Batch, reference: Reference) -> bool:
    """``True`` if no edge of the batch sends anything else, or nothing that reaches the outputs.

    Equal outputs are not enough: single edges may matter where all of them together do not. So
    runs of a few drawn circuits decide, unless all messages are known to be the clean ones.
    """
    if reference.ablation.kind == "counterfactual" and equal_inputs(batch):
        return True
    if isinstance(reference, ComparesMessages) and reference.changes_nothing():
        return True
    # Messages that differ may still not reach what is asked, a node that no edge leads to.
    if not equal_but_for_rounding(reference.full, reference.ablated):
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(_DRAWN_MASKS, model.graph.num_edges, generator=generator)
    masks = (drawn < torch.linspace(0.2, 0.8, _DRAWN_MASKS)[:, None]).float()
    return equal_but_for_rounding(model.run(batch, masks, reference), reference.full)


class IdleAblationCheck:
    """Looks at a method's references until one of them changes something.

    One example that changes is enough: edges have effects on it. The others add zeros.
    """

    def __init__(self, model: MaskedModel, what: str) -> None:
        self._model, self._what = model, what
        self._last: tuple[Batch, Ablation] | None = None
        self._changed = False

    def see(self, batch: Batch, reference: Reference) -> None:
        """One more reference; costs nothing once one has changed something."""
        if self._changed:
            return
        self._changed = not changes_nothing(self._model, batch, reference)
        self._last = batch, reference.ablation

    def see_gradients(
        self, batch: Batch, reference: Reference, found: Tensor, largest: float
    ) -> None:
        """The same, of one whose scores are known: those that are no rounding settle it.

        ``found`` are sums over the batch of changes of values that are at most ``largest``. Means
        and constants differ from messages by rounding, so that scores do not tell.
        """
        exact = reference.ablation.kind in ("counterfactual", "zero")
        if exact and found.numel() and float(found.abs().max()) > 1e-4 * largest > 0:
            self._changed = True
        else:
            self.see(batch, reference)

    @property
    def settled(self) -> bool:
        """``True`` if one has changed something."""
        return self._changed

    def finish(self) -> None:
        """Raises :class:`InputError` if all that were seen change nothing."""
        why = self.reason()
        if why is not None:
            raise InputError(f"{self._what}: {why}")

    def reason(self) -> str | None:
        """Why all that were seen change nothing, and what would; ``None`` if one does."""
        if self._changed or self._last is None:
            return None
        batch, ablation = self._last
        would = [kind for kind in _ALTERNATIVES if self._would_change(batch, kind, ablation)]
        other = " or ".join(f"ablation={kind!r}" for kind in would)
        return (
            f"{ablation.name} ablation changes nothing here: {_CAUSES[ablation.kind]}. On every "
            "example every ablated message is the clean one (corrupted inputs equal to the clean "
            "ones, features alike on all nodes, a mean over equal inputs), or none that differs "
            "reaches the outputs asked for (a node that no edge leads to), so no edge has an "
            "effect. "
            + (f"Use {other}, or give" if other else "Give")
            + " corrupted inputs that differ, or ask where edges lead"
        )

    def _would_change(self, batch: Batch, kind: AblationKind, now: Ablation) -> bool:
        if kind == now.kind:
            return False
        try:
            other = Ablation(kind)
            if kind == "mean":
                other = require(self._model, MeanMessages, "mean ablation").mean_ablation([batch])
            return not changes_nothing(self._model, batch, self._model.reference(batch, other))
        except GraphPruneError:
            return False  # this adapter has no such ablation


_CAUSES: dict[AblationKind, str] = {
    "counterfactual": "most often the corrupted prompts (or features) are the clean ones",
    "mean": "most often all inputs that the mean is taken over are alike",
    "zero": "most often no edge leads to the nodes asked about",
    "optimal": "most often no edge leads to the nodes asked about",
    "delete": "most often no edge leads to the nodes asked about",
}


def require_effect(model: MaskedModel, pairs: Iterable[tuple[Batch, Reference]], what: str) -> None:
    """Raises :class:`InputError` unless one of the references changes something."""
    idle = IdleAblationCheck(model, what)
    for pair in pairs:
        idle.see(*pair)
        if idle.settled:
            return
    idle.finish()


_NOISE = 1e-6  # of the scores, at least of 1: rounding of float32 outputs


@dataclass(frozen=True)
class MetricRange:
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
    def of(cls, full: Tensor, ablated: Tensor, idle: str | None = None) -> MetricRange:
        """From scores ``[n]`` of the full and of the wholly ablated model.

        They are told apart where the interval excludes 0, and the difference is larger than the
        rounding of the scores. Fewer than 20 examples are too few for an interval to decide: there
        it stands in the note. One example is taken at its word.

        Args:
            idle: why the ablation changes nothing, if it does.

        Example:
            >>> import torch
            >>> one, other = torch.tensor([1.0, 2.0, 4.0] * 8), torch.tensor([0.0, 1.5, 3.0] * 8)
            >>> MetricRange.of(one, other).why is None
            True
            >>> print(MetricRange.of(one, one.flip(0)).why)  # doctest: +ELLIPSIS
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
        """The place of ``value`` on the way from the ablated model (0) to the full one (1)."""
        return (value - self.ablated) / self.size


# Below these no figure of a float32 model is looked at; half precision is always looked at.
_KL, _FAITHFULNESS = 1e-9, 1e-5


def note_rounding(
    model: MaskedModel,
    task: Task,
    ablation: Ablation,
    batch_size: int | None,
    gap: float,
    figures: Sequence[tuple[Mapping[str, float], dict[str, str]]],
) -> None:
    """Adds a sentence to the notes on each figure that rounding alone may have made.

    Args:
        gap: the metric of the full model minus that of the wholly ablated one.
        figures: each circuit's figures by name, and the notes on them.
    """
    if not any(_may_be_rounding(model, values) for values, _ in figures):
        return
    noise = _rounding_of(model, task, ablation, batch_size)
    for values, notes in figures:
        for name, note in _rounding_notes(model, values, gap, noise).items():
            earlier = notes.get(name)
            notes[name] = f"{earlier}; {note}" if earlier else note


def _rounding_of(
    model: MaskedModel, task: Task, ablation: Ablation, batch_size: int | None
) -> dict[str, float]:
    """The open mask's mean KL, and what the mean of the task's metric is off by, on one batch."""
    batch = next(iter(task.batches(batch_size)))
    reference = model.reference(batch, ablation)
    noise = {}
    with torch.no_grad():
        full = reference.full
        outputs = model.run(batch, EdgeMask.full(model.graph), reference)
        kl = METRICS["kl"]
        if kl.missing(batch, full) is None:
            noise["kl"] = float(kl(outputs, batch, full).double().mean())
        if task.metric.missing(batch, full) is None:
            gap = task.metric(outputs, batch, full) - task.metric(full, batch, full)
            gap = gap.double()
            noise["metric"] = max(
                float(gap.mean().abs()), float(gap.square().mean().sqrt()) / math.sqrt(len(task))
            )
    return noise


def _dtypes(model: MaskedModel) -> set[torch.dtype]:
    module = module_of(model)
    return set() if module is None else {p.dtype for p in module.parameters()}


def _may_be_rounding(model: MaskedModel, values: Mapping[str, float]) -> bool:
    """``True`` if a figure may be one of rounding alone."""
    if _dtypes(model) & {torch.float16, torch.bfloat16}:
        return True
    off = abs(1 - values["faithfulness"]) if "faithfulness" in values else math.inf
    return values.get("kl", math.inf) < _KL or off < _FAITHFULNESS


def _rounding_notes(
    model: MaskedModel, values: Mapping[str, float], gap: float, noise: Mapping[str, float]
) -> dict[str, str]:
    """A sentence for each of KL and faithfulness that is of the size of the noise."""
    kinds = sorted(str(kind).removeprefix("torch.") for kind in _dtypes(model))
    notes = {}
    for name, off, limit in (
        ("kl", values.get("kl"), noise.get("kl")),
        (
            "faithfulness",
            abs(1 - values["faithfulness"]) if "faithfulness" in values else None,
            noise["metric"] / abs(gap) if "metric" in noise and gap else None,
        ),
    ):
        # The open mask's figure is a draw of the noise too, so up to twice it counts.
        if off is None or limit is None or off > 2 * limit or limit == 0:
            continue
        what = f"{off:.2g}" if name == "kl" else f"{off:.2g} from 1"
        notes[name] = (
            f"{what} is within rounding ({', '.join(kinds) or 'unknown dtype'}): the whole model "
            f"run as a circuit is {limit:.2g} off"
        )
    return notes


# Relative to the largest output, by the dtype that the module computes in.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.12, torch.float16: 0.03}
_Pairs = Mapping[str, tuple[Tensor, Tensor]]


def runs_beside(model: MaskedModel, batch: Batch, clean: Tensor, corrupt: Tensor) -> _Pairs:
    """Four runs of a masked model, each beside what the user's own module gives.

    ``clean`` and ``corrupt`` are the module's outputs on the batch's two sides. Mask 1 must give
    the former, mask 0 the latter.
    """
    reference = model.reference(batch)
    ones = torch.ones(model.graph.num_edges)
    return {
        "the clean pass": (reference.full, clean),
        "the corrupted pass": (reference.ablated, corrupt),
        "mask 1 against the plain model": (model.run(batch, ones, reference), clean),
        "mask 0 against the plain model": (model.run(batch, 0 * ones, reference), corrupt),
    }


def require_alike(pairs: _Pairs, name: str, dtype: torch.dtype, blame: Callable[[], str]) -> None:
    """Raises :class:`UnsupportedModelError` where two outputs differ by more than rounding.

    Args:
        pairs: ours and the module's, by what they are.
        name: the module's class.
        dtype: what it computes in.
        blame: the likely cause, asked for only where something differs.
    """
    for what, (ours, theirs) in pairs.items():
        gap = float((ours.double() - theirs.double()).abs().max())
        size = float(theirs.double().abs().max()) + 1.0
        tolerance = _TOLERANCE.get(dtype, 1e-3) * size
        if not gap <= tolerance:
            raise UnsupportedModelError(
                f"{name} failed the exactness check: {what} differs by {gap:.3g} (outputs up to "
                f"{size:.3g}, tolerance {tolerance:.3g}); {blame()}"
            )
