"""ACDC on language models: the quick descent keeps what a plain loop of whole runs keeps."""

import itertools

import pytest
import torch
from support.greedy import brute_force, mean_loss
from support.tiny import FAMILIES, Float64, random_pair, tiny

import graphprune as gp
from graphprune.adapters.lm.trials import SuffixTrials
from graphprune.greedy.trials import FullTrials


def system(family, dtype=torch.float32, *, batch_size=None, positions=None, same=1, **options):
    module = tiny(family, dtype=dtype)
    clean, corrupt = random_pair(module)
    corrupt[:, :same] = clean[:, :same]
    task = gp.Task.from_tensors(
        clean,
        corrupt,
        metric="kl",
        answer=torch.ones(len(clean), 1, dtype=torch.int64),
        positions=positions,
    )
    model = gp.wrap(module, **options)
    return model, task if batch_size is None else gp.Task(
        task.examples, "kl", batch_size=batch_size
    )


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


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_sets_are_the_plain_loops(family, dtype):
    """Grouped keys and values, coupled groups, parallel layers, windows: every family."""
    kept = same_circuits(*system(family, dtype), [1e-5, 1e-3, 1e-2, 0.05])
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) > 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"absolute": True},
        {"ablation": "zero"},
        {"ablation": "mean"},
        {"ablation": "mean_positional"},
        {"drop_dead": False},
        {"candidates": 3},
        {"metric": "logit_diff"},
    ],
    ids=str,
)
def test_settings(family, settings):
    model, task = system(family)
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


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_several_batches_and_answer_positions(family):
    positions = torch.tensor([[2, 4], [4, -1], [3, 0]])
    model, task = system(family, positions=positions, batch_size=2)
    assert len(set(same_circuits(model, task, [1e-4, 1e-2]))) == 2


def test_two_embedding_nodes():
    same_circuits(*system("gpt2", embedding_nodes=2), [1e-4, 1e-2])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_sequential_and_other_orders(family):
    model, task = system(family)
    rule = gp.ACDC(tau=3e-3)
    plain = gp.ACDC(tau=3e-3, exact="sequential")
    assert rule.prune(model, task) == plain.prune(model, task)
    # In another order upstream changes: whole runs, the same rule.
    same_circuits(model, task, [1e-3], order="ascending")


def trials_of(model, task, order=None):
    (batch,) = task.batches()
    reference = model.reference(batch)
    kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
    order = gp.ACDC().edge_order(model.graph) if order is None else order
    return batch, reference, model.trials(batch, kept, reference, order)


def test_trials_are_quick_only_where_the_order_allows():
    model, task = system("gpt2")
    order = gp.ACDC().edge_order(model.graph)
    assert isinstance(trials_of(model, task)[2], SuffixTrials)
    assert isinstance(trials_of(model, task, order.flip(0))[2], FullTrials)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_trials_are_masked_runs(family):
    """Rows, cuts and drops at every reader, to 1e-9: nothing drifts over a whole descent."""
    with Float64():
        model, task = system(family, torch.float64)
        batch, reference, trials = trials_of(model, task)
        order = gp.ACDC().edge_order(model.graph)
        from graphprune.greedy.order import readers

        turn = readers(model.graph)[order]
        generator = torch.Generator().manual_seed(0)
        kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
        starts = [0, *(torch.nonzero(turn[1:] != turn[:-1])[:, 0] + 1).tolist(), len(order)]
        for start, stop in itertools.pairwise(starts):
            edges = order[start:stop]
            drawn = torch.rand(len(edges), len(edges), generator=generator) < 0.6
            cuts = drawn.tril(-1) | torch.eye(len(edges), dtype=torch.bool)
            with torch.no_grad():
                rows = trials.without(edges, cuts)
                masks = kept.repeat(len(edges), 1)
                for j in range(len(edges)):
                    masks[j, edges[cuts[j]]] = False
                want = model.run(batch, masks.double(), reference)
            torch.testing.assert_close(rows, want, rtol=0, atol=1e-9)
            row = int(torch.randint(len(edges), (1,), generator=generator))
            trials.cut(row)
            kept = masks[row]
            assert torch.equal(trials.kept, kept)
            torch.testing.assert_close(trials.outputs(), want[row], rtol=0, atol=1e-9)


def test_near_ties_go_to_the_referee():
    """A threshold at an edge's own effect: within the noise, decided in float64 by both loops."""
    model, task = system("gpt2")
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
    model, task = system("gpt2")
    ablation = model.mean_ablation(task.batches())
    if kind == "optimal":
        ablation = model.learned_ablation(ablation)
    assert len(set(same_circuits(model, task, [1e-4, 1e-2], ablation=ablation))) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_is_decided_in_float64(family, dtype):
    """Where half precision's noise covers tau, the circuit is that of the float64 model."""
    model, task = system(family, dtype)
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
