"""PyG's explainers and graph sparsifiers beside attribution, where the edges that matter are known.

Explanations: 50 nodes each of generated graphs. AUROC is of the node's own motif (or of the planted
edges) among the edges whose messages can reach the node at all; the fidelities are of as many of
the best edges as are true, deleted; seconds are CPU time of one thread for one node. Accuracy:
masks of 10 to 90 % of the edges, the rest deleted, on nodes that no method saw, as the network is
and after 100 epochs on the nodes that methods saw. 95 % intervals: bootstrap over nodes, or t over
seeds.

    pytest -m benchmark tests/benchmarks/test_gnn_baselines.py -s     # 12 minutes of CPU time

``-k explanations`` prints the tables of the benchmarks page; accuracies are in none yet.
"""

import time

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, t

import graphprune as gp
from graphprune.adapters.gnn import DropEdge, GNNExplainer, LotteryTickets, PGExplainer, retrained
from graphprune.adapters.reference_models import motifs
from graphprune.study import make_case

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]

NODES = 50
DENSITIES = [k / 10 for k in range(1, 10)]


def area(values, inside):
    """AUROC of ``values`` for ``inside``, ties counting half."""
    ranks, n = rankdata(values), int(inside.sum())
    wins = ranks[inside].sum() - n * (n + 1) / 2
    return wins / (n * (len(inside) - n))


def reaching(graph, node, hops):
    """``[E]`` bool: edges whose messages reach ``node`` within so many layers."""
    source, target = graph.edge_index.numpy()
    there = np.zeros(graph.num_nodes, dtype=bool)
    there[node] = True
    edges = np.zeros(graph.num_edges, dtype=bool)
    for _ in range(hops):
        edges = there[target]
        there[source[edges]] = True
    return edges


def interval(rows, figure=np.mean, draws=2000):
    """A figure of ``rows [n, ...]`` and its 95 % bootstrap interval over rows."""
    rows, generator = np.asarray(rows), np.random.default_rng(0)
    drawn = [figure(rows[generator.integers(len(rows), size=len(rows))]) for _ in range(draws)]
    return figure(rows), *np.quantile(drawn, [0.025, 0.975])


def characterization(pairs):
    plus, rest = pairs[:, 0].mean(), 1 - pairs[:, 1].mean()
    return 2 * plus * rest / (plus + rest) if plus * rest else 0.0


def told(parts):
    value, low, high = parts
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def explainers(with_200, corrupted):
    yield "EAP, zero", gp.EAP(ablation="zero")
    yield "EAP, delete", gp.EAP(ablation="delete")
    if corrupted:
        yield "EAP, counterfactual", gp.EAP()
    yield "mask gradient, 5 points", gp.IntegratedMaskGradient(steps=5, ablation="zero")
    yield "GNNExplainer, 100 epochs", GNNExplainer()
    if with_200:
        yield "GNNExplainer, 200 epochs", GNNExplainer(epochs=200)
    yield "PGExplainer", PGExplainer()
    yield "effective resistance", gp.spectral.EffectiveResistance(edge_weights="equal")
    yield "local degree", gp.spectral.Degree()
    yield "random", gp.Random()


def scores_of(method, model, task):
    """Scores for each example, and CPU seconds for one."""
    start = time.process_time()
    if hasattr(method, "explanations"):
        every = list(method.explanations(model, task))
    elif isinstance(method, gp.EAP | gp.IntegratedMaskGradient):
        every = [method.score(model, task.subset([i])) for i in range(len(task))]
    else:
        every = [method.score(model, task)] * len(task)
    return every, (time.process_time() - start) / len(task)


