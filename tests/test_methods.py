"""Scorers against what they mean: masked runs, closed sums, and each other."""

import dataclasses

import pytest
import torch
from support.oracle import oracle_writer_values
from support.tiny import random_pair, tiny
from support.tokenizers import byte_bpe

import graphprune as gp
from graphprune.methods import integration_points


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2"])
def case(request):
    module = tiny(request.param, dtype=torch.float64)
    return gp.wrap(module), pairs(module)


def pairs(module):
    clean, corrupt = random_pair(module, batch=5)
    return gp.Task.from_tensors(
        clean, corrupt, answer=[1] * 5, distractor=[2] * 5, batch_size=2, metric="logit_diff"
    )


def value(model, task, mask):
    batch = next(iter(task.batches(len(task))))
    return float(task.metric(model.run(batch, mask), batch).mean())


@pytest.mark.parametrize("candidates", [1, 7, 64])
def test_exact_patching_is_one_run_an_edge(case, candidates):
    """However many edges ride together, and though only what they change is computed."""
    one_run_an_edge(*case, gp.ExactPatching(candidates=candidates), first=candidates % 37, step=37)


@pytest.mark.parametrize(
    ("family", "heads"),
    [("gpt2", {"num_attention_heads": 1}), ("llama", {"num_key_value_heads": 1})],
)
def test_exact_patching_where_one_node_reads_by_several_ports(family, heads):
    """Edges into q, k and v of one head stand side by side, and are three readers'."""
    module = tiny(family, dtype=torch.float64, **heads)
    one_run_an_edge(gp.wrap(module), pairs(module), gp.ExactPatching())


def one_run_an_edge(model, task, method, first=0, step=1):
    found = method.score(model, task)
    full = value(model, task, torch.ones(model.graph.num_edges, dtype=torch.float64))
    assert float(found.values.abs().max()) > 1e-3
    for e in range(first, model.graph.num_edges, step):
        mask = torch.ones(model.graph.num_edges, dtype=torch.float64)
        mask[e] = 0
        assert found.values[e] == pytest.approx(full - value(model, task, mask), abs=2e-6)


def test_eap_is_the_slope_of_ablating_one_edge(case):
    """A finite difference of the masked run; batching changes nothing."""
    model, task = case
    eap = gp.EAP().score(model, task)
    whole = gp.EAP(batch_size=5).score(model, task)
    torch.testing.assert_close(eap.values, whole.values, rtol=1e-4, atol=1e-6)
    full = torch.ones(model.graph.num_edges, dtype=torch.float64)
    top = eap.values.abs().argsort(descending=True)[:6].tolist()
    for e in top:
        less = full.clone()
        less[e] = 1 - 1e-4
        slope = (value(model, task, full) - value(model, task, less)) / 1e-4
        assert eap.values[e] == pytest.approx(slope, rel=2e-2, abs=2e-3)


def test_scores_are_means_over_examples(case):
    """The reference's sums over a batch are these means times the batch size."""
    model, task = case
    each = [gp.EAPIG(steps=3).score(model, task.subset([i])).values for i in range(len(task))]
    together = gp.EAPIG(steps=3).score(model, task).values
    torch.testing.assert_close(torch.stack(each).mean(0), together, rtol=1e-4, atol=1e-6)


def test_integrated_mask_gradient_is_complete(case):
    """Fundamental theorem: the scores sum to metric(full) - metric(ablated)."""
    model, task = case
    edges = torch.ones(model.graph.num_edges, dtype=torch.float64)
    gap = value(model, task, edges) - value(model, task, 0 * edges)
    scorer = gp.IntegratedMaskGradient(steps=96, points_at="gauss-legendre")
    assert float(scorer.score(model, task).values.sum()) == pytest.approx(gap, rel=2e-3, abs=2e-3)


def test_integrated_inputs_are_complete_over_the_input_node(case):
    """EAP-IG's scores of the edges that leave the input sum to the change of the metric."""
    model, task = case
    scorer = gp.EAPIG(steps=64, points_at="gauss-legendre")
    scores = scorer.score(model, task)
    edges = torch.ones(model.graph.num_edges, dtype=torch.float64)
    gap = value(model, task, edges) - value(model, task, 0 * edges)
    leaving = model.graph.edge_index[0] == 0
    assert float(scores.values[leaving].sum()) == pytest.approx(gap, rel=1e-2, abs=1e-2)


