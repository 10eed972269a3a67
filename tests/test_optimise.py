"""Mask optimisers on a small graph whose best circuits are known by trying all of them."""

import dataclasses
import functools
import itertools

import pytest
import torch
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune.conformance import check_method

SMALL = {"steps": 60, "batch_size": 6, "loss": "mse"}
METHODS = [
    gp.EdgePruning(size=4, **SMALL),
    gp.EdgePruning(size=4, node_gates=True, **SMALL),
    gp.EdgePruning(size=4, variant="paper", **SMALL),
    gp.EdgePruning(size=4, variant="paper", node_gates=False, clip=0.5, **SMALL),
    gp.UGS(size=4, samples=3, **SMALL),
    gp.UGS(size=4, samples=3, variant="paper", **SMALL),
    gp.UGS(size=4, samples=3, node_gates=True, **SMALL),
    gp.MatryoshkaPruning(size=4, budgets=2, **SMALL),
    gp.MatryoshkaPruning(size=4, node_gates=True, sizes="uniform", **SMALL),
    gp.MatryoshkaPruning(size=4, sizes="curve", **SMALL),
    gp.SubnetworkProbing(size=4, **SMALL),
    gp.SubnetworkProbing(size=4, node_gates=True, **SMALL),
]
LABELS = [f"{type(m).__name__}-{i}" for i, m in enumerate(METHODS)]


@pytest.fixture(scope="module")
def model():
    return Toy(seed=3)


@pytest.fixture(scope="module")
def task():
    return gp.Task(ToyExamples(6), "logit_diff", batch_size=6)


def mse(model, task, mask):
    batch = next(iter(task.batches(6)))
    reference = model.reference(batch)
    return float((model.run(batch, mask, reference) - reference.full).square().mean())


@functools.cache
def ranked_circuits(seed, count):
    """Every circuit of ``count`` edges without dead ends, by its loss."""
    model, task = Toy(seed=seed), gp.Task(ToyExamples(6), "logit_diff", batch_size=6)
    graph, found = model.graph, []
    for some in itertools.combinations(range(graph.num_edges), count):
        values = torch.zeros(graph.num_edges)
        values[list(some)] = 1.0
        mask = gp.EdgeMask(graph, values)
        if mask.prune_dead_ends().num_kept == count:
            found.append((mse(model, task, mask), mask))
    return [mask for _, mask in sorted(found, key=lambda pair: pair[0])]


def test_default_finds_the_best_circuit_or_nearly(task):
    places = []
    for seed, count in itertools.product(range(3), (4, 5)):
        model = Toy(seed=seed)
        every = ranked_circuits(seed, count)
        found = gp.EdgePruning(size=count, steps=150, batch_size=6, loss="mse").prune(model, task)
        places.append(every.index(found))
    # Of 9 and 15 circuits; chance would find the best one in about 1 of 12 cases.
    assert places.count(0) >= 3, places
    assert max(places) <= 3, places


@pytest.mark.parametrize("method", METHODS, ids=LABELS)
def test_budget_is_exact_without_dead_ends(method, model, task):
    fit = method.fit(model, task)
    assert fit.mask.num_kept == 4
    assert fit.mask.is_binary
    assert fit.mask.prune_dead_ends() == fit.mask
    assert float(fit.scores.values.min()) > 0
    assert int((fit.scores.values >= 1).sum()) >= 4  # equal gates may tie
    assert [row["step"] for row in fit.history] == list(range(60))
    assert fit.notes["loss"] == pytest.approx(mse(model, task, fit.mask), rel=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=LABELS)
def test_conforms(method, model, task):
    check_method(dataclasses.replace(method, steps=10), model, task)


OTHERS = [gp.MatryoshkaPruning, gp.SubnetworkProbing, gp.UGS]


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_better_than_chance(kind, task):
    """Over eight models the mean place among all 15 circuits of five edges; chance gives 7."""
    places = []
    for seed in range(8):
        model = Toy(seed=seed)
        options = {"samples": 2, "penalty": 0.05} if kind is gp.UGS else {}
        method = kind(size=5, steps=60, batch_size=6, loss="mse", **options)
        places.append(ranked_circuits(seed, 5).index(method.prune(model, task)))
    assert sum(places) / len(places) <= 4.0, places


