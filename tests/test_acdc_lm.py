"""ACDC on language models: the quick descent keeps what a plain loop of whole runs keeps."""

import pytest
import torch
from support.greedy import brute_force, mean_loss
from support.tiny import FAMILIES, random_pair, rotated
from support.tiny import language_system as system

import graphprune as gp


def same_circuits(model, task, taus, **settings):
    """The descents' circuits, each checked against the definition; how many edges they keep."""
    kept = []
    metric = settings.get("metric", "kl")
    losses = mean_loss(model, task, metric, settings.get("ablation", "counterfactual"))
    swept = gp.ACDC(**settings).sweep(model, task, taus)
    for tau, found in swept.items():
        rule = gp.ACDC(**settings)
        order = rule.edge_order(model.graph)
        want = brute_force(losses, model.graph, order, tau, absolute=rule.absolute)
        assert torch.equal(found.mask.values.bool(), want), (tau, found)
        kept.append(found.mask.num_kept)
    return kept


# Grouped keys and values, and parallel layers; inside/test_trials.py has all families.
QUICK = ("gpt_neox", "gemma2")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(
            family,
            dtype,
            marks=[] if family in QUICK and dtype == torch.float32 else pytest.mark.slow,
        )
        for family in FAMILIES
        for dtype in (torch.float32, torch.float64)
    ],
)
def test_kept_sets_are_the_plain_loops(family, dtype):
    """Grouped keys and values, coupled groups, parallel layers, windows: every family."""
    kept = same_circuits(*system(family, dtype), [1e-4, 1e-2, 0.05])
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) > 2


SETTINGS = [
    {"absolute": True},
    {"ablation": "zero"},
    {"ablation": "mean"},
    {"ablation": "mean_positional"},
    {"drop_dead": False},
    {"candidates": 3},
    {"metric": "logit_diff"},
]


@pytest.mark.parametrize(("settings", "family"), rotated(SETTINGS, ["gpt2", "llama", "gemma2"]))
def test_settings(family, settings):
    model, task = system(family, small=True)
    if settings.get("metric"):
        clean, corrupt = random_pair(model.module)
        ids = torch.ones(len(clean), 1, dtype=torch.int64)
        task = gp.Task.from_tensors(clean, corrupt, answer=ids, distractor=2 * ids)
    rule = gp.ACDC(tau=2e-3, **settings)
    losses = mean_loss(model, task, rule.metric, rule.ablation)
    want = brute_force(
        losses,
        model.graph,
        rule.edge_order(model.graph),
        2e-3,
        absolute=rule.absolute,
        drop_dead=rule.drop_dead,
    )
    assert torch.equal(rule.prune(model, task).values.bool(), want)


@pytest.mark.parametrize("family", ["gpt2", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_several_batches_and_answer_positions(family):
    positions = torch.tensor([[2, 4], [4, -1], [3, 0]])
    model, task = system(family, positions=positions, batch_size=2, small=True)
    assert len(set(same_circuits(model, task, [1e-4, 1e-2]))) == 2


def test_two_embedding_nodes():
    same_circuits(*system("gpt2", embedding_nodes=2, small=True), [1e-4, 1e-2])


@pytest.mark.parametrize("family", ["gpt2", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_sequential_and_other_orders(family):
    model, task = system(family, small=True)
    rule = gp.ACDC(tau=3e-3)
    plain = gp.ACDC(tau=3e-3, exact="sequential")
    assert rule.prune(model, task) == plain.prune(model, task)
    # In another order upstream changes: whole runs, the same rule.
    same_circuits(model, task, [1e-3], order="ascending")


def test_near_ties_go_to_the_referee():
    """A threshold at an edge's own effect: within the noise, decided in float64 by both loops."""
    model, task = system("gpt2", small=True)
    first = gp.ACDC().edge_order(model.graph)[0]
    effect = float(gp.ACDC(recheck="off").fit(model, task).values["effects"][first])
    for tau in (effect, effect * (1 + 1e-7), effect * (1 - 1e-7)):
        quick = gp.ACDC(tau=tau).fit(model, task)
        plain = gp.ACDC(tau=tau, exact="sequential").fit(model, task)
        assert quick.mask == plain.mask
        assert quick.notes["rechecks"] >= 1
        assert plain.notes["rechecks"] >= 1


@pytest.mark.parametrize("kind", ["mean", "optimal"])
def test_ablations_that_come_as_values(kind):
    """Made in float32, read by the float64 referee too."""
    model, task = system("gpt2", small=True)
    ablation = model.mean_ablation(task.batches())
    if kind == "optimal":
        ablation = model.learned_ablation(ablation)
    assert len(set(same_circuits(model, task, [1e-4, 1e-2], ablation=ablation))) == 2


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.bfloat16), ("llama", torch.float16)])
def test_half_precision_is_decided_in_float64(family, dtype):
    """Where half precision's noise covers tau, the circuit is that of the float64 model."""
    model, task = system(family, dtype, small=True)
    tau = 2e-3
    found = gp.ACDC(tau=tau).fit(model, task)
    assert found.notes["noise"] > tau
    wide = model.widened()
    want = gp.ACDC(tau=tau, exact="sequential").fit(wide, task)
    differ = found.mask.values != want.mask.values
    decided = (found.values["effects"] - tau).abs() > found.notes["noise"]
    assert not differ[~decided].any()


def test_the_users_model_is_unchanged_in_training_mode():
    model, task = system("gpt2")
    module = model.module
    want = gp.ACDC(tau=3e-3).prune(model, task)
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    assert gp.ACDC(tau=3e-3).prune(model, task) == want
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
