"""A compacted recurrent network against the masked whole one, and against a plain loop."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compacted import FLOAT64, compared, drawn
from support.wheels import by_hand, random_network

import graphprune as gp
from graphprune.adapters import ARGNN
from graphprune.adapters.gnn import settle, train_bptt

UPDATES = ("sequential", "bernoulli", "synchronous")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    update=st.sampled_from(UPDATES),
    product=st.sampled_from(["sparse", "dense"]),
)
def test_outputs_states_and_gradients_are_those_of_the_masked_network(seed, update, product):
    net, x, h0, drive = drawn(seed, update)
    compared(net, net.compact(product=product), x, h0, drive)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("seed", range(4))
def test_compacted_runs_follow_the_definition(update, seed):
    """Node after node and edge after edge, as the network is defined."""
    net = random_network(20, 3, 2.0, seed, update=update, bias=True, outputs=[7, 11, 19], steps=6)
    torch.nn.init.normal_(net.bias)
    net.keep(torch.rand(len(net.edge_weight), generator=torch.Generator().manual_seed(seed)) < 0.5)
    x, plan = torch.tensor([0.5, -1.0, 2.0]), net.schedule()
    want = by_hand(net, x, plan, net.edge_keep)[-1]
    small = net.compact()
    assert small.num_nodes < net.num_nodes
    assert np.allclose(small.predict(x, schedule=plan).detach(), want[[7, 11, 19]], atol=1e-6)
    assert np.allclose(small(x)[:, 0].detach(), want[small.compaction.nodes], atol=1e-6)


def test_nodes_from_which_no_output_is_reached_are_gone():
    """0 -> 1 -> 2, the output; 1 -> 3 -> 4 and the loop 5 <-> 6 lead nowhere."""
    edges = torch.tensor([[0, 1, 1, 3, 5, 6], [1, 2, 3, 4, 6, 5]])
    net = ARGNN(edges, 7, inputs=[0], outputs=[2], steps=5, update="synchronous")
    small = net.compact()
    assert small.compaction.nodes.tolist() == [0, 1, 2]
    assert small.edge_index.tolist() == [[0, 1], [1, 2]]
    assert net.compact(drop_nodes=False).num_nodes == 7
    assert small.compact().compaction.nodes.tolist() == [0, 1, 2]


def test_masks_that_leave_nothing():
    net = random_network(outputs=[4, 7], update="sequential")
    small = net.keep(torch.zeros(len(net.edge_weight))).compact()
    assert small.num_nodes == 3 + 2
    assert small.predict(torch.ones(5, 3)).tolist() == [[0.0, 0.0]] * 5
    small.predict(torch.ones(5, 3)).sum().backward()
    assert small.edge_weight.grad.shape == (0,)


def test_outputs_that_are_inputs_or_receive_nothing():
    net = ARGNN(torch.tensor([[0], [2]]), 5, inputs=[0, 1], outputs=[4, 1, 2], steps=3, rate=1.0)
    out = net.compact().predict(torch.tensor([0.5, 7.0]))
    assert out.tolist() == pytest.approx([0.0, 7.0, torch.tanh(net.edge_weight[0] * 0.5).item()])


@pytest.mark.parametrize("update", UPDATES)
def test_training_takes_the_same_way(update):
    net = random_network(30, 4, 3.0, 1, update=update, outputs=[28, 29], bias=True).double()
    net.output_activation = "identity"
    net.keep(torch.rand(len(net.edge_weight)) < 0.5)
    small = net.compact()
    x = torch.randn(64, 4, dtype=torch.float64)
    labels = (x[:, 0] > 0).long()
    history = train_bptt(net, x, labels, epochs=2, batch_size=16)
    assert train_bptt(small, x, labels, epochs=2, batch_size=16) == pytest.approx(history, abs=1e-9)
    torch.testing.assert_close(small.predict(x), net.predict(x), **FLOAT64)


def test_copies_and_changed_settings():
    small = random_network(outputs=[5, 9]).compact()
    x = torch.randn(6, 3)
    want = small.predict(x)
    assert torch.equal(copy.deepcopy(small).predict(x), want)
    small.output_activation = "sigmoid"
    assert bool((small.predict(x) > 0).all())
    mask = torch.rand(2, 6, len(small.edge_weight))
    assert small.predict(x.expand(2, 6, 3), edge_mask=mask).shape == (2, 6, 2)


def test_a_state_is_given_back_and_goes_on():
    net = random_network(update="synchronous", outputs=[6, 8])
    net.keep(torch.rand(len(net.edge_weight)) < 0.6)
    small, x = net.compact(), torch.tensor([0.5, -1.0, 2.0])
    halfway = small(x, steps=3)
    assert torch.allclose(net.read(net(x, steps=5)), small.predict(x, halfway, steps=2), atol=1e-6)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("compact", [False, True])
def test_a_run_stops_where_a_linear_network_solves_its_equations(update, compact):
    """H = W h + x has one solution, which numpy solves."""
    net = random_network(30, 4, 3.0, 2, update=update, activation="identity", rate=0.4).double()
    with torch.no_grad():
        net.edge_weight *= 0.2
    x = torch.randn(4, dtype=torch.float64)
    matrix = np.eye(30)
    np.subtract.at(matrix, tuple(net.edge_index.flip(0).numpy()), net.edge_weight.detach().numpy())
    want = np.linalg.solve(matrix, np.concatenate([x.numpy(), np.zeros(26)]))
    end = settle(net.compact() if compact else net, x, tolerance=1e-12)
    assert end.change <= 1e-12
    assert end.steps < 200
    assert np.allclose(end.state[:, 0].detach(), want, atol=1e-10)


def test_a_run_that_does_not_settle_says_so():
    turn = ARGNN(
        torch.tensor([[0, 1], [1, 0]]), activation="identity", update="synchronous",
        weight=torch.tensor([1.0, -1.0]),
    )  # fmt: skip
    end = settle(turn, h0=torch.ones(2, 1), most=10)
    assert (end.steps, end.change) == (10, 2.0)


def test_bad_input_names_what_is_wrong():
    net = random_network(outputs=[5])
    small = net.compact()
    with pytest.raises(gp.InputError, match="inputs must be"):
        small.predict(torch.ones(4))
    with pytest.raises(gp.InputError, match="h0 must be"):
        small.predict(torch.ones(3), torch.ones(2, 1))
    with pytest.raises(gp.InputError, match="the schedule is of 5 nodes"):
        small.predict(torch.ones(3), schedule=random_network(5, 3).schedule())
    with pytest.raises(gp.InputError, match=r"product.*sparse, dense"):
        net.compact(product="quick")
