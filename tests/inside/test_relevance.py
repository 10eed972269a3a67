"""Relevance rules of single modules, by hand."""

import pytest
import torch

from graphprune.adapters.lm.attribution.relevance import relevant

pytestmark = pytest.mark.inside


def test_relp_half_rule_and_identity_rule_by_hand():
    """silu(x W1) * (x W3): relevance = half of ratio * up and half of gate, by the rules."""

    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.act = torch.nn.SiLU()

        def forward(self, x):
            return self.act(x[..., 0]) * x[..., 1]

    x = torch.tensor([[1.5, -2.0]], dtype=torch.float64, requires_grad=True)
    out = relevant(Gated())(x)
    assert out.item() == pytest.approx(Gated()(x.detach()).item())
    (gradient,) = torch.autograd.grad(out.sum(), x)
    gate = 1 / (1 + torch.exp(torch.tensor(-1.5, dtype=torch.float64)))
    assert gradient[0, 0].item() == pytest.approx(0.5 * gate.item() * -2.0)
    assert gradient[0, 1].item() == pytest.approx(0.5 * gate.item() * 1.5)
    # conservation: relevance x * gradient sums to the output
    assert (x * gradient).sum().item() == pytest.approx(out.item())
