"""Circuits as modules of their own: a masked run's outputs, the circuit's weights alone."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from support.lowering import ROUNDED
from support.oracle import oracle_edges, oracle_logits, oracle_writer_values
from support.tiny import FAMILIES, random_pair, tiny
from support.toy import Toy

import graphprune as gp
from graphprune.batch import Batch
from graphprune.export import model as exporting
from graphprune.model import Ablation

KINDS = ["zero", "mean", "mean_positional"]


def system(family, dtype=torch.float64, settings=None, **options):
    """A model, and its batch with every position an answer position."""
    model = gp.wrap(tiny(family, dtype=dtype, **(settings or {})), **options)
    clean, corrupt = random_pair(model.module)
    places = torch.arange(clean.shape[1]).expand(len(clean), -1)
    return model, Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean), positions=places)


def ablation_of(model, batch, kind):
    if kind == "zero":
        return Ablation("zero")
    return model.mean_ablation([batch], per_position=kind == "mean_positional")


def drawn(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return gp.EdgeMask(
        model.graph, torch.rand(model.graph.num_edges, generator=generator) < density
    )


def named(model, *edges):
    """The circuit of these edges."""
    values = torch.zeros(model.graph.num_edges)
    values[[model.graph.edge_number[name] for name in edges]] = 1
    return gp.EdgeMask(model.graph, values)


def task_of(batch):
    clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    return gp.Task.from_tensors(
        clean, corrupt, answer=[1] * batch.size, distractor=[2] * batch.size
    )


# ------------------------------------------------------------------ exactness


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_outputs_are_the_masked_runs_at_all_positions(float64, family, kind):
    model, batch = system(family)
    ablation = ablation_of(model, batch, kind)
    reference = model.reference(batch, ablation)
    for seed, density in enumerate((0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 1.0)):
        mask = drawn(model, density, seed)
        for circuit in (mask, mask.prune_dead_ends()):
            want = model.run(batch, circuit, reference, sparse=False)
            got = model.pruned(circuit, ablation).module(batch.clean["input_ids"])
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
        if density == 0.7:  # neither end would do
            assert (want - reference.full).abs().max() > 0.1
            assert (want - reference.ablated).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_outputs_are_the_independent_oracles(float64, family, kind):
    model, batch = system(family)
    module, clean = model.module, batch.clean["input_ids"]
    means = None
    if kind != "zero":
        sent = oracle_writer_values(module, batch.corrupt["input_ids"])
        axes = 0 if kind == "mean_positional" else (0, 1)
        means = {name: x.mean(axes) for name, x in sent.items()}
    for density in (0.1, 0.5):
        mask = drawn(model, density, 7)
        values = {
            (u, r): float(mask.values[model.graph.edge_number[f"{u}->{r}"]])
            for u, r in oracle_edges(module)
        }
        oracle = "zero" if means is None else "mean"
        want = oracle_logits(module, clean, values, oracle, means=means)
        got = model.pruned(mask, ablation_of(model, batch, kind)).module(clean)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_whole_graph_is_plain_hugging_face(float64, family):
    model, _ = system(family)
    pruned = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero"))
    for length in (1, 2, 9, 32):
        ids = pruned.draw(2, length)
        want = model.module(input_ids=ids).logits
        torch.testing.assert_close(pruned.module(ids), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
@torch.no_grad()
def test_positions_may_be_a_node(float64, family, kind):
    model, batch = system(family, embedding_nodes=2)
    ablation = ablation_of(model, batch, kind)
    reference = model.reference(batch, ablation)
    for seed, density in enumerate((0.02, 0.1, 0.5, 1.0)):
        mask = drawn(model, density, seed)
        want = model.run(batch, mask, reference, sparse=False)
        got = model.pruned(mask, ablation).module(batch.clean["input_ids"])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", ["heads", "mlps"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
@torch.no_grad()
def test_circuits_without_attention_or_mlps(float64, family, part):
    model, batch = system(family)
    letter = {"heads": "a", "mlps": "m"}[part]
    kept = [not n.startswith(letter) and f"->{letter}" not in n for n in model.graph.edge_names]
    mask = gp.EdgeMask(model.graph, torch.tensor(kept))
    assert 0 < mask.num_kept < model.graph.num_edges
    for kind in KINDS:
        ablation = ablation_of(model, batch, kind)
        want = model.run(batch, mask, model.reference(batch, ablation), sparse=False)
        module = model.pruned(mask, ablation).module
        assert [type(s).__name__ for s in module.stages] == [
            "Mlp" if part == "heads" else "Attention"
        ] * len(model.arch.blocks)
        got = module(batch.clean["input_ids"])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


ROPES = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
}


@pytest.mark.parametrize(("rope", "longest"), [("yarn", None), ("dynamic", 32), ("linear", None)])
@torch.no_grad()
def test_scaled_rotary_embeddings(float64, rope, longest):
    """Frequencies that change with the prompt's length limit it; factors on the tables count."""
    settings = {"rope_parameters": {"rope_theta": 100.0, **ROPES[rope]}}
    model, batch = system("llama", settings=settings)
    mask = drawn(model, 0.6, 1)
    pruned = model.pruned(mask, Ablation("zero"))
    assert pruned.longest == longest
    want = model.run(batch, mask, model.reference(batch, Ablation("zero")), sparse=False)
    got = pruned.module(batch.clean["input_ids"])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    whole = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero")).module
    ids = pruned.draw(2, 32)
    torch.testing.assert_close(whole(ids), model.module(ids).logits, rtol=0, atol=1e-9)


