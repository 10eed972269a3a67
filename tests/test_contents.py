"""Fingerprints of contents, and the runs that are resumed by them."""

import functools
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.optimising import toy_task
from support.toy import Toy

import graphprune as gp
from graphprune.contents import file_fingerprint, files_fingerprint, fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def typed(value):
    """Tells what == does not: 1, 1.0 and True, 0.0 and -0.0."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return (type(value).__name__, repr(value))


@settings(max_examples=200, deadline=None)
@given(PLAIN, PLAIN)
def test_equal_values_and_no_others_are_alike(one, two):
    assert (fingerprint(one) == fingerprint(two)) is (typed(one) == typed(two))


SCALE = 2.0


def helper(x):
    return x * SCALE


def make(alpha, code="plus"):
    notes = []

    def plus(x):
        notes.append(x)
        return helper(x) + alpha

    def minus(x):
        return helper(x) - alpha

    return {"plus": plus, "minus": minus}[code]


def test_functions_count_by_what_they_do(monkeypatch):
    same = make(1.0)
    before = fingerprint(same)
    same(3)  # what it noted does not make it another
    assert fingerprint(same) == before == fingerprint(make(1.0))
    others = [make(2.0), make(1.0, "minus"), functools.partial(make(1.0), 1), lambda x: x]
    assert len({before, *map(fingerprint, others)}) == 5
    monkeypatch.setitem(globals(), "SCALE", 3.0)  # two calls away
    assert fingerprint(make(1.0)) != before


def test_tensors_scores_and_ablations_count_by_their_numbers():
    a = torch.arange(6.0)
    different = [a, a.reshape(2, 3), a.double(), a + 1e-6, a.bfloat16(), a.numpy(), a.to_sparse()]
    assert len({fingerprint(x) for x in different[:-1]}) == 6
    assert fingerprint(a) == fingerprint(a.clone()) == fingerprint(different[-1])
    assert fingerprint(np.arange(6)[::2]) == fingerprint(np.array([0, 2, 4]))
    graph = Toy().graph
    scores = [gp.EdgeScores(graph, torch.full((graph.num_edges,), v)) for v in (1.0, 1.0, 2.0)]
    first, again, other = map(fingerprint, scores)
    assert first == again != other
    means = [gp.Ablation("mean", values=(torch.full((3,), v),)) for v in (0.0, 0.1)]
    assert repr(means[0]) == repr(means[1])  # which is why names are not enough
    assert fingerprint(means[0]) != fingerprint(means[1])


def test_objects_that_hold_themselves_end():
    loop = [1]
    loop.append(loop)
    twin = [1]
    twin.append(twin)
    assert fingerprint(loop) == fingerprint(twin)
    part = [1, 2]
    assert fingerprint([part, part]) == fingerprint([[1, 2], [1, 2]])


def test_a_file_is_read_again_when_it_changed(tmp_path):
    """Even where size and time of modification are the old ones."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"aaaa")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    first = file_fingerprint(path)
    path.write_bytes(b"bbbb")
    os.utime(path, ns=times)
    assert path.stat().st_mtime_ns == times[1]
    assert file_fingerprint(path) != first
    with pytest.raises(gp.InputError, match=r"cannot read .*gone"):
        file_fingerprint(tmp_path / "gone")
    whole = files_fingerprint(tmp_path)
    shutil.copytree(tmp_path, tmp_path / ".copy")
    assert files_fingerprint(tmp_path) == whole == files_fingerprint(tmp_path / ".copy")
    path.rename(tmp_path / "other.bin")
    assert files_fingerprint(tmp_path) != whole


def pairs(n=4, **changes):
    clean = torch.arange(3 * n).reshape(n, 3) % 7
    parts = {"corrupt": clean.flip(1), "answer": [1] * n, "distractor": [2] * n, **changes}
    return gp.Task.from_tensors(parts.pop("clean", clean), **parts)


def test_a_task_is_its_examples_metric_and_order():
    first = pairs().fingerprint
    assert (
        first == pairs(name="renamed").fingerprint == replace(pairs(), notes={"a": 1}).fingerprint
    )
    clean = torch.arange(12).reshape(4, 3) % 7
    moved = clean.clone()
    moved[2, 1] = 6
    others = [
        pairs(clean=moved),
        pairs(corrupt=clean),
        pairs(corrupt=None),
        pairs(answer=[1, 1, 3, 1]),
        pairs(distractor=[2, 2, 2, 3]),
        pairs(answer=[2] * 4, distractor=[1] * 4),
        pairs(positions=[2, 2, 2, 1]),
        pairs(metric="prob_diff"),
        pairs(batch_size=2),
        pairs().subset([0, 1, 3, 2]),
        pairs().take(3),
    ]
    assert len({first, *(task.fingerprint for task in others)}) == 12
    assert pairs().subset([0, 1]).fingerprint == pairs().take(2).fingerprint


def run(folder, task=None, **options):
    options = {"size": 4, "steps": 3, "batch_size": 50, **options}
    return gp.EdgePruning(run_dir=folder, **options).fit(Toy(seed=3), task or toy_task(10))


def test_a_run_knows_the_examples_in_the_middle(tmp_path):
    """Of 300 examples the 150th changes: another data set, which must not go on with the run."""
    order = [i % 10 for i in range(300)]
    first = toy_task(10).subset(order)
    run(tmp_path, first)
    run(tmp_path, toy_task(10).subset(order))  # the same one goes on
    order[150] = (order[150] + 1) % 10
    with pytest.raises(gp.InputError, match=r"task.digest was"):
        run(tmp_path, toy_task(10).subset(order))


def loss_with(factor):
    return lambda outputs, batch, full: factor * (outputs - full).square().mean(-1)


def test_a_run_knows_what_its_loss_reads(tmp_path):
    run(tmp_path, loss=loss_with(1.0))
    run(tmp_path, loss=loss_with(1.0))
    with pytest.raises(gp.InputError, match=r"settings.loss was"):
        run(tmp_path, loss=loss_with(2.0))


def test_a_run_knows_the_numbers_of_its_ablation(tmp_path):
    """Means over two reference sets have one name."""
    means = [Toy(seed=3).mean_ablation(toy_task(n).batches()) for n in (10, 5)]
    assert repr(means[0]) == repr(means[1])
    run(tmp_path, ablation=means[0])
    run(tmp_path, ablation=means[0])
    with pytest.raises(gp.InputError, match=r"settings.ablation was Ablation\('mean'\) \w+, is"):
        run(tmp_path, ablation=means[1])


def test_a_run_of_another_version_is_not_resumed(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr("graphprune.optimise.checkpoint.__version__", "99.0")
    with pytest.raises(gp.InputError, match=r"made_by was graphprune .*, is graphprune 99.0"):
        run(tmp_path)


def test_a_model_of_a_graph_is_known_by_its_data():
    """Features and edge attributes are part of it as the weights are."""
    geometric = pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    torch.manual_seed(0)
    conv = geometric.nn.GraphConv(3, 2)
    index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    x = torch.randn(4, 3)
    told = [
        gp.wrap(conv, data=Data(x=features, edge_index=index)).provenance()
        for features in (x, x.clone(), x + 1e-3)
    ]
    assert told[0] == told[1] != told[2]
    assert told[0]["weights"] == told[2]["weights"]
