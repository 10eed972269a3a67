"""Models whose weights have 4 or 8 bits, as bitsandbytes and torchao keep them on the CPU.

The plain side is the quantised module itself under hooks, and for masks between 0 and 1 the oracle
on a copy that holds the dequantised weights.
"""

import copy
import importlib.util

import pytest
import torch
from support.four_bits import products_as_made  # noqa: F401
from support.hooked import patched_head
from support.oracle import oracle_edges, oracle_logits
from support.tiny import random_pair, tiny
from torch import nn

import graphprune as gp
from graphprune import Batch
from graphprune.errors import UnsupportedModelError

WIDE = {"hidden_size": 64, "intermediate_size": 96}


def four_bits(kind):
    def change(linear):
        import bitsandbytes as bnb

        out = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=linear.weight.dtype,
            quant_type=kind,
        )
        out.load_state_dict(linear.state_dict())
        return out.to("cpu")

    return change


def eight_bits(threshold):
    def change(linear):
        import bitsandbytes as bnb

        out = bnb.nn.Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=threshold,
        )
        out.load_state_dict(linear.state_dict())
        return out.to("cpu")

    return change


def by_torchao(name, **settings):
    def change(linear):
        from torchao import quantization

        config = getattr(quantization, name)(**settings)
        holder = nn.Sequential(linear)
        quantization.quantize_(holder, config)
        return holder[0]

    return change


LINEAR = {
    "nf4": ("bitsandbytes", four_bits("nf4")),
    "fp4": ("bitsandbytes", four_bits("fp4")),
    "int8 weights": ("torchao", by_torchao("Int8WeightOnlyConfig", version=2)),
}
ROUNDED = {
    "LLM.int8": ("bitsandbytes", eight_bits(6.0)),
}
ALL = {**LINEAR, **ROUNDED}
pytestmark = [  # torchao registers old enumerations; bitsandbytes logs each dtype that it casts
    pytest.mark.filterwarnings("ignore:.*Enum subclass"),
    pytest.mark.filterwarnings("ignore:.*deprecated"),
]


def quantised(family, how, dtype=torch.float32):
    """A small model, all of whose linear maps but the last are quantised."""
    library, change = ALL[how]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed (extra 'quantised')")
    module = tiny(family, dtype=dtype, **WIDE)
    for name, part in list(module.named_modules()):
        if type(part).__name__ == "Conv1D":
            linear = nn.Linear(*part.weight.shape, dtype=dtype)
            linear.weight = nn.Parameter(part.weight.detach().T.contiguous())
            linear.bias = part.bias
            part = linear
        if isinstance(part, nn.Linear) and name != "lm_head":
            module.set_submodule(name, change(part))
    return module.eval()


def plain(module):
    """A copy that holds the matrices, asked of the quantised maps by unit vectors."""
    twin = copy.deepcopy(module)
    for name, part in list(twin.named_modules()):
        if isinstance(part, nn.Linear) and name != "lm_head":
            linear = nn.Linear(part.in_features, part.out_features, part.bias is not None)
            with torch.no_grad():
                zero = part(torch.zeros(1, part.in_features))
                linear.weight.copy_((part(torch.eye(part.in_features)) - zero).T)
                if part.bias is not None:
                    linear.bias.copy_(zero[0])
            twin.set_submodule(name, linear)
    return twin


def setup(module):
    clean, corrupt = random_pair(module)
    return gp.wrap(module), Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))


