"""Greedy descent inside: guesses of what stays, however wrong, its order and its checkpoints."""

from functools import cache

import pytest
import torch
from support.greedy import brute_force, mean_loss
from support.rings import RingExamples, Rings
from support.tiny import random_pair, tiny
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune.adapters.lm.describe.layout import EdgeLayout, LayerShape
from graphprune.search import greedy_pruning as search
from graphprune.search.keep_prediction import KeepPredictor
from graphprune.search.order import edge_order, is_reverse_topological

pytestmark = pytest.mark.inside

DISTANCE = gp.Metric(
    "distance", lambda out, batch, full: (out - full).square().sum(-1), higher_is_better=False
)
TAUS = [1e-4, 1e-3, 0.01, 0.1, 1.0]


class AllStay(KeepPredictor):
    def stays(self, edge):
        return 0.999


class AllGo(KeepPredictor):
    def stays(self, edge):
        return 0.001


class Opposite(KeepPredictor):
    """As sure as it is wrong."""

    def stays(self, edge):
        return 1.0 - super().stays(edge)


class Drawn(KeepPredictor):
    def __init__(self, graph):
        super().__init__(graph)
        self.drawn = torch.Generator().manual_seed(graph.num_edges)

    def stays(self, edge):
        return float(torch.rand((), generator=self.drawn) < 0.5) * 0.998 + 0.001


WRONG = [AllStay, AllGo, Opposite, Drawn]


@pytest.fixture(params=WRONG, ids=lambda kind: kind.__name__)
def wrong(request, monkeypatch):
    monkeypatch.setattr("graphprune.search.greedy_pruning.KeepPredictor", request.param)


@cache
def system(kind):
    if kind == "toy":
        return (
            Toy(seed=2),
            gp.Task(ToyExamples(), DISTANCE, name="toy", batch_size=4),
            "counterfactual",
        )
    if kind == "rings":
        return Rings(seed=1), gp.Task(RingExamples(), DISTANCE, name="rings"), "zero"
    module = tiny(kind)
    clean, corrupt = random_pair(module)
    ids = torch.ones(len(clean), 1, dtype=torch.int64)
    task = gp.Task.from_tensors(clean, corrupt, answer=ids, metric="kl")
    return gp.wrap(module), task, "counterfactual"


@cache
def plain(kind, absolute, tau):
    """The plain loop's kept edges, which no guess enters."""
    model, task, ablation = system(kind)
    losses = mean_loss(model, task, task.metric, ablation)
    order = gp.ACDC().edge_order(model.graph)
    return brute_force(losses, model.graph, order, tau, absolute=absolute)


@pytest.mark.parametrize(
    ("kind", "absolute"),
    [
        *(("toy", False), ("toy", True), ("rings", False), ("rings", True), ("gpt2", False)),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in (("gpt2", True), ("gemma2", False))),
        pytest.param("gemma2", True, marks=pytest.mark.slow),
    ],
)
def test_wrong_guesses_keep_the_plain_loops_sets(wrong, kind, absolute):
    """A sweep's branches too; each threshold against whole runs, edge by edge."""
    model, task, ablation = system(kind)
    rule = gp.ACDC(metric="task", ablation=ablation, absolute=absolute)
    found = rule.sweep(model, task, TAUS)
    for tau in TAUS:
        assert torch.equal(found[tau].mask.values.bool(), plain(kind, absolute, tau)), tau
    assert len({found[tau].mask.num_kept for tau in TAUS}) > 2


def test_wrong_guesses_of_a_run_that_stops_and_goes_on(wrong, tmp_path):
    model, task, ablation = system("rings")
    settings = {"metric": "task", "ablation": ablation}
    whole = gp.ACDC(exact="sequential", **settings).sweep(model, task, TAUS[:3])
    parts = 0
    while True:
        rule = gp.ACDC(max_evaluations=9, run_dir=tmp_path / "run", **settings)
        found = rule.sweep(model, task, TAUS[:3])
        parts += 1
        if not any(descent.stopped for descent in found.values()):
            break
    assert parts > 3
    for tau in TAUS[:3]:
        assert found[tau].mask == whole[tau].mask
        assert torch.equal(
            found[tau].values["effects"].isnan(), whole[tau].values["effects"].isnan()
        )