def additions(module):
    """How many messages are added to inputs of the module, and subtracted."""
    readings = [m for m in module.modules() if type(m).__name__ == "Reading"]
    return sum(len(r.terms.plus) + len(r.terms.minus) for r in readings)


def test_inputs_start_from_earlier_ones():
    """Of the whole graph each message is added about once; of others no more than is kept."""
    deep, _ = system("gpt2", torch.float32, settings={"num_hidden_layers": 6})
    whole = deep.pruned(gp.EdgeMask.full(deep.graph), Ablation("zero")).module
    messages = 2 + 2 * 6  # the tables, and of each layer its heads and its MLP
    assert messages <= additions(whole) <= messages + 2  # instead of 13 * 14 / 2 and more
    model, _ = system("gpt2", torch.float32)
    for density in (0.1, 0.5, 0.9):
        mask = drawn(model, density, 2).prune_dead_ends()
        found = additions(model.pruned(mask, Ablation("zero")).module)
        readers = 2 * 13 + 1
        assert 0 < found <= mask.num_kept + readers
    half, _ = system("gpt2", torch.bfloat16)
    many = half.pruned(gp.EdgeMask.full(half.graph), Ablation("zero")).module
    assert not any(r.terms.minus for r in many.modules() if type(r).__name__ == "Reading")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_of_the_last_positions(float64, family, kind):
    """They are the masked run's; the oracle's and Hugging Face's are in the tests beside."""
    model, batch = system(family)
    ablation = ablation_of(model, batch, kind)
    reference = model.reference(batch, ablation)
    for seed, density in enumerate((0.0, 0.05, 0.2, 0.5, 1.0)):
        mask = drawn(model, density, seed)
        want = model.run(batch, mask, reference, sparse=False)
        for last in (1, 2, 9):
            module = model.pruned(mask, ablation, logits_to_keep=last).module
            got = module(batch.clean["input_ids"])
            torch.testing.assert_close(got, want[:, -last:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_last_logits_are_hugging_faces_and_the_oracles(float64, family):
    model, batch = system(family)
    module, clean = model.module, batch.clean["input_ids"]
    whole = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero"), logits_to_keep=2)
    for length in (2, 3, 32):
        ids = whole.draw(3, length)
        want = module(input_ids=ids, logits_to_keep=2).logits
        torch.testing.assert_close(whole.module(ids), want, rtol=0, atol=1e-9)
    mask = drawn(model, 0.3, 7)
    values = {
        (u, r): float(mask.values[model.graph.edge_number[f"{u}->{r}"]])
        for u, r in oracle_edges(module)
    }
    want = oracle_logits(module, clean, values, "zero")
    got = model.pruned(mask, Ablation("zero"), logits_to_keep=1).module(clean)
    torch.testing.assert_close(got, want[:, -1:], rtol=0, atol=1e-9)


@torch.no_grad()
def test_only_the_last_positions_are_computed(float64):
    """What reaches no key and no value is computed at the positions asked for alone."""
    model, _ = system("gpt2")
    edges = ["input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->m0", "m0->logits"]
    later = ["a0.h2->a1.h0<v>", "input->a0.h2<v>", "a1.h0->logits", "m0->a1.h0<q>"]
    mask = named(model, *edges, *later)
    module = model.pruned(mask, Ablation("zero"), logits_to_keep=1).module
    seen = {}
    for name, part in module.named_modules():
        if type(part).__name__ in ("Projection", "Attention", "Mlp"):
            part.register_forward_hook(
                lambda part, args, out, name=name: seen.__setitem__(name, args[0].sent.copy())
            )
    module(torch.randint(61, (2, 9)))
    sent = {n: x.shape[1] for stream in seen.values() for n, x in stream.items()}
    number = {name: i for i, name in enumerate(["input", *(f"a0.h{h}" for h in range(4)), "m0"])}
    assert sent[number["input"]] == 9
    assert sent[number["a0.h1"]] == 1
    assert sent[number["a0.h2"]] == 9
    assert sent[number["m0"]] == 1


def padded_task(module):
    """Prompts of 5, 9 and 7 tokens, padded on the right; answers at each one's last."""
    clean, corrupt = random_pair(module)
    mask = torch.ones_like(clean)
    mask[0, 5:], mask[2, 7:] = 0, 0
    return gp.Task.from_tensors(
        clean, corrupt, answer=[1, 2, 3], distractor=[4, 5, 6], attention_mask=mask
    )


def test_last_logits_are_compared_at_each_prompts_end(tmp_path):
    model, _ = system("llama", torch.float32)
    task = padded_task(model.module)
    circuit = gp.Circuit.from_mask(drawn(model, 0.4), model=model)
    for keep in (0, 1, 3):
        out = tmp_path / str(keep)
        exported = circuit.export_model(out, ablation="mean", task=task, logits_to_keep=keep)
        assert exported.report["max_difference"] < 1e-4
        assert exported.report["shortest"] == max(keep, 1)
        assert exported.report["logits_to_keep"] == keep
        program = torch.export.load(exported.path / "model.pt2").module()
        for shape in ((1, max(1, keep)), (4, 32)):
            ids = torch.randint(61, shape)
            with torch.no_grad():
                found, want = program(ids), exported.module(ids)
            assert found.shape == (shape[0], keep or shape[1], 61)
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(gp.InputError, match="last 3 positions, got 2"):
        exported.module(torch.zeros(1, 2, dtype=torch.int64))
    one = task.take(2)
    for wrong in (-1, True, 1.0):
        with pytest.raises(gp.InputError, match="logits_to_keep"):
            circuit.export_model(tmp_path / "no", task=one, logits_to_keep=wrong)
    gpt2, batch = system("gpt2", torch.float32)
    with pytest.raises(gp.InputError, match="32 positions at most"):
        gpt2.pruned(drawn(gpt2, 0.4), Ablation("zero"), logits_to_keep=33)
    means = ablation_of(gpt2, batch, "mean_positional")
    with pytest.raises(gp.InputError, match="9 positions at most"):
        gpt2.pruned(drawn(gpt2, 0.4), means, logits_to_keep=10)
    early = gp.Task.from_tensors(
        batch.clean["input_ids"],
        batch.corrupt["input_ids"],
        answer=[1, 1, 1],
        distractor=[2, 2, 2],
        positions=torch.tensor([8, 3, 8]),
    )
    held = gp.Circuit.from_mask(drawn(gpt2, 0.4), model=gpt2)
    with pytest.raises(gp.InputError, match=r"answers at position 3; .* the last 1 of 9"):
        held.export_model(tmp_path / "no", ablation=means, task=early, logits_to_keep=1)
    assert not (tmp_path / "no").exists()


def test_tanh_gelus_are_one_operation():
    model, _ = system("gpt2", torch.float32)
    module = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero")).module
    kinds = {type(m).__name__ for m in module.modules()}
    assert "GELU" in kinds
    assert "NewGELUActivation" not in kinds
    assert {type(b.mlp.act).__name__ for b in model.module.transformer.h} == {"NewGELUActivation"}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt_neo", {"window_size": 256}),  # as the published models have it
        ("mistral", {"sliding_window": 300}),
        ("mistral", {"sliding_window": 1200}),  # looked up in the mask
        ("llama", {"sliding_window": 300}),  # stated, and used by no layer
        ("llama", {"sliding_window": 1200}),
    ],
)
@torch.no_grad()
def test_long_windows(family, settings):
    """Beyond the window the whole graph's logits are still Hugging Face's."""
    length = next(iter(settings.values())) + 20
    model, _ = system(family, settings={**settings, "max_position_embeddings": length})
    module = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero")).module
    windows = {m.window for m in module.modules() if type(m).__name__ == "Attend"}
    assert (windows == {None}) == (family == "llama")
    ids = torch.randint(61, (1, length))
    want = model.module(input_ids=ids).logits
    # Hugging Face computes norms and angles in float32 whatever the dtype.
    torch.testing.assert_close(module(ids), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"tie_word_embeddings": False},
    ],
)
@torch.no_grad()
def test_settings_of_gpt2(float64, settings):
    model, _ = system("gpt2", settings=settings)
    module = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero")).module
    ids = torch.randint(61, (2, 9))
    torch.testing.assert_close(module(ids), model.module(ids).logits, rtol=0, atol=1e-9)


