"""Places of nodes on a page."""

from itertools import combinations

import numpy as np
import pytest

from graphprune.drawing.places import network_places


@pytest.mark.parametrize(("ring", "alone"), [(0, 64), (3, 60), (12, 40)])
def test_nodes_without_edges_stand_in_a_block(ring, alone):
    pairs = [(i, (i + 1) % ring) for i in range(ring)]
    places = network_places(ring + alone, pairs)
    width, height = np.ptp(places, axis=0)
    assert 1 / 2 < width / height < 2
    gaps = [np.hypot(*(a - b)) for a, b in combinations(places[ring:], 2)]
    assert min(gaps) > 1 - 1e-9
    if not ring:
        assert (width, height) == (7.0, 7.0)  # eight rows of eight