SYSTEMS = {
    "BA-shapes, sums": ("gnn-motifs", "ba-shapes", {}, 3),
    "BA-shapes, GCN": ("gnn-motifs", "ba-shapes", {"conv": "gcn"}, 3),
    "tree-cycles, sums": ("gnn-motifs", "tree-cycles", {}, 3),
    "planted relation": ("hetero-planted", "planted", {}, 2),
    "block model": ("block-model", "classes", {}, 2),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_explanations(name):
    kind, task, options, hops = SYSTEMS[name]
    count = 96 if kind == "hetero-planted" else NODES
    case = make_case(kind, task, train=count, test=NODES, seed=0, options=options)
    model, task = case.model, case.train.take(NODES)
    graph, truth = model.graph, case.truth.kept.numpy()
    places = [int(b.positions) for b in task.batches(1)]
    own = [reaching(graph, node, hops) for node in places]
    true = [truth] * NODES
    if kind == "gnn-motifs":  # each node's own motif
        motif = motifs.motif_graph(task.name).motif.numpy()
        true = [truth & (motif[graph.edge_index[0].numpy()] == motif[node]) for node in places]
    print(f"\n{name}: {graph!r}, {len(places)} nodes")
    found = {}
    corrupted = next(iter(task.batches(1))).corrupt is not None
    with_200 = name in ("BA-shapes, sums", "tree-cycles, sums")
    for label, method in explainers(with_200, corrupted):
        try:
            every, seconds = scores_of(method, model, task)
        except gp.UnsupportedModelError as error:
            print(f"| {label} | {error} |")
            continue
        ways = ["size", "sign"] if kind == "block-model" and label.startswith("EAP") else ["size"]
        for by in ways:
            areas, pairs = [], []
            for i, scores in enumerate(every):
                values = scores.values.numpy()
                values = np.abs(values) if by == "size" else values
                inside = true[i][own[i]]
                if 0 < inside.sum() < len(inside):
                    areas.append(area(values[own[i]], inside))
                ranked = torch.from_numpy(np.where(own[i], values, -np.inf))
                kept = torch.zeros(graph.num_edges)
                kept[ranked.argsort(descending=True, stable=True)[: int(inside.sum())]] = 1
                mask = gp.EdgeMask(graph, kept)
                one = gp.fidelity(model, task.subset([i]), mask, ablation="delete")
                pairs.append((one.plus, one.minus))
            found[label] = np.array(areas)
            pairs = np.array(pairs)
            print(
                f"| {label}{', by sign' if by == 'sign' else ''} | {told(interval(areas))} "
                f"| {told(interval(pairs[:, 0]))} | {told(interval(pairs[:, 1]))} "
                f"| {told(interval(pairs, characterization))} | {seconds:.4f} |",
                flush=True,
            )
    for label in found:
        if label.startswith(("GNN", "PG")):
            gap = found["EAP, zero"] - found[label]
            print(f"EAP, zero, minus {label}: {told(interval(gap))}")
    if name.startswith("BA-shapes"):
        assert found["EAP, zero"].mean() > 0.8


def masks_at(scores, by):
    return {density: scores.top(density, by=by) for density in DENSITIES}


def pruners(seed):
    yield "EAP, delete, by sign", gp.EAP(ablation="delete"), "signed"
    yield "EAP, zero, by size", gp.EAP(ablation="zero"), "abs"
    yield "exact patching, delete, by sign", gp.ExactPatching(ablation="delete"), "signed"
    yield "message norm", gp.spectral.Magnitude(), "abs"
    yield "GNNExplainer, 100 epochs", GNNExplainer(), "abs"
    yield "effective resistance", gp.spectral.EffectiveResistance(edge_weights="equal"), "abs"
    yield "K neighbours", gp.spectral.KNeighbour(seed=seed), "abs"
    yield "local degree", gp.spectral.Degree(), "abs"
    yield "gap deletion", gp.spectral.GapDeletion(), "abs"
    yield "lottery tickets", LotteryTickets(afresh=False, epochs=100), "abs"
    yield "DropEdge", DropEdge(epochs=100, seed=seed), "abs"
    yield "random", gp.Random(seed=seed), "abs"


@pytest.mark.parametrize(
    ("kind", "task", "train"), [("block-model", "classes", 50), ("gcn-karate", "communities", 17)]
)
def test_accuracy_of_what_is_left(kind, task, train):
    seeds = 5
    rows, seconds = {}, {}
    for seed in range(seeds):
        options = {"weights": seed} | ({"graph": 7 + seed} if kind == "block-model" else {})
        case = make_case(kind, task, train=train, test=1000, seed=seed, options=options)
        model = case.model

        def right(network, mask, case=case):
            return gp.evaluate(network, case.test, mask, ablation="delete")["accuracy"]

        full = gp.EdgeMask.full(model.graph)
        more = retrained(model, case.train, epochs=100, seed=seed)
        rows.setdefault("dense", []).append([right(model, full)] * 9 + [right(more, full)] * 5)
        for label, method, by in pruners(seed):
            start = time.process_time()
            scores = method.score(model, case.train)  # of all examples, not of one
            seconds.setdefault(label, []).append(time.process_time() - start)
            masks = masks_at(scores, by)
            plain = [right(model, mask) for mask in masks.values()]
            tuned = []
            for mask in list(masks.values())[::2]:
                if label == "DropEdge":
                    network = method.network(model, case.train, mask)
                else:
                    network = retrained(model, case.train, mask, epochs=100, seed=seed)
                tuned.append(right(network, mask))
            rows.setdefault(label, []).append(plain + tuned)
    print(f"\n{kind}: kept {DENSITIES} as it is; {DENSITIES[::2]} after training")
    for label, values in rows.items():
        values = np.array(values)
        half = t.ppf(0.975, seeds - 1) * values.std(0, ddof=1) / seeds**0.5
        cells = [f"{m:.3f} ± {h:.3f}" for m, h in zip(values.mean(0), half, strict=True)]
        took = f"{np.mean(seconds[label]):.2f}" if label in seconds else ""
        print(f"| {label} | {' | '.join(cells)} | {took} |", flush=True)
        assert 0 <= values.min() <= values.max() <= 1
