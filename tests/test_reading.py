"""Structure read off models: known families, models no family describes, and what is refused."""

import pytest
import torch
from support import causal_models
from support.tiny import random_pair, tiny
from support.variants import VARIANTS, build

import graphprune as gp
from graphprune.adapters.lm import Family, LanguageModel
from graphprune.adapters.lm.describe.reading.reader import read_family
from graphprune.errors import UnsupportedModelError


@pytest.mark.parametrize("name", VARIANTS)
def test_a_known_family_read_off_its_model_is_its_own_description(name):
    module = build(name)
    known, read = gp.wrap(module), LanguageModel(module, read_family(module))
    assert read.graph.fingerprint == known.graph.fingerprint
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(known.graph.num_edges, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(read.run(batch, mask), known.run(batch, mask), atol=1e-9, rtol=0)


QUICK = ["bloom", "cohere", "codegen", "falcon", "gpt_oss", "granite", "bitnet", "opt"]


@pytest.mark.parametrize("kind", QUICK)
def test_what_was_read_can_be_pasted(kind):
    module = causal_models.build(kind)
    model = gp.wrap(module)
    printed = str(gp.describe(module))
    assert str(gp.describe(model)) == printed
    pasted = eval(printed, {"Family": Family})
    again = gp.wrap(module, family=pasted)
    assert again.graph.fingerprint == model.graph.fingerprint
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    mask = torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.run(batch, mask), model.run(batch, mask))


@pytest.mark.parametrize(
    ("kind", "part", "reason"),
    [
        ("deepseek_v3", "layer 0's self_attn", "shared latent"),
        ("openai-gpt", "layer 0", "not the stream plus"),
        ("bert", "layer 0's encoder", "later tokens"),
        ("diffllama", "layer 0's self_attn", "(0, 1)"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_part_and_the_reason(kind, part, reason):
    with pytest.raises(UnsupportedModelError, match="could not be read off") as caught:
        gp.wrap(causal_models.build(kind))
    assert part in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"query": "k_proj", "key": "q_proj"},
        {"key": "v_proj", "value": "k_proj"},
        {"mlp_norm": "input_layernorm"},
        {"attention_norm": None},
        {"parallel": True},
        {"heads": 2},
    ],
    ids=str,
)
def test_a_wrong_description_is_refused(wrong):
    module = tiny("llama", num_key_value_heads=4)
    right = gp.describe(module)
    with pytest.raises(UnsupportedModelError):
        gp.wrap(module, family=Family(right.model_types, **wrong))


def test_the_order_of_a_fused_projection_is_found_out():
    module = tiny("gpt_neox")
    assert gp.describe(module).fused == "interleaved"
    wrong = gp.describe(module)
    from dataclasses import replace

    for change in ({"fused": "blocks"}, {"fused_order": "kqv"}, {"fused_order": "qvk"}):
        with pytest.raises(UnsupportedModelError, match="does not work as its family says"):
            gp.wrap(module, family=replace(wrong, **change))
