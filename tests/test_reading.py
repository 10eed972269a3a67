"""Structure read off models that no family describes, and what is refused."""

from dataclasses import replace

import pytest
import torch
from support import causal_models
from support.cli import call, out_of, save_model
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune.adapters.lm import Family
from graphprune.conformance import check_adapter
from graphprune.errors import UnsupportedModelError


@pytest.mark.parametrize("kind", ["bloom", "codegen", "granite", "bitnet"])
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
        ("minicpm3", "layer 0's self_attn", "shared latent"),
        ("openai-gpt", "layer 0", "not the stream plus"),
        ("bert", "layer 0's attention", "later tokens"),
        ("diffllama", "layer 0's self_attn", "(0, 1)"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_part_and_the_reason(kind, part, reason):
    settings = {"is_decoder": False} if kind == "bert" else {}
    with pytest.raises(UnsupportedModelError, match="could not be read off") as caught:
        gp.wrap(causal_models.build(kind, **settings), nodes="head")
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
    right = gp.describe(module)
    for change in ({"fused": "blocks"}, {"fused_order": "kqv"}, {"fused_order": "qvk"}):
        with pytest.raises(UnsupportedModelError, match="does not work as its family says"):
            gp.wrap(module, family=replace(right, **change))


@pytest.mark.parametrize("kind", ["granite", "gpt_oss", "bloom", "gpt_bigcode"])
def test_a_model_read_off_keeps_the_contract(kind):
    module = causal_models.build(kind)
    clean, corrupt = random_pair(module)
    answer, distractor = torch.ones(len(clean), 1).long(), torch.zeros(len(clean), 1).long()
    task = gp.Task.from_tensors(
        clean, corrupt, metric="logit_diff", answer=answer, distractor=distractor
    )
    check_adapter(gp.wrap(module), task)


def test_info_prints_what_was_read(tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    causal_models.build("cohere").save_pretrained(folder)
    assert call("info", "--model", folder, "--json") == 0
    family = out_of(capsys)["model"]["family"]
    assert family == "Family(('cohere',), mlp_norm='input_layernorm', parallel=True)"
