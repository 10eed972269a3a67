"""The clean messages on every edge, place by place."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphprune.core.model import Messages

from ..describe.layout import EdgeLayout, Place
from .values import LMReference

__all__ = ["clean_messages"]


def clean_messages(layout: EdgeLayout, reference: LMReference) -> Iterator[Messages]:
    """One :class:`Messages` a place; the reference's ablation must be zero."""
    clean = reference.clean
    values = clean.deltas(reference.ablated_values, reference.arch)
    stream = reference.stream_of(clean)
    attention, mlp, final = layout.places()
    places: list[Place] = []
    for layer in range(layout.layers):
        places += [attention[layer], mlp[layer]]
    for place, total in zip([*places, final], stream, strict=True):
        edges = torch.arange(place.edges.start, place.edges.stop).view(place.rows, place.prefix)
        yield Messages(edges, values[: place.prefix], total, reference.inputs.weight)
