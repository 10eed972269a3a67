"""Circuits of several models on one graph, where their edges mean the same.

Graphs whose edges have the same names (in any order) are one graph here: two seeds of one
architecture, a model read from two files. Graphs that differ in their edges are not compared edge
by edge, since ``a3.h1`` of a deeper or wider model is another place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.core.circuit import Circuit
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.scores import EdgeScores
from graphprune.errors import GraphMismatchError, InputError


def require_named(things: Mapping[str, Any], others: tuple[Any, ...] = ()) -> None:
    """Raises :class:`InputError` unless ``things`` is a dict from names to two circuits or more.

    ``others`` are what stood behind it, which must be nothing.
    """
    named = isinstance(things, Mapping) and all(isinstance(name, str) for name in things)
    if others or not named:
        given = ", ".join(type(thing).__name__ for thing in (things, *others))
        raise InputError(
            f'expected a dict from names to circuits, as {{"ioi": circuit, ...}}, got {given}'
        )
    if len(things) < 2:
        raise InputError(f"a comparison needs at least 2 circuits, got {len(things)}")


def mask_of(thing: Any, name: str) -> EdgeMask:
    """The mask of a circuit, or the mask itself."""
    if isinstance(thing, Circuit):
        return thing.mask
    if isinstance(thing, EdgeMask):
        return thing
    hint = "; make a mask of scores first, as scores.top(0.01)"
    raise InputError(
        f"expected a Circuit or an EdgeMask for {name!r}, got {type(thing).__name__}"
        + (hint if isinstance(thing, EdgeScores) else "")
    )


def edge_positions(
    ours: ComputationalGraph, theirs: ComputationalGraph
) -> NDArray[np.int64] | None:
    """``[E]``: where each of our edges stands in theirs; ``None`` where the edges differ.

    Edges with the same ends are numbered as they stand, so graphs that have such are the same only
    where all edges stand in one order.
    """
    if ours is theirs or ours.fingerprint == theirs.fingerprint:
        return np.arange(ours.num_edges)
    if ours.num_edges != theirs.num_edges:
        return None
    if ours.edge_names.repeated or theirs.edge_names.repeated:
        same = list(ours.edge_names) == list(theirs.edge_names)
        return np.arange(ours.num_edges) if same else None
    places = [theirs.edge_number.get(name, -1) for name in ours.edge_names]
    order = np.array(places, dtype=np.int64)
    whole = len(set(places)) == len(places) and bool((order >= 0).all())
    return order if whole else None


def align_masks(circuits: Mapping[str, Any]) -> dict[str, EdgeMask]:
    """The masks on the first circuit's graph.

    Raises :class:`GraphMismatchError` where the edges differ, with what to do instead.
    """
    require_named(circuits)
    masks = {name: mask_of(thing, name) for name, thing in circuits.items()}
    base_name, base = next(iter(masks.items()))
    out = {}
    for name, mask in masks.items():
        order = _require_positions(base.graph, mask.graph, base_name, name)
        out[name] = replace(mask, graph=base.graph, values=mask.values[torch.from_numpy(order)])
    return out


def align_scores(
    circuits: Mapping[str, Any], scores: Mapping[str, EdgeScores] | None, graph: ComputationalGraph
) -> dict[str, EdgeScores]:
    """Scores on ``graph``: those given, else those that the circuits hold."""
    given: dict[str, EdgeScores] = {}
    for name, thing in circuits.items():
        if isinstance(thing, Circuit) and thing.scores is not None:
            given[name] = thing.scores
    for name, one in (scores or {}).items():
        if name not in circuits:
            raise InputError(f"scores are given for {name!r}, which is none of {list(circuits)}")
        if not isinstance(one, EdgeScores):
            raise InputError(f"expected EdgeScores for {name!r}, got {type(one).__name__}")
        given[name] = one
    out = {}
    for name, one in given.items():
        order = _require_positions(graph, one.graph, "the circuits", f"the scores of {name}")
        values = one.values[torch.from_numpy(order)]
        out[name] = replace(one, graph=graph, values=values)
    return out


def _require_positions(
    ours: ComputationalGraph, theirs: ComputationalGraph, our_name: str, their_name: str
) -> NDArray[np.int64]:
    order = edge_positions(ours, theirs)
    if order is None:
        raise GraphMismatchError(
            f"{our_name} and {their_name} belong to graphs with other edges ({ours!r} and "
            f"{theirs!r}), so that no set of edges can be compared: a name would stand for two "
            "places. Compare where their edges lie instead, by relative depth and kind: "
            "gp.compare_profiles({...})"
        )
    return order
