"""All circuits of a small graph, counted: what chances of shared edges must be."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

import graphprune as gp
from graphprune.comparison import CountDistribution

# Two layers with two nodes each between an input and an output, and a skip of each layer.
SMALL = gp.ComputationalGraph.from_edges(
    [("in", "a"), ("in", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "out"),
     ("d", "out"), ("in", "out")]
)  # fmt: skip  # fmt: skip
ONE = gp.EdgeMask.from_edges(SMALL, ["in->a", "a->c", "b->d", "c->out"])
TWO = gp.EdgeMask.from_edges(SMALL, ["in->a", "a->c", "a->d", "d->out", "in->out"])


def circuits_of(size: int) -> list[np.ndarray]:
    """Every set of that many edges, as booleans."""
    out = []
    for chosen in combinations(range(SMALL.num_edges), size):
        kept = np.zeros(SMALL.num_edges, dtype=bool)
        kept[list(chosen)] = True
        out.append(kept)
    return out


def enumerated(circuits: list[np.ndarray], weights: list[float] | None = None) -> dict[int, float]:
    """Chances of each number of edges shared with TWO."""
    found: Counter[int] = Counter()
    for i, kept in enumerate(circuits):
        found[int((kept & TWO.kept.numpy()).sum())] += 1.0 if weights is None else weights[i]
    whole = sum(found.values())
    return {count: value / whole for count, value in found.items()}


def agree(found: CountDistribution, truth: dict[int, float]) -> None:
    assert found.pmf.sum() == pytest.approx(1, abs=1e-12)
    got = dict(zip(found.counts.tolist(), found.pmf.tolist(), strict=True))
    for count in {*got, *truth}:
        assert got.get(count, 0.0) == pytest.approx(truth.get(count, 0.0), abs=1e-12)
