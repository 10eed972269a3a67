"""Fingerprints of tasks and models, and the runs that are resumed by them."""

import json
from dataclasses import replace

import pytest
import torch
from support.optimising import toy_task
from support.toy import Toy

import graphprune as gp


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


def test_a_run_of_another_version_is_not_resumed(tmp_path):
    run(tmp_path)
    file = tmp_path / "run.json"
    about = json.loads(file.read_text())
    assert about["made_by"] == f"graphprune {gp.__version__}"
    file.write_text(json.dumps(about | {"made_by": "graphprune 0.0.1"}))
    with pytest.raises(gp.InputError, match=r"made_by was graphprune 0\.0\.1, is graphprune "):
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