def test_sizes():
    graph = Toy().graph
    for settings, kept in (
        ({"size": 7}, 7),
        ({"size": 0.5}, 4),  # int(size * E)
        ({"sparsity": 0.5}, 5),  # E - int(sparsity * E)
        ({"sparsity": 1 / 3}, 6),
        ({"size": "minimal"}, None),
        ({"sparsity": "minimal"}, None),
    ):
        assert gp.EdgePruning(**settings).count(graph) == kept, settings
    wide = gp.ComputationalGraph.from_edges([("input", f"n{i}") for i in range(200)])
    assert gp.EdgePruning().count(wide) == 4  # 2 % where nobody says a size


def test_a_size_that_was_said_is_never_overwritten(model, task):
    quick = {"steps": 2, "batch_size": 6, "loss": "mse"}
    with pytest.raises(gp.InputError, match=r"size=4 .* and sparsity=0.5 .* one of the two"):
        gp.EdgePruning(size=4, sparsity=0.5)
    for settings, size in (
        ({"size": 4}, 5),
        ({"size": 1}, 1.0),  # one edge is not all of them
        ({"sparsity": 0.5}, 5),
        ({"sparsity": "minimal"}, 0.5),
    ):
        with pytest.raises(
            gp.InputError, match=rf"also asked for size={size}: give one of the two"
        ):
            gp.EdgePruning(**settings, **quick).fit(model, task, size=size)
    with pytest.raises(gp.InputError, match="also asked for size=5"):
        gp.SequentialEnsemble("eap", gp.EdgePruning(size=4, **quick)).prune(model, task, size=5)
    assert gp.EdgePruning(size=4, **quick).prune(model, task, size=4).num_kept == 4
    assert gp.EdgePruning(**quick).prune(model, task, size=5).num_kept == 5


@pytest.mark.parametrize("edges", [1, 2, 5, 8, 9])
def test_every_budget(edges, model, task):
    fit = gp.EdgePruning(size=edges, steps=20, batch_size=6, loss="mse").fit(model, task)
    assert fit.mask.num_kept == edges
    assert fit.mask.prune_dead_ends() == fit.mask


def test_warm_start_ranks_the_gates(model, task):
    scores = gp.EAPIG(steps=5).score(model, task)
    frozen = {"steps": 1, "batch_size": 6, "loss": "mse", "size": 4, "refine": 0}
    fit = gp.EdgePruning(warm_start=scores, **frozen).fit(model, task)
    assert fit.scores.values.argsort()[-2:].tolist() == scores.values.abs().argsort()[-2:].tolist()
    for warm in (gp.EAPIG(steps=5), "eap-ig"):
        again = gp.EdgePruning(warm_start=warm, **frozen).fit(model, task)
        assert torch.equal(again.scores.values, fit.scores.values)


def test_loss_by_callable_and_by_task(model, task):
    def towards_answer(outputs, batch, full):
        return -outputs[:, 0]

    fit = gp.EdgePruning(size=4, steps=60, batch_size=6, loss=towards_answer).fit(model, task)
    batch = next(iter(task.batches(6)))
    outputs = model.run(batch, fit.mask, model.reference(batch))
    assert fit.notes["loss"] == pytest.approx(float(-outputs[:, 0].mean()), rel=1e-5)
    by_task = gp.EdgePruning(size=4, steps=60, batch_size=6, loss="task").fit(model, task)
    report = gp.evaluate(model, task, by_task.mask)
    assert by_task.notes["loss"] == pytest.approx(-report["logit_diff"], rel=1e-5)


def test_loss_by_the_tasks_gap_to_the_full_model(model, task):
    batch = next(iter(task.batches(6)))
    reference = model.reference(batch)
    rows = torch.arange(batch.size)

    def difference(outputs):
        return outputs[rows, batch.answer[:, 0]] - outputs[rows, batch.distractor[:, 0]]

    def gap(mask):
        outputs = model.run(batch, mask, reference)
        return float((difference(outputs) - difference(reference.full)).abs().mean())

    fit = gp.EdgePruning(size=4, steps=60, batch_size=6, loss="task_gap").fit(model, task)
    assert fit.notes["loss"] == pytest.approx(gap(fit.mask), rel=1e-5)


