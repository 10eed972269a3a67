"""Gradients switched off around a notebook: every method gives what it gives without that."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch_geometric.nn as pyg
from support.tiny import random_pair, tiny
from support.toy import Toy, ToyExamples
from torch_geometric.data import Data

import graphprune as gp
from graphprune import method_names
from graphprune.adapters import ARGNN
from graphprune.tasks import nodes, patterns


@contextlib.contextmanager
def switched_off():
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


MODES = [switched_off, torch.no_grad, torch.inference_mode]
IDS = ["set_grad_enabled(False)", "no_grad", "inference_mode"]


def nothing_changed():
    return contextlib.nullcontext()


def language(mode=nothing_changed):
    module = tiny("llama")
    with mode():
        clean, corrupt = random_pair(module, batch=4)
        task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 4, distractor=[2] * 4)
        return gp.wrap(module), task


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = pyg.GCNConv(3, 4), pyg.GATConv(4, 2)

    def forward(self, x, edge_index):
        return self.b(torch.tanh(self.a(x, edge_index)), edge_index)


def graph_network(mode=nothing_changed):
    torch.manual_seed(0)
    module = Net()
    with mode():
        ring = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])
        data = Data(x=torch.randn(5, 3), edge_index=ring, y=torch.tensor([0, 1, 0, 1, 1]))
        return gp.wrap(module, data=data), nodes(data)


def argnn(mode=nothing_changed):
    torch.manual_seed(0)
    ring = torch.tensor([[0, 1, 2, 3, 4, 2, 4], [2, 2, 3, 4, 2, 4, 3]])
    module = ARGNN(ring, inputs=[0, 1], outputs=[3, 4], steps=4)
    with mode():
        task = patterns(torch.randn(6, 2), torch.tensor([0, 1] * 3))
        return gp.wrap(module), task


def toy(mode=nothing_changed):
    with mode():
        task = gp.Task(ToyExamples(), "logit_diff", name="toy")
    made = Toy()
    return made, task


SYSTEMS = [language, graph_network, argnn, toy]

QUICK = gp.EdgePruning(size=5, steps=3)
SETTINGS = {
    **{name: {"size": 5, "steps": 3} for name in ("edge-pruning", "subnetwork-probing")},
    **{name: {"size": 5, "steps": 3} for name in ("ugs", "uniform-gradient-sampling")},
    "matryoshka": {"steps": 3},
    "sequential-ensemble": {"optimiser": QUICK},
    "hybrid-ensemble": {"scorers": ["eap", "eap-ig", gp.SequentialEnsemble(optimiser=QUICK)]},
}


def found(make, name, mode=nothing_changed):
    """The values a method gives, or the sentence it refuses with; data and task made there too."""
    model, task = make(mode)
    with mode():
        method = gp.make_method(name, **SETTINGS.get(name, {}))
        try:
            result = method.fit(model, task)
        except gp.GraphPruneError as error:
            return str(error)
        return (result.mask if result.scores is None else result.scores).values.clone()


METHODS = ["eap", "integrated-mask-gradient", "exact-patching", "edge-pruning", "ugs", "acdc"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("make", SYSTEMS, ids=lambda make: make.__name__)
def test_methods_give_the_same_with_gradients_off(make, name):
    want = found(make, name)
    assert not isinstance(want, str)
    for mode in MODES:
        torch.testing.assert_close(found(make, name, mode), want)


def test_every_registered_method_runs_on_a_toy_in_inference_mode():
    for name in method_names():
        want, got = found(toy, name), found(toy, name, torch.inference_mode)
        assert got == want if isinstance(want, str) else torch.allclose(got, want), name


@pytest.mark.parametrize("make", SYSTEMS, ids=lambda make: make.__name__)
def test_what_was_made_in_inference_mode_has_gradients_later(make):
    """By finite differences, with the model, the task and the reference made in the mode."""
    model, task = make(torch.inference_mode)
    with torch.inference_mode():
        batch = next(iter(task.batches()))
        reference = model.reference(batch)
        assert not reference.full.is_inference()
        start = 0.3 + 0.4 * torch.rand(model.graph.num_edges)
        assert not model.run(batch, start, reference).is_inference()

    def value(mask):
        return task.metric(model.run(batch, mask, reference), batch).sum()

    start = start.clone()
    direction = torch.linspace(-1, 1, len(start))
    mask = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(mask), mask)
    step = 5e-3
    slope = (value(start + step * direction) - value(start - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=2e-2, atol=2e-3)


def test_the_callers_mode_stays():
    model, task = toy()
    batch = next(iter(task.batches()))
    mask = torch.ones(model.graph.num_edges, requires_grad=True)
    with torch.no_grad():
        gp.EAP().score(model, task)
        assert not torch.is_grad_enabled()
        assert not model.run(batch, mask).requires_grad
    with torch.inference_mode():
        gp.EAP().score(model, task)
        assert torch.is_inference_mode_enabled()
    assert model.run(batch, mask).requires_grad


def test_weights_made_in_inference_mode_are_refused_by_a_sentence():
    with torch.inference_mode():
        module = Net()
    with pytest.raises(gp.InputError, match=r"weights of Net.*inference_mode.*copy.deepcopy"):
        gp.wrap(module)
