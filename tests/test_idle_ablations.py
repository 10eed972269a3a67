"""An ablation that changes nothing is an error that names what would work, on every adapter."""

import itertools

import pytest
import torch
import torch_geometric.nn as pyg
from support.tiny import random_pair, tiny
from support.toy import Toy, ToyExamples
from support.wheels import random_network
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import nodes, patterns

QUICK = {"sparsity": 0.5, "steps": 2}
METHODS = [
    gp.EAP(),
    gp.EAPIG(steps=2),
    gp.EAPIG(steps=2, integrate="activations"),
    gp.CleanCorrupted(),
    gp.NAP(),
    gp.NAPIG(steps=2),
    gp.IntegratedMaskGradient(steps=2),
    gp.ExactPatching(),
    gp.EdgePruning(**QUICK),
    gp.UGS(**QUICK),
    gp.SubnetworkProbing(**QUICK),
    gp.MatryoshkaPruning(**QUICK),
    gp.EdgePruning(steps=2, sparsity="minimal"),
    gp.ACDC(tau=0.1),
    gp.ACDC(tau=0.1, exact="sequential"),
    gp.ParallelEnsemble(),
    gp.SequentialEnsemble(gp.Random(), gp.EdgePruning(**QUICK)),
    gp.HybridEnsemble([gp.Random(), gp.SequentialEnsemble(gp.EAP(), gp.EdgePruning(**QUICK))]),
    gp.CalibratedRanking(gp.Random(), rounds=1),
]


class Net(torch.nn.Module):
    def __init__(self, conv=pyg.GCNConv):
        super().__init__()
        self.first, self.second = conv(3, 6), conv(6, 3)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


def structural(x=None, corrupt="shuffle", **options):
    """A node task whose features are all alike, as structural benchmarks have them."""
    torch.manual_seed(0)
    edges = torch.randint(10, (2, 40))
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    x = torch.ones(10, 3) if x is None else x
    model = gp.wrap(Net(), data=Data(x=x, edge_index=edges))
    return model, nodes(x, torch.arange(10) % 3, corrupt=corrupt, **options)


def language(same=10, **options):
    """Prompts of which the first ``same`` have themselves for corrupted ones."""
    module = tiny("llama")
    clean, corrupt = random_pair(module, batch=4)
    corrupt[:same] = clean[:same]
    ids = [1, 2, 3, 4]
    return gp.wrap(module), gp.Task.from_tensors(
        clean, corrupt, answer=ids, distractor=ids[::-1], batch_size=2, **options
    )


def recurrent():
    net = random_network(14, 3, 3.0, 1, outputs=[11, 12, 13], update="synchronous")
    x = torch.randn(4, 3)
    return gp.wrap(net), patterns(x, torch.tensor([0, 1, 0, 1]), corrupt=x.clone())


def toy():
    examples = ToyExamples()
    examples.corrupt = examples.clean.clone()
    return Toy(), gp.Task(examples, "logit_diff", batch_size=4)


def run(method, model, task):
    return method.score(model, task) if hasattr(method, "score") else method.prune(model, task)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        *((toy, method) for method in METHODS),
        # Of other adapters, one method for each way to ask them.
        *itertools.product(
            [structural, recurrent, language],
            [gp.EAP(), gp.ExactPatching(), gp.EdgePruning(**QUICK), gp.ACDC(tau=0.1)],
        ),
    ],
    ids=lambda x: getattr(x, "label", None) or x.__name__,
)
def test_no_method_works_on_equal_inputs(make, method):
    with pytest.raises(
        gp.InputError,
        match=r"counterfactual ablation changes nothing here: most often the corrupted prompts .or "
        r"features. are the clean ones.*ablation='zero'",
    ):
        run(method, *make())


@pytest.mark.parametrize("make", [toy, structural, recurrent, language])
def test_what_the_error_names_works(make):
    model, task = make()
    assert gp.EAP(ablation="zero").score(model, task).values.abs().max() > 1e-4


@pytest.mark.parametrize("corrupt", ["shuffle", None])
def test_a_mean_over_equal_inputs_changes_nothing(corrupt):
    """But for the rounding of a mean, which made scores of 1e-9 of it."""
    model, task = structural(corrupt=corrupt)
    with pytest.raises(gp.InputError, match=r"mean ablation changes nothing.*'zero' or .*'delete'"):
        gp.EAP(ablation="mean").score(model, task)
    with pytest.raises(gp.InputError, match="mean ablation changes nothing"):
        gp.EdgePruning(**QUICK, ablation="mean").fit(model, task)
    model, task = language()
    one = task.take(1)
    with pytest.raises(gp.InputError, match="mean_positional ablation changes nothing"):
        gp.EAP(ablation="mean_positional").score(model, one)
    assert gp.EAP(ablation="mean").score(model, one).values.abs().max() > 1e-4


def test_zero_ablation_of_messages_that_are_zero_changes_nothing():
    torch.manual_seed(0)
    model, task = structural(torch.zeros(10, 3), corrupt=torch.randn(10, 3))
    with torch.no_grad():
        model.module.first.bias.zero_()
    with pytest.raises(gp.InputError, match=r"zero ablation changes nothing.*ablation='mean'"):
        gp.EAP(ablation="zero").score(model, task)
    assert gp.EAP().score(model, task).values.abs().max() > 0


def test_one_example_that_differs_is_enough_wherever_it_stands():
    whole, task = language(same=3)
    for method in (gp.EAP(), gp.EAPIG(steps=2), gp.ExactPatching(candidates=8)):
        found = method.score(whole, task).values
        alone = method.score(whole, task.subset([3])).values
        torch.testing.assert_close(found * 4, alone, rtol=1e-4, atol=1e-5)
    assert gp.EdgePruning(**QUICK).fit(whole, task).mask.num_kept
    assert gp.ACDC(tau=1e-4).prune(whole, task) is not None


def test_equal_outputs_with_unlike_messages_are_no_error():
    """Cutting all edges at once may change nothing where cutting one does."""
    net = gp.adapters.gnn.ARGNN(
        torch.tensor([[0, 1], [2, 2]]), inputs=[0, 1], outputs=[2], activation="identity",
        weight=torch.tensor([1.0, 1.0]), update="synchronous", steps=1,
    )  # fmt: skip
    model = gp.wrap(net)
    metric = gp.Metric("state", lambda out, batch, full: out[:, 0], higher_is_better=True)
    clean, corrupt = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
    task = patterns(clean, torch.tensor([0]), corrupt=corrupt, classes=1, metric=metric)
    (batch,) = task.batches()
    reference = model.reference(batch)
    assert reference.full.equal(reference.ablated)
    assert gp.EAP().score(model, task).values.tolist() == [-1.0, 1.0]


def test_padding_that_differs_is_no_change():
    model, _ = language()
    clean = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    corrupt = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 9]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    task = gp.Task.from_tensors(
        clean, corrupt, attention_mask=real, answer=[1, 1], distractor=[2, 2]
    )
    with pytest.raises(gp.InputError, match="changes nothing"):
        gp.EAP().score(model, task)


def test_attribution_weights_of_a_spectrum_take_the_methods_ablation():
    model, task = structural()
    told = {"edge_weights": "attribution", "goal": "gap", "size": 0.5, "effort": 0}
    with pytest.raises(gp.InputError, match="changes nothing"):
        gp.SpectralPruning(**told).prune(model, task)
    assert gp.SpectralPruning(**told, ablation="zero").prune(model, task).num_kept
