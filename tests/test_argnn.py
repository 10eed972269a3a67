"""The asynchronous recurrent network against its definition, node by node."""

import numpy as np
import pytest
import torch
from support.wheels import by_hand, random_network

import graphprune as gp
from graphprune.adapters import ARGNN
from graphprune.adapters.gnn import DeltaRule, train_bptt

UPDATES = ("sequential", "bernoulli", "synchronous")
X = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("seed", range(3))
def test_runs_follow_the_definition(update, seed):
    net = random_network(update=update, seed=seed, bias=True)
    torch.nn.init.normal_(net.bias)
    plan = net.schedule()
    got = net(X, schedule=plan)[:, 0].detach()
    assert np.allclose(got, by_hand(net, X, plan)[-1], atol=1e-6)


def test_a_dense_graph_has_as_many_levels_as_nodes():
    edges = (1 - torch.eye(7)).nonzero().T
    net = ARGNN(edges, update="sequential", steps=2)
    plan = net.schedule()
    assert [len(levels) for levels in plan.levels] == [7, 7]
    state = torch.randn(7, 1)
    assert np.allclose(
        net(h0=state, schedule=plan)[:, 0].detach(),
        by_hand(net, [], plan, h0=state[:, 0])[-1],
        atol=1e-6,
    )


@pytest.mark.parametrize("update", UPDATES)
def test_examples_and_masks_ride_side_by_side(update):
    net = random_network(update=update)
    plan = net.schedule()
    x, masks = torch.randn(4, 3), torch.rand(2, 4, net.edge_index.shape[1])
    shared = masks[:, :1]
    own = net(x.expand(2, 4, 3), schedule=plan, edge_mask=masks)
    one = net(x.expand(2, 4, 3), schedule=plan, edge_mask=shared)
    for k in range(2):
        for b in range(4):
            want = by_hand(net, x[b], plan, masks[k, b])[-1]
            assert np.allclose(own[k, b, :, 0].detach(), want, atol=1e-5)
            want = by_hand(net, x[b], plan, shared[k, 0])[-1]
            assert np.allclose(one[k, b, :, 0].detach(), want, atol=1e-5)


def test_a_state_carried_over_goes_on_where_it_stopped():
    net = random_network(update="synchronous")
    halfway = net(X, steps=3)
    assert torch.allclose(net(X, halfway, steps=2), net(X, steps=5), atol=1e-6)
    assert torch.equal(halfway[net.input_nodes, 0], X)  # clamped


