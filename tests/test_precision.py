"""Precision policies: their grids by hand, what a policy is, native kernels and refusals.

``support/grids.py`` rounds without the library or torch's low-precision types. Models in low
precision are tested in ``test_precision_models.py``.
"""

import dataclasses

import pytest
import torch
from accelerate import cpu_offload
from support.grids import gaussian, relative
from support.lowering import PAPER, rtn, setup
from support.tiny import tiny

import graphprune as gp


def test_bytes_of_weights():
    """Llama's 2 layers of width 16: 4 heads of 4 on 2 key/value heads, MLP 3 x 16 x 24."""
    _, model, _ = setup("llama", torch.float32)
    whole = sum(p.numel() for p in model.module.parameters()) * 4
    attention, mlp = 2 * 16 * 16 + 2 * 8 * 16, 3 * 16 * 24
    low = model.at_precision(rtn(4)).lowered
    assert low.full_weight_bytes == whole
    assert low.weight_bytes == whole - 2 * (attention + mlp) * 4 + 2 * (attention + mlp) // 2 + 56
    low = model.at_precision(PAPER).lowered
    assert low.weight_bytes == whole - 2 * (attention * 3 + mlp * 2) + 2 * 4 * 4
    rows = dataclasses.replace(rtn(8), weight_scale="row", kinds={"mlp": "int8"})
    low = model.at_precision(rows).lowered
    assert low.weight_bytes == whole - 2 * mlp * 3 + 2 * 4 * (24 + 24 + 16)


# -------------------------------------------------------------------- kernels and refusals


def cpu_lacks(precision):
    """Why this machine has no kernel, or ``None``."""
    _, model, _ = setup("gpt2", torch.float32)
    policy = gp.PrecisionPolicy({"mlp": precision}, emulate="auto")
    return model.at_precision(policy).lowered.emulated_because.get(precision)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_native_kernels_give_what_emulation_gives(precision, family):
    if why := cpu_lacks(precision):
        pytest.skip(why)
    _, model, batch = setup(family, torch.float32)
    policy = gp.PrecisionPolicy({"mlp": precision}, emulate=False)
    native = model.at_precision(policy)
    emulated = model.at_precision(dataclasses.replace(policy, emulate=True))
    assert native.lowered.native == {precision: True}
    assert emulated.lowered.native == {precision: False}
    x = gaussian(7, model.arch.width, 0)
    for ours, theirs in zip(native.arch.blocks, emulated.arch.blocks, strict=True):
        left, right = (x.clone().requires_grad_(True) for _ in range(2))
        got, want = ours.mlp(left), theirs.mlp(right)
        assert relative(got.detach(), want.detach()) < (1e-5 if precision == "int8" else 6e-3)
        (got,), (want,) = (
            torch.autograd.grad(y.square().sum(), z) for y, z in ((got, left), (want, right))
        )
        assert relative(got, want) < (1e-4 if precision == "int8" else 2e-2)
    got, want = native.reference(batch).full, emulated.reference(batch).full
    assert relative(got, want) < (1e-4 if precision == "int8" else 1e-2)


def test_a_precision_the_device_lacks_is_refused_or_emulated_and_says_so(monkeypatch):
    _, model, _ = setup("gpt2", torch.float32)
    heads = gp.PrecisionPolicy({"head": "fp8"}, emulate=False)
    with pytest.raises(gp.UnsupportedModelError, match=r"fp8: .*exact.*emulate='auto'"):
        model.at_precision(heads)
    with pytest.raises(gp.UnsupportedModelError, match="no fp8 kernel for cpu"):
        model.at_precision(gp.PrecisionPolicy({"mlp": "fp8"}, emulate=False))
    low = model.at_precision(dataclasses.replace(heads, emulate="auto")).lowered
    assert low.native == {"fp8": False}
    assert "exact" in low.emulated_because["fp8"]
    mlp = gp.PrecisionPolicy({"mlp": "bf16"}, emulate=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(gp.UnsupportedModelError, match="no bf16 instructions"):
        model.at_precision(mlp)
    low = model.at_precision(dataclasses.replace(mlp, emulate="auto"))
    assert low.lowered.native == {"bf16": False}
    assert "AVX512-BF16" in low.lowered.emulated_because["bf16"]


def test_policies_that_make_no_sense_are_refused():
    with pytest.raises(gp.InputError, match="kind 'head': unknown precision 'fp16'"):
        gp.PrecisionPolicy({"head": "fp16"})
    with pytest.raises(gp.InputError, match="default: unknown precision"):
        gp.PrecisionPolicy(default="float32")
    with pytest.raises(gp.InputError, match="weight_scale"):
        gp.PrecisionPolicy(weight_scale="column")
    with pytest.raises(gp.InputError, match="emulate"):
        gp.PrecisionPolicy(emulate="maybe")
    with pytest.raises(gp.InputError, match="mapping"):
        gp.PrecisionPolicy("fp8")
    with pytest.raises(gp.InputError, match="8 or 4 bits"):
        rtn(3)
    _, model, _ = setup("gpt2", torch.float32)
    with pytest.raises(gp.InputError, match="kind 'heads'"):
        model.at_precision(gp.PrecisionPolicy({"heads": "fp8"}))
    with pytest.raises(gp.InputError, match=r"node 'a9\.h9'"):
        model.at_precision(gp.PrecisionPolicy(nodes={"a9.h9": "fp8"}))
    with pytest.raises(gp.UnsupportedModelError, match="bfloat16: load it with"):
        gp.wrap(tiny("gpt2", dtype=torch.bfloat16)).at_precision(PAPER)
    offloaded = cpu_offload(tiny("gpt2"), execution_device=torch.device("cpu"))
    with pytest.raises(gp.UnsupportedModelError, match="offloaded or sharded"):
        gp.wrap(offloaded).at_precision(PAPER)


def test_a_policy_is_a_value():
    policy = gp.PrecisionPolicy({"head": "fp8"}, nodes={"a0.h1": "fp32"})
    assert policy == gp.PrecisionPolicy({"head": "fp8"}).with_nodes({"a0.h1": "fp32"})
    assert len({policy, dataclasses.replace(policy), PAPER}) == 2
    assert gp.PrecisionPolicy(**policy.to_dict()) == policy
    assert PAPER.of("a0.kv1", "kv", "head") == "fp8"
    assert PAPER.of("m0", "mlp") == "bf16"
    assert PAPER.of("logits", "output") == "fp32"
