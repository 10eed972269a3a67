"""Several masks of an encoder's batch in one forward, as if each ran alone."""

from __future__ import annotations

import pytest
import torch
from support.residual_models import batch, model
from torch import Tensor

import graphprune as gp

pytestmark = pytest.mark.inside


def drawn_masks(edges: int, size: int) -> Tensor:
    """One mask of fractions for each example, with zeros and ones among them."""
    source = torch.Generator().manual_seed(3)
    masks = torch.rand(size, edges, generator=source, dtype=torch.float64)
    masks[masks < 0.2] = 0
    masks[masks > 0.8] = 1
    return masks


@pytest.mark.parametrize("name", ["vit", "bert-classes", "electra", "albert", "t5", "bart"])
def test_a_stack_of_masks_gives_the_runs_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped, drawn = gp.wrap(model(name)), batch(name)
    edges, whole = wrapped.graph.num_edges, wrapped.reference(drawn)
    monkeypatch.setattr("graphprune.adapters.residual.reference._AT_ONCE", 40)  # two at a time
    learned = wrapped.learned_ablation(wrapped.mean_ablation([drawn]))
    for reference in (whole, wrapped.reference(drawn, learned)):
        for masks in (drawn_masks(edges, 5), drawn_masks(edges, 15).view(5, 3, edges)):
            masks = masks.clone().requires_grad_(True)
            got = wrapped.run(drawn, masks, reference)
            alone = torch.cat([wrapped.run(drawn, mask[None], reference) for mask in masks])
            torch.testing.assert_close(got, alone, rtol=1e-6, atol=1e-6)
            (one,) = torch.autograd.grad(got[..., 0].sum(), masks)
            (other,) = torch.autograd.grad(alone[..., 0].sum(), masks)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            assert float((got[0] - got[1]).detach().abs().max()) > 1e-4