def test_left_points_are_the_references_and_exclude_the_clean_end(case):
    """steps=1 is the gradient at the corrupted input; clean-corrupted averages both ends."""
    model, task = case
    corrupted = gp.EAPIG(steps=1).score(model, task)
    clean = gp.EAP().score(model, task)
    both = gp.CleanCorrupted().score(model, task)
    torch.testing.assert_close(
        both.values, (corrupted.values + clean.values) / 2, rtol=1e-4, atol=1e-6
    )
    assert not torch.allclose(corrupted.values, clean.values)


def test_activations_score_only_edges_that_leave_the_group(case):
    """Paper version = mask gradients with one group's edges at k/m, by the authors' right points.

    The authors' code itself is in test_authors_code.py.
    """
    model, task = case
    small = task.take(2)
    steps = 2
    paper = gp.EAPIG(steps=steps, integrate="activations").score(model, small)
    batch = next(iter(small.batches(2)))
    reference = model.reference(batch)
    source = model.graph.edge_index[0]
    want = torch.zeros(model.graph.num_edges, dtype=torch.float64)
    for group in model.source_groups():
        leaving = torch.isin(source, torch.tensor(group))
        for k in (1, 2):
            mask = torch.ones_like(want)
            mask[leaving] = k / steps
            mask.requires_grad_(True)
            out = task.metric(model.run(batch, mask, reference), batch).sum()
            (gradient,) = torch.autograd.grad(out, mask)
            want[leaving] += gradient[leaving] / steps / 2
    torch.testing.assert_close(paper.values, want.float(), rtol=1e-3, atol=2e-5)


def test_points_are_those_of_the_authors_code_unless_said(case):
    """K / m from 0 for inputs, to 1 for activations and for nodes."""
    model, _ = case
    node = model.graph.input_nodes[0]
    inputs, activations, nodes = gp.EAPIG(), gp.EAPIG(integrate="activations"), gp.NAPIG()
    assert inputs.interpolation(model)[0][:, node].tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert activations.interpolation(model)[0][:5, node].tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert nodes.interpolation(model)[0][:, node].tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    said = gp.EAPIG(integrate="activations", points_at="left")
    assert said.interpolation(model)[0][:5, node].tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_information_flow_is_the_formula(case):
    """Proximity worked out directly for one reader from hooks on the plain model."""
    model, task = case
    small = task.take(2)
    scores = gp.InformationFlow().score(model, small)
    batch = next(iter(small.batches(2)))
    place = list(model.messages(batch))[-1]
    x, y = place.total, place.values
    norm = x.abs().sum(-1)
    near = torch.stack([(norm - (x - v).abs().sum(-1)).clamp(min=0) for v in y])
    want = (near / near.sum(0)).mean(-1).mean(-1)
    got = scores.values[place.edges[0]]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    graph = model.graph
    for edges in (p.edges for p in model.messages(batch)):
        assert (scores.values[edges].sum(1) < 1 + 1e-5).all()  # unmaskable terms may take a share
    assert graph.num_edges == len(scores.values)


def test_messages_add_up_to_what_plain_hugging_face_feeds_its_last_norm():
    module = tiny("gpt2", dtype=torch.float64)
    model = gp.wrap(module)
    ids, _ = random_pair(module)
    seen = {}
    hook = module.transformer.ln_f.register_forward_pre_hook(
        lambda _, args: seen.setdefault("x", args[0])
    )
    module(ids)
    hook.remove()
    batch = gp.Batch({"input_ids": ids}, None, len(ids))
    last = list(model.messages(batch))[-1]
    position = module.transformer.wpe.weight[: ids.shape[1]]
    biases = sum(b.attn.c_proj.bias for b in module.transformer.h)
    total = last.values.sum(0) + position + biases
    torch.testing.assert_close(total, seen["x"], rtol=0, atol=1e-9)
    torch.testing.assert_close(last.total, seen["x"], rtol=0, atol=1e-9)


