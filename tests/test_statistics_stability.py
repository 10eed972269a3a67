"""Stability over seeds and over resampled examples: random methods are not stable."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.tiny import tiny
from support.toy import Toy, ToyExamples
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import graphprune as gp
from graphprune import statistics as st


@pytest.fixture(scope="module")
def llama():
    clean, corrupt = torch.randint(50, (2, 24, 6), generator=torch.Generator().manual_seed(0))
    task = gp.Task.from_tensors(clean, corrupt, answer=[3] * 24, distractor=[4] * 24, batch_size=24)
    return gp.wrap(tiny("llama", 0)), task


@pytest.fixture(scope="module")
def toy():
    return Toy(), gp.Task(ToyExamples(12), "logit_diff", name="toy")


# ---------------------------------------------------------------- random methods


def test_a_random_method_is_not_stable(llama):
    model, task = llama
    found = st.stability(gp.Random(), model, task, size=0.4, draws=39)
    assert not found.passed
    assert found.p_value > 0.05
    for kind, runs in (("seeds", 5), ("resamples", 10)):
        part = found[kind]
        assert part["jaccard"] == pytest.approx(part["by_chance"], abs=0.1)
        assert part["p_value"] > 0.01  # one in twenty is below .05 by luck, both seldom
        assert part["low"] <= part["jaccard"] <= part["high"]
        assert len(part["edges"]) == runs
        assert abs(part["spearman"]) < 0.2
        assert kind in found.summary()
    assert "each with a seed of its own" in found.summary()
    assert found["not_measured"] == {}
    assert {(row["over"]) for row in found.rows} == {"seeds", "resamples"}
    assert len(found.rows) == 10 + 45


@pytest.mark.parametrize(
    ("seeds", "resamples"), [(range(3), 0), ((), 3)], ids=["seeds", "resamples"]
)
def test_random_methods_are_found_stable_no_more_often_than_alpha(toy, seeds, resamples):
    """The null hypothesis made true, p-values of 1/20, 2/20, ... as often as each other."""
    model, task = toy
    p = []
    for number in range(24):
        chosen = [3 * number + seed for seed in seeds]
        found = st.stability(
            gp.Random(), model, task, size=5, seeds=chosen, resamples=resamples, draws=19,
            seed=number,
        )  # fmt: skip
        p.append(found.p_value)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 24)
    assert 0.35 < np.mean(p) < 0.75  # shares of few edges tie, which counts for chance


@dataclass(frozen=True, kw_only=True)
class Coins(gp.Scorer):
    """A coin for each edge: of equal scores those of the first edges are kept, in every run."""

    seed: int | None = None

    def score(self, model, task):
        drawn = np.random.default_rng(self.chosen_seed).integers(0, 2, model.graph.num_edges)
        return gp.EdgeScores(model.graph, torch.from_numpy(drawn).float())


def test_scores_that_tie_are_not_stable_by_the_order_of_edges():
    data = Data(x=torch.randn(12, 4), edge_index=torch.randint(12, (2, 60)), y=torch.arange(12) % 3)
    net = GraphSAGE(4, 8, 2, 3).eval()
    model, task = gp.wrap(net, data=data), gp.tasks.nodes(data)
    passed = 0
    for first in range(10):
        seeds = [9 * first + one for one in range(5)]
        found = st.stability(
            Coins(), model, task, size=0.3, seeds=seeds, resamples=0, draws=39, seed=first
        )
        passed += bool(found.passed)
    assert passed <= 2  # at 5 %, three of ten come in one of 87 runs of this test


def test_seeds_inside_methods_change_too(llama):
    model, task = llama
    random = gp.ParallelEnsemble([gp.Random(seed=3), gp.Random(seed=4)], normalize="rank")
    found = st.stability(random, model, task, size=0.4, seeds=range(4), resamples=4, draws=19)
    assert not found.passed
    assert found["seeds"]["jaccard"] < 0.5


# ---------------------------------------------------------------- methods that are stable


def test_a_method_without_randomness_is_stable_and_says_that_it_has_no_seed(llama):
    model, task = llama
    found = st.stability(gp.EAP(), model, task, size=0.3, resamples=6, draws=39)
    assert found.passed, found.summary()
    assert found.p_value == pytest.approx(1 / 40)
    part = found["resamples"]
    assert found["seeds"] is None
    assert found["not_measured"] == {"seeds": "EAP has no seed that could be changed"}
    assert "EAP has no seed that could be changed" in found.summary()
    assert len(found.rows) == 15
    assert part["jaccard"] == pytest.approx(np.mean([row["jaccard"] for row in found.rows]))
    assert part["low"] <= part["jaccard"] <= part["high"]
    assert part["by_chance"] < part["low"]
    assert 0 < part["spearman"] <= 1
    assert set(part["core"]) == {edge for edge, often in part["frequency"].items() if often == 1}
    assert sum(part["frequency"].values()) == pytest.approx(np.mean(part["edges"]))


@dataclass(frozen=True, kw_only=True)
class Counted(gp.Scorer):
    """EAP's scores, and noise by a seed: stable over seeds where the noise is small."""

    seed: int = 0
    noise: float = 0.0

    def score(self, model, task):
        scores = gp.EAP().score(model, task).values
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(len(scores), generator=generator) * scores.abs().max()
        return gp.EdgeScores(model.graph, scores + self.noise * noise, method="counted")