def task_of(batch, metric):
    answer = torch.ones(batch.size, 1, dtype=torch.int64)
    sides = batch.clean["input_ids"], batch.corrupt["input_ids"]
    return gp.Task.from_tensors(*sides, metric=metric, answer=answer, distractor=answer + 1)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ends_and_a_patched_head_are_the_modules_own(family, how):
    module = quantised(family, how)
    model, batch = setup(module)
    clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    reference, every = model.reference(batch), torch.ones(model.graph.num_edges)
    # What is rounded may fall to the other side where sums differ in their last bit.
    loose = {"rtol": 0, "atol": 1e-4 if how in LINEAR else 1e-2}
    with torch.no_grad():
        sides = [module(ids).logits[:, -1] for ids in (clean, corrupt)]
    torch.testing.assert_close(reference.full, sides[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.run(batch, every, reference), sides[0], **loose)
    torch.testing.assert_close(model.run(batch, 0 * every, reference), sides[1], **loose)
    cut = every.clone()
    sender = [n.name for n in model.graph.nodes].index("a0.h1")
    cut[model.graph.edge_index[0] == sender] = 0
    got = model.run(batch, cut, reference)
    want = patched_head(module, clean, corrupt, layer=0, head=1)
    assert float((want - sides[0]).abs().max()) > 10 * loose["atol"]
    # A head's message is cut out of the rounded sum, and patched before it is rounded.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 if how in LINEAR else 0.1)


@pytest.mark.parametrize("how", LINEAR)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fractional_masks_are_the_dequantised_models(family, how):
    module = quantised(family, how)
    model, batch = setup(module)
    twin = as_loaded(plain(module), family)
    generator = torch.Generator().manual_seed(1)
    for density in (0.1, None):
        mask = torch.rand(model.graph.num_edges, generator=generator)
        mask = mask if density is None else (mask < density).float()
        number = model.graph.edge_number
        values = {(u, r): mask[number[f"{u}->{r}"]] for u, r in oracle_edges(twin)}
        sides = batch.clean["input_ids"], values
        want = oracle_logits(twin, *sides, corrupt_ids=batch.corrupt["input_ids"])[:, -1]
        torch.testing.assert_close(model.run(batch, mask), want, rtol=1e-4, atol=1e-4)


def as_loaded(twin, family):
    """The copy with Conv1D where the family has them, which the oracle reads."""
    if family == "gpt2":
        from transformers.pytorch_utils import Conv1D

        for name, part in list(twin.named_modules()):
            if isinstance(part, nn.Linear) and name != "lm_head":
                conv = Conv1D(part.out_features, part.in_features)
                conv.weight = nn.Parameter(part.weight.detach().T.contiguous())
                conv.bias = part.bias
                twin.set_submodule(name, conv)
    return twin


@pytest.mark.parametrize("how", ALL)
def test_mask_gradients_are_differences(how):
    model, batch = setup(quantised("llama", how))
    reference, count = model.reference(batch), model.graph.num_edges
    generator = torch.Generator().manual_seed(2)
    mask = (0.35 + 0.3 * torch.rand(count, generator=generator)).requires_grad_(True)
    weigh = torch.randn(61, generator=generator)
    (gradient,) = torch.autograd.grad((model.run(batch, mask, reference) @ weigh).sum(), mask)
    step = 2e-2 if how in LINEAR else 0.3  # over the steps of what is rounded
    differences = []
    for edge in range(count):
        ends = [mask.detach().clone() for _ in range(2)]
        ends[0][edge] += step
        ends[1][edge] -= step
        up, down = (float((model.run(batch, m, reference) @ weigh).sum()) for m in ends)
        differences.append((up - down) / (2 * step))
    differences = torch.tensor(differences)
    along = torch.nn.functional.cosine_similarity(gradient, differences, dim=0)
    assert along > (0.9999 if how in LINEAR else 0.95)  # gradients pass steps unchanged
    if how in LINEAR:
        torch.testing.assert_close(gradient.norm(), differences.norm(), rtol=0.01, atol=0)


@pytest.mark.parametrize("how", ALL)
def test_methods_run_and_attribution_is_the_mask_gradient(how):
    model, batch = setup(quantised("llama", how))
    task = task_of(batch, "logit_diff")
    scores = gp.EAP().fit(model, task).scores.values
    mask = torch.ones(model.graph.num_edges, requires_grad=True)
    out = model.run(batch, mask)
    (gradient,) = torch.autograd.grad((out[:, 1] - out[:, 2]).mean(), mask)
    gap = float((scores - gradient).norm() / gradient.norm())
    assert gap < (1e-3 if how in LINEAR else 0.05)
    for method in (gp.EAPIG(steps=2), gp.EdgePruning(steps=3, seed=0)):
        assert 0 < method.fit(model, task, 0.3).mask.num_kept <= 0.3 * model.graph.num_edges
    found = gp.ACDC(tau=1e-2).fit(model, task_of(batch, "kl"))
    report = gp.evaluate(model, task_of(batch, "kl"), found.mask).to_dict()
    assert report["kl"] >= 0


@pytest.mark.parametrize("how", ["nf4", "int8 weights", "LLM.int8"])
def test_what_quantised_weights_cannot_do_is_said(how):
    model, _ = setup(quantised("llama", how))
    with pytest.raises(UnsupportedModelError, match="without quantisation"):
        model.pruned(gp.EdgeMask.full(model.graph), gp.Ablation("zero"))
    with pytest.raises(UnsupportedModelError, match="without quantisation"):
        model.at_precision(model.precision_defaults.policy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("how", ["nf4", "int8 weights", "LLM.int8"])
def test_half_precision_and_a_circuit_of_it(how, dtype, tmp_path):
    module = quantised("llama", how, dtype)
    model, batch = setup(module)
    task = task_of(batch, "logit_diff")
    circuit = gp.Circuit.from_result(gp.EAP().fit(model, task, 0.4), model, task)
    circuit.save(tmp_path / "circuit")
    torch.testing.assert_close(
        circuit.compile(model, task)(), model.run(batch, circuit.mask), rtol=0, atol=0.1
    )
    with torch.no_grad():
        want = module(batch.clean["input_ids"]).logits[:, -1].float()
    got = model.run(batch, torch.ones(model.graph.num_edges)).float()
    torch.testing.assert_close(got, want, rtol=0, atol=0.3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("how", ["nf4", "LLM.int8"])
def test_adapters_beside_quantised_weights(how):
    peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    module, targets = quantised("llama", how), ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    module.is_loaded_in_8bit = how == "LLM.int8"
    module.is_loaded_in_4bit = how == "nf4"
    module = peft.get_peft_model(module, config).eval()
    kind = type(module.get_base_model().model.layers[0].self_attn.q_proj)
    assert kind.__module__ == "peft.tuners.lora.bnb"
    if how == "LLM.int8":  # the adapter reads what is not rounded
        with pytest.raises(UnsupportedModelError, match="does not multiply what it reads by one"):
            gp.wrap(module)
        return
    model = gp.wrap(module)
    clean, corrupt = random_pair(module.get_base_model())
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    every = torch.ones(model.graph.num_edges)
    for mask, ids in ((every, clean), (0 * every, corrupt)):
        with torch.no_grad():
            want = module(ids).logits[:, -1]
        torch.testing.assert_close(model.run(batch, mask), want, rtol=0, atol=1e-4)


def test_inputs_that_torchao_rounds_are_refused():
    pytest.importorskip("torchao", reason="the extra 'quantised' is not installed")
    change = by_torchao("Int8DynamicActivationInt8WeightConfig", version=2)
    module = tiny("llama", **WIDE)
    attention = module.model.layers[1].self_attn
    attention.o_proj = change(attention.o_proj)
    with pytest.raises(UnsupportedModelError, match=r"o_proj is a .* does not multiply what it"):
        gp.wrap(module)
