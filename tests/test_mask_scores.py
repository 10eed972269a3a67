"""Scores of mask optimisers: one ranking by size and by sign, the run's own."""

import itertools

import pytest
import torch
from support.marks import quick
from support.planted import prompts, untrained
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune.export import from_mib_json, to_mib_json

EDGES = 14
COMMON = {"size": EDGES, "batch_size": 16, "loss": "kl"}
METHODS = {
    "budget": gp.EdgePruning(steps=60, refine=0, **COMMON),
    "hard": gp.EdgePruning(steps=60, gates="hard", refine=0, **COMMON),
    "senders too": gp.EdgePruning(steps=60, node_gates=True, refine=0, **COMMON),
    "refined": gp.EdgePruning(steps=60, **COMMON),
    "paper": gp.EdgePruning(steps=60, variant="paper", **COMMON),
    "ugs": gp.UGS(steps=80, samples=4, penalty=0.003, **COMMON),
    "ugs paper": gp.UGS(steps=80, samples=4, penalty=0.003, variant="paper", **COMMON),
    "matryoshka": gp.MatryoshkaPruning(steps=100, **COMMON),
    "probing": gp.SubnetworkProbing(steps=100, penalty=0.5, **COMMON),
}

# One of each way to give scores: gates, their products, sampled gates, nested budgets, chances.
QUICK = ("budget", "refined", "paper", "ugs", "matryoshka", "probing")


@pytest.fixture(scope="module")
def case():
    """A random GPT-2 with confident answers, so that nearly every edge counts for something."""
    module = untrained(11, 0).eval().requires_grad_(False)
    for weight in module.parameters():
        weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    module.transformer.ln_f.weight.mul_(12.0)
    clean, corrupt = prompts(16, torch.Generator().manual_seed(1))
    task = gp.Task.from_tensors(clean, corrupt, metric="kl", batch_size=16)
    return gp.wrap(module), task


class Fits(dict):
    """Results by name, each found when it is first asked for."""

    def __init__(self, case):
        self.case = case

    def __missing__(self, name):
        self[name] = METHODS[name].fit(*self.case)
        return self[name]


@pytest.fixture(scope="module")
def fits(case):
    return Fits(case)


def divergence(case, mask):
    return gp.evaluate(*case, mask, metrics=["kl"]).to_dict()["kl"]


@pytest.mark.parametrize("name", quick(METHODS, QUICK))
def test_the_best_edges_are_the_runs_own_circuit(name, case, fits):
    """Up to dead ends, which a circuit has none of, and swaps of the local search."""
    fit = fits[name]
    shared = {
        way: int((mask.kept & fit.mask.kept).sum()) / EDGES
        for way, mask in (
            ("top", fit.scores.top(EDGES)),
            ("connected", fit.scores.connected(EDGES)),
        )
    }
    assert shared["connected"] >= 13 / EDGES, shared
    assert shared["top"] >= (10 if name == "paper" else 12) / EDGES, shared


@pytest.mark.parametrize("name", quick([name for name in METHODS if name != "paper"], QUICK))
def test_the_best_edges_are_as_faithful_as_the_circuit(name, case, fits):
    """All but the published variant, whose 60 steps keep a circuit no better than none."""
    ablated = divergence(case, gp.EdgeMask(case[0].graph, torch.zeros(case[0].graph.num_edges)))
    own = divergence(case, fits[name].mask)
    best = divergence(case, fits[name].scores.top(EDGES))
    assert own < 0.3 * ablated, (own, ablated)
    assert best < 1.5 * own + 0.01 * ablated, (own, best, ablated)


@pytest.mark.parametrize("name", quick(METHODS, QUICK))
def test_rankings_by_size_and_by_sign_agree(name, case, fits):
    scores = fits[name].scores
    assert float(scores.values.min()) > 0
    assert int((scores.values >= 1).sum()) >= EDGES  # 1 is the last edge inside the budget
    for size in (3, EDGES, 30):
        for way in ("top", "greedy", "connected", "ilp"):
            by_size, by_sign = (getattr(scores, way)(size, by=by) for by in ("abs", "signed"))
            assert by_size == by_sign, (way, size)
    assert scores.threshold(1.0) == scores.threshold(1.0, by="signed")
    curve = gp.faithfulness_curve(*case, scores, sizes=[0.1, 0.3, 1.0])
    assert curve.cpr == pytest.approx(curve_by(case, scores), rel=1e-5)