def test_seeds_and_resamples_are_told_apart(llama):
    """A seed that changes nothing, one that changes all, and examples that do not matter."""
    model, task = llama
    still = st.stability(Counted(), model, task, size=0.3, resamples=4, draws=39)
    assert still["seeds"]["jaccard"] == 1.0
    assert still["resamples"]["jaccard"] < 1.0
    assert still.passed
    loud = st.stability(Counted(noise=100.0), model, task, size=0.3, resamples=4, draws=39)
    assert loud["seeds"]["jaccard"] < 0.5
    assert not loud.passed

    def ignores_examples(model, task, seed):
        return gp.Random(seed=seed).score(model, task).top(0.4)

    found = st.stability(ignores_examples, model, task, resamples=4, draws=39)
    assert found["seeds"] is not None  # a function that takes a seed has one
    assert not found.passed


def test_resamples_are_what_they_say(toy):
    model, task = toy
    seen = []

    def method(model, task):
        seen.append(sorted(i for b in task.batches() for i in b.indices))
        return gp.EdgeMask.from_edges(model.graph, ["in->a", "a->out"])

    found = st.stability(method, model, task, resamples=4, seed=5, draws=39)
    assert all(len(one) == len(task) for one in seen)
    assert len({tuple(one) for one in seen}) == 4
    assert any(len(set(one)) < len(one) for one in seen)
    assert found["resamples"]["jaccard"] == 1.0
    assert found["resamples"]["core"] == ["in->a", "a->out"]
    assert found.settings["match"] == "paths"
    assert "method has no seed that could be changed" in found.summary()
    assert "let it take seed=" in found.remarks[-1]


# ---------------------------------------------------------------- numbers


def test_empty_circuits_share_nothing(toy):
    model, task = toy
    found = st.stability(
        lambda model, task: gp.EdgeMask.empty(model.graph), model, task, resamples=3, draws=39
    )
    assert found["resamples"]["jaccard"] == 0.0
    assert not found.passed
    assert found.remarks[0] == "3 of 3 circuits keep no edge"


def test_too_few_draws_are_underpowered(toy):
    model, task = toy

    def method(model, task):
        return gp.EdgeMask.from_edges(model.graph, ["in->a", "a->out"])

    found = st.stability(method, model, task, resamples=3, draws=9)
    assert found.least_p == pytest.approx(0.1)
    assert found.passed is None
    assert "underpowered: with these settings p is at least 0.1" in found.summary()
    # Where every circuit of the size is the same one, no number of draws helps.
    full = st.stability(lambda model, task: gp.EdgeMask.full(model.graph), model, task, draws=39)
    assert full.least_p == 1.0
    assert full.passed is None


def test_stability_refuses(llama):
    model, task = llama
    for call, words in (
        (lambda: st.stability(gp.EAP(), model, task, size=9, seeds=[0, 1]), "has no seed"),
        (lambda: st.stability(gp.EAP(), model, task, size=9, resamples=0), "at least two runs"),
        (lambda: st.stability(gp.EAP(), model, task, size=9, resamples=1), "one resample"),
        (lambda: st.stability(gp.Random(), model, task, size=9, seeds=[1, 1]), "a seed twice"),
        (lambda: st.stability(gp.Random(), model, task, size=9, seeds=[1]), "one seed"),
        (lambda: st.stability(gp.EAP(), model, task.take(1), size=9), "at least 2 examples"),
        (lambda: st.stability(gp.EAP(), model, task), "how many to keep"),
        (lambda: st.stability(gp.EAP(), model, task, size=9, draws=0), "draws"),
        (lambda: st.stability(gp.ACDC(tau=1.0), model, task, size=9), "ACDC takes no size"),
        (lambda: st.stability(3, model, task), "a method is a scorer"),
        (lambda: st.stability(lambda m, t: 3, model, task), "or a Circuit, got int"),
        (lambda: st.stability(gp.EAP(), model, task, size=9, resamples=2, match="luck"),
         "unknown match"),
        (lambda: st.stability(lambda m, t: gp.EdgeMask.full(m.graph), model, task, resamples=2,
                              match="rankings"), "needs a scorer"),
    ):  # fmt: skip
        with pytest.raises(gp.InputError, match=words):
            call()