@torch.no_grad()
def test_learned_constants(float64):
    model, batch = system("llama")
    ablation = model.learned_ablation(model.mean_ablation([batch]))
    with torch.no_grad():
        ablation.parameters[0].add_(0.3 * torch.randn_like(ablation.parameters[0]))
    mask = drawn(model, 0.3)
    want = model.run(batch, mask, model.reference(batch, ablation), sparse=False)
    got = model.pruned(mask, ablation).module(batch.clean["input_ids"])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@torch.no_grad()
def test_right_padding_changes_no_real_position(float64):
    model, batch = system("mistral")
    module = model.pruned(drawn(model, 0.3), Ablation("zero")).module
    ids = batch.clean["input_ids"]
    torch.testing.assert_close(module(ids)[:, :5], module(ids[:, :5]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_models_own_dtype(dtype):
    model, batch = system("llama", dtype)
    pruned = model.pruned(drawn(model, 0.3), Ablation("zero"))
    assert {p.dtype for p in pruned.module.parameters()} == {dtype}
    assert pruned.module(batch.clean["input_ids"]).dtype == torch.float32
    assert pruned.gap < (1e-4 if dtype == torch.float32 else 0.3)


# ------------------------------------------------------------------ what is in it


def test_parameters_are_the_circuits_by_hand():
    model, _ = system("gpt2", torch.float32)
    mask = named(
        model,
        *("input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "input->a0.h3<v>"),
        *("a0.h1->m1", "m1->logits", "a0.h3->a1.h0<k>"),  # a1.h0 is read by nothing
        *("input->a0.h2<v>", "a0.h2->a1.h0<q>"),
    )
    pruned = model.pruned(mask.prune_dead_ends(), Ablation("zero"))
    d, width, vocabulary, places = 16, 4, 61, 32
    head = 3 * (width * d + width) + width * d  # rows of q, k, v with biases, and the output map
    mlp = sum(p.numel() for p in model.module.transformer.h[1].mlp.parameters()) + 2 * d
    ends = vocabulary * d + places * d + 2 * d  # tied: one table for both ends
    assert exporting.parameter_count(pruned.module) == ends + head + mlp
    # Without dead ends taken out, what no output depends on is left out all the same.
    again = model.pruned(mask, Ablation("zero"))
    assert exporting.parameter_count(again.module) == ends + head + mlp


def test_grouped_values_are_held_once():
    model, _ = system("llama", torch.float32)
    edges = [f"input->a0.h{h}<q>" for h in (0, 1)] + [f"a0.h{h}->logits" for h in (0, 1)]
    mask = named(model, *edges, "input->a0.kv0<k>", "input->a0.kv0<v>")
    d, width, vocabulary = 16, 4, 61
    ends = vocabulary * d * (1 if model.module.config.tie_word_embeddings else 2) + d
    rows = 2 * width * d + 2 * width * d  # two queries, one key, one value
    found = exporting.parameter_count(model.pruned(mask, Ablation("zero")).module)
    assert found == ends + rows + 2 * width * d


def test_heads_whose_values_are_constants_are_folded():
    """Attention over the same value everywhere gives that value, whatever its weights are."""
    model, batch = system("llama", torch.float32)
    edges = ["input->a0.h0<q>", "input->a0.kv0<k>", "a0.h0->logits", "input->logits"]
    mask = named(model, *edges)
    ablation = model.mean_ablation([batch])
    module = model.pruned(mask, ablation).module
    assert len(module.stages) == 0
    with torch.no_grad():
        want = model.run(batch, mask, model.reference(batch, ablation), sparse=False)
        torch.testing.assert_close(module(batch.clean["input_ids"]), want, rtol=1e-4, atol=1e-5)


def test_weights_are_copies_and_the_model_is_as_before():
    model, _ = system("gpt_neox", torch.float32)
    model.module.train()
    before = copy.deepcopy(model.module.state_dict())
    module = model.pruned(drawn(model, 0.5), Ablation("zero")).module
    assert model.module.training
    assert not module.training
    theirs = {t.untyped_storage().data_ptr() for t in model.module.state_dict().values()}
    assert not theirs & {t.untyped_storage().data_ptr() for t in module.state_dict().values()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in model.module.parameters())


def test_the_module_learns(float64):
    """Gradients of its weights are those of finite differences."""
    model, batch = system("qwen3")
    module = model.pruned(drawn(model, 0.4, 3).prune_dead_ends(), Ablation("zero")).module
    ids = batch.clean["input_ids"]
    module(ids).square().sum().backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        assert parameter.grad is not None
        step = 1e-6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
                ends.append(float(module(ids).square().sum()))
                parameter.sub_(sign * step)
        slope = float((parameter.grad * step).sum())
        assert (ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=1e-3, abs=1e-9)


# ------------------------------------------------------------------ the folder

RUN_ALONE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("graphprune", "transformers", "adapters"):
            raise ImportError(name + " is not to be imported here")
sys.meta_path.insert(0, Absent())
import torch
module = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    answers = [module(torch.tensor(ids)).tolist() for ids in json.load(sys.stdin)]
assert not {"graphprune", "transformers"} & set(sys.modules)
print("answers", json.dumps(answers))
"""


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma3"])
def test_the_saved_form_runs_with_torch_alone(family, tmp_path):
    model, batch = system(family, torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3).prune_dead_ends(), model=model)
    exported = circuit.export_model(tmp_path / "out", ablation="mean", task=task_of(batch))
    shapes = [(1, 1), (1, 7), (5, 3), (2, 32)]
    inputs = [torch.randint(61, shape) for shape in shapes]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALONE, str(exported.path / "model.pt2")],
        input=json.dumps([ids.tolist() for ids in inputs]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.split("answers", 1)[1])
    for ids, found in zip(inputs, answers, strict=True):
        want = exported.module(ids).detach()
        torch.testing.assert_close(torch.tensor(found), want, rtol=1e-4, atol=1e-5)


def test_the_folder_and_its_report(tmp_path):
    model, batch = system("gpt2", torch.float32)
    edges = ["input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->logits"]
    circuit = gp.Circuit.from_mask(named(model, *edges), model=model)
    task = task_of(batch)
    exported = circuit.export_model(tmp_path / "out", task=task, shape=(4, 8), repeats=2)
    assert sorted(p.name for p in exported.path.iterdir()) == [
        "circuit",
        "model.pt2",
        "report.json",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert gp.Circuit.load(exported.path / "circuit") == circuit
    report = json.loads((exported.path / "report.json").read_text())
    assert report == exported.report
    d, width, vocabulary, length = 16, 4, 61, 8
    attention = 2 * 2 * length * width  # scores and sums, a multiply and an add each
    rows = 2 * (3 * width * d + width * d)
    # Sums of kept messages are additions, no products: nothing is counted for them.
    ends = 2 * d * vocabulary
    assert report["exported"]["flops_per_token"] == rows + attention + ends
    whole = 2 * (12 * d * d * 2 + d * vocabulary) + 2 * 4 * 2 * 2 * length * width
    assert report["original"]["flops_per_token"] == whole
    module = model.module
    assert report["original"]["parameters"] == sum(p.numel() for p in module.parameters())
    assert report["exported"]["parameters"] == exporting.parameter_count(exported.module)
    assert report["exported"]["bytes"] < report["original"]["bytes"]
    assert min(report[side]["seconds"] for side in ("original", "exported")) > 0
    assert (report["shape"], report["longest"], report["exact_length"]) == ([4, 8], 32, None)
    assert report["max_difference"] < 1e-4
    assert report["compared_on"] == f"answer positions of 3 prompts of {task.name}"
    # The table that both ends share is stored once; the archive adds its own description.
    spare = report["bytes_on_disk"] - report["exported"]["bytes"]
    assert 0 < spare < 150_000


def test_nothing_in_the_program_is_pickled(tmp_path):
    import zipfile

    model, _ = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.2), model=model)
    path = circuit.export_model(tmp_path / "out").path / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert not name.endswith(".pkl")
            assert not archive.read(name).startswith(b"PK")  # torch.save writes such archives
            if name.endswith("sample_inputs/model.pt"):
                assert archive.read(name) == b""


def test_lengths_are_limited(tmp_path):
    model, batch = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.2), model=model)
    module = circuit.export_model(tmp_path / "a").module
    with pytest.raises(gp.InputError, match="at most 32 positions, got 33"):
        module(torch.zeros(1, 33, dtype=torch.int64))
    exported = circuit.export_model(tmp_path / "b", ablation="mean_positional", task=task_of(batch))
    assert exported.report["exact_length"] == 9
    with pytest.raises(gp.InputError, match="kept for 9 positions, got 8"):
        exported.module(torch.zeros(1, 8, dtype=torch.int64))
    program = torch.export.load(exported.path / "model.pt2").module()
    with torch.no_grad():
        ids = torch.randint(61, (5, 9))
        torch.testing.assert_close(program(ids), exported.module(ids))
    with pytest.raises(Exception, match="9"):
        program(torch.zeros(1, 8, dtype=torch.int64))


# ------------------------------------------------------------------ refusals


def test_refusals(tmp_path):
    model, batch = system("gpt2", torch.float32)
    mask = drawn(model, 0.3)
    circuit = gp.Circuit.from_mask(mask, model=model)
    out = tmp_path / "out"
    for ablation in ("counterfactual", Ablation()):
        with pytest.raises(gp.InputError, match="corrupted prompt at every call"):
            circuit.export_model(out, ablation=ablation)
    with pytest.raises(gp.InputError, match="give task="):
        circuit.export_model(out, ablation="mean")
    recorded = gp.Circuit(
        circuit.graph, mask, provenance={"method": {"settings": {"ablation": "mean"}}}
    )
    with pytest.raises(gp.InputError, match="'mean' is taken over a task's prompts"):
        recorded.export_model(out, model)
    with pytest.raises(gp.InputError, match=r"\[batch, positions\], got 1 dimensions"):
        model.pruned(mask, Ablation("zero")).module(torch.zeros(3, dtype=torch.int64))
    (tmp_path / "file").write_text("")
    with pytest.raises(gp.InputError, match="cannot write a model"):
        circuit.export_model(tmp_path / "file" / "out", repeats=1)
    (tmp_path / "file").unlink()
    with pytest.raises(gp.InputError, match="unknown ablation 'sum'"):
        circuit.export_model(out, ablation="sum", task=task_of(batch))
    with pytest.raises(gp.InputError, match="does not hold its model"):
        gp.Circuit.from_mask(mask).export_model(out)
    half = gp.EdgeMask(model.graph, mask.values * 0.5)
    with pytest.raises(gp.InputError, match="lie between 0 and 1"):
        gp.Circuit.from_mask(half, model=model).export_model(out)
    other = gp.wrap(tiny("gpt2", seed=1))
    with pytest.raises(gp.InputError, match="found in a model with the weights"):
        circuit.export_model(out, other)
    with pytest.raises(gp.GraphMismatchError):
        circuit.export_model(out, gp.wrap(tiny("llama")))
    foreign = ablation_of(gp.wrap(tiny("llama")), batch, "mean")
    with pytest.raises(gp.InputError, match="another model"):
        circuit.export_model(out, ablation=foreign)
    for shape in ((0, 4), (1, 33), (2,), (2.0, 3), 5, "ab"):
        with pytest.raises(gp.InputError, match="shape"):
            circuit.export_model(out, shape=shape)
    with pytest.raises(gp.InputError, match="repeats"):
        circuit.export_model(out, repeats=0)
    with pytest.raises(gp.UnsupportedModelError, match="low precision"):
        model.at_precision(ROUNDED).pruned(mask, Ablation("zero"))
    toy = Toy()
    with pytest.raises(gp.UnsupportedModelError, match="Toy makes no modules"):
        gp.Circuit.from_mask(gp.EdgeMask.full(toy.graph)).export_model(out, toy)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path):
    model, _ = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(gp.InputError, match="is a file"):
        circuit.export_model(out)
    out.unlink()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(gp.InputError, match=r"not empty|nothing was touched"):
            circuit.export_model(out, overwrite=overwrite)
    (out / "notes.txt").unlink()
    circuit.export_model(out, repeats=1)
    (out / "circuit" / "notes.txt").write_text("mine")
    with pytest.raises(gp.InputError, match="nothing was touched"):
        circuit.export_model(out, overwrite=True)
    assert (out / "circuit" / "notes.txt").read_text() == "mine"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(gp.InputError, match="nothing was touched"):
        circuit.export_model(out, overwrite=True)  # the notes are still there
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_what_was(tmp_path, monkeypatch):
    model, _ = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    out = tmp_path / "out"
    circuit.export_model(out, repeats=1)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(gp.InputError, match="overwrite=True"):
        circuit.export_model(out)

    def fails(*args, **kwargs):
        raise RuntimeError("no such program")

    smaller = gp.Circuit.from_mask(drawn(model, 0.1), model=model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", fails)
        with pytest.raises(gp.UnsupportedModelError, match="no such program"):
            smaller.export_model(out, overwrite=True)
        with pytest.raises(gp.UnsupportedModelError, match="nothing was written"):
            smaller.export_model(tmp_path / "new" / "deep")
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", fails)
        with pytest.raises(RuntimeError):
            smaller.export_model(out, overwrite=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    smaller.export_model(out, overwrite=True, repeats=1)
    assert gp.Circuit.load(out / "circuit").mask == smaller.mask
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_module_that_differs_is_not_written(tmp_path, monkeypatch):
    model, batch = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    run = type(model).run

    def moved(self, batch, *args, **kwargs):
        return run(self, batch, *args, **kwargs) + 0.5

    monkeypatch.setattr(type(model), "run", moved)
    with pytest.raises(gp.UnsupportedModelError, match=r"differs by 0\.5"):
        circuit.export_model(tmp_path / "out")
    made = type(model).pruned

    def untried(self, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "run", run)
            return made(self, *args, **options)

    monkeypatch.setattr(type(model), "pruned", untried)
    with pytest.raises(gp.NumericalError, match=r"differ by 0\.5"):
        circuit.export_model(tmp_path / "out", task=task_of(batch))
    assert list(tmp_path.iterdir()) == []


def test_attention_that_is_not_plain_is_refused():
    model, _ = system("llama", torch.float32)
    layer = model.module.model.layers[1].self_attn
    layer.q_proj.register_forward_hook(lambda module, args, output: output)
    layer.forward = _doubled(layer.forward)
    strange = gp.adapters.lm.LanguageModel(model.module, model.arch.family)
    mask = gp.EdgeMask.full(strange.graph)
    strange.arch.blocks[1].core.forward = _doubled(strange.arch.blocks[1].core.forward)
    with pytest.raises(gp.UnsupportedModelError, match="layer 1's attention"):
        strange.pruned(mask, Ablation("zero"))


def _doubled(forward):
    def run(*args, **kwargs):
        out, *rest = forward(*args, **kwargs)
        return (2 * out, *rest)

    return run


def test_circuits_hold_their_model_weakly():
    model, _ = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    assert copy.deepcopy(circuit) == circuit
    with pytest.raises(gp.InputError, match="does not hold its model"):
        copy.deepcopy(circuit).export_model("never")
    del model
    import gc

    gc.collect()
    with pytest.raises(gp.InputError, match="does not hold its model"):
        circuit.export_model("never")