def test_seeds_differ_and_repeat(model, task):
    runs = [
        gp.EdgePruning(size=4, variant="paper", seed=seed, **SMALL).score(model, task).values
        for seed in (0, 1, 0)
    ]
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[1])


def test_cache_changes_nothing(model):
    task = gp.Task(ToyExamples(11), "logit_diff", batch_size=4)
    method = {"size": 4, "steps": 30, "loss": "mse"}
    kept = gp.EdgePruning(**method).fit(model, task)
    made = gp.EdgePruning(cache=0, **method).fit(model, task)
    assert kept.notes["cached"]
    assert not made.notes["cached"]
    assert torch.equal(kept.scores.values, made.scores.values)
    assert kept.mask == made.mask


def test_path_holds_a_circuit_of_every_size(model, task):
    method = gp.EdgePruning(size=3, path=(8, 6, 0.5, 2), steps=80, batch_size=6, loss="mse")
    fit = method.fit(model, task)
    assert list(fit.circuits) == [4, 6, 8]  # 2 is below the final size
    for size, mask in fit.circuits.items():
        assert mask.num_kept == size
        assert mask.prune_dead_ends() == mask


@pytest.mark.parametrize("steps", [1, 60])
def test_no_circuit_of_a_path_is_worse_than_the_warm_starts(model, task, steps):
    ranking = gp.IntegratedMaskGradient(steps=8).score(model, task)
    path = (4, 5, 6, 7, 8)
    fit = gp.EdgePruning(
        size=3, path=path, steps=steps, batch_size=6, loss="mse", warm_start=ranking
    ).fit(model, task)
    assert tuple(fit.circuits) == path
    for size, mask in fit.circuits.items():
        start = ranking.connected(size)
        assert mask.num_kept == start.num_kept == size
        assert mse(model, task, mask) <= mse(model, task, start) + 1e-6


def test_nearest_feasible_count_is_given_and_said(caplog):
    """Six edges, one of which leads nowhere: five is the most a circuit can have."""
    graph = gp.ComputationalGraph.from_edges(
        [("a", "b"), ("b", "c"), ("a", "c"), ("b", "dead"), ("a", "d"), ("d", "c")], outputs=(2,)
    )
    with caplog.at_level("WARNING", logger="graphprune"):
        mask = gp.EdgeScores(graph, torch.arange(6.0)).connected(6)
    assert mask.num_kept == 5
    assert "no circuit of exactly 6 edges" in caplog.text
    assert "this one has 5" in caplog.text


def test_walks_follow_wires_from_inputs_and_in_chains():
    def graph(edges, wires, nodes):
        number = {name: i for i, name in enumerate(nodes)}
        fixed = torch.tensor([[number[u], number[v]] for u, v in wires]).T
        return gp.ComputationalGraph.from_edges(edges, nodes=nodes, fixed_edge_index=fixed)

    first = graph(
        [("x", "b"), ("b", "c"), ("c", "out"), ("b", "out")], [("in", "x")],
        ["in", "x", "b", "c", "out"],
    )  # fmt: skip
    scores = gp.EdgeScores(first, torch.tensor([0.0, 3.0, 2.0, 1.0]))
    assert scores.connected(2).edges() == ["x->b", "b->out"]
    chain = graph(
        [("in", "p"), ("r", "out")], [("p", "q"), ("q", "r")], ["in", "p", "q", "r", "out"]
    )
    assert gp.EdgeScores(chain, torch.zeros(2)).connected(2).num_kept == 2


def test_gates_on_nodes_do_not_tie(model, task):
    method = gp.EdgePruning(
        size=4, variant="paper", node_gates=True, steps=60, batch_size=6, loss="mse"
    )
    assert len(set(method.score(model, task).values.tolist())) == 9


def test_unknown_sizes():
    with pytest.raises(gp.InputError, match="unknown sizes 'mib'; known: log_uniform"):
        gp.MatryoshkaPruning(sizes="mib")
