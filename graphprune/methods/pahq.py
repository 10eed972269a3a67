"""ACDC in low precision: PAHQ (arXiv 2510.23264) as its paper describes it, and its baseline RTN-Q.

The search is ACDC's. Its runs are a low-precision model's, in which PAHQ computes the head under
investigation in float32: q, k, v and the output map of the head whose incoming edges are tried.
A change of model changes the loss of the circuit as it stands, so that it is measured anew, and KL
is taken to the full model in the same precisions: an effect is always a difference of one model.

With ``recheck`` low precision only screens. A decision closer to tau than low precision strays is
made again by runs of the original model, so that the circuit is ACDC's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.capabilities import LowPrecision, require
from graphprune.errors import InputError
from graphprune.greedy.judge import Judge, RaisingJudge, Recheck, Referee
from graphprune.metrics import Metric
from graphprune.model import MaskedModel
from graphprune.precision import PAHQ_POLICY, PrecisionPolicy, rtn
from graphprune.task import Task

from .acdc import ACDC, noise, passed_circuits
from .base import resolve_ablation

__all__ = ["PAHQ", "RTNQ"]

_SAMPLED = 8  # edges of each circuit
_FACTOR = 3.0  # effects between tau / 3 and 3 tau are never trusted


@dataclass(frozen=True, kw_only=True)
class _Quantised(ACDC):
    recheck: Literal["float64", "same", "off"] = "off"

    @property
    @abstractmethod
    def _precisions(self) -> PrecisionPolicy: ...

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ()

    def _judge(self, model: MaskedModel, task: Task, metric: Metric, order: Tensor) -> Judge:
        low = require(model, LowPrecision, self.label).at_precision(self._precisions)
        return RaisingJudge(
            low,
            task,
            metric,
            resolve_ablation(low, task, self.ablation),
            self.batch_size,
            self._trials(order),
            policy=self._precisions,
            raised=self._kinds,
        )

    def _rechecks(
        self, model: MaskedModel, task: Task, metric: Metric, judge: Judge, order: Tensor
    ) -> list[Recheck]:
        if self.recheck == "off":
            return []
        own = self._referee(model, task, metric, wide=False)
        found = [Recheck(own, _astray(judge, own, model, order), _FACTOR)]
        if self.recheck == "float64":
            wide = self._referee(model, task, metric, wide=True)
            found.append(Recheck(wide, noise(own.loss, wide.loss, model.graph, order)))
        return found


@torch.no_grad()
def _astray(judge: Judge, referee: Referee, model: MaskedModel, order: Tensor) -> float:
    """The most that low-precision effects of sampled edges differ from the original's."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for at, kept in passed_circuits(model.graph, order):
        judge.start(kept)
        rest = order[at:]
        for edge in rest[torch.randperm(len(rest), generator=generator)[:_SAMPLED]].tolist():
            judge.attend(int(model.graph.edge_index[1, edge]))
            (loss,) = judge.without(torch.tensor([edge]), torch.tensor([[True]]))
            less = kept.clone()
            less[edge] = False
            exact = referee.loss(less) - referee.loss(kept)
            worst = max(worst, abs(loss - judge.loss() - exact))
    return worst


@dataclass(frozen=True, kw_only=True)
class PAHQ(_Quantised):
    """ACDC with the investigated head in float32 and everything else in low precision.

    Args:
        policy: the precisions of all that is not under investigation.
        raised: kinds of nodes that are computed in float32 while edges into them are tried; a
            grouped key/value head is raised with its query heads. ``()`` raises nothing.
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

    policy: PrecisionPolicy = PAHQ_POLICY
    raised: tuple[str, ...] = ("head", "kv")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy, PrecisionPolicy):
            raise InputError(f"policy is a PrecisionPolicy, got {type(self.policy).__name__}")
        given: object = self.raised
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise InputError(f"raised is a list of kinds of nodes, got {given!r}")
        object.__setattr__(self, "raised", tuple(given))

    @property
    def _precisions(self) -> PrecisionPolicy:
        return self.policy

    @property
    def _kinds(self) -> tuple[str, ...]:
        return self.raised

    def _settings(self, taus: list[float]) -> dict[str, Any]:
        return super()._settings(taus) | {"policy": self.policy.to_dict()}


@dataclass(frozen=True, kw_only=True)
class RTNQ(_Quantised):
    """ACDC on weights rounded to nearest: ``max|w| / (2^(bits-1) - 1)`` a step, nothing raised.

    Args:
        bits: 8 or 4.

    ``recheck`` is as :class:`PAHQ`'s, all other settings are :class:`ACDC`'s. With the tested head
    in float32, the other reading of the paper, it is ``PAHQ(policy=gp.precision.rtn(8))``.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        rtn(self.bits)

    @property
    def _precisions(self) -> PrecisionPolicy:
        return rtn(self.bits)