def test_node_scores_are_sums_over_the_nodes_edges(case):
    model, task = case
    nodes = gp.NAP(neurons=True).score_nodes(model, task)
    edges = gp.EAP().score(model, task)
    for name in ("input", "a0.h0", "m1"):
        number = model.graph.node_number[name]
        mine = edges.values[model.graph.edge_index[0] == number].sum()
        assert float(nodes.values[number]) == pytest.approx(float(mine), rel=1e-4, abs=1e-5)
        assert float(nodes.neurons[name].sum()) == pytest.approx(float(mine), rel=1e-4, abs=1e-5)
    circuit = nodes.top(3)
    assert {n for n in circuit.nodes() if n != "logits" and ".kv" not in n} <= set(
        nodes.to_frame().assign(size=lambda f: f.score.abs()).nlargest(3, "size").node
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_relp_is_the_gradient_of_the_linearised_model(frozen):
    """A two-layer GPT-2 written out with frozen norm scales (and attention patterns), act(x) / x.

    Every reader's input gets a zero of its own to differentiate by; scores follow from the oracle's
    messages. Nothing of the adapter is used.
    """
    module = tiny("gpt2", dtype=torch.float64)
    clean, corrupt = random_pair(module)
    task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 3, distractor=[2] * 3)
    scorer = gp.RelP(freeze_attention=True) if frozen else gp.RelP()
    scores = scorer.score(gp.wrap(module), task).to_frame().set_index("edge").score
    heads, width = module.config.n_head, module.config.n_embd
    dh = width // heads
    zeros: dict[str, torch.Tensor] = {}

    def reads(x, reader):
        zeros[reader] = torch.zeros_like(x, requires_grad=True)
        return x + zeros[reader]

    def norm(ln, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + ln.eps).rsqrt().detach()
        return centred * scale * ln.weight + ln.bias

    def rows(conv, x, start):
        return x @ conv.weight[:, start : start + dh] + conv.bias[start : start + dh]

    causal = torch.ones(clean.shape[1], clean.shape[1]).triu(1).bool()
    x = (module.transformer.wte(clean) + module.transformer.wpe.weight[: clean.shape[1]]).detach()
    for layer, block in enumerate(module.transformer.h):
        conv, out = block.attn.c_attn, block.attn.c_proj
        message = out.bias
        for h in range(heads):
            q, k = (
                rows(conv, norm(block.ln_1, reads(x, f"a{layer}.h{h}<{c}>")), n * width + h * dh)
                for n, c in enumerate("qk")
            )
            logits = (q @ k.transpose(1, 2) / dh**0.5).masked_fill(causal, float("-inf"))
            seen = norm(block.ln_1, reads(x, f"a{layer}.h{h}<v>"))
            pattern = logits.softmax(-1)
            z = (pattern.detach() if frozen else pattern) @ rows(conv, seen, 2 * width + h * dh)
            message = message + z @ out.weight[h * dh : (h + 1) * dh]
        x = x + message
        hidden = block.mlp.c_fc(norm(block.ln_2, reads(x, f"m{layer}")))
        ratio = (block.mlp.act(hidden) / hidden).detach()
        x = x + block.mlp.c_proj(hidden * ratio)
    final = module.lm_head(norm(module.transformer.ln_f, reads(x, "logits")))[:, -1]
    torch.testing.assert_close(final, module(clean).logits[:, -1], rtol=0, atol=1e-9)
    total = (final[:, 1] - final[:, 2]).sum()
    gradients = torch.autograd.grad(total, list(zeros.values()), materialize_grads=True)
    delta = {
        name: (value - oracle_writer_values(module, corrupt)[name]).detach()
        for name, value in oracle_writer_values(module, clean).items()
    }
    checked = 0
    for reader, gradient in zip(zeros, gradients, strict=True):
        for writer, change in delta.items():
            if f"{writer}->{reader}" in scores.index:
                want = float((change * gradient).sum()) / 3
                assert scores[f"{writer}->{reader}"] == pytest.approx(want, rel=1e-5, abs=1e-6)
                checked += 1
    attention = scores[[e for e in scores.index if e.endswith(("<q>", "<k>"))]]
    assert (attention == 0).all() if frozen else (attention != 0).mean() > 0.9
    assert checked == len(scores)


def test_positional_scores_sum_to_the_edge_scores(case):
    model, task = case
    positional = gp.EAPIG(steps=2).score_positions(model, task)
    torch.testing.assert_close(
        positional.total().values, gp.EAPIG(steps=2).score(model, task).values, rtol=1e-4, atol=1e-6
    )
    assert set(positional.to_frame().columns) >= {"edge", "pos", "score"}


def test_kl_is_refused_where_its_gradient_vanishes(case):
    model, task = case
    with pytest.raises(gp.InputError, match=r"zero gradient at the full model.*EAPIG"):
        gp.EAP().score(model, task.with_metric("kl"))
    assert gp.EAPIG(steps=2).score(model, task.with_metric("kl")).values.abs().max() > 0
    with pytest.raises(gp.InputError, match="no gradient"):
        gp.EAP().score(model, task.with_metric("accuracy"))


