"""Systems whose model and task lie on devices of one's choice, and whether results are the same."""

import dataclasses
import math

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import graphprune as gp
from graphprune.adapters import ARGNN

from .second_device import DEVICE
from .tiny import SMALL, random_pair, tiny

BOTH, MODEL_ALONE, TASK_ALONE = (DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)
ALL = (BOTH, MODEL_ALONE, TASK_ALONE)
CPU = ("cpu", "cpu")


# ------------------------------------------------------------------ systems


def language(family, on, task_on, **options):
    module = tiny(family, dtype=torch.float64, **SMALL[family])  # so that no rounding decides
    clean, corrupt = (ids.to(task_on) for ids in random_pair(module, batch=4, length=7))
    corrupt[:, 0] = clean[:, 0]
    right, wrong = (torch.full((4,), token).to(task_on) for token in (1, 2))
    task = gp.Task.from_tensors(clean, corrupt, answer=right, distractor=wrong)
    module.to(on).tie_weights()  # torch unties parameters that change to a device of Python's
    return gp.wrap(module, **options), task


class GCN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(4, 6), GCNConv(6, 3)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


def a_graph():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    index = pairs[torch.randperm(len(pairs), generator=generator)[:24]].T.contiguous()
    return Data(x=torch.randn(9, 4, generator=generator), edge_index=index, y=torch.arange(9) % 3)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def gcn(on, task_on):
    return gp.wrap(seeded(GCN).to(on), data=a_graph()), gp.tasks.nodes(a_graph().to(task_on))


def argnn(on, task_on):
    index = a_graph().edge_index
    index = index[:, index[1] >= 3]  # nodes 0 to 2 are clamped
    sizes = {"num_nodes": 9, "inputs": [0, 1, 2], "outputs": [6, 7, 8], "steps": 4}
    patterns = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).to(task_on)
    return gp.wrap(seeded(lambda: ARGNN(index, **sizes)).to(on)), gp.tasks.patterns(
        patterns, torch.arange(6).to(task_on) % 3
    )


SYSTEMS = {
    "gpt2": lambda *places: language("gpt2", *places),
    "llama": lambda *places: language("llama", *places),
    "gcn": gcn,
    "argnn": argnn,
}


# ------------------------------------------------------------------ comparing


def assert_same(ours, theirs, where="it"):
    """The same results, numbers within 1e-5, however they are nested."""
    if dataclasses.is_dataclass(ours) and not isinstance(ours, type):
        ours, theirs = (
            {f.name: getattr(x, f.name) for f in dataclasses.fields(x)} for x in (ours, theirs)
        )
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_same(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-5, atol=1e-5, equal_nan=True)
    elif isinstance(ours, float):
        close = math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-5)
        assert close or (math.isnan(ours) and math.isnan(theirs)), (where, ours, theirs)
    else:
        assert ours == theirs, where


def assert_same_result(ours, theirs):
    assert ours.mask == theirs.mask
    if ours.scores is not None:
        torch.testing.assert_close(ours.scores.values, theirs.scores.values, rtol=1e-5, atol=1e-5)
    assert not on_device(ours)


def on_device(result):
    """Whether a result's mask or scores lie on the device: values are the CPU's."""
    return any(
        x is not None and x.values.device.type != "cpu" for x in (result.mask, result.scores)
    )


def everywhere(job, system="gpt2", places=(BOTH, MODEL_ALONE)):
    """What ``job(model, task)`` gives on the CPU is what it gives at the places."""
    want = job(*SYSTEMS[system](*CPU))
    for place in places:
        assert_same(job(*SYSTEMS[system](*place)), want)
    return want
