"""Attribution in one forward and backward: gradients at every reader, times changed messages.

Where each node's gate is one for all its readers, all readers of a point read the same stream, so
the forward is the plain one. Its way back gives the gradient g_r at each reader r. A change of a
message is taken along the stream by the derivative of every norm on the way to r, which again is
one for all readers; where it arrives it meets g_r.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..lm.describe.norms import wide
from .parts import Parts, Place

__all__ = ["Attribution", "Points", "arriving"]


class Points:
    """Records the stream where a group's messages were just added."""

    frozen = False

    def __init__(self) -> None:
        self.points: dict[int, Tensor] = {}

    def entering(self, stack: int, x: Tensor) -> Tensor:
        """What a stack begins with."""
        return x

    def message(self, group: int, messages: Tensor) -> Tensor:
        """What a group sends."""
        return messages

    def added(self, group: int, x: Tensor) -> None:
        """Keeps the stream, before the norm behind the group."""
        self.points[group] = x.detach()

    def reading(self, place: Place, rows: Tensor) -> None:
        """What a place reads is not looked at."""


def arriving(
    parts: Parts, stack: int, changes: list[Tensor], points: dict[int, Tensor], *, frozen: bool
) -> Iterator[tuple[Place, Tensor]]:
    """Each place of a stack with what small changes of the messages that it reads come to there.

    Args:
        parts: the model's.
        stack: which.
        changes: of each group's messages, ``[w, B, T, D]``.
        points: the stream where each group was added.
        frozen: whether norms' scales are constants.

    Yields:
        A place and ``[W, B, T, D]``, which the next step may overwrite.
    """
    groups = [i for i, group in enumerate(parts.groups) if group.stack == stack]
    places = [place for place in parts.places if place.stack == stack]
    total = sum(len(parts.groups[i].nodes) for i in groups)
    held: Tensor | None = None
    start = 0
    for number in groups:
        group, own = parts.groups[number], wide(changes[number])
        stop = start + len(group.nodes)
        if held is None:  # an embedding may be narrower than its layers
            own = own if group.norm is None else group.norm.push(points[number], own, frozen=frozen)
            held = own.new_empty(total, *own.shape[1:])
            held[:stop] = own
        else:
            held[start:stop] = own
            if group.norm is not None:
                held[:stop] = group.norm.push(points[number], held[:stop], frozen=frozen)
        for place in places:
            if place.groups[-1] == number:
                yield place, held[:stop]
        start = stop


class Attribution(Points):
    """Looks on at a forward, and sums attributions up on its way back.

    Args:
        parts: the model's.
        changes: clean minus ablated messages of each group, ``[w, B, T, D]``.
        clean: clean messages of each group.
        constant: ``[N]`` bool, nodes whose clean message is sent with no gradient; ``None``: none.
        share: what this point counts.
        edges: ``[E]`` or ``[T, E]``, to which attributions are added.
        neurons: ``[w, D]`` for each group, likewise; empty where they are not asked for.
        frozen: whether gradients take norms' scales as constants.
    """

    def __init__(
        self,
        parts: Parts,
        changes: list[Tensor],
        clean: list[Tensor],
        constant: Tensor | None,
        share: float,
        edges: Tensor,
        neurons: list[Tensor],
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.parts, self.changes, self.clean, self.constant = parts, changes, clean, constant
        self.share, self.edges, self.neurons, self.frozen = share, edges, neurons, frozen
        self.leaves: list[Tensor] = []
        self._arrived: dict[int, dict[Place, Tensor]] = {}
        self._gradients: dict[Place, Tensor] = {}
        groups = parts.groups
        firsts = {parts.first_group(group.stack) for group in groups}
        self._late = {
            group.stack
            for number, group in enumerate(groups)
            if group.norm is not None and number not in firsts
        }

    def entering(self, stack: int, x: Tensor) -> Tensor:
        """The same, with something to differentiate by."""
        leaf = x.new_zeros((), requires_grad=True)
        self.leaves.append(leaf)
        return x + leaf

    def message(self, group: int, messages: Tensor) -> Tensor:
        """The message, or its clean value as a constant."""
        if self.constant is None:
            return messages
        chosen = self.constant[list(self.parts.groups[group].nodes)].to(messages.device)
        return torch.where(chosen[:, None, None, None], self.clean[group], messages)

    def added(self, group: int, x: Tensor) -> None:
        """Waits for the gradient at what a group adds."""
        super().added(group, x)
        if self.neurons:
            x.register_hook(partial(self._at_group, group))

    def reading(self, place: Place, rows: Tensor) -> None:
        """Waits for the gradient at each reader."""
        rows.register_hook(partial(self._at_place, place))

    def backward(self, objective: Tensor) -> None:
        """The way back from ``objective``, a number."""
        torch.autograd.grad(objective, self.leaves, allow_unused=True)
        with torch.no_grad():
            for stack in sorted(self._late):
                for place, arrived in self._arriving(stack):
                    if place in self._gradients:
                        self._sum_up(place, self._gradients.pop(place), arrived)

    def _arriving(self, stack: int) -> Iterator[tuple[Place, Tensor]]:
        return arriving(self.parts, stack, self.changes, self.points, frozen=self.frozen)

    def _at_group(self, group: int, gradient: Tensor) -> None:
        changes = wide(self.changes[group])
        found = torch.einsum("wbtd,btd->wd", changes, gradient.expand_as(changes[0]))
        self.neurons[group] += self.share * found

    def _at_place(self, place: Place, gradient: Tensor) -> None:
        if place.stack in self._late:
            self._gradients[place] = gradient
            return
        if place.stack not in self._arrived:  # nothing changes on the way any more
            self._arrived[place.stack] = dict(self._arriving(place.stack))
        self._sum_up(place, gradient, self._arrived[place.stack][place])

    def _sum_up(self, place: Place, gradient: Tensor, arrived: Tensor) -> None:
        if self.edges.ndim == 1:
            found = gradient.flatten(1) @ arrived.flatten(1).T
            self.edges[place.edges] += self.share * found.flatten()
            return
        # Positions are counted from the front in both stacks, of which one may be longer.
        found = torch.einsum("rbtd,wbtd->trw", gradient, arrived)
        self.edges[: len(found), place.edges] += self.share * found.flatten(1)