def test_a_metric_where_lower_is_better_turns_the_sign(case):
    model, task = case

    def loss(outputs, batch):
        return -(outputs[:, 1] - outputs[:, 2])

    with pytest.raises(gp.InputError, match="higher_is_better"):
        task.with_metric(loss)
    loss.higher_is_better = False
    mine = gp.EAP().score(model, task.with_metric(loss))
    torch.testing.assert_close(mine.values, gp.EAP().score(model, task).values)


def test_nan_names_the_examples(case):
    model, task = case

    def broken(outputs, batch):
        return torch.where(torch.tensor(batch.indices) == 3, float("nan"), outputs[:, 0])

    broken.higher_is_better = True
    with pytest.raises(gp.NumericalError, match=r"\[3\]"):
        gp.EAP().score(model, task.with_metric(broken))


def test_integration_rules_are_exact_for_their_degree():
    for rule, degree in (("midpoint", 1), ("trapezoid", 1), ("gauss-legendre", 5)):
        places, weights = integration_points(3, rule)
        assert float(weights.sum()) == pytest.approx(1)
        got = float((weights * places**degree).sum())
        assert got == pytest.approx(1 / (degree + 1)), rule
    with pytest.raises(gp.InputError, match="steps"):
        integration_points(0, "left")
    with pytest.raises(gp.InputError, match="unknown points"):
        integration_points(3, "simpson")


def span_task(tokenizer):
    """Pairs of unequal length, aligned by two named spans; each name is a token."""
    records = [
        {
            "clean": " Mary Paul John Anna Emma Jack",
            "corrupt": " Mary Carl Alice Anna Laura Frank Jack",
            "spans": {"name": [[1, 3], [1, 3]], "verb": [[4, 5], [4, 6]]},
        },
        {
            "clean": " Helen Paul John Anna Emma",
            "corrupt": " Grace Paul Brian Peter Emma",
            "spans": {"name": [[1, 2], [1, 2]], "verb": [[2, 4], [2, 4]]},
        },
    ]
    answers = {"answer": " Mary", "distractor": " John"}
    return gp.Task.from_pairs([{**record, **answers} for record in records], tokenizer)


def test_spans_pool_to_one_position_each():
    """Slot scores are the position scores of each prompt, summed over the span's tokens."""
    tokenizer = byte_bpe()
    model = gp.wrap(tiny("llama", dtype=torch.float64, vocab_size=len(tokenizer)))
    task = span_task(tokenizer)
    assert list(task.examples.lengths()) == [7, 5]
    found = gp.EAP().score_positions(model, task)
    assert found.positions == ("name", "verb", "other")
    assert found.values.shape == (model.graph.num_edges, 3)
    torch.testing.assert_close(
        found.total().values, gp.EAP().score(model, task).values, rtol=1e-4, atol=1e-6
    )
    want = torch.zeros(model.graph.num_edges, 3, dtype=torch.float64)
    for i in range(2):
        batch = task.examples.batch([i])
        plain = dataclasses.replace(batch, slots=None, slot_names=())
        value = lambda out: task.metric(out, plain)  # noqa: B023, E731
        each = model.edge_gradients(plain, value, by_position=True).edge.double()
        want.index_add_(1, batch.slots[0], each)
    torch.testing.assert_close(found.values.double(), want / 2, rtol=1e-4, atol=1e-6)
    assert set(found.to_frame().pos) == {"name", "verb", "other"}


def test_positional_scores_follow_the_scorer(case):
    model, task = case
    scorer = gp.EAPIG(steps=2, points_at="right", integrate="activations")
    torch.testing.assert_close(
        scorer.score_positions(model, task).total().values,
        scorer.score(model, task).values,
        rtol=1e-4,
        atol=1e-6,
    )
    with pytest.raises(gp.InputError, match="scores nodes"):
        gp.NAP().score_positions(model, task)


def test_scorers_do_not_care_about_the_callers_autograd_mode(case):
    model, task = case
    scorer = gp.IntegratedMaskGradient(steps=2)
    with torch.no_grad():
        inside = scorer.score(model, task)
    assert torch.equal(inside.values, scorer.score(model, task).values)

    def detached(outputs, batch):
        return outputs[:, 0].detach()

    detached.higher_is_better = True
    with pytest.raises(gp.InputError, match="without a gradient"):
        gp.EAP().score(model, task.with_metric(detached))
    for bad in (gp.EAPIG(steps=0), gp.EAPIG(steps=2.5), gp.ExactPatching(candidates=0)):
        with pytest.raises(gp.InputError, match="integer of at least 1"):
            bad.score(model, task)
    with pytest.raises(gp.InputError, match="batch_size"):
        gp.EAP(batch_size=0).score(model, task)
