"""Models with low-rank adapters beside their weights, unmerged, as PEFT puts them there.

The plain side is the user's own module under hooks, and the oracle on a copy whose adapters PEFT
merged into its weights. Adapters have values of their own: PEFT's begin as zero.
"""

import copy

import pytest
import torch
from support.hooked import patched_head
from support.oracle import oracle_edges, oracle_logits
from support.tiny import random_pair, tiny
from torch import nn

import graphprune as gp
from graphprune import Batch
from graphprune.errors import UnsupportedModelError

peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")

# PEFT asks transformers in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj"],
    "gemma2": ["q_proj", "k_proj", "o_proj"],
    "gpt_neox": ["query_key_value", "dense"],
}
VARIANTS = {"lora": {}, "bias": {"lora_bias": True}, "dora": {"use_dora": True}}


def adapted(family, dtype=torch.float64, injected=False, **settings):
    """A tiny model with random adapters: a PeftModel, or the model they were injected into."""
    module = tiny(family, dtype=dtype)
    config = peft.LoraConfig(
        r=2,
        target_modules=TARGETS[family],
        lora_dropout=0.3,
        init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if injected:
            module = peft.inject_adapter_in_model(config, module)
        else:
            module = peft.get_peft_model(module, config, autocast_adapter_dtype=False)
    return module.to(dtype).train()  # whose dropout must not be heard


def setup(module):
    base = getattr(module, "get_base_model", lambda: module)()
    clean, corrupt = random_pair(base)
    return gp.wrap(module), Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))


def logits(module, ids):
    with torch.no_grad():
        return copy.deepcopy(module).eval()(ids).logits[:, -1]


def merged(module):
    """A copy with the adapters in the weights, by PEFT's own means."""
    twin = copy.deepcopy(module).eval()
    return twin.merge_and_unload()


def oracle(twin, model, batch, values):
    number = model.graph.edge_number
    mask = {(u, r): values[number[f"{u}->{r}"]] for u, r in oracle_edges(twin)}
    sides = batch.clean["input_ids"], mask
    return oracle_logits(twin, *sides, corrupt_ids=batch.corrupt["input_ids"])[:, -1]


