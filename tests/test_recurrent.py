"""Masked runs and attributions of ARGNNs against the definition, node by node and edge by edge."""

import numpy as np
import pytest
import torch
from support.wheels import by_hand, messages_by_hand, random_network

import graphprune as gp
from graphprune.adapters import ARGNN
from graphprune.conformance import check_adapter, check_method
from graphprune.tasks import patterns

UPDATES = ("sequential", "bernoulli", "synchronous")


def network(update="sequential", seed=1, **options):
    options = {"outputs": [11, 12, 13], "bias": True, **options}
    net = random_network(14, 3, 3.0, seed, update=update, **options).double()
    with torch.no_grad():
        net.bias.normal_(generator=torch.Generator().manual_seed(seed))
        net.edge_weight.mul_(1.5)
    return net


def a_task(n=5, seed=0, **options):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return patterns(x, torch.arange(n) % 3, classes=3, **options)


def a_batch(task):
    return next(iter(task.batches()))


@pytest.fixture(params=UPDATES)
def model(request):
    return gp.wrap(network(request.param))


def test_it_conforms(model):
    check_adapter(model, a_task())


def test_states_of_several_numbers_and_no_inputs_conform():
    net = random_network(10, 2, 3.0, 0, channels=3, outputs=[8, 9], update="bernoulli").double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    check_adapter(gp.wrap(net), patterns(x, torch.tensor([0, 1, 2, 3])))
    net = random_network(8, 0, 3.0, 0, outputs=[6, 7], update="sequential").double()
    driven = {"drive": torch.randn(4, 3, 8, 1, dtype=torch.float64)}
    check_adapter(gp.wrap(net, steps=3), patterns(driven, torch.tensor([0, 1, 0, 1])))


@pytest.mark.parametrize("kind", ["counterfactual", "zero", "mean", "mean_positional", "delete"])
def test_masked_runs_follow_the_definition(model, kind):
    net, task = model.module, a_task()
    batch = a_batch(task)
    ablation = gp.methods.resolve_ablation(model, task, kind)
    masks = torch.rand(2, 5, model.graph.num_edges, dtype=torch.float64)
    masks[1] = (masks[1] < 0.6).double()
    got = model.run(batch, masks, model.reference(batch, ablation))
    corrupt = [
        messages_by_hand(net, model.schedule, by_hand(net, x, model.schedule))
        for x in batch.corrupt["inputs"]
    ]
    for b, x in enumerate(batch.clean["inputs"]):
        replaced = {
            "counterfactual": corrupt[b],
            "mean": np.broadcast_to(np.mean(corrupt, axis=(0, 1)), corrupt[b].shape),
            "mean_positional": np.mean(corrupt, axis=0),
        }.get(kind)
        for k in range(2):
            want = by_hand(net, x, model.schedule, masks[k, b].numpy(), replaced=replaced)[-1]
            assert np.allclose(got[k, b].detach(), want[net.output_nodes], atol=1e-9)


def test_one_gradient_is_every_edges_finite_difference(model):
    """EAP's scores at the clean model against cutting a little of each edge, by hand."""
    net, task = model.module, a_task()
    batch = a_batch(task)
    found = gp.EAP().score(model, task).values
    h, edges = 1e-5, model.graph.num_edges
    want = np.zeros(edges)
    for b, x in enumerate(batch.clean["inputs"]):
        replaced = messages_by_hand(
            net, model.schedule, by_hand(net, batch.corrupt["inputs"][b], model.schedule)
        )
        right, wrong = int(batch.answer[b, 0]), batch.distractor[b].tolist()
        for e in range(edges):
            gaps = []
            for m in (1.0, 1.0 - h):
                mask = np.ones(edges)
                mask[e] = m
                out = by_hand(net, x, model.schedule, mask, replaced=replaced)[-1][net.output_nodes]
                gaps.append(out[right] - out[wrong].mean())
            want[e] += (gaps[0] - gaps[1]) / h / batch.size
    assert np.allclose(found.numpy(), want, atol=1e-4)