def test_updates_come_from_the_generator_alone():
    net = random_network(update="bernoulli", rate=0.3, steps=400)
    torch.manual_seed(1)
    first = net.schedule(generator=torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    again = net.schedule(generator=torch.Generator().manual_seed(5))
    other = net.schedule(generator=torch.Generator().manual_seed(6))
    assert all(torch.equal(a, b) for a, b in zip(first.steps, again.steps, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.steps, other.steps, strict=True))
    updated = torch.stack(first.steps)
    assert not updated[:, net.input_nodes].any()
    assert abs(float(updated[:, net.free].float().mean()) - 0.3) < 0.03
    assert torch.equal(net(X), net(X))  # by the module's own seed


def test_edges_not_kept_are_as_good_as_absent():
    net = random_network(update="sequential", bias=True)
    torch.nn.init.normal_(net.bias)
    kept = torch.rand(net.edge_index.shape[1]) < 0.5
    net.keep(kept.float())
    plan = net.schedule()
    want = by_hand(net, X, plan, kept)[-1]
    assert np.allclose(net(X, schedule=plan)[:, 0].detach(), want, atol=1e-6)
    small = net.compact()
    assert small.edge_index.shape[1] == int(kept.sum())
    assert np.allclose(small(X)[:, 0].detach(), want, atol=1e-6)
    assert bool(net.keep(None).edge_keep.all())


def test_it_is_a_message_passing_module_others_can_listen_to():
    """A hook sees every message, and PyG's own masks act on it."""
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    net = random_network(update="synchronous")
    seen = []
    handle = net.register_message_forward_hook(lambda m, i, out: seen.append(out.shape))
    plain = net(X)
    handle.remove()
    assert len(seen) == net.steps
    assert torch.allclose(plain, net(X), atol=1e-6)
    mask = torch.rand(net.edge_index.shape[1])
    set_masks(net, mask, net.edge_index, apply_sigmoid=False)
    masked = net(X)
    clear_masks(net)
    assert np.allclose(masked[:, 0].detach(), by_hand(net, X, net.schedule(), mask)[-1], atol=1e-6)


def test_drive_is_added_at_every_step():
    """A linear chain 0 -> 1: each step's input arrives one step later."""
    net = ARGNN(
        torch.tensor([[0], [1]]), 2, activation="identity", weight=torch.ones(1),
        update="synchronous", steps=3,
    )  # fmt: skip
    drive = torch.zeros(3, 2, 1)
    drive[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    assert net(drive=drive)[:, 0].tolist() == [3.0, 2.0]


# -------------------------------------------------------------------- learning


def published(inputs, hidden, seed):
    """Fully connected, no self-loops, none into inputs, weights uniform in (-1, 1)."""
    nodes = inputs + hidden + 1
    wired = 1 - torch.eye(nodes)
    wired[:, :inputs] = 0
    edges = wired.nonzero().T
    weight = 2 * torch.rand(edges.shape[1], generator=torch.Generator().manual_seed(seed)) - 1
    return ARGNN(
        edges, nodes, inputs=range(inputs), outputs=[nodes - 1], activation="sigmoid",
        update="sequential", weight=weight,
    )  # fmt: skip


def test_the_local_rule_follows_its_equations():
    """Written out again, edge by edge, for one sample."""
    net = published(2, 2, 0)
    rule = DeltaRule(net, sweeps=2, seed=3)
    rule.learn([1.0, 0.0], [1.0])
    order, rng = [], np.random.default_rng(3)
    for _ in range(2):
        order += rng.permutation([2, 3, 4]).tolist()
    w = {
        (s, t): float(v)
        for (s, t), v in zip(net.edge_index.T.tolist(), net.edge_weight.tolist(), strict=True)
    }
    value, error = [1.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 5
    for n in order:
        value[n] = 1 / (1 + np.exp(-sum(w[e] * value[e[0]] for e in w if e[1] == n)))
        if n == 4:
            error[n] = 0.15 * (value[n] - 1.0)
        else:
            back = sum(w[e] * error[e[1]] for e in w if e[0] == n)
            error[n] = back * value[n] * (1 - value[n])
        for e in w:
            if e[1] == n:
                w[e] -= error[n] * value[e[0]]
    rule.write()
    for (s, t), got in zip(net.edge_index.T.tolist(), net.edge_weight.tolist(), strict=True):
        assert got == pytest.approx(w[s, t], abs=1e-6)
    assert rule.state == pytest.approx(value)


def test_dropped_edges_neither_carry_nor_learn():
    net = published(2, 2, 0)
    dropped = []

    def drop_first(rule, node):
        if not dropped:
            rule.keep[0, 2] = False
            dropped.append(rule.weight[0, 2])

    rule = DeltaRule(net, seed=1, after_update=drop_first)
    for _ in range(5):
        rule.learn([1.0, 1.0], [0.0])
    assert rule.weight[0, 2] == dropped[0]
    rule.write()
    assert int((~net.edge_keep).sum()) == 1


TABLES = {"and": lambda a, b: a and b, "or": lambda a, b: a or b, "xor": lambda a, b: a != b}


@pytest.mark.parametrize(
    ("name", "most"),
    [
        pytest.param("and", 0.02, marks=pytest.mark.slow),
        pytest.param("or", 0.005, marks=pytest.mark.slow),
        ("xor", 0.06),
    ],
)
def test_the_local_rule_learns_the_published_tasks(name, most):
    """Published mean errors without pruning at h = 5: .0118, .0007 and .0324."""
    net = published(2, 5, 0)
    rule = DeltaRule(net, seed=0)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(2000):
        a, b = rng.integers(2, size=2)
        errors.append(rule.learn([a, b], [float(TABLES[name](a, b))]))
    assert np.mean(errors[-100:]) < most < np.mean(errors[:100])
    rule.write()
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    got = net.read(net(x, steps=50))[:, 0] > 0.5
    assert got.tolist() == [bool(TABLES[name](int(a), int(b))) for a, b in x.tolist()]


def test_backpropagation_through_time_learns_a_task_of_several_steps():
    """Parity of two inputs; without a bias tanh units are odd functions, which parity is not."""
    net = random_network(
        40, 2, 6.0, 0, update="bernoulli", rate=0.7, steps=8, outputs=[38, 39], bias=True
    )
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(16, 1) * 2 - 1
    labels = (x[:, 0] != x[:, 1]).long()
    net.output_activation = "identity"
    history = train_bptt(net, x, labels, epochs=60, lr=0.02, batch_size=16)
    assert history[-1] < 0.2 < history[0]
    generator = torch.Generator().manual_seed(0)
    told = torch.stack([net.read(net(x, generator=generator)).argmax(-1) for _ in range(5)])
    assert float((told == labels).float().mean()) >= 0.9


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"edge_index": torch.tensor([[0, 1], [1, 0]]), "inputs": [0]}, "clamped"),
        ({"edge_index": torch.tensor([0, 1])}, r"\[2, E\]"),
        ({"edge_index": torch.tensor([[0], [3]]), "num_nodes": 2}, "outside 0..1"),
        ({"edge_index": torch.tensor([[0], [1]]), "inputs": [0, 0]}, "twice"),
        ({"edge_index": torch.tensor([[0], [1]]), "update": "random"}, "sequential, bernoulli"),
        ({"edge_index": torch.tensor([[0], [1]]), "rate": 0.0}, "rate"),
        ({"edge_index": torch.tensor([[0], [1]]), "activation": "gelu"}, "activation"),
        (
            {"edge_index": torch.tensor([[0], [1]]), "weight": torch.tensor([float("nan")])},
            "1 weights are NaN",
        ),
        ({"edge_index": torch.tensor([[0], [1]]), "weight": torch.zeros(2)}, r"\[1\] floats"),
    ],
)
def test_bad_networks_are_refused(options, match):
    with pytest.raises(gp.InputError, match=match):
        ARGNN(**options)


def test_bad_runs_are_refused():
    net = random_network()
    with pytest.raises(gp.InputError, match="no input came"):
        net()
    with pytest.raises(gp.InputError, match=r"inputs must be \[..., 3\]"):
        net(torch.zeros(4))
    with pytest.raises(gp.InputError, match="h0 must be"):
        net(X, torch.zeros(5, 1))
    with pytest.raises(gp.InputError, match="steps must be"):
        net(X, steps=0)
    with pytest.raises(gp.InputError, match="drive has 2 steps"):
        net(X, drive=torch.zeros(2, 12, 1))
    with pytest.raises(gp.InputError, match="the mask"):
        net.keep(torch.ones(3))
    with pytest.raises(gp.UnsupportedModelError, match="scalar sigmoid"):
        DeltaRule(net)
    with pytest.raises(gp.InputError, match="2 inputs and 1 outputs"):
        DeltaRule(published(2, 0, 0)).learn([1.0], [1.0])


def test_isolated_nodes_and_no_edges_at_all_run():
    net = ARGNN(torch.zeros(2, 0, dtype=torch.int64), 3, inputs=[0], steps=2, update="sequential")
    assert net(torch.ones(1))[:, 0].tolist() == [1.0, 0.0, 0.0]
