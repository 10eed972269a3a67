"""One ranking, size and ablation give one circuit through every door: the one brute force gives."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from support.tiny import VOCAB, tiny
from support.tokenizers import byte_bpe

import graphprune as gp
from graphprune import mib_curve
from graphprune.adapters import ARGNN
from graphprune.statistics import shuffled_labels, stability

SIZE = 0.3


def changes(model, task, mask, ablation, noise=1e-6):
    """``[E]`` bool by brute force: does any output change when the kept edge alone is cut?"""
    kept = torch.nonzero(mask.kept)[:, 0]
    each = mask.values.repeat(len(kept) + 1, 1)
    each[torch.arange(len(kept)), kept] = 0.0
    found = torch.zeros(len(mask.values), dtype=torch.bool)
    for batch in task.batches():
        out = model.run(batch, each, model.reference(batch, ablation))
        found[kept] |= (out[:-1] - out[-1:]).abs().flatten(1).amax(1) > noise
    return found


def pairs():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCAB, (2, 6, 7), generator=generator)
    return gp.Task.from_tensors(ids[0], ids[1], answer=[1] * 6, distractor=[2] * 6)


def spans():
    tokenizer = byte_bpe()
    words = ("Mary", "the garden", "three old houses", "nobody at all")
    records = []
    for one, two in pairwise(words):
        lengths = [len(tokenizer(text)["input_ids"]) for text in (f"{one} is", f"{two} is")]
        record = {"clean": f"{one} is", "corrupt": f"{two} is", "answer": " a", "distractor": " t"}
        records.append(record | {"spans": {"all": [[0, n] for n in lengths]}})
    return gp.Task.from_pairs(records, tokenizer), len(tokenizer)


@dataclass(frozen=True, kw_only=True)
class Ranking(gp.Scorer):
    """Gives drawn scores."""

    number: int = 5

    def score(self, model, task):
        generator = torch.Generator().manual_seed(self.number)
        values = torch.rand(model.graph.num_edges, generator=generator)
        return gp.EdgeScores(model.graph, values)


def telling(model, task, ablation, size=SIZE):
    """The first drawn ranking whose best edges the two rules for dead ends prune differently."""
    for seed in range(100):
        method = Ranking(ablation=ablation, number=seed)
        top = method.score(model, task).top(size)
        strict, loose = (top.prune_dead_ends(from_inputs=x) for x in (True, False))
        if 0 < strict.num_kept < loose.num_kept < top.num_kept:
            return method, top
    raise AssertionError("no ranking tells the rules apart")


def doors(model, task, method):
    """The circuit by name of the way to it; reruns that agree keep the edges that all share."""

    def rerun(task):
        found = stability(method, model, task, size=SIZE, seeds=(), resamples=2, draws=1)
        return gp.EdgeMask.from_edges(model.graph, found["resamples"]["core"])

    return {
        "fit": method.fit(model, task, SIZE).mask,
        "prune": method.fit(model, task, size=int(SIZE * model.graph.num_edges)).mask,
        "statistics": rerun(task),
        "statistics, shuffled labels": rerun(shuffled_labels(task, how="exchange")),
    }


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        *(("gpt2", kind) for kind in ("counterfactual", "zero", "mean", "spans")),
        ("llama", "zero"),
        ("gemma2", "spans"),
    ],
)
def test_every_door_gives_the_circuit_that_brute_force_gives(family, ablation):
    if ablation == "spans":
        (task, vocabulary), ablation = spans(), "counterfactual"
        module = tiny(family, vocab_size=vocabulary)
    else:
        task, module = pairs(), tiny(family)
    model = gp.wrap(module.double())
    method, top = telling(model, task, ablation)
    scores = method.score(model, task)
    chosen = gp.methods.resolve_ablation(model, task, ablation)
    want = gp.EdgeMask(model.graph, changes(model, task, top, chosen).float())
    assert 0 < want.num_kept < top.num_kept, "the case must have dead ends and live edges"
    curve = gp.faithfulness_curve(model, task, scores, [SIZE, SIZE + 0.1], ablation=ablation)
    for door, mask in doors(model, task, method).items():
        if family == "gpt2":
            assert mask == want, (door, (mask ^ want).edges())
        # A model without biases sends nothing where it reads nothing: more edges than the graph
        # tells have no effect, and an effect that others undo cannot be told from none.
        assert not (want - mask).edges(), f"{door} drops edges that change the outputs"
        assert mask.num_kept == curve.kept["abs"][0], door
        report = gp.evaluate(model, task, mask, ablation=ablation)
        assert report["faithfulness"] == pytest.approx(curve.f["abs"][0], rel=1e-6), door


@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean"])
def test_recurrent_networks_too(ablation):
    edges = torch.tensor([[0, 1, 2, 3, 3, 5, 5, 6, 4], [2, 2, 3, 2, 4, 3, 6, 5, 6]])
    weight = torch.linspace(0.5, 1.2, 9)
    network = ARGNN(
        edges, inputs=[0, 1], outputs=[4], bias=True, weight=weight, update="synchronous", steps=12
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # small, so that tanh lets effects pass around the cycle
        network.bias.copy_(0.1 * torch.randn(network.bias.shape, generator=generator))
    model = gp.wrap(network.double())
    clean, corrupt = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    task = gp.tasks.patterns(clean, torch.tensor([0, 1, 0, 1, 0]), corrupt=corrupt, classes=2)
    method = Ranking(ablation=ablation)
    scores = method.score(model, task)
    chosen = gp.methods.resolve_ablation(model, task, ablation)
    for size in range(1, model.graph.num_edges + 1):
        top = scores.top(size)
        want = gp.EdgeMask(model.graph, changes(model, task, top, chosen, 1e-9).float())
        assert method.fit(model, task, size).mask == want, size


def test_submissions_prune_as_curves_do_where_spans_align():
    task, vocabulary = spans()
    model = gp.wrap(tiny("gpt2", vocab_size=vocabulary))
    method, _ = telling(model, task, "counterfactual", 0.2)
    scores = method.score(model, task)
    curve = mib_curve(model, task, scores)
    for size, kept in zip(curve.sizes, curve.kept["abs"], strict=True):
        count = int(size * model.graph.num_edges)
        own = method.fit(model, task, count).mask if count else gp.EdgeMask.empty(model.graph)
        assert kept == own.num_kept
        chosen = gp.Ablation("counterfactual")
        live = changes(model, task, scores.top(count), chosen) if 0 < count < 60 else own.kept
        assert int(live.sum()) == kept