def test_gates_scale_what_a_node_sends(model):
    """EAP-IG's points: the derivative of a run by hand in which input nodes send a mixture."""
    net, task = model.module, a_task(3)
    batch = a_batch(task)
    gates = torch.ones(1, 14, dtype=torch.float64)
    gates[0, :3] = 0.3
    ref = model.reference(batch)
    value = lambda out: out[:, 0]  # noqa: E731
    found = model.edge_gradients(batch, value, ref, gates=gates)
    edges, h = model.graph.num_edges, 1e-6
    source = net.edge_index[0].numpy()
    want = np.zeros(edges)
    for x, other in zip(batch.clean["inputs"], batch.corrupt["inputs"], strict=True):
        clean, corrupt = (
            messages_by_hand(net, model.schedule, by_hand(net, side, model.schedule))
            for side in (x, other)
        )
        mixed = gates[0].numpy()[source]
        for e in range(edges):
            outs = []
            for shift in (h, -h):
                moved = np.where(mixed < 1, corrupt, 0.0).copy()
                # What v reads of edge e moves by shift times clean minus ablated.
                moved[:, e] += shift * (clean - corrupt)[:, e] / max(1 - mixed[e], 1e-9)
                mask = mixed.copy()
                if mixed[e] == 1.0:
                    mask[e] = 1.0 - 1e-9
                    moved[:, e] = shift * (clean - corrupt)[:, e] / 1e-9
                outs.append(by_hand(net, x, model.schedule, mask, replaced=moved)[-1][11])
            want[e] += (outs[0] - outs[1]) / (2 * h)
    assert np.allclose(found.edge.numpy(), want, atol=1e-4)


def test_constant_nodes_send_a_mixture_that_no_gradient_passes_through(model):
    """EAP-IG over activations: finite differences by hand, constants in the place of messages."""
    net, task = model.module, a_task(3)
    batch = a_batch(task)
    gates = torch.ones(1, 14, dtype=torch.float64)
    constant = torch.zeros(1, 14, dtype=torch.bool)
    group = [4, 6, 8, 10]
    gates[0, group], constant[0, group] = 0.3, True
    ref = model.reference(batch)
    value = lambda out: out.sum(1)  # noqa: E731
    found = model.edge_gradients(batch, value, ref, gates=gates, constant=constant).edge
    through = model.edge_gradients(batch, value, ref, gates=gates).edge
    edges, h, little = model.graph.num_edges, 1e-4, 1e-9
    held = np.isin(net.edge_index[0].numpy(), group)
    want = np.zeros(edges)
    for x, other in zip(batch.clean["inputs"], batch.corrupt["inputs"], strict=True):
        clean, corrupt = (
            messages_by_hand(net, model.schedule, by_hand(net, side, model.schedule))
            for side in (x, other)
        )
        for e in range(edges):
            outs = []
            for shift in (h, -h):
                moved = np.where(held, 0.3 * clean + 0.7 * corrupt, 0.0)
                mask = np.where(held, 0.0, 1.0)
                mask[e] = 0.0 if held[e] else 1.0 - little
                moved[:, e] += shift * (clean - corrupt)[:, e] / (1.0 - mask[e])
                last = by_hand(net, x, model.schedule, mask, replaced=moved)[-1]
                outs.append(last[net.output_nodes].sum())
            want[e] += (outs[0] - outs[1]) / (2 * h)
    assert np.abs(found.numpy() - want).max() < 1e-3 * np.abs(want).max()
    assert np.abs(through.numpy() - want).max() > 0.05 * np.abs(want).max() > 1e-4


def test_positions_are_steps_and_neurons_are_channels():
    net = random_network(10, 2, 3.0, 0, channels=3, outputs=[8, 9], update="sequential").double()
    model = gp.wrap(net)
    task = patterns(torch.randn(4, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3]))
    batch = a_batch(task)
    ref = model.reference(batch)
    value = lambda out: (out**2).sum(1)  # noqa: E731
    found = model.edge_gradients(batch, value, ref, by_position=True, neurons=True)
    plain = model.edge_gradients(batch, value, ref)
    assert found.edge.shape == (model.graph.num_edges, net.steps)
    assert torch.allclose(found.edge.sum(1), plain.edge, atol=1e-5)
    for name, values in found.neurons.items():
        want = plain.node[model.graph.node_number[name]]
        assert torch.isclose(values.sum(), want, atol=1e-5)
        assert values.shape == (3,)
    by_step = gp.EAP().score_positions(model, task)
    assert torch.allclose(by_step.total().values, gp.EAP().score(model, task).values, atol=1e-6)


