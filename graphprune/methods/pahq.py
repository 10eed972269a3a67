"""ACDC in low precision: PAHQ (arXiv 2510.23264) as its paper describes it, and its baseline RTN-Q.

The search is ACDC's. Its runs are a low-precision model's, in which PAHQ computes the node under
investigation in float32 (of a transformer q, k, v and the output map of the head whose incoming
edges are tried). Which nodes take which precision is the adapter's to say, unless the user does. A
change of model changes the loss of the circuit as it stands, so that it is measured anew, and KL
is taken to the full model in the same precisions: an effect is always a difference of one model.

With ``recheck`` low precision only screens. A decision closer to tau than low precision strays is
made again by runs of the original model, so that the circuit is ACDC's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.capabilities import LowPrecision, require
from graphprune.core.model import MaskedModel
from graphprune.core.result import Result
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.precision import PrecisionDefaults, PrecisionPolicy, rtn
from graphprune.search.evaluators import (
    ExactEvaluator,
    LossEvaluator,
    MixedPrecisionEvaluator,
    Recheck,
)
from graphprune.search.greedy_pruning import Branch, GreedyPruning

from .acdc import ACDC, noise, passed_circuits

__all__ = ["PAHQ", "RTNQ"]

_SAMPLED = 8  # edges of each circuit
_FACTOR = 3.0  # effects between tau / 3 and 3 tau are never trusted


@dataclass(frozen=True, kw_only=True)
class _Quantised(ACDC):
    recheck: Literal["float64", "same", "off"] = "off"

    @abstractmethod
    def _precisions(self, defaults: PrecisionDefaults) -> tuple[PrecisionPolicy, tuple[str, ...]]:
        """The policy of the runs, and the kinds of nodes raised to float32."""

    @property
    def needs(self) -> tuple[type, ...]:
        """Copies in low precision."""
        return (LowPrecision,)

    def _evaluator(self, model: MaskedModel, task: Task, order: Tensor) -> LossEvaluator:
        policy, raised = self._chosen(model)
        low = require(model, LowPrecision, self.label).at_precision(policy)
        measured, trials = self._measured(low, task), self._trials(order)
        return MixedPrecisionEvaluator(low, measured, trials, policy, raised)

    def _descent(
        self, model: MaskedModel, search: GreedyPruning, branch: Branch, tau: float
    ) -> Result:
        found = super()._descent(model, search, branch, tau)
        policy, raised = self._chosen(model)
        precision = {"policy": policy.to_dict(), "raised": list(raised)}
        return replace(found, notes={**found.notes, "precision": precision})

    def _chosen(self, model: MaskedModel) -> tuple[PrecisionPolicy, tuple[str, ...]]:
        return self._precisions(require(model, LowPrecision, self.label).precision_defaults)

    def _rechecks(
        self, model: MaskedModel, task: Task, evaluator: LossEvaluator, order: Tensor
    ) -> list[Recheck]:
        if self.recheck == "off":
            return []
        own = self._exact(model, task, wide=False)
        found = [Recheck(own, _low_precision_error(evaluator, own, model, order), _FACTOR)]
        if self.recheck == "float64":
            wide = self._exact(model, task, wide=True)
            found.append(Recheck(wide, noise(own.loss, wide.loss, model.graph, order)))
        return found


@torch.no_grad()
def _low_precision_error(
    low: LossEvaluator, exact: ExactEvaluator, model: MaskedModel, order: Tensor
) -> float:
    """The most that low-precision effects of sampled edges differ from the original's."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for at, kept in passed_circuits(model.graph, order):
        low.start(kept)
        rest = order[at:]
        for edge in rest[torch.randperm(len(rest), generator=generator)[:_SAMPLED]].tolist():
            low.raise_precision(int(model.graph.edge_index[1, edge]))
            (loss,) = low.without(torch.tensor([edge]), torch.tensor([[True]]))
            less = kept.clone()
            less[edge] = False
            effect = exact.loss(less) - exact.loss(kept)
            worst = max(worst, abs(loss - low.loss() - effect))
    return worst


@dataclass(frozen=True, kw_only=True)
class PAHQ(_Quantised):
    """ACDC with the investigated node in float32 and everything else in low precision.

    Args:
        policy: the precisions of all that is not under investigation; ``None``: the model's own
            (``model.precision_defaults``), of transformers those of the paper.
        raised: kinds of nodes that are computed in float32 while edges into them are tried, each
            with the nodes of these kinds that it is wired to; ``None``: the model's own, of
            transformers heads. ``()`` raises nothing.
        recheck: ``"off"`` is plain PAHQ. ``"same"``: decisions near tau are made again by whole
            runs of the original model. ``"float64"``: those nearer to tau than its noise once
            more in float64, as :class:`ACDC` does; the circuit is ACDC's as far as low precision
            strays no farther than on a sample of edges (the band widens where it does).

    Other settings are :class:`ACDC`'s. Raises :class:`UnsupportedModelError` for models without
    precision policies.

    Example:
        >>> PAHQ(tau=0.01).label
        'PAHQ(tau=0.01)'
    """

    policy: PrecisionPolicy | None = None
    raised: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy, PrecisionPolicy | None):
            raise InputError(f"policy is a PrecisionPolicy, got {type(self.policy).__name__}")
        given: object = self.raised
        if given is None:
            return
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise InputError(f"raised is a list of kinds of nodes, got {given!r}")
        object.__setattr__(self, "raised", tuple(given))

    def _precisions(self, defaults: PrecisionDefaults) -> tuple[PrecisionPolicy, tuple[str, ...]]:
        policy = defaults.policy if self.policy is None else self.policy
        return policy, defaults.raised if self.raised is None else self.raised

    def _settings(self, model: MaskedModel, taus: list[float]) -> dict[str, Any]:
        policy, raised = self._chosen(model)
        return super()._settings(model, taus) | {"policy": policy.to_dict(), "raised": raised}


@dataclass(frozen=True, kw_only=True)
class RTNQ(_Quantised):
    """ACDC on weights rounded to nearest: ``max|w| / (2^(bits-1) - 1)`` a step, nothing raised.

    Args:
        bits: 8 or 4.

    Which nodes are rounded is the model's to say (``model.precision_defaults.rounded``).
    ``recheck`` is as :class:`PAHQ`'s, all other settings are :class:`ACDC`'s. With the investigated
    node in float32, the other reading of the paper, it is ``PAHQ`` with
    ``policy=gp.precision.rtn(8, model.precision_defaults.rounded)``.

    Example:
        >>> RTNQ(bits=4).label
        'RTNQ(bits=4)'
    """

    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        rtn(self.bits, ())

    def _precisions(self, defaults: PrecisionDefaults) -> tuple[PrecisionPolicy, tuple[str, ...]]:
        return rtn(self.bits, defaults.rounded), ()