def curve_by(case, scores):
    """CPR from runs of the top circuits by size, dead ends dropped, by MIB's trapezoid."""
    total = case[0].graph.num_edges
    sizes, found = (0.1, 0.3, 1.0), []
    ends = [divergence_metric(case, torch.full((total,), value)) for value in (0.0, 1.0)]
    for size in sizes:
        mask = scores.top(int(size * total), by="abs").prune_dead_ends()
        value = divergence_metric(case, mask.values)
        found.append((value - ends[0]) / (ends[1] - ends[0]))
    pairs = itertools.pairwise(zip(sizes, found, strict=True))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)


def divergence_metric(case, values):
    model, task = case
    batch = next(iter(task.batches(16)))
    reference = model.reference(batch)
    out = model.run(batch, values, reference)
    p, q = reference.full.double().log_softmax(-1), out.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_run_resumed_from_its_own_scores_keeps_its_circuit(case, fits):
    """It began at the inverse ranking, of rank correlation -.9 with this one."""
    again = gp.EdgePruning(
        steps=1, lr=0.0, refine=0, warm_start=fits["budget"].scores, **COMMON
    ).fit(*case)
    both = int((again.mask.kept & fits["budget"].mask.kept).sum())
    assert both >= EDGES - 1


def test_a_calibrated_ranking_of_gates_starts_with_the_kept_edges(case, fits):
    task = case[1].with_metric("kl")
    ranked = gp.CalibratedRanking(fits["budget"].scores, sizes=[EDGES], rounds=0).score(
        case[0], task
    )
    assert ranked.top(EDGES) == fits["budget"].scores.top(EDGES)


def test_files_keep_the_ranking(case, fits, tmp_path):
    scores = fits["ugs"].scores
    read, _ = from_mib_json(to_mib_json(scores, tmp_path / "s.json", d_model=32), case[0].graph)
    for by in ("abs", "signed"):
        assert read.top(EDGES, by=by) == scores.top(EDGES)


@pytest.mark.parametrize("label", ["UGS(size=4)", "EdgePruning", "EAP"])
def test_folders_of_the_first_release_are_turned(label, tmp_path):
    """Their gates were negative outside the budget; an attribution's sign is its own."""
    graph = Toy().graph
    old = torch.tensor([-5.0, 2.0, 0.0, -1.0, 0.5, -9.0, 3.0, -0.5, -2.0])
    mask = gp.EdgeScores(graph, old).top(4, by="signed")
    circuit = gp.Circuit.from_mask(mask, scores=gp.EdgeScores(graph, old, method=label))
    circuit.save(tmp_path / "old")
    read = gp.Circuit.load(tmp_path / "old").scores
    if label == "EAP":
        assert read.values.equal(old)
        return
    assert read.top(4) == mask
    assert read.values.argsort().equal(old.argsort())


def test_the_ranking_of_every_size_on_a_graph_small_enough_to_try():
    """Of all circuits of each size, the ranking's stands better by size than chance has it."""
    model, task = Toy(seed=3), gp.Task(ToyExamples(6), "logit_diff", batch_size=6)
    scores = gp.MatryoshkaPruning(size=4, steps=200, batch_size=6, loss="mse").score(model, task)
    batch = next(iter(task.batches(6)))
    reference = model.reference(batch)

    def loss(values):
        return float((model.run(batch, values, reference) - reference.full).square().mean())

    places = []
    for count in (3, 4, 5, 6):
        every = []
        for some in itertools.combinations(range(9), count):
            values = torch.zeros(9)
            values[list(some)] = 1.0
            every.append((loss(values), values))
        losses = sorted(value for value, _ in every)
        places.append(losses.index(loss(scores.top(count).values)) / (len(every) - 1))
    assert sum(places) / 4 < 0.2, places  # .5 by chance
