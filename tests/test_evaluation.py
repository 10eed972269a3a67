"""Evaluation against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from support.tiny import random_pair, tiny
from support.toy import Toy, ToyExamples

import graphprune as gp


@pytest.fixture(scope="module")
def case():
    module = tiny("llama")
    clean, corrupt = random_pair(module, batch=6)
    task = gp.Task.from_tensors(
        clean, corrupt, answer=[[1, 3]] * 6, distractor=[[2, 4]] * 6, batch_size=4
    )
    model = gp.wrap(module)
    return module, model, task


@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 7)])
def test_metrics_fixed_to_the_full_model_are_the_same(shape):
    """To the last bit; a divergence keeps its own side, other metrics are themselves."""
    full, *outs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).double()
    positions = torch.tensor([[3, 2], [1, -1], [4, 0]]) if len(shape) == 3 else None
    batch = gp.Batch(None, None, 3, positions=positions)
    kl = gp.METRICS["kl"]
    fixed = kl.fixed(full)
    for out in outs:
        assert torch.equal(fixed(out, batch, full), kl(out, batch, full))
    own = (full.softmax(-1) * (full.log_softmax(-1) - outs[0].log_softmax(-1))).sum(-1)
    if positions is not None:
        own = torch.stack([own[0].mean(), own[1, 0], own[2].mean()])
    torch.testing.assert_close(fixed(outs[0], batch, full), own)
    assert gp.METRICS["accuracy"].fixed(full) is gp.METRICS["accuracy"]


def test_report_equals_hand_computation(case):
    module, model, task = case
    mask = gp.EAP().score(model, task).top(0.3)
    report = gp.evaluate(model, task, mask)
    batch = next(iter(task.batches(6)))
    with torch.no_grad():
        full = module(batch.clean["input_ids"]).logits[:, -1]
        ablated = module(batch.corrupt["input_ids"]).logits[:, -1]
    out = model.run(batch, mask)
    p, q = full.softmax(-1), out.softmax(-1)
    assert report["kl"] == pytest.approx(float((p * (p.log() - q.log())).sum(-1).mean()), abs=1e-5)

    def diff(x):
        return float((x[:, [1, 3]].mean(1) - x[:, [2, 4]].mean(1)).mean())

    assert report["logit_diff"] == pytest.approx(diff(out), abs=1e-5)
    want = (diff(out) - diff(ablated)) / (diff(full) - diff(ablated))
    assert report["faithfulness"] == pytest.approx(want, abs=1e-3)
    hits = (out[:, [1, 3]].amax(1) > out[:, [2, 4]].amax(1)).float().mean()
    assert report["accuracy"] == pytest.approx(float(hits))
    ids = [1, 3, 2, 4]
    same = (out[:, ids].argmax(1) == full[:, ids].argmax(1)).float().mean()
    assert report["exact_match"] == pytest.approx(float(same))
    taus = [
        kendalltau(a, b).statistic
        for a, b in zip(out[:, ids].numpy(), full[:, ids].numpy(), strict=True)
    ]
    assert report["kendall_tau"] == pytest.approx(np.mean(taus), abs=1e-6)
    pd = (q[:, [1, 3]].sum(1) - q[:, [2, 4]].sum(1)).mean()
    assert report["prob_diff"] == pytest.approx(float(pd), abs=1e-6)
    named = report.to_dict()
    for key in (
        "n_edges",
        "density",
        "sparsity",
        "kl",
        "faithfulness",
        "accuracy",
        "exact_match",
        "top1_accuracy",
        "top1_match",
        "kendall_tau",
        "logit_diff",
    ):
        assert key in named, key
    low, high = report.interval("kl")
    assert low <= report["kl"] <= high
    assert set(report.to_frame().columns) >= {"measure", "circuit", "low", "high", "full"}


def test_the_ends(case):
    _, model, task = case
    full = gp.evaluate(model, task, gp.EdgeMask.full(model.graph))
    assert full["kl"] == pytest.approx(0, abs=1e-6)
    assert full["faithfulness"] == pytest.approx(1, abs=1e-4)
    assert full["exact_match"] == 1
    empty = gp.evaluate(model, task, gp.EdgeMask.empty(model.graph))
    assert empty["faithfulness"] == pytest.approx(0, abs=1e-4)
    assert empty["n_edges"] == 0


def test_what_a_task_cannot_have_is_absent_with_a_reason(case):
    _, model, task = case
    batch = next(iter(task.batches(6)))
    bare = gp.Task.from_tensors(batch.clean["input_ids"], batch.corrupt["input_ids"], metric="kl")
    report = gp.evaluate(model, bare, gp.EdgeMask.full(model.graph))
    assert "no answer" in report.absent["logit_diff"]
    assert "kendall_tau" in report.absent
    assert "logit_diff" not in report.values
    with pytest.raises(KeyError, match="no answer"):
        report["logit_diff"]
    only = gp.evaluate(model, bare, gp.EdgeMask.full(model.graph), metrics=["kl"]).to_dict()
    assert only["kl"] == pytest.approx(0, abs=1e-6)


def test_cost_counts_the_circuit_that_was_run(case):
    _, model, task = case
    mask = gp.EdgeMask.from_edges(model.graph, ["input->m1", "m1->logits"])
    report = gp.evaluate(model, task, mask, cost=True)
    assert 0 < report["flops_circuit"] < 0.8 * report["flops_full"]


def test_curve_by_brute_force(case):
    """Every point again by masked runs of all examples; integrals again by their definition."""
    _, model, task = case
    (batch,) = task.batches(len(task))
    reference = model.reference(batch)

    def mean(outputs):
        return float(task.metric(outputs, batch, reference.full).double().mean())

    full, ablated = mean(reference.full), mean(reference.ablated)
    scores = gp.EAP().score(model, task)
    sizes = (0.01, 0.1, 0.4, 1.0)
    curve = gp.faithfulness_curve(model, task, scores, sizes)
    for by in ("signed", "abs"):
        for i, size in enumerate(sizes):
            mask = scores.top(size, by=by).prune_dead_ends()
            wanted = mean(model.run(batch, mask, reference))
            assert curve.kept[by][i] == mask.num_kept
            assert curve.values[by][i] == pytest.approx(wanted, abs=1e-4)
            f = (wanted - ablated) / (full - ablated)
            assert curve.f[by][i] == pytest.approx(f, abs=1e-3)

    def trapezoid(y):
        return sum(
            (b - a) * (u + v) / 2 for a, b, u, v in zip(sizes, sizes[1:], y, y[1:], strict=False)
        )

    assert curve.cpr == pytest.approx(trapezoid(curve.f["signed"]))
    assert curve.cmd == pytest.approx(trapezoid([abs(1 - f) for f in curve.f["abs"]]))
    clipped = [min(1, f) for f in curve.f["signed"]]
    assert curve.cpr_clipped == pytest.approx(trapezoid(clipped))
    logs = [math.log(s) for s in sizes]
    mean = sum(
        (b - a) * (u + v) / 2
        for a, b, u, v in zip(logs, logs[1:], clipped, clipped[1:], strict=False)
    ) / (logs[-1] - logs[0])
    assert curve.log_area == pytest.approx(mean)
    assert len(curve.to_frame()) == 8


def test_mibs_integrals_at_their_known_values():
    """A perfect circuit has CPR .999 and CMD 0; f = 0 until a half gives CPR 0.25 (random's)."""
    sizes = gp.MIB_SIZES
    assert sizes == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    for f, cpr, cmd in (([1] * 10, 0.999, 0), ([0] * 10, 0, 0.999), ([0] * 9 + [1], 0.25, 0.749)):
        curve = gp.FaithfulnessCurve(
            sizes, {"signed": f, "abs": f}, {}, {}, full=1.0, ablated=0.0, metric="kl"
        )
        assert (curve.cpr, curve.cmd) == (pytest.approx(cpr), pytest.approx(cmd))


def test_curve_needs_increasing_sizes_and_a_task_with_an_effect(case):
    _, model, task = case
    scores = gp.Random().score(model, task)
    with pytest.raises(gp.InputError, match="increasing"):
        gp.faithfulness_curve(model, task, scores, (0.5, 0.1))
    with pytest.raises(gp.InputError, match="needs a ranking"):
        gp.faithfulness_curve(model, task, scores, rankings=())
    batch = next(iter(task.batches(6)))
    ids = batch.clean["input_ids"]
    same = gp.Task.from_tensors(ids, ids, answer=[1] * 6, distractor=[2] * 6)
    with pytest.raises(gp.InputError, match="nothing to be faithful to"):
        gp.faithfulness_curve(model, same, scores)
    assert "nothing" in gp.evaluate(model, same, scores.top(5)).absent["faithfulness"]


def test_sizes_that_are_nearly_the_same_are_different_circuits(case):
    _, model, task = case
    scores, count = gp.EAP().score(model, task), model.graph.num_edges
    near, half = (int(0.5 * count) - 1e-4) / count, int(0.5 * count) / count
    both = gp.faithfulness_curve(model, task, scores, (near, half, 1.0), rankings=["abs"])
    assert both.kept["abs"][0] != both.kept["abs"][1]
    for i, size in enumerate((near, half)):
        alone = gp.faithfulness_curve(model, task, scores, (size, 1.0), rankings=["abs"])
        assert both.f["abs"][i] == pytest.approx(alone.f["abs"][0], abs=1e-6)


def test_foreign_masks_and_scores_are_refused(case):
    _, model, task = case
    other = gp.ComputationalGraph.from_edges([("a", "b")])
    with pytest.raises(gp.GraphMismatchError, match="different graphs"):
        gp.evaluate(model, task, gp.EdgeMask.full(other))
    with pytest.raises(gp.GraphMismatchError):
        gp.faithfulness_curve(model, task, gp.EdgeScores(other, torch.ones(1)))
    with pytest.raises(gp.GraphMismatchError):
        gp.EdgeMask.full(other) & gp.EdgeMask.full(model.graph)
    with pytest.raises(gp.InputError, match="expected an EdgeMask"):
        model.run(next(iter(task.batches())), torch.ones(3))


def test_nan_weights_name_the_examples(case):
    module = tiny("gpt2")
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 3, distractor=[2] * 3)
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.bias[0] = float("nan")
    with pytest.raises(gp.NumericalError, match=r"example numbers \[0, 1, 2\]"):
        gp.evaluate(model, task, gp.EdgeMask.full(model.graph))
    with pytest.raises(gp.NumericalError):
        gp.EAP().score(model, task)