@pytest.mark.parametrize("injected", [True, False], ids=["injected", "PeftModel"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ends_and_a_patched_head_are_the_modules_own(float64, family, injected):
    module = adapted(family, injected=injected)
    model, batch = setup(module)
    clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    reference, every = model.reference(batch), torch.ones(model.graph.num_edges).double()
    exact = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(model.run(batch, every, reference), logits(module, clean), **exact)
    torch.testing.assert_close(
        model.run(batch, 0 * every, reference), logits(module, corrupt), **exact
    )
    cut = every.clone()
    sender = [n.name for n in model.graph.nodes].index("a0.h1")
    cut[model.graph.edge_index[0] == sender] = 0
    want = patched_head(copy.deepcopy(module).eval(), clean, corrupt, layer=0, head=1)
    torch.testing.assert_close(model.run(batch, cut, reference), want, **exact)
    assert module.training
    assert any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("family", "variant"),
    [*((f, "lora") for f in TARGETS), ("gpt2", "bias"), ("llama", "dora"), ("gpt2", "dora")],
)
def test_fractional_masks_are_the_merged_models(float64, family, variant):
    module = adapted(family, **VARIANTS[variant])
    model, batch = setup(module)
    twin, exact = merged(module), {"rtol": 0, "atol": 1e-9}
    generator = torch.Generator().manual_seed(1)
    for density in (0.1, None):
        mask = torch.rand(model.graph.num_edges, dtype=torch.float64, generator=generator)
        mask = mask if density is None else (mask < density).double()
        got = model.run(batch, mask)
        torch.testing.assert_close(got, oracle(twin, model, batch, mask), **exact)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_mask_gradients_are_differences(float64, family):
    model, batch = setup(adapted(family))
    reference, count = model.reference(batch), model.graph.num_edges
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(count, dtype=torch.float64, generator=generator).requires_grad_(True)
    weigh = torch.randn(61, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((model.run(batch, mask, reference) @ weigh).sum(), mask)
    steps = 1e-5 * torch.eye(count, dtype=torch.float64)
    both = [
        torch.stack([model.run(batch, row, reference) for row in mask.detach() + sign * steps])
        for sign in (1, -1)
    ]
    differences = ((both[0] - both[1]) @ weigh).sum(1) / 2e-5
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)


METHODS = {
    "eap": gp.EAP(),
    "eap-ig": gp.EAPIG(steps=3),
    "acdc": gp.ACDC(tau=1e-2),
    "edge-pruning": gp.EdgePruning(steps=4, seed=0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_methods_find_what_they_find_in_the_merged_model(float64, family, name):
    module = adapted(family)
    model, batch = setup(module)
    answer = torch.ones(batch.size, 1, dtype=torch.int64)
    sides = batch.clean["input_ids"], batch.corrupt["input_ids"]
    # At the clean model the divergence from it has no gradient.
    metric = "kl" if name in ("acdc", "edge-pruning") else "logit_diff"
    task = gp.Task.from_tensors(*sides, metric=metric, answer=answer, distractor=answer + 1)
    size = None if name == "acdc" else 0.4
    ours = METHODS[name].fit(model, task, size)
    theirs = METHODS[name].fit(gp.wrap(merged(module)), task, size)
    if theirs.scores is not None and name != "edge-pruning":
        torch.testing.assert_close(ours.scores.values, theirs.scores.values, rtol=1e-5, atol=1e-7)
    assert ours.mask == theirs.mask
    one, other = (gp.evaluate(m, task, ours.mask) for m in (model, gp.wrap(merged(module))))
    assert one.to_dict()["kl"] == pytest.approx(other.to_dict()["kl"], rel=1e-5)


def test_half_precision_with_adapters_in_float32():
    module = adapted("llama", torch.bfloat16)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    model, batch = setup(module)
    got = model.run(batch, torch.ones(model.graph.num_edges))
    want = logits(module, batch.clean["input_ids"])
    # Processors sum bfloat16 products in their own ways: .06 to .10 of logits up to some units.
    torch.testing.assert_close(got, want.to(got), rtol=0, atol=0.15)


def test_switching_an_adapter_off_asks_to_wrap_again(float64):
    module = adapted("llama")
    model, batch = setup(module)
    with module.disable_adapter():
        with pytest.raises(UnsupportedModelError, match="its adapters switched"):
            model.reference(batch)
        other = gp.wrap(module)
        want = module(batch.clean["input_ids"]).logits[:, -1].detach()
        torch.testing.assert_close(other.reference(batch).full, want, rtol=0, atol=1e-9)
    model.reference(batch)


def test_what_adapters_cannot_do_is_said(float64):
    module = adapted("llama")
    model, _ = setup(module)
    mask = gp.EdgeMask.full(model.graph)
    with pytest.raises(UnsupportedModelError, match="merge"):
        model.pruned(mask, gp.Ablation("zero"))
    with pytest.raises(UnsupportedModelError, match="merge"):
        model.at_precision(model.precision_defaults.policy)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UnsupportedModelError, match="virtual tokens"):
        gp.wrap(peft.get_peft_model(tiny("llama"), prompt))


class Squared(nn.Linear):
    """A projection that its weight does not tell, and that is no linear map."""

    def forward(self, x):
        return super().forward(x) + x.square() @ self.weight.T


def test_a_projection_that_is_no_linear_map_is_refused():
    module = tiny("llama")
    inner = module.model.layers[1].self_attn.q_proj
    other = Squared(inner.in_features, inner.out_features, bias=False)
    other.weight = inner.weight
    module.model.layers[1].self_attn.q_proj = other
    with pytest.raises(UnsupportedModelError, match=r"q_proj is a Squared, which does not mult"):
        gp.wrap(module)
