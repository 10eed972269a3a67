"""Bootstrap intervals of a mean cover it as often as they say."""

import pytest
import torch

from graphprune.util.numbers import bootstrap_interval

pytestmark = pytest.mark.inside


def test_bootstrap_intervals_cover_at_their_level():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        sample = torch.randn(60, generator=generator)
        low, high = bootstrap_interval(sample, seed=seed)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.985
