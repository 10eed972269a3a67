"""Variants of methods: published settings that fill in what is not said."""

import copy
import dataclasses

import pytest
from support.toy import Toy, ToyExamples

import graphprune as gp

METHODS = [
    gp.ACDC,
    gp.EAPIG,
    gp.EdgePruning,
    gp.HybridEnsemble,
    gp.MatryoshkaPruning,
    gp.NAPIG,
    gp.ParallelEnsemble,
    gp.RelP,
    gp.SequentialEnsemble,
    gp.SubnetworkProbing,
    gp.UniformGradientSampling,
]
VARIANTS = [(kind, name) for kind in METHODS for name in kind.variants]


def shown(value, settings, name):
    """A value as docstrings write it: schedules in steps, long numbers cut."""
    if isinstance(value, tuple):
        return ""  # an ensemble's members, which its own test names
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if name in ("warmup", "ramp"):
        return f"{round(value * settings['steps']):,}"
    return str(value)[:5]


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_settings_are_filled_in_and_what_is_said_wins(kind, variant):
    settings = kind.variants[variant]
    made = kind(variant=variant)
    for field in dataclasses.fields(kind):
        value = getattr(made, field.name)
        if field.name in settings:
            assert value == settings[field.name]
            assert field.name in kind.__doc__
            assert shown(value, settings, field.name) in kind.__doc__, field.name
        elif field.name != "variant" and field.default is not dataclasses.MISSING:
            assert value == field.default
        default = field.default
        unsaid = default is None or default is dataclasses.MISSING
        if field.name in settings and not unsaid and field.name != "scorers":
            said = kind(variant=variant, **{field.name: default})
            assert getattr(said, field.name) == default
            assert dataclasses.replace(said) == said
    assert made.label == f"{kind.__name__}(variant={variant!r})"


@pytest.mark.parametrize("kind", METHODS)
def test_unknown_variants_are_refused_with_the_list(kind):
    with pytest.raises(gp.InputError, match="unknown variant 'mine'") as caught:
        kind(variant="mine")
    assert all(name in str(caught.value) for name in ("default", *kind.variants))


def test_edge_prunings_settings_are_those_of_the_released_scripts():
    """Read off run_scripts of github.com/princeton-nlp/Edge-Pruning (a918efd), once by hand."""
    found = {
        name: [made.steps, made.batch_size, made.lr, made.lr_lambda, made.node_loss]
        for name in gp.EdgePruning.variants
        for made in [gp.EdgePruning(variant=name)]
    }
    assert found == {
        "paper": [3000, 32, 0.8, 0.8, "idle"],
        "paper-greater-than": [3000, 32, 0.8, 0.8, "idle"],
        "paper-gendered-pronoun": [3000, 32, 0.8, 0.8, "idle"],
        "paper-tracr-reverse": [6000, 16, 0.03, 0.001, "off"],
        "paper-tracr-xproportion": [720, 16, 1.0, 0.0001, "on"],
        "paper-boolean-expressions": [6000, 32, 0.8, 0.4, "off"],
    }
    paper = gp.EdgePruning(variant="paper")
    assert (paper.clip, paper.node_gates, paper.loss, paper.refine) == (1.0, True, "kl", 0)


def test_by_name_in_records_and_with_none_for_not_said():
    method = gp.make_method("uniform-gradient-sampling", variant="mib", steps=3, samples=2)
    assert method == gp.UGS(variant="mib", steps=3, samples=2, lr=None, batch_size=None)
    assert gp.UGS is gp.UniformGradientSampling
    model, task = Toy(seed=3), gp.Task(ToyExamples(6), "logit_diff", batch_size=6)
    circuit = gp.Circuit.from_result(method.fit(model, task, size=4), model=model, method=method)
    record = circuit.provenance["method"]
    assert record["name"] == "UniformGradientSampling"
    settings = record["settings"]
    expected = {"variant": "mib", "steps": 3, "samples": 2, "penalty": 0.001, "batch_size": 5}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize("kind", METHODS)
def test_copies_are_the_same(kind):
    """Processes of a study get theirs in the same way."""
    made = kind(variant="paper", ablation="zero")
    other = copy.deepcopy(made)
    assert other == made
    assert vars(other).keys() == vars(made).keys()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slower(gp.EAPIG):
    """A method of a user's own, with a variant more."""

    variants = {**gp.EAPIG.variants, "slow": {"steps": 50}}  # noqa: RUF012


def test_subclasses_have_the_variants_too():
    assert Slower(variant="slow").steps == 50
    assert Slower(variant="paper").points_at == "left"
    assert Slower(variant="slow", steps=5).steps == 5
