"""A pruned recurrent network beside the whole one in its fastest form, compacted with all edges.

Possible is 1 / (1 - f (1 - d)) at density d, where f is the share of the whole network's time that
its edges take: what is left of it without its edges, in the same run, is the rest. Runs that skip
states of which nothing depends can be faster than that. CPU seconds of one thread, the minimum of
interleaved runs; 32 examples, 10 steps, tanh, a bias, mean degree 8, a tenth of the nodes (at most
64) clamped, all other nodes outputs (where nothing can be left out for being of no use) or ten.
The updates are the same in each run, or (``fresh``) new ones, as in training; then the fastest form
of the whole network can be the one that was not compacted.

    pytest -m benchmark -s tests/benchmarks/test_compacting_speed.py
"""

import copy
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


def network(nodes, degree, update, outputs=None):
    generator = torch.Generator().manual_seed(0)
    inputs = min(64, nodes // 10)
    edges = torch.randint(nodes, (2, nodes * degree), generator=generator)
    return ARGNN(
        edges[:, edges[1] >= inputs], nodes, inputs=range(inputs), bias=True, update=update,
        outputs=None if outputs is None else range(nodes - outputs, nodes),
    )  # fmt: skip


def job(net, training, fresh=False, examples=32):
    x = torch.randn(examples, len(net.input_nodes), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(3) if fresh else None

    def infer():
        with torch.no_grad():
            net.predict(x, generator=generator)

    def train():
        net.zero_grad()
        net.predict(x, generator=generator).sum().backward()

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
    zeros = {}

    def sums(rows, factors):
        if not zeros:
            shapes = [(wave.stop - wave.start, rows.shape[1]) for wave in run.run.waves]
            zeros.update(enumerate(map(torch.zeros, shapes)))
        return zeros.values()

    run._sums = sums

    def gradients(gradient, rows, factors, updated, leaves, weights):
        out = torch.empty_like(rows)
        for number, wave in reversed(list(enumerate(run.run.waves))):
            zero = zeros[number]
            at = slice(wave.start, wave.stop)
            run._derive(wave, zero, rows[at], out[at])
        return None, torch.zeros_like(factors)

    run.gradients = gradients


def drawn_masks(whole):
    drawn = torch.rand(len(whole.edge_weight), generator=torch.Generator().manual_seed(2))
    return {density: drawn < density for density in DENSITIES}


class NoMessages:
    """In place of an adjacency: nobody sends anything."""

    def propagate(self, state):
        return torch.zeros_like(state)


def compared(whole, masks, training, repeats, examples=32, fresh=False):
    """Ratios to the whole network's time in its fastest form, and what edges take of it."""
    nets = {"before": whole, "whole": whole.compact()}
    # The whole network's steps without its edges: the same rows, and nothing is read.
    if fresh:
        nets["edgeless"] = whole.keep(torch.zeros(len(whole.edge_weight))).compact()
        if whole.update_rule != "sequential":
            nets["edgeless before"] = copy.deepcopy(whole)
            nets["edgeless before"].adjacency = lambda weight: NoMessages()
    else:
        nets["edgeless"] = edgeless = whole.keep(None).compact(product="sparse")
        for _ in range(2):  # the second time its rows are sorted for good
            job(edgeless, training, examples=examples)()
        for kept in edgeless.compaction._runs._runs.values():
            take_edges_out(kept.run)
    for density, mask in masks.items():
        nets[density] = whole.keep(mask).compact()
    whole.keep(None)
    jobs = {name: job(net, training, fresh, examples) for name, net in nets.items()}
    seconds = least(jobs, repeats)
    fastest, edgeless = seconds["whole"], seconds["edgeless"]
    if seconds["before"] < fastest:
        fastest = seconds["before"]
        edgeless = seconds.get("edgeless before", edgeless)
    share = max(0.0, 1 - edgeless / fastest)
    rows = {}
    for density in masks:
        possible = 1 / (1 - share * (1 - density))
        ratio = fastest / seconds[density]
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
    found = compared(whole, drawn_masks(whole), training, 5 if nodes > 1000 else 15)
    with capsys.disabled():
        shown(f"{nodes} nodes of degree {degree}, {outputs or 'all'} outputs, {update}, "
              f"{'training' if training else 'inference'}", *found)  # fmt: skip
    assert all(row[2] >= 0.85 for row in found[2].values())


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("update", ["bernoulli", "sequential"])
@pytest.mark.parametrize("nodes", [134, 274, 1000])
def test_fresh_updates(nodes, update, training, capsys):
    whole = network(nodes, 8, update)
    found = compared(whole, drawn_masks(whole), training, 15, fresh=True)
    with capsys.disabled():
        shown(f"{nodes} nodes, new {update} updates, {'training' if training else 'inference'}",
              *found)  # fmt: skip
    assert all(row[2] >= 0.85 for row in found[2].values())


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_where_edges_take_the_time(training, capsys):
    """Where the share of edges allows it, 1.7 times at half and 5 times at a tenth."""
    whole = network(4000, 64, "bernoulli")
    found = compared(whole, drawn_masks(whole), training, 3, examples=32)
    with capsys.disabled():
        shown(f"4000 nodes of degree 64, {'training' if training else 'inference'}", *found)
    for density, least_ratio in ((0.5, 1.7), (0.1, 5.0)):
        ratio, possible, reached, _ = found[2][density]
        assert reached >= 0.85
        assert ratio >= least_ratio or possible < least_ratio


def cuts(whole):
    """Criteria and the masks that each makes of a network with ten outputs."""
    model = gp.wrap(whole)
    x = torch.randn(64, len(whole.input_nodes), generator=torch.Generator().manual_seed(4))
    task = gp.tasks.patterns(x, torch.arange(64) % 10, classes=10)
    scores = {
        "magnitude": gp.spectral.Magnitude(),
        "EAP": gp.EAP(),
        "Taylor": gp.spectral.Taylor(),
        "mask gradient": gp.IntegratedMaskGradient(steps=5, ablation="zero"),
    }
    made = {name: method.score(model, task) for name, method in scores.items()}
    weights = whole.edge_weight.detach()
    for density in DENSITIES:
        for name, ranking in made.items():
            yield name, density, ranking.top(density).values
        for goal in ("damp", "preserve", "gap"):
            mask = gp.spectral.prune(model.graph, weights, goal=goal, size=density, effort=0)
            yield goal, density, mask.values


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_criteria(training, capsys):
    whole = network(274, 8, "bernoulli", outputs=10)
    masks = {}
    for name, density, mask in cuts(whole):
        masks.setdefault(name, {})[density] = mask
    for name, pair in masks.items():
        found = compared(whole, pair, training, 15)
        with capsys.disabled():
            shown(f"274 nodes, 10 outputs, {name}, {'training' if training else 'inference'}",
                  *found)  # fmt: skip
        assert all(row[2] >= 0.85 for row in found[2].values()), name