def test_auroc_and_recovery():
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")])
    scores = gp.EdgeScores(graph, torch.tensor([4.0, -3.0, 2.0, 1.0]))
    assert gp.auroc(scores, gp.EdgeMask(graph, [1, 1, 0, 0])) == 1.0
    assert gp.auroc(scores, gp.EdgeMask(graph, [0, 1, 0, 1])) == 0.25
    ties = gp.EdgeScores(graph, torch.ones(4))
    assert gp.auroc(ties, gp.EdgeMask(graph, [1, 0, 0, 0])) == 0.5
    masks = [gp.EdgeMask(graph, [1, 1, 0, 0]), gp.EdgeMask(graph, [1, 0, 0, 0])]
    assert gp.mean_jaccard(masks) == 0.5


def test_text_generated_by_the_full_mask_is_plain_greedy_text():
    module = tiny("llama")
    model = gp.wrap(module)
    ids, _ = random_pair(module, batch=1)
    prompt = ids[0, :5]
    plain = prompt[None]
    for _ in range(6):
        chosen = module(plain).logits[:, -1].argmax(-1, keepdim=True)
        plain = torch.cat([plain, chosen], 1)
    full = gp.EdgeMask.full(model.graph)
    assert torch.equal(model.generate_with(full, prompt, max_new_tokens=6), plain[0])
    mean = model.mean_ablation([gp.Batch({"input_ids": ids}, None, 1)])
    some = gp.Random().score(model, None).top(0.5)
    for ablation in ("zero", mean):
        text = model.generate_with(some, prompt, ablation=ablation, max_new_tokens=6)
        assert len(text) == 11
    for bad in (gp.Ablation(), "mean"):
        with pytest.raises(gp.InputError, match="zero"):
            model.generate_with(full, prompt, ablation=bad)
    with pytest.raises(gp.InputError, match="one prompt"):
        model.generate_with(full, torch.ones(2, 4, dtype=torch.int64))
    gpt2 = gp.wrap(tiny("gpt2"))
    with pytest.raises(gp.InputError, match="position table ends at 32"):
        gpt2.generate_with(gp.EdgeMask.full(gpt2.graph), torch.arange(20), max_new_tokens=20)


