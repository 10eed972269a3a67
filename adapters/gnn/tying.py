"""Undirected edges: which messages of a graph are one edge, with one mask value and one fate.

PyG keeps an undirected edge as two directed ones. Each is a message of its own, but a user who cuts
an edge of an undirected graph means both. Here messages are put into groups, and a graph made of
them has one edge for each group (:class:`graphprune.core.elements.Ties`): everything that looks at
edges, from scores to counts, then sees pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

__all__ = ["Tie", "tied"]

Tie = bool | Literal["auto"] | Mapping[Any, Any]
_Numbers = NDArray[np.int64]


def tied(
    graph: ComputationalGraph, features: Sequence[Sequence[Tensor]], tie: Tie
) -> ComputationalGraph:
    """The graph with one edge for each pair of opposite messages.

    Args:
        graph: all messages as edges, relation after relation.
        features: of each relation the tensors ``[E_r, ...]`` of its edges.
        tie: ``"auto"`` ties the edges of a relation that is undirected as a whole: all but
            self-loops have a reverse with the same features. ``True`` ties whatever comes in pairs,
            of the same features where all do, and (of a heterogeneous graph) relations with their
            reverses as ``torch_geometric.transforms.ToUndirected`` names them (``rev_writes``). A
            mapping ``{relation: its reverse}`` names reverses of other names, relations as triples
            or as ``author__writes__paper``, and ties the others as ``"auto"`` does. ``False`` ties
            nothing.

    Raises:
        InputError: ``True`` where no edge has a reverse; an unknown relation, or one that is not
            the other's reverse.

    Example:
        >>> karate = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("b", "b")])
        >>> tied(karate, [[torch.ones(3)]], "auto").edge_names[:]
        ['a--b', 'b->b']
        >>> tied(karate, [[torch.tensor([1.0, 2.0, 1.0])]], "auto").ties is None
        True
    """
    if not isinstance(tie, bool | Mapping) and tie != "auto":
        raise InputError(
            f"tie must be 'auto', True, False or a mapping of relations, got {tie!r}: 'auto' gives "
            "both directions of an undirected edge one mask value, False each its own"
        )
    if tie is False:
        return graph
    reverses = _reverses(graph, tie)
    kinds = graph.edge_kind.numpy().astype(np.int64)
    group = np.arange(graph.num_edges)
    for kind, other in reverses.items():
        numbers = np.flatnonzero((kinds == kind) | (kinds == other))
        if tie is not True and kind == other and _one_way(graph, numbers):
            continue
        partner = _partners(graph, numbers, kinds, [])
        if (partner >= 0).all() and kind == other and features[kind]:
            alike = _partners(graph, numbers, kinds, features[kind])
            if tie is not True or (alike >= 0).all():
                partner = alike
        if kind != other and (partner < 0).any():
            names = graph.edge_kinds[kind], graph.edge_kinds[other]
            raise InputError(
                f"tie: {int((partner < 0).sum())} edges of {names[0]} and {names[1]} have no "
                "reverse in the other, so they are not each other's reverses"
            )
        if tie is not True and (partner < 0).any():
            continue
        first = np.where(partner < 0, numbers, np.minimum(numbers, numbers[partner]))
        group[numbers] = first
    if (group == np.arange(len(group))).all():
        if tie is True and graph.num_edges:
            raise InputError(
                "tie=True ties edges with their reverses, and no edge of this graph has one; "
                "leave it out"
            )
        return graph
    return graph.tied(torch.from_numpy(np.unique(group, return_inverse=True)[1]))


def _one_way(graph: ComputationalGraph, numbers: _Numbers) -> bool:
    """Whether some edge surely lacks a reverse: a node has more edges out than in, or fewer."""
    out, into = (
        np.bincount(row, minlength=graph.num_nodes) for row in graph.edge_index.numpy()[:, numbers]
    )
    return bool((out != into).any())


def _reverses(graph: ComputationalGraph, tie: Tie) -> dict[int, int]:
    """Each relation with itself, or with the relation that is its reverse."""
    number = {name: i for i, name in enumerate(graph.edge_kinds)}
    named: dict[str, str] = {}
    if isinstance(tie, Mapping):
        named = {_relation(a): _relation(b) for a, b in tie.items()}
        unknown = [name for pair in named.items() for name in pair if name not in number]
        if unknown:
            raise InputError(
                f"tie names the relation {unknown[0]!r}; the graph has {', '.join(number)}"
            )
    elif tie is True:
        for reverse in number:  # such as paper__rev_writes__author; types may hold "__" too
            target, _, rest = reverse.partition("__rev_")
            for cut in (found.start() for found in re.finditer("(?=__)", rest)):
                name = f"{rest[cut + 2 :]}__{rest[:cut]}__{target}"
                if name in number:
                    named[name] = reverse
    reverses = {number[a]: number[b] for a, b in named.items()}
    taken = {*reverses, *reverses.values()}
    return reverses | {kind: kind for kind in number.values() if kind not in taken}


def _relation(given: Any) -> str:
    return given if isinstance(given, str) else "__".join(map(str, given))


def _partners(
    graph: ComputationalGraph, numbers: _Numbers, kinds: _Numbers, features: Sequence[Tensor]
) -> _Numbers:
    """For each of the messages ``numbers`` the place of its reverse among them; -1: it has none.

    A self-loop of one relation is its own reverse. Of several messages with the same ends and
    features the first is the reverse of the first, and so on.
    """
    source, target = graph.edge_index.numpy()[:, numbers]
    kind = kinds[numbers]
    between = len(np.unique(kind)) > 1  # a relation and its reverse: the kind tells the direction
    back = kind != kind.min() if between else source > target
    low = np.where(back, target, source)
    high = np.where(back, source, target)
    key = _joint(low * graph.num_nodes + high, *_columns(features, len(numbers)))
    # The place of each message among those of the same key and direction.
    order = np.lexsort((numbers, back, key))
    run = 2 * key[order] + back[order]
    new = np.append(True, run[1:] != run[:-1])[: len(order)]
    start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - start
    pair = _joint(key, rank)
    one_way = [np.full(pair.max(initial=-1) + 1, -1) for _ in range(2)]
    for side, place in zip((~back, back), one_way, strict=True):
        place[pair[side]] = np.flatnonzero(side)
    partner = np.where(back, one_way[0][pair], one_way[1][pair])
    if not between:
        loops = source == target
        partner[loops] = np.flatnonzero(loops)
    return partner


def _joint(first: _Numbers, *others: _Numbers) -> _Numbers:
    """A number for each different combination of entries at one place."""
    code = np.unique(first, return_inverse=True)[1]
    for other in others:
        code = np.unique(code * (other.max(initial=0) + 1) + other, return_inverse=True)[1]
    return code


def _columns(features: Sequence[Tensor], count: int) -> Iterator[_Numbers]:
    """``[M]`` for each column of the features: a number for each different value."""
    for value in features:
        for column in value.reshape(count, -1).T.numpy():
            yield np.unique(column, return_inverse=True)[1]
