"""Models that transformers itself loads in 8 and 4 bits, from folders and GGUF files."""

import importlib.util

import pytest
import torch
from support.four_bits import products_as_made  # noqa: F401
from support.tiny import random_pair, tiny
from test_wrapped_in_others import agrees, written

import graphprune as gp

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Enum subclass"),
    pytest.mark.filterwarnings("ignore:.*deprecated"),
]
WIDE = {"hidden_size": 64, "intermediate_size": 96}
KINDS = {
    "nf4": ("bitsandbytes", "Linear4bit"),
    "LLM.int8": ("bitsandbytes", "Linear8bitLt"),
    "int8 weights": ("torchao", "Linear"),
}


def settings(how):
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if how == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if how == "LLM.int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(version=2))


def loaded(folder, family, how):
    """A small model as ``from_pretrained`` quantises it on the CPU."""
    from transformers import AutoModelForCausalLM

    for library in (KINDS[how][0], "accelerate"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed (extra 'quantised')")
    tiny(family, **WIDE).save_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings(how), device_map={"": "cpu"}, dtype=torch.float32
    )
    return module.eval()


def quantised_maps(module):
    """Linear maps whose weight is no plain tensor of floats."""
    kinds = ("Linear4bit", "Linear8bitLt")
    return [
        name
        for name, part in module.named_modules()
        if type(part).__name__ in kinds
        or type(getattr(part, "weight", None)).__module__.startswith("torchao.")
    ]


@pytest.mark.parametrize(
    ("family", "how"),
    [("llama", "nf4"), ("llama", "LLM.int8"), ("llama", "int8 weights"), ("gpt2", "nf4")],
)
def test_a_model_loaded_in_few_bits_is_pruned(tmp_path, family, how):
    module = loaded(tmp_path / "plain", family, how)
    assert len(quantised_maps(module)) >= 4 * module.config.num_hidden_layers
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    edges = torch.ones(model.graph.num_edges)
    loose = 0.05 if how == "LLM.int8" else 1e-4  # sums fall to other steps of its rounding
    for mask, ids in ((edges, clean), (0 * edges, corrupt)):
        with torch.no_grad():
            want = module(ids).logits[:, -1]
        torch.testing.assert_close(model.run(batch, mask), want, rtol=0, atol=loose)
    answer = torch.ones(len(clean), 1, dtype=torch.int64)
    task = gp.Task.from_tensors(clean, corrupt, answer=answer, distractor=answer + 1)
    result = gp.EAP().fit(model, task, 0.5)
    assert result.mask.num_kept == model.graph.num_edges // 2
    leaf = edges.clone().requires_grad_(True)
    out = model.run(batch, leaf)
    (gradient,) = torch.autograd.grad((out[:, 1] - out[:, 2]).mean(), leaf)
    gap = float((result.scores.values - gradient).norm() / gradient.norm())
    assert gap < (0.1 if how == "LLM.int8" else 1e-3)
    report = gp.evaluate(model, task, result.mask)
    with torch.no_grad():
        full = module(clean).logits[:, -1]
    want = float((full[:, 1] - full[:, 2]).mean())
    assert report.full["logit_diff"] == pytest.approx(want, abs=loose)
    assert report["kl"] > 0


@pytest.mark.parametrize("how", ["nf4", "LLM.int8"])
def test_a_folder_of_quantised_weights_is_wrapped_by_its_path(tmp_path, how):
    loaded(tmp_path / "plain", "llama", how).save_pretrained(tmp_path / "small")
    model = gp.wrap(tmp_path / "small")
    assert {type(model.module.get_submodule(n)).__name__ for n in quantised_maps(model.module)} == {
        KINDS[how][1]
    }
    if how == "nf4":
        agrees(model, model.module)


@pytest.mark.parametrize("bits", ["Q8_0", "Q4_0"])
def test_a_gguf_file_of_few_bits_is_wrapped_as_transformers_widens_it(tmp_path, bits):
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tiny.gguf"
    original = tiny("llama", tie_word_embeddings=False, **WIDE)
    written(path, original, bits)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    ours, theirs = (m.model.layers[0].mlp.down_proj.weight.detach() for m in (plain, original))
    assert 1e-4 < float((ours - theirs).abs().max()) < 0.2 * float(theirs.abs().max())
    agrees(gp.wrap(path), plain)
