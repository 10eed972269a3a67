"""Baselines that train a copy of the network along with the mask: lottery tickets and DropEdge.

Both give the trained copy besides (:meth:`LotteryTickets.network`, :meth:`DropEdge.network`):
``gp.evaluate(network, task, mask, ablation="delete")`` is what their authors report. A study, and
the command line, judge masks on the network as it was given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphprune.core.mask import EdgeMask
from graphprune.core.method import Scorer
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.passes import Passes
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.methods import Random
from graphprune.util.checks import at_least

from .message_model import MessageModel
from .retraining import Trainer, require_messages_to_train, retrained, seeded

__all__ = ["DropEdge", "LotteryTickets"]


@dataclass(frozen=True, kw_only=True)
class LotteryTickets(Scorer):
    """Edges ranked by the round in which iterative magnitude pruning cuts them.

    A round trains a copy of the network, from fresh weights that are the same in every round, with
    a mask value for each edge (from 1 on, under a price for their sum), cuts the edges of the
    smallest values and rewinds weights and values: the edges' part of the graph lottery ticket
    hypothesis (Chen et al. 2021, arXiv 2102.06790, there called UGS; after Frankle & Carbin 2019).
    Edges that are never cut are ranked by their last values.

    Args:
        rate: the share of the edges left that a round cuts.
        least: the share of all edges at which rounds end.
        epochs, lr, weight_decay: of a round, as in
            :func:`~graphprune.adapters.retrained`; a step is a batch of the task's.
        price: of the mean mask value.
        afresh: ``False`` rewinds to the network's own weights, which saw all edges.
        seed: of fresh weights and dropout; ``None``: 0.

    Example:
        >>> from graphprune.adapters import LotteryTickets
        >>> method = LotteryTickets(rate=0.5, least=0.5, epochs=20)
        >>> method.fit(model, task, size=0.5).mask
        EdgeMask(12 of 24 edges, 50.0000%)
    """

    rate: float = 0.2
    least: float = 0.1
    epochs: int = 200
    lr: float = 0.01
    weight_decay: float = 5e-4
    price: float = 0.1
    afresh: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "least"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"{name} is a share in (0, 1), got {getattr(self, name)!r}")
        at_least(self.epochs, 1, "epochs")

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """Those of all rounds' steps."""
        left, rounds = model.graph.num_edges, 0
        while left > self.least * model.graph.num_edges:
            left -= max(1, int(self.rate * left))
            rounds += 1
        return Passes(masked=rounds * self.epochs * task.num_batches())

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """See the class; an edge cut in round r has a score in (r - 1, r]."""
        inside = require_messages_to_train(model, type(self).__name__)
        inside.checked.require_messages("mask to learn")
        edges = model.graph.num_edges
        kept, values = torch.ones(edges, dtype=torch.bool), torch.zeros(edges)
        number = 0
        while int(kept.sum()) > self.least * edges:
            learned = self._round(inside, task, kept)
            left = torch.nonzero(kept)[:, 0]
            order = left[learned[left].argsort(stable=True)]
            places = torch.arange(1, len(order) + 1) / len(order)
            values[order] = number + places
            kept[order[: max(1, int(self.rate * len(order)))]] = False
            number += 1
        return EdgeScores(model.graph, values, method=self.label)

    def network(self, model: MaskedModel, task: Task, mask: EdgeMask) -> MessageModel:
        """The ticket: the rewound network, trained on ``task`` with the cut edges gone."""
        return retrained(
            model, task, mask, epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay,
            afresh=self.afresh, seed=self.chosen_seed,
        )  # fmt: skip

    def _round(self, model: MessageModel, task: Task, kept: Tensor) -> Tensor:
        """``[E]``: sizes of the mask's values after a round's training."""
        with seeded(model.module, self.chosen_seed), torch.enable_grad():
            trainer = Trainer(model)
            if self.afresh:
                trainer.reset()
            mask = nn.Parameter(torch.ones(len(kept)).to(next(trainer.module.parameters())))
            trainer.fit(
                task, lambda: kept, self.epochs, self.lr, self.weight_decay, mask, self.price
            )
        return mask.detach().abs().cpu()


@dataclass(frozen=True, kw_only=True)
class DropEdge(Scorer):
    """Random edges, for a network that was trained to stand their absence.

    DropEdge (Rong et al. 2020, arXiv 1907.10903) leaves each edge out by chance in every training
    step. As a baseline of pruning its mask is a random one; what counts is :meth:`network`.

    Args:
        epochs, lr, weight_decay, afresh: as in :func:`~graphprune.adapters.retrained`.
        seed: of the mask, and of what is dropped; ``None``: 0.

    Example:
        >>> from graphprune.adapters import DropEdge
        >>> method = DropEdge(epochs=20)
        >>> mask = method.score(model, task).top(0.75)
        >>> network = method.network(model, task, mask)
        >>> gp.evaluate(network, task, mask, ablation="delete")["accuracy"]
        1.0
    """

    epochs: int = 200
    lr: float = 0.01
    weight_decay: float = 5e-4
    afresh: bool = False
    seed: int | None = None

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """None: the ranking is random."""
        return Passes()

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Random scores, those of :class:`graphprune.Random` at the same seed."""
        require_model(model)
        drawn = Random(seed=self.chosen_seed).score(model, task)
        return EdgeScores(model.graph, drawn.values, method=self.label)

    def network(self, model: MaskedModel, task: Task, mask: EdgeMask) -> MessageModel:
        """The network, trained with as large a share of the edges dropped as the mask cuts."""
        return retrained(
            model, task, epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay,
            drop=1.0 - mask.density, afresh=self.afresh, seed=self.chosen_seed,
        )  # fmt: skip
