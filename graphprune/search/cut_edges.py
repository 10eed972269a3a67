"""Edges that are cut and grown while a network trains: what dynamic pruning asks of them.

A model that can train under masks gives its edges as :class:`CutEdges`
(:class:`graphprune.capabilities.CutsWhileTraining`). One whose runs a mask is part of anyway needs
nothing of its own: :class:`MaskOfRuns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from graphprune.capabilities import WeightedEdges
from graphprune.core.graph import ComputationalGraph
from graphprune.core.model import MaskedModel
from graphprune.errors import InputError

__all__ = ["CutEdges", "MaskOfRuns", "no_gradients"]


class CutEdges(ABC):
    """The edges of something that trains, some of them cut.

    Args:
        graph: its edges; M are their messages (more than edges where edges are tied).
    """

    def __init__(self, graph: ComputationalGraph) -> None:
        self.graph = graph

    @property
    @abstractmethod
    def kept(self) -> Tensor:
        """``[E]`` bool on the CPU."""

    @abstractmethod
    def keep(self, kept: Tensor, grown: Tensor) -> None:
        """Goes on with the edges ``kept [E]`` bool; weights of ``grown [E]`` ones begin at 0."""

    @abstractmethod
    def weights(self) -> Tensor:
        """``[M]``: signed weights of the messages, or sizes of what they carry."""

    @property
    def has_weights(self) -> bool:
        """Whether :meth:`weights` are known."""
        return True

    @abstractmethod
    def gradients(self) -> Tensor:
        """``[M]``: the loss's gradients since :meth:`forget`, by what a cut edge begins with.

        By its weight where it has one, else by its mask value. Cut edges have gradients too. Raises
        :class:`InputError` where there are none.
        """

    def stepped(self) -> None:  # noqa: B027 - most have nothing to let go
        """Told after each count: what calls before it left behind may go."""

    @abstractmethod
    def forget(self) -> None:
        """Starts gradients anew."""

    def effects(self) -> Tensor:
        """``[M]``: to first order, what the loss gains by each message, times -1."""
        return self.gradients() * self.weights()

    def numbers(self) -> list[Tensor]:
        """Parameters ``[M]``: where an edge grows its entry of an optimiser's state begins anew."""
        return []


def no_gradients(found: str) -> InputError:
    """The refusal of regrowth, or of cuts by gradients, where gradients say nothing."""
    return InputError(
        f"edges are chosen by the loss's gradients, and the gradient of edge_weight is {found}; "
        "call step() between backward() and zero_grad(), and where weights are multiplied by "
        "edge_keep give what is pruned a dense_gradient [E]: the gradient by the product"
    )


class MaskOfRuns(CutEdges):
    """The edges of any masked model, by the mask that its runs are given.

    Attributes:
        values: ``[E]``, what to run it under: ``model.run(batch, values, reference)``.
    """

    def __init__(self, model: MaskedModel) -> None:
        super().__init__(model.graph)
        self.model = model
        self.values = torch.ones(model.graph.num_edges, requires_grad=True)

    @property
    def kept(self) -> Tensor:
        """See :class:`CutEdges`."""
        return self.values.detach() > 0

    @torch.no_grad()
    def keep(self, kept: Tensor, grown: Tensor) -> None:
        """See :class:`CutEdges`."""
        self.values.copy_(kept)

    @property
    def has_weights(self) -> bool:
        """See :class:`CutEdges`."""
        return isinstance(self.model, WeightedEdges) and self.model.edge_weights() is not None

    def weights(self) -> Tensor:
        """See :class:`CutEdges`."""
        own = self.model.edge_weights() if isinstance(self.model, WeightedEdges) else None
        if own is None:
            raise InputError(
                f"the edges of {type(self.model).__name__} have no weights to judge them by; take "
                "method='gradient' or 'random'"
            )
        return own

    def gradients(self) -> Tensor:
        """See :class:`CutEdges`."""
        if self.values.grad is None:
            raise InputError(
                "no gradient reached the mask: run the model under it, "
                "model.run(batch, pruning.values, reference), and call step() after backward()"
            )
        return self.graph.per_message(self.values.grad)

    def effects(self) -> Tensor:
        """See :class:`CutEdges`."""
        return self.gradients()

    def forget(self) -> None:
        """See :class:`CutEdges`."""
        self.values.grad = None