def test_learned_constants_start_where_they_are_told_and_learn(model):
    task = a_task(6)
    batch = a_batch(task)
    mean = model.mean_ablation([batch])
    learned = model.learned_ablation(mean)
    mask = torch.rand(model.graph.num_edges, dtype=torch.float64)
    want = model.run(batch, mask, model.reference(batch, mean))
    got = model.run(batch, mask, model.reference(batch, learned))
    assert torch.allclose(got, want, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.sum(), learned.parameters)
    assert gradient.abs().sum() > 0
    found = gp.EdgePruning(sparsity=0.6, steps=20, ablation="optimal").fit(model, task)
    assert found.mask.num_kept == model.graph.num_edges - int(0.6 * model.graph.num_edges)


def test_a_compiled_circuit_runs_on_its_own_edges(model):
    task = a_task()
    mask = gp.EdgeMask(model.graph, torch.rand(model.graph.num_edges) < 0.5)
    for kind in ("counterfactual", "zero", "mean"):
        run = gp.Circuit.from_mask(mask).compile(model, task, ablation=kind)
        ablation = gp.methods.resolve_ablation(model, task, kind)
        batch = a_batch(task)
        want = model.run(batch, mask, model.reference(batch, ablation))
        assert torch.allclose(run(), want, atol=1e-9)


def test_positions_name_nodes_to_read():
    model = gp.wrap(network())
    x = torch.randn(2, 3, dtype=torch.float64)
    task = patterns(
        x, torch.tensor([0, 0]), corrupt=None, classes=1, positions=torch.tensor([5, 7])
    )
    batch = a_batch(task)
    out = model.run(
        batch, gp.EdgeMask.full(model.graph), model.reference(batch, gp.Ablation("zero"))
    )
    states = model.module(x, schedule=model.schedule)
    assert torch.allclose(out[:, 0], torch.stack([states[0, 5, 0], states[1, 7, 0]]))


def test_edges_not_kept_weigh_nothing_and_stay_edges_of_the_graph():
    net = network()
    net.keep(torch.arange(net.edge_index.shape[1]) % 2)
    model = gp.wrap(net)
    assert model.graph.num_edges == net.edge_index.shape[1]
    assert model.edge_weights()[::2].abs().sum() == 0
    assert torch.equal(model.edge_weights()[1::2], net.edge_weight.detach()[1::2])
    batch, ones = next(iter(a_task().batches())), torch.ones(model.graph.num_edges)
    cut = ones.clone()
    cut[::2] = 0
    assert torch.equal(model.run(batch, ones), model.run(batch, cut))
    assert model.graph == gp.wrap(network()).graph
    assert model.provenance()["kept"] == int(net.edge_keep.sum())
    assert model.provenance()["weights"] != gp.wrap(network()).provenance()["weights"]


# -------------------------------------------------------------------- methods of the core