def ragged(**options):
    """Prompts of three lengths, so that batches are not in the task's order."""
    module = tiny("llama")
    clean, corrupt = random_pair(module, batch=3)
    mask = torch.ones_like(clean)
    mask[0, 6:], mask[1, 4:] = 0, 0
    task = gp.Task.from_tensors(
        clean, corrupt, answer=[1, 2, 3], distractor=[4, 5, 6], attention_mask=mask, **options
    )
    return gp.wrap(module), task


def test_values_for_each_example_stand_in_the_tasks_order():
    model, task = ragged(batch_size=2)
    mask = gp.Random(seed=1).score(model, task).top(0.4)
    whole = gp.evaluate(model, task, mask)
    for i in range(3):
        alone = gp.evaluate(model, task.subset([i]), mask)
        assert float(whole.examples["logit_diff"][i]) == pytest.approx(
            float(alone.examples["logit_diff"][0]), abs=1e-4
        )


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_a_curve_keeps_what_a_cut_off_node_still_sends(case, ablation):
    """Only counterfactual ablation makes a node without inputs send its ablation value."""
    _, model, task = case
    scores = gp.EAP(ablation=ablation).score(model, task)
    curve = gp.faithfulness_curve(model, task, scores, (0.05, 0.3), ablation=ablation)
    for i, size in enumerate((0.05, 0.3)):
        report = gp.evaluate(model, task, scores.top(size), ablation=ablation)
        assert curve.f["abs"][i] == pytest.approx(report["faithfulness"], abs=2e-3)


