"""Compacted runs of new updates, by rows for any updates or for these: the same, then as kept."""

import itertools
import unittest.mock

import pytest
from support.compacted import compared, drawn

from graphprune.adapters.gnn import unrolled_network


@pytest.mark.parametrize("product", ["sparse", "dense"])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_new_updates_and_the_same_again(seed, held, product):
    net, x, h0, drive = drawn(seed, "bernoulli")
    small = net.compact(product=product)
    times = itertools.cycle([0.0, 1.0] if held else [1.0, 0.0])
    with unittest.mock.patch.object(unrolled_network, "seconds", side_effect=times):
        compared(net, small, x, h0, drive)
        compared(net, small, x, h0, drive)
    assert any(small.compaction._runs._held.values()) == held
