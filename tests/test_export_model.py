"""Circuits as modules of their own: a masked run's outputs, the circuit's weights alone."""

import pytest
import torch
from support.exporting import ablation_of, drawn, named, system
from support.oracle import oracle_edges, oracle_logits, oracle_writer_values
from support.tiny import FAMILIES, random_pair, rotated

import graphprune as gp
from graphprune import Ablation

KINDS = ["zero", "mean", "mean_positional"]


# ------------------------------------------------------------------ exactness


@pytest.mark.parametrize(("family", "kind"), rotated(FAMILIES, KINDS))
@torch.no_grad()
def test_outputs_are_the_masked_runs_at_all_positions(float64, family, kind):
    model, batch = system(family)
    ablation = ablation_of(model, batch, kind)
    reference = model.reference(batch, ablation)
    for seed, density in ((0, 0.0), (1, 0.1), (3, 0.7)):
        mask = drawn(model, density, seed)
        for circuit in (mask, mask.prune_dead_ends()) if density == 0.1 else (mask,):
            want = model.run(batch, circuit, reference, sparse=False)
            got = model.pruned(circuit, ablation).module(batch.clean["input_ids"])
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
        if density == 0.7:  # neither end would do
            assert (want - reference.full).abs().max() > 0.1
            assert (want - reference.ablated).abs().max() > 0.1


@pytest.mark.parametrize(("family", "kind"), rotated(FAMILIES, KINDS))
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


@pytest.mark.parametrize(("family", "kind"), rotated(["gpt2", "gpt_neo"], KINDS))
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
    ablation = ablation_of(model, batch, "mean_positional")
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


@pytest.mark.parametrize(("family", "kind"), rotated(FAMILIES, KINDS))
@torch.no_grad()
def test_logits_of_the_last_positions(float64, family, kind):
    """They are the masked run's; the oracle's and Hugging Face's are in the tests beside."""
    model, batch = system(family)
    ablation = ablation_of(model, batch, kind)
    reference = model.reference(batch, ablation)
    for seed, density in enumerate((0.05, 0.4)):
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
        if type(part).__name__ in ("PrunedProjection", "Attention", "Mlp"):
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
    model, _ = system("llama", torch.float32, {"num_hidden_layers": 1})
    task = padded_task(model.module)
    circuit = gp.Circuit.from_mask(drawn(model, 0.4), model=model)
    for keep in (0, 3):
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


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt_neo", {"window_size": 256}),  # as the published models have it
        ("mistral", {"sliding_window": 300}),
        ("mistral", {"sliding_window": 1200}),  # looked up in the mask
        ("llama", {"sliding_window": 300}),  # stated, and used by no layer
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
