"""4-bit maps on processors where bitsandbytes multiplies in bfloat16."""

import pytest
import torch
from support.four_bits import products_as_made  # noqa: F401
from torch import nn

from graphprune.util.modes import quiet

pytestmark = pytest.mark.inside


def four_bits():
    import bitsandbytes as bnb

    linear = nn.Linear(64, 64)
    out = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    out.load_state_dict(linear.state_dict())
    return out.to("cpu").eval()


@pytest.mark.parametrize("called_before", [False, True])
def test_products_in_bfloat16_are_not_ours(called_before):
    """In evaluation mode bitsandbytes rounds what it reads where the processor can; we do not.

    Once the user's own call has packed the weights, their scales stay rounded to bfloat16.
    """
    functional = pytest.importorskip("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        pytest.skip("this processor has no bfloat16 products")
    torch.manual_seed(0)
    part, x = four_bits(), torch.randn(3, 64)
    exact = part(x)
    part.support_avx512bf16_for_cpu = True  # as bitsandbytes itself sets it here
    own = part(x) if called_before else None
    with quiet(part):
        leaf = x.clone().requires_grad_(True)
        loose = 0.02 * float(exact.detach().abs().max()) if called_before else 0
        torch.testing.assert_close(part(x), exact, rtol=0, atol=loose)
        torch.testing.assert_close(part(leaf), part(x), rtol=1e-5, atol=1e-5)
        (slope,) = torch.autograd.grad(part(leaf).sum(), leaf)
        torch.testing.assert_close(slope[0], part(torch.eye(64)).sum(1) - part.bias.sum())
    assert part.support_avx512bf16_for_cpu
    after = part(x)
    assert not torch.equal(after, exact)
    assert own is None or torch.equal(after, own)
