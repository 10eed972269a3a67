"""Exact circuits, against every subset of the toy adapter's edges."""

import itertools

import pytest
import torch
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune import Batch, Metric
from graphprune.evaluation import SameOutputs

ABLATIONS = ["counterfactual", "zero", "mean"]
WITHIN = 1.2  # loose: dozens of masks are exact, and not all of what contains an exact one is


@pytest.fixture(scope="module")
def toy():
    return Toy(), gp.Task(ToyExamples(), "logit_diff", name="toy", batch_size=4)


def close(tolerance):
    def same(outputs, batch, full):
        return ((outputs - full).abs() <= tolerance).all(-1)

    return Metric("close", gp.METRICS["logit_diff"].function, needs=("answer",), same=same)


@pytest.fixture(scope="module", params=ABLATIONS)
def table(request, toy):
    """Which of all 512 masks are exact within a tolerance, one by one and by the definition."""
    model, task = toy
    ablation = model.mean_ablation(task.batches()) if request.param == "mean" else request.param
    batches = [
        (b, model.reference(b, gp.Ablation(ablation) if ablation in ABLATIONS else ablation))
        for b in task.batches()
    ]
    good = {}
    for bits in itertools.product((0.0, 1.0), repeat=model.graph.num_edges):
        gaps = [model.run(b, torch.tensor(bits), r) - r.full for b, r in batches]
        good[bits] = all(bool((gap.abs() <= WITHIN).all()) for gap in gaps)
    return request.param, good


def without(bits, i):
    return (*bits[:i], 0.0, *bits[i + 1 :])


def minimal(bits, good):
    smaller = (without(bits, i) for i in range(len(bits)) if bits[i])
    return good[bits] and not any(good[b] for b in smaller)


def test_same_outputs_is_the_definition(toy, table):
    model, task = toy
    name, good = table
    task = task.with_metric(close(WITHIN))
    found = gp.same_outputs(model, task, torch.tensor(list(good)), ablation=name)
    assert found.tolist() == list(good.values())
    assert 1 < int(found.sum()) < len(found) // 2  # neither all nor nearly none


def test_first_is_the_first(toy, table):
    model, task = toy
    name, good = table
    ask = SameOutputs(model, task.with_metric(close(WITHIN)), name)
    masks, truth = torch.tensor(list(good)), torch.tensor(list(good.values()))
    order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(0))
    for some in order.split(16):
        want = torch.nonzero(truth[some])[:1, 0].tolist()
        assert ask.first(masks[some]) == (want[0] if want else None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("candidates", [1, 3, 16])
def test_polishing_ends_at_a_minimal_circuit(toy, table, seed, candidates):
    model, task = toy
    name, good = table
    task = task.with_metric(close(WITHIN))
    order = gp.Random(seed=seed).score(model, task)
    full = gp.EdgeMask.full(model.graph)
    found = gp.minimal_circuit(model, task, full, order, ablation=name, max_candidates=candidates)
    bits = tuple(found.values.tolist())
    assert minimal(bits, good)
    assert found.num_kept < full.num_kept or minimal(tuple(full.values.tolist()), good)


def test_is_minimal_and_removable_edges_are_the_definition(toy, table):
    model, task = toy
    name, good = table
    task = task.with_metric(close(WITHIN))
    exact = [bits for bits, same in good.items() if same]
    for bits in exact[:: max(1, len(exact) // 12)]:
        mask = gp.EdgeMask(model.graph, list(bits))
        assert gp.equivalent(model, task, mask, ablation=name)
        assert gp.is_minimal(model, task, mask, ablation=name) == minimal(bits, good)
        removable = gp.removable_edges(model, task, mask, ablation=name).values.tolist()
        for i, bit in enumerate(bits):
            assert removable[i] == float(bit and good[without(bits, i)])


def test_polishing_follows_the_order(toy):
    """Two edges either of which can go, but not both: the one with the lower score goes."""
    model, task = toy
    task = task.with_metric(close(WITHIN))
    ask = SameOutputs(model, task)
    ones = torch.ones(model.graph.num_edges)
    pairs = []
    for a, b in itertools.combinations(range(len(ones)), 2):
        masks = ones.repeat(3, 1)
        masks[0, a] = masks[1, b] = masks[2, a] = masks[2, b] = 0
        if ask(masks).tolist() == [True, True, False]:
            pairs.append((a, b))
    assert pairs
    for low, high in [pairs[0], pairs[0][::-1]]:
        scores = torch.arange(len(ones), dtype=torch.float32) + 10
        scores[low], scores[high] = 0.0, 1.0
        order = gp.EdgeScores(model.graph, scores)
        found = gp.minimal_circuit(model, task, gp.EdgeMask.full(model.graph), order)
        assert not found.kept[low]
        assert found.kept[high]


def test_bad_input(toy):
    model, task = toy
    graph = model.graph
    half = gp.EdgeMask(graph, torch.full((graph.num_edges,), 0.5))
    with pytest.raises(gp.InputError, match="keeps or drops each edge"):
        gp.minimal_circuit(model, task, half)
    strict = task.with_metric(close(1e-6))
    with pytest.raises(gp.InputError, match="circuit of 0 edges does not give"):
        gp.minimal_circuit(model, strict, gp.EdgeMask.empty(graph))
    with pytest.raises(gp.InputError, match=r"\[K, 9\]"):
        gp.same_outputs(model, task, torch.ones(9))
    with pytest.raises(gp.InputError, match="at least 1"):
        gp.same_outputs(model, task, torch.ones(1, 9), max_candidates=0)
    with pytest.raises(gp.InputError, match="masked model"):
        gp.same_outputs(model.module, task, torch.ones(1, 9))


def batch_of(positions=None, answer=None, distractor=None, size=2):
    return Batch(None, None, size, positions=positions, answer=answer, distractor=distractor)


def test_same_choice():
    metric = gp.METRICS["kl"]
    full = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    out = torch.tensor([[0.0, 9.0, 1.0], [0.0, 0.1, 1.0]])
    assert metric.same_as_full(out, batch_of(), full).tolist() == [True, False]
    ids = torch.tensor([[0], [0]]), torch.tensor([[1], [1]])
    out = torch.tensor([[0.0, 0.5, 9.0], [0.5, 0.0, 9.0]])
    batch = batch_of(answer=ids[0], distractor=ids[1])
    assert metric.same_as_full(out, batch, full).tolist() == [True, True]
    out = torch.tensor([[float("nan"), 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert metric.same_as_full(out, batch_of(), full).tolist() == [False, True]


def test_padded_positions_do_not_count():
    full = torch.eye(3).repeat(2, 1, 1)
    out = full.clone()
    out[0, 2] = torch.tensor([1.0, 0.0, 0.0])
    out[1, 0] = torch.tensor([0.0, 0.0, 1.0])
    positions = torch.tensor([[0, 1, -1], [0, 1, 2]])
    same = gp.METRICS["kl"].same_as_full(out, batch_of(positions), full)
    assert same.tolist() == [True, False]


def test_single_numbers_are_no_choices():
    one = torch.zeros(2, 1)
    with pytest.raises(gp.InputError, match="same=function"):
        gp.METRICS["kl"].same_as_full(one, batch_of(), one)
    for name in ("kl", "exact_match", "accuracy"):
        batch = batch_of(answer=torch.zeros(2, 1, dtype=torch.int64))
        assert "no choices" in str(gp.METRICS[name].missing(batch, one))