class Layered(Rings):
    """Readers that all read the same senders, two of which matter; each gives one output number."""

    SENDERS, READERS, STRONG = 8, 24, (2, 5)

    def __init__(self):
        super().__init__()
        senders = [f"s{i}" for i in range(self.SENDERS)]
        readers = [f"r{i}" for i in range(self.READERS)]
        pairs = [(s, r) for r in readers for s in senders] + [(r, "out") for r in readers]
        self._graph = gp.ComputationalGraph.from_edges(pairs)
        self.weight = torch.full((self.SENDERS,), 0.01)
        self.weight[list(self.STRONG)] = 1.0

    def _one(self, x, mask):
        inner = mask[: -self.READERS].view(self.READERS, self.SENDERS)
        read = (inner * self.weight).sum(1) * mask[-self.READERS :]
        return x[:, :1].abs().clamp(min=1.0) * read


def test_senders_that_always_stay_are_guessed(monkeypatch):
    """A quarter of all edges stays, and hardly a row is tried in vain."""
    model, task = Layered(), gp.Task(RingExamples(), DISTANCE, name="layered")
    rule = gp.ACDC(tau=0.1, metric="task", ablation="zero")
    found = rule.fit(model, task)
    kept = [name for name in found.mask.edges() if not name.endswith("->out")]
    assert {name.split("->")[0] for name in kept} == {"s2", "s5"}
    assert len(kept) == 2 * Layered.READERS
    runs = {None: found.notes["evaluations"]}
    for kind in (AllStay, AllGo):
        monkeypatch.setattr("graphprune.search.greedy_pruning.KeepPredictor", kind)
        other = rule.fit(model, task)
        assert other.mask == found.mask
        runs[kind] = other.notes["evaluations"]
    assert runs[None] < 1.05 * len(found.values["effects"])
    assert 4 * runs[None] < min(runs[AllStay], runs[AllGo])


@pytest.mark.parametrize("tau", TAUS[1:3])
def test_a_branchs_own_decisions_tell_what_is_guessed(monkeypatch, tau):
    """A run that goes on guesses as it did before it stopped."""
    told = []

    class Watched(KeepPredictor):
        def __init__(self, graph):
            super().__init__(graph)
            told.append([])

        def learn(self, edge, stayed):
            super().learn(edge, stayed)
            told[-1].append((edge, stayed))

    monkeypatch.setattr("graphprune.search.greedy_pruning.KeepPredictor", Watched)
    model, task, _ = system("gpt2")
    search = gp.ACDC()._search(model, task, TAUS, None)
    search.run()
    (branch,) = [b for b in search.done if tau in b.taus]
    search._learn_decisions(branch)
    order = search.order[~branch.effects[search.order].isnan()].tolist()
    assert told[-1] == [(edge, bool(branch.effects[edge] >= branch.taus[-1])) for edge in order]
    assert [stayed for _, stayed in told[-1]] == branch.kept[order].tolist()


def test_a_run_killed_between_checkpoints_is_not_lost(tmp_path, monkeypatch):
    """An error stands for the kill: what was written last is a state the run goes on from."""
    model, task, _ = system("toy")
    whole = gp.ACDC(tau=0.03, metric=DISTANCE).prune(model, task)
    saves = []
    save = search.GreedyPruning.save

    def counted(self):
        save(self)
        saves.append(self.open[-1].at if self.open else 9)
        if len(saves) == 3:
            raise MemoryError

    monkeypatch.setattr(search.GreedyPruning, "save", counted)
    monkeypatch.setattr(search, "_SAVE_EVERY", 0.0)
    rule = gp.ACDC(tau=0.03, metric=DISTANCE, candidates=1, run_dir=tmp_path / "run")
    with pytest.raises(MemoryError):
        rule.fit(model, task)
    assert 0 < saves[-1] < 9
    assert rule.fit(model, task).mask == whole
    assert saves == sorted(saves)


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 4, 4)])
@pytest.mark.parametrize("parallel", [False, True])
def test_orders_of_other_layouts_are_reverse_topological(shape, parallel):
    for coupled in (False, True):
        for embeddings in (1, 2):
            layers, *heads = shape
            layout = EdgeLayout((LayerShape(*heads),) * layers, parallel, coupled, embeddings)
            graph = layout.graph()
            assert is_reverse_topological(graph, edge_order(graph))
