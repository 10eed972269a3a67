"""Runs of a compacted recurrent network, written out row by row."""

import numpy as np
import pytest
import torch
from support.wheels import random_network

from graphprune.adapters import ARGNN
from graphprune.adapters.gnn import unrolled_compute
from graphprune.adapters.gnn.unroll import unroll
from graphprune.adapters.gnn.wiring import Wiring

pytestmark = pytest.mark.inside


def test_what_cannot_change_is_computed_once():
    """A chain from a clamped input is at rest after as many steps as it is long."""
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    net = ARGNN(edges, 4, inputs=[0], update="synchronous", steps=50, bias=True)
    small = net.compact(product="sparse")
    for _ in range(2):  # a run is kept when its updates come again
        small(torch.ones(1))
    (kept, *_) = small.compaction._runs._runs.values()
    # A state each before and after its source moved: 1, 2 and 3, and 3's two constants of bias.
    assert kept.run.run.computed <= 1 + 2 + 3
    alone = ARGNN(torch.zeros(2, 0).long(), 3, bias=True, activation="sigmoid", steps=9)
    assert torch.equal(alone.compact()(h0=torch.rand(3, 1)), torch.full((3, 1), 0.5))


def test_many_examples_are_computed_in_parts(monkeypatch):
    small = random_network().double().compact()
    x = torch.randn(100, 3, dtype=torch.float64)
    want = small.predict(x).detach()
    monkeypatch.setattr(unrolled_compute, "_MOST_NUMBERS", 100)
    with torch.no_grad():
        assert torch.allclose(small.predict(x), want)


def test_rows_of_a_sweep_are_computed_level_by_level():
    """0, clamped, feeds 1, 2 and 3; 1 -> 2 -> 3 carry new states, 3 -> 1 an old one."""
    edges = np.array([[0, 0, 0, 1, 2, 3], [1, 2, 3, 2, 3, 1]])
    wiring = Wiring(
        edges, np.array([0]), np.arange(4) > 0, np.ones(4, bool), np.zeros(4, int), False, "none"
    )
    run = unroll(wiring, [np.array([1, 2, 3])] * 2, True, np.array([3]))
    assert [(wave.start, wave.stop) for wave in run.waves] == [(n, n + 1) for n in range(3, 9)]
    # Zeros, ones and the input are rows 0 to 2; node 1 reads nothing of 3 in the first sweep.
    reads = [run.source[a:b].tolist() for a, b in zip(run.offsets, run.offsets[1:], strict=False)]
    assert [sorted(one) for one in reads] == [[2], [2, 3], [2, 4], [2, 5], [2, 6], [2, 7]]
    assert run.output.tolist() == [8]


def test_what_is_overwritten_before_it_is_read_is_not_computed():
    """1 -> 2 under hand-made steps: 1 updates twice before 2 reads it."""
    wiring = Wiring(
        np.array([[0, 1], [1, 2]]), np.array([0]), np.arange(3) > 0, np.ones(3, bool),
        np.zeros(3, int), True, "by step",
    )  # fmt: skip
    one, two = np.array([False, True, False]), np.array([False, False, True])
    run = unroll(wiring, [one, one, two], False, np.array([2]))
    assert run.computed - sum(wave.stop - wave.start for wave in run.waves if wave.is_sum) == 2