def test_two_metrics_of_one_name_are_refused(case):
    _, model, task = case

    def kl(outputs, batch):
        return outputs[:, 0]

    kl.higher_is_better = True
    full = gp.EdgeMask.full(model.graph)
    with pytest.raises(gp.InputError, match="two different metrics are named 'kl'"):
        gp.evaluate(model, task.with_metric(kl), full)
    report = gp.evaluate(model, task.with_metric(kl), full, metrics=["accuracy"])
    batch = next(iter(task.batches(6)))
    want = float(model.reference(batch).full[:, 0].mean())
    assert report.full["kl"] == pytest.approx(want, abs=1e-5)


def test_cost_needs_no_corrupted_prompts():
    module = tiny("llama")
    model = gp.wrap(module)
    clean, _ = random_pair(module)
    task = gp.Task.from_tensors(clean, answer=[1] * 3, distractor=[2] * 3)
    small = gp.EdgeMask.from_edges(model.graph, ["input->m1", "m1->logits"])
    report = gp.evaluate(model, task, small, ablation="zero", cost=True)
    assert report["seconds_circuit"] > 0
    assert 0 < report["bytes_circuit"] < report["bytes_full"]
    total = sum(p.numel() * 4 for p in module.parameters())
    assert report["bytes_full"] <= total


