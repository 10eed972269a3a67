"""A pruned recurrent network beside the whole one in its fastest form, compacted with all edges.

Possible is 1 / (1 - f (1 - d)) at density d, where f is the share of the whole network's time that
its edges take: what is left of it without its edges, in the same run, is the rest. Runs that skip
states of which nothing depends can be faster than that. CPU seconds of one thread, the minimum of
interleaved runs; 32 examples, 10 steps, tanh, a bias, mean degree 8, a tenth of the nodes (at most
64) clamped, all other nodes outputs (where nothing can be left out for being of no use) or ten.

    pytest -m benchmark -s tests/benchmarks/test_compacting_speed.py
"""

import time

import pytest
import torch

import graphprune as gp
from graphprune.adapters import ARGNN

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]

DENSITIES = (0.5, 0.1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(nodes, degree, update, outputs=None, activation="tanh"):
    generator = torch.Generator().manual_seed(0)
    inputs = min(64, nodes // 10)
    edges = torch.randint(nodes, (2, nodes * degree), generator=generator)
    return ARGNN(
        edges[:, edges[1] >= inputs], nodes, inputs=range(inputs), bias=True, update=update,
        activation=activation, outputs=None if outputs is None else range(nodes - outputs, nodes),
    )  # fmt: skip


def job(net, training):
    x = torch.randn(32, len(net.input_nodes), generator=torch.Generator().manual_seed(1))

    def infer():
        with torch.no_grad():
            net.predict(x)

    def train():
        net.zero_grad()
        net.predict(x).sum().backward()

    return train if training else infer


def least(jobs, repeats):
    """CPU seconds of each job, the least of interleaved runs after two that are not counted."""
    seconds = dict.fromkeys(jobs, float("inf"))
    for turn in range(repeats + 2):
        for name, run in jobs.items():
            start = time.process_time()
            run()
            if turn > 1:
                seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def take_edges_out(run):
    """Every row of a run reads nothing: it is all that it was, but for its sums and products."""
    zeros = [torch.zeros(wave.stop - wave.start, 32) for wave in run.run.waves]
    run._sums = lambda rows, factors: zeros

    def gradients(gradient, rows, factors, leaves, weights):
        out = torch.empty_like(rows)
        for wave, zero in zip(run.run.waves[::-1], zeros[::-1], strict=True):
            at = slice(wave.start, wave.stop)
            run._derive(wave, zero, rows[at], out[at])
        return None, torch.zeros_like(factors)

    run.gradients = gradients


def compared(whole, masks, training, repeats):
    """Ratios to the whole network's time, and what edges take of it."""
    nets = {"before": whole, "whole": whole.compact()}
    # The whole network's steps without its edges: the same rows, and nothing is read.
    edgeless = whole.compact(product="sparse")
    for _ in range(2):  # the second time its rows are sorted for good
        job(edgeless, training)()
    for kept in edgeless.compaction._runs._runs.values():
        take_edges_out(kept.run)
    nets["edgeless"] = edgeless
    for density, mask in masks.items():
        nets[density] = whole.keep(mask).compact()
    whole.keep(None)
    seconds = least({name: job(net, training) for name, net in nets.items()}, repeats)
    share = max(0.0, 1 - seconds["edgeless"] / seconds["whole"])
    rows = {}
    for density in masks:
        possible = 1 / (1 - share * (1 - density))
        ratio = seconds["whole"] / seconds[density]
        rows[density] = ratio, possible, ratio / possible, seconds["before"] / seconds[density]
    return share, seconds, rows


def shown(name, share, seconds, rows):
    print(f"\n{name}: {1e3 * seconds['whole']:.2f} ms, before {1e3 * seconds['before']:.2f}, "
          f"f {share:.2f}", end="")  # fmt: skip
    for density, (ratio, possible, reached, before) in rows.items():
        print(f"; at {density} {ratio:.2f}x of possible {possible:.2f}x ({reached:.0%}), "
              f"{before:.1f}x of before", end="")  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("update", ["bernoulli", "synchronous", "sequential"])
@pytest.mark.parametrize(
    ("nodes", "degree", "outputs"),
    [(134, 8, None), (134, 8, 10), (274, 8, None), (1000, 4, None), (1000, 8, None),
     (1000, 8, 10), (1000, 20, None), (10_000, 8, None)],
)  # fmt: skip
def test_random_masks(nodes, degree, outputs, update, training, capsys):
    whole = network(nodes, degree, update, outputs)
    masks = {
        density: torch.rand(len(whole.edge_weight), generator=torch.Generator().manual_seed(2))
        < density
        for density in DENSITIES
    }
    found = compared(whole, masks, training, 5 if nodes > 1000 else 15)
    with capsys.disabled():
        shown(f"{nodes} nodes of degree {degree}, {outputs or 'all'} outputs, {update}, "
              f"{'training' if training else 'inference'}", *found)  # fmt: skip
    assert all(row[2] >= 0.85 for row in found[2].values())


@pytest.mark.parametrize("goal", ["damp", "preserve", "gap"])
def test_spectral_masks(goal, capsys):
    whole = network(274, 8, "bernoulli")
    graph = gp.wrap(whole).graph
    weights = whole.edge_weight.detach()
    masks = {
        density: gp.spectral.prune(graph, weights, goal=goal, size=density).values
        for density in DENSITIES
    }
    found = compared(whole, masks, False, 15)
    with capsys.disabled():
        shown(f"274 nodes, goal {goal}", *found)
    assert all(row[2] >= 0.85 for row in found[2].values())
