"""Bootstrap intervals of a mean cover it as often as they say."""

import math

import pytest
import torch

from graphprune.util.numbers import bootstrap_interval, function_interval, ratio_interval

pytestmark = pytest.mark.inside


def test_bootstrap_intervals_cover_at_their_level():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        sample = torch.randn(60, generator=generator)
        low, high = bootstrap_interval(sample, seed=seed)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.985


def test_intervals_of_functions_of_means():
    """Of a mean it is the mean's; of a smooth function it covers at its level."""
    generator = torch.Generator().manual_seed(1)
    hits = kinked = 0
    for seed in range(150):
        x = torch.randn(40, 3, generator=generator, dtype=torch.float64).exp()
        if seed < 5:
            own = function_interval(x, lambda means: means[:, 1], seed=seed)
            assert own == pytest.approx(bootstrap_interval(x[:, 1], seed=seed), rel=1e-9)
        low, high = function_interval(x, lambda m: m[:, 0] / m[:, 1], draws=300, seed=seed)
        hits += low <= 1 <= high
        low, high = function_interval(x, lambda m: (1 - m).abs().sum(1), draws=300, seed=seed)
        kinked += low <= 3 * (torch.tensor(0.5).exp() - 1) <= high
    assert 0.88 <= hits / 150 <= 1.0
    assert 0.88 <= kinked / 150 <= 1.0


def test_a_function_without_spread_or_with_bounds():
    x = torch.linspace(0, 1, 30, dtype=torch.float64)
    both = torch.stack([x, 2 * x], dim=1)
    assert function_interval(both, lambda m: m[:, 1] / m[:, 0]) == pytest.approx((2, 2))
    low, high = function_interval(both, lambda m: m[:, 0] - 0.45, bounds=(0.0, 0.5))
    assert low == 0.0
    assert 0.05 < high <= 0.5
    assert torch.tensor(function_interval(both[:1], lambda m: m[:, 0])).isnan().all()


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_no_interval(odd):
    x = torch.arange(20.0)
    x[3] = odd
    columns = torch.stack([torch.ones(20), x], dim=1)
    found = [
        bootstrap_interval(x),
        ratio_interval(x, torch.ones(20)),
        ratio_interval(torch.ones(20), x),
        function_interval(columns, lambda means: means[:, 1] / means[:, 0]),
    ]
    assert all(math.isnan(end) for ends in found for end in ends)
