"""The conformance suite on our adapters and on a third party's, and that it can fail."""

import dataclasses

import pytest
import torch
from support.marks import quick
from support.tiny import FAMILIES, random_pair, tiny
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune import Scorer
from graphprune.conformance import ConformanceError, check_adapter, check_method

METHODS = [
    gp.EAP(),
    gp.EAPIG(steps=2),
    gp.EAPIG(steps=2, points_at="right", integrate="activations"),
    gp.EAPIG(steps=2, points_at="right", integrate="activations-reference"),
    gp.CleanCorrupted(),
    gp.IntegratedMaskGradient(steps=2),
    gp.ExactPatching(),
    gp.InformationFlow(),
    gp.NAP(),
    gp.NAPIG(steps=2),
    gp.Random(seed=3),
]


def language(family, **options):
    module = tiny(family, **options)
    clean, corrupt = random_pair(module, batch=4)
    task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 4, distractor=[2] * 4)
    return gp.wrap(module), task


def toy():
    return Toy(), gp.Task(ToyExamples(), "logit_diff", name="toy")


# Of the others these differ in settings, which the oracle's tests cover.
ALIKE = {"gpt_neox_sequential", "llama_mha", "mistral", "qwen2"}


@pytest.mark.parametrize("family", quick(FAMILIES, [f for f in FAMILIES if f not in ALIKE]))
def test_every_family_conforms(family):
    found = check_adapter(*language(family, dtype=torch.float64))
    assert set(found.values()) == {"passed"}


@pytest.mark.parametrize("family", quick(["gpt2", "gpt_neo"], ["gpt2"]))
def test_two_embedding_nodes_conform(family):
    module = tiny(family, dtype=torch.float64)
    model = gp.wrap(module, embedding_nodes=2)
    _, task = language(family)
    assert (
        model.graph.num_edges
        == gp.wrap(module).graph.num_edges + sum(3 * 4 + 1 for _ in range(model.layout.layers)) + 1
    )
    check_adapter(model, task)
    with pytest.raises(gp.UnsupportedModelError, match="rotary"):
        gp.wrap(tiny("llama"), embedding_nodes=2)


def test_a_third_partys_adapter_conforms():
    found = check_adapter(*toy())
    lacks = {
        "constants_begin_as_they_should": "no LearnedConstants",
        "trials_are_whole_runs": "no IncrementalTrials",
        "compiled_circuits_are_masked_runs": "no CompiledCircuits",
        "a_wider_copy_is_the_model": "no WiderCopy",
    }
    assert {k: v for k, v in found.items() if v != "passed"} == lacks


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
@pytest.mark.parametrize("make", [toy, lambda: language("llama")], ids=["toy", "llama"])
def test_every_method_conforms_on_every_adapter(method, make):
    assert set(check_method(method, *make()).values()) == {"passed"}


def test_relevance_conforms_where_there_is_some():
    assert set(check_method(gp.RelP(), *language("llama")).values()) == {"passed"}
    with pytest.raises(gp.UnsupportedModelError, match="RelP needs relevance propagation"):
        gp.RelP().score(*toy())


def test_an_adapter_with_a_wrong_gradient_is_caught():
    """The MLP-score bug of two libraries: a gradient taken at the wrong place."""

    class Wrong(Toy):
        def edge_gradients(self, *args, **kwargs):
            found = super().edge_gradients(*args, **kwargs)
            found.edge[2] *= 2
            return found

    _, task = toy()
    with pytest.raises(ConformanceError, match="attribution_is_the_mask_gradient"):
        check_adapter(Wrong(), task)
    excuse = {"attribution_is_the_mask_gradient": "known"}
    assert "known" in str(check_adapter(Wrong(), task, expected_failures=excuse))
    with pytest.raises(ConformanceError, match="passed, though excused"):
        check_adapter(Toy(), task, expected_failures=excuse)
    with pytest.raises(ConformanceError, match="names no check"):
        check_adapter(Toy(), task, expected_failures={"nothing": "x"})


def test_a_method_that_is_not_reproducible_is_caught():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Dice(Scorer):
        def score(self, model, task):
            return gp.EdgeScores(model.graph, torch.randn(model.graph.num_edges))

    with pytest.raises(ConformanceError, match="two runs"):
        check_method(Dice(), *toy())
