"""Large graphs beside plain PyG: what each part costs in passes of the module itself.

Two layers of width 32 on random graphs of mean degree 10, each node one question with shared
features; one thread. Times are CPU seconds, minima of interleaved repeats; memory is the peak of
allocated tensors. The figures stand in docs/benchmarks.md.
"""

import time

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Data

import graphprune as gp
from graphprune import quiet

from .measuring import allocated_mb

STEPS = 4, 12


class Net(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.a, self.b = conv(16, 32), conv(32, 4)

    def forward(self, x, edge_index):
        return self.b(torch.relu(self.a(x, edge_index)), edge_index)


def minima(jobs, repeats):
    """CPU seconds of each job, interleaved."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - start)
    return best


@pytest.mark.benchmark
@pytest.mark.timeout(0)
@pytest.mark.parametrize("conv", [pyg.GraphConv, pyg.GCNConv])
@pytest.mark.parametrize("nodes", [10_000, 100_000])
def test_large_graphs(nodes, conv):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    index = torch.randint(nodes, (2, 10 * nodes))
    data = Data(x=torch.randn(nodes, 16), edge_index=index[:, index[0] != index[1]])
    net, labels = Net(conv).eval(), torch.arange(nodes) % 4

    @torch.no_grad()
    def forward():
        return net(data.x, data.edge_index)

    def backward():
        torch.nn.functional.cross_entropy(net(data.x, data.edge_index), labels).backward()

    model, task = gp.wrap(net, data=data), gp.tasks.nodes(data.x, labels)
    jobs = {
        "forward": forward,
        "forward+backward": backward,
        "wrap": lambda: gp.wrap(net, data=data),
        "EAP": lambda: gp.EAP().score(model, task),
        "EAP zero": lambda: gp.EAP(ablation="zero").score(model, task),
    }
    jobs |= {
        f"{steps} steps": lambda steps=steps: gp.EdgePruning(size=0.3, steps=steps).fit(model, task)
        for steps in STEPS
    }
    with quiet():
        best = minima(jobs, 5 if nodes <= 10_000 else 3)
        memory = {
            name: allocated_mb(jobs[name]) for name in ("forward+backward", "EAP", "EAP zero")
        }
    plain = best["forward+backward"]
    few, many = (best[f"{steps} steps"] for steps in STEPS)
    step = (many - few) / (STEPS[1] - STEPS[0])
    found = {
        "wrap, in forward passes": best["wrap"] / best["forward"],
        "EAP, in forward+backward": best["EAP"] / plain,
        "EAP, memory of forward+backward": memory["EAP"] / memory["forward+backward"],
        "EAP zero": best["EAP zero"] / plain,
        "EAP zero, memory": memory["EAP zero"] / memory["forward+backward"],
        "a step of edge pruning": step / plain,
        "its finish, in steps": (few - STEPS[0] * step) / step,
    }
    print(
        f"\n{conv.__name__}, {nodes} nodes, {data.num_edges} edges: forward {best['forward']:.3f} s"
    )
    for name, value in found.items():
        print(f"  {name:34s} {value:6.2f}")