METHODS = [
    gp.EAP(),
    gp.EAPIG(steps=2, points_at="right", integrate="activations"),
    gp.IntegratedMaskGradient(steps=2),
    gp.ExactPatching(),
    gp.InformationFlow(),
    gp.NAP(),
    gp.EdgePruning(sparsity=0.5, steps=5),
    gp.UGS(sparsity=0.5, steps=5),
    gp.ACDC(tau=0.02),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_every_method_runs_unchanged(method):
    model = gp.wrap(network("bernoulli"))
    told = check_method(method, model, a_task()).values()
    assert all(v == "passed" or v.startswith("not tested") for v in told)


def test_relevance_rules_are_refused():
    with pytest.raises(gp.UnsupportedModelError, match="RelP needs relevance propagation"):
        gp.RelP().score(gp.wrap(network()), a_task())


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("ablation", ["counterfactual", "delete"])
def test_acdc_on_a_cyclic_graph_keeps_what_the_plain_loop_keeps(update, ablation):
    """The plain loop here is numpy, node by node, with a KL divergence of its own."""
    net = network(update)
    model, task = gp.wrap(net), a_task(3)
    assert not model.graph.is_acyclic
    batch = a_batch(task)

    def outputs(mask):
        rows = []
        for b, x in enumerate(batch.clean["inputs"]):
            replaced = None
            if ablation == "counterfactual":
                other = by_hand(net, batch.corrupt["inputs"][b], model.schedule)
                replaced = messages_by_hand(net, model.schedule, other)
            state = by_hand(net, x, model.schedule, mask, replaced=replaced)[-1]
            rows.append(state[net.output_nodes.numpy()])
        return torch.tensor(np.stack(rows)).log_softmax(-1)

    full = outputs(np.ones(model.graph.num_edges))

    def loss(mask):
        return float((full.exp() * (full - outputs(mask))).sum(-1).mean())

    tau = 0.03 * loss(np.zeros(model.graph.num_edges))
    method = gp.ACDC(tau=tau, drop_dead=False, ablation=ablation)
    kept, now = np.ones(model.graph.num_edges), 0.0
    for edge in method.edge_order(model.graph).tolist():
        kept[edge] = 0.0
        cut = loss(kept)
        if cut - now < method.tau:
            now = cut
        else:
            kept[edge] = 1.0
    found = method.fit(model, task)
    assert 0 < kept.sum() < model.graph.num_edges
    assert found.mask.values.numpy().tolist() == kept.tolist()
    plain = gp.ACDC(tau=tau, drop_dead=False, ablation=ablation, exact="sequential")
    assert plain.prune(model, task) == found.mask


def test_a_known_circuit_is_found():
    """Output 4 copies input 0 through 2; input 1 and node 3 only make noise for output 5."""
    edges = torch.tensor([[0, 2, 1, 3, 1, 0], [2, 4, 3, 5, 5, 3]])
    net = ARGNN(
        edges, inputs=[0, 1], outputs=[4], activation="identity", weight=torch.ones(6),
        update="sequential", steps=3,
    )  # fmt: skip
    model = gp.wrap(net)
    x = torch.randn(8, 2)
    metric = gp.Metric("value", lambda out, batch, full: out[:, 0] * batch.clean["inputs"][:, 0])
    task = patterns(x, torch.zeros(8, dtype=torch.int64), corrupt=x.flip(0), metric=metric)
    for method in (gp.EAP(), gp.EAPIG(), gp.ExactPatching()):
        assert method.score(model, task).top(2).edges() == ["0->2", "2->4"]
    kept = gp.ACDC(tau=1e-6, metric="task").prune(model, task)
    assert kept.edges() == ["0->2", "2->4"]


# -------------------------------------------------------------------- bad input


def test_bad_batches_are_refused():
    model = gp.wrap(network())
    x = torch.randn(2, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    batch = a_batch(patterns(x, labels, corrupt=None))
    with pytest.raises(gp.InputError, match="needs corrupted inputs"):
        model.reference(batch)
    with pytest.raises(gp.InputError, match="takes inputs, h0 and drive, got x"):
        model.reference(a_batch(patterns({"x": x}, labels)))
    with pytest.raises(gp.InputError, match="no node of a network of 14"):
        model.reference(a_batch(patterns(x, labels, positions=torch.tensor([0, 14]))))
    with pytest.raises(gp.InputError, match="drive must be"):
        model.reference(a_batch(patterns({"inputs": x, "drive": torch.zeros(2, 1, 14, 1)}, labels)))
    foreign = gp.wrap(network(seed=5)).mean_ablation([a_batch(a_task())])
    reference = model.reference(a_batch(a_task()), foreign)
    with pytest.raises(gp.InputError, match="another model"):
        model.run(reference.batch, torch.zeros(model.graph.num_edges), reference)
    with pytest.raises(gp.InputError, match="empty reference set"):
        model.mean_ablation([])
    with pytest.raises(gp.InputError, match="gates must be"):
        model.edge_gradients(a_batch(a_task()), lambda out: out[:, 0], gates=torch.ones(2))
    with pytest.raises(gp.InputError, match="unknown option of an ARGNN 'data'"):
        gp.wrap(network(), data=None)


def test_bad_examples_are_refused():
    x = torch.randn(2, 3)
    with pytest.raises(gp.InputError, match="has 2 rows for 3 examples"):
        patterns(x, torch.tensor([0, 1, 2]), corrupt=None)
    with pytest.raises(gp.InputError, match="NaN"):
        patterns(x * float("nan"), torch.tensor([0, 1]))
    with pytest.raises(gp.InputError, match="one label"):
        patterns(x, torch.tensor([1, 1]))
    with pytest.raises(gp.InputError, match="numbers of 1 classes"):
        patterns(x, torch.tensor([0, 1]), classes=1)
    with pytest.raises(gp.InputError, match="'other_class' or None"):
        patterns(x, torch.tensor([0, 1]), corrupt="shuffle")