def test_curves_take_counts_and_kendalls_tau_by_name(case):
    _, model, task = case
    scores = gp.EAP().score(model, task)
    by_count = gp.faithfulness_curve(model, task, scores, [10, 60])
    edges = model.graph.num_edges
    assert by_count.sizes == (10 / edges, 60 / edges)
    report = gp.evaluate(model, task, scores.top(60), metrics=["kendall_tau"])
    assert "kendall_tau" in report.values


def test_wrong_objects_are_named(case):
    module, model, task = case
    with pytest.raises(gp.InputError, match="wrap it first"):
        gp.EAP().score(module, task)
    with pytest.raises(gp.InputError, match="EdgeMask or a Circuit"):
        gp.evaluate(model, task, torch.ones(3))
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(model.graph))
    assert gp.evaluate(model, task, circuit)["faithfulness"] == pytest.approx(1, abs=1e-4)
    first, second = list(task.batches(3))
    ones = torch.ones(model.graph.num_edges)
    with pytest.raises(gp.InputError, match="another batch"):
        model.run(second, ones, model.reference(first))
    with pytest.raises(gp.InputError, match=r"\[0, 1\]"):
        model.run(first, 7 * ones)
    far = gp.Task.from_tensors(
        first.clean["input_ids"], first.corrupt["input_ids"], answer=[9999] * 3, distractor=[1] * 3
    )
    with pytest.raises(gp.InputError, match="answer id is 9999"):
        gp.EAP().score(model, far)
    means = model.mean_ablation([first])
    other = gp.wrap(tiny("llama_mha"))
    with pytest.raises(gp.InputError, match="another model"):
        other.run(first, torch.ones(other.graph.num_edges), other.reference(first, means))
    assert "tensor" not in gp.EAP(ablation=means).label


def test_models_that_cannot_be_wrapped_say_why():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    with pytest.raises(gp.UnsupportedModelError, match="no language-model head"):
        gp.wrap(GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=2)))
    assert gp.wrap(tiny("gpt2", max_position_embeddings=4)).graph.num_edges
    with pytest.raises(gp.InputError, match="unknown option"):
        gp.wrap(tiny("gpt2"), embed_nodes=2)
    broken = tiny("gpt2")
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.bias[0] = float("nan")
    with pytest.raises(gp.NumericalError, match="NaN"):
        gp.wrap(broken)
    with pytest.raises(gp.UnsupportedModelError, match="meta"):
        gp.wrap(tiny("gpt2").to("meta"))


def test_circuits_evaluated_together_are_as_alone():
    model = Toy()
    task = gp.Task(ToyExamples(6), "logit_diff", batch_size=4)
    graph = model.graph
    generator = torch.Generator().manual_seed(0)
    masks = {
        str(k): gp.EdgeMask(graph, (torch.rand(graph.num_edges, generator=generator) < 0.5).float())
        for k in range(3)
    } | {"full": gp.EdgeMask.full(graph)}
    together = gp.evaluate_all(model, task, masks)
    assert list(together) == list(masks)
    for name, mask in masks.items():
        assert together[name].to_dict() == gp.evaluate(model, task, mask).to_dict()


def test_an_interval_of_one_example_says_that_there_is_none(caplog):
    task = gp.Task(ToyExamples(n=1), gp.METRICS["logit_diff"], name="toy")
    model = Toy()
    report = gp.evaluate(model, task, gp.EdgeMask.full(model.graph))
    assert "one example: no interval" in report.remarks
    report.to_frame()
    assert not caplog.records  # the remark stands beside the table
    assert all(map(math.isnan, report.interval("kl")))
    assert "kl has no interval (nan): there is one example; give more" in caplog.text
