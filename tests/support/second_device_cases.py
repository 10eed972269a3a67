"""On a second device everything gives the CPU's numbers, and nothing mixes two devices.

The device is simulated (:mod:`support.second_device`), so what runs here also refuses what a GPU
would. Prompts, labels and graphs lie on the device with the model, or stay on the CPU.
``tests/test_second_device.py`` runs this file in a process of its own.
"""

import dataclasses
import re

import pytest
import torch

import graphprune as gp
from graphprune import statistics as st
from graphprune.errors import InputError, UnsupportedModelError
from support.optimising import make_loss
from support.placed import (
    ALL,
    BOTH,
    CPU,
    GCN,
    MODEL_ALONE,
    SYSTEMS,
    TASK_ALONE,
    a_graph,
    assert_same_result,
    everywhere,
)
from support.second_device import DEVICE, install, synchronisations
from support.tiny import SMALL, rotated, tiny

pytestmark = pytest.mark.usefixtures("device", "small_models_decide")


@pytest.fixture(scope="module")
def device():
    install()


# ------------------------------------------------------------------ methods

# Settings of any method that has them, so that a new one is quick too.
QUICK = {"steps": 4, "samples": 2, "refine": 0, "batch_size": 4, "tau": 1e-2, "seed": 0}
# These need attention layers, an extra, or a network of PyG's that the simulation cannot move.
ODD = {"attention-explainer", "captum-explainer", "pg-explainer"}
MADE = {
    "calibrated-ranking": lambda: gp.CalibratedRanking("eap", sizes=(0.3, 0.5)),
    "parallel-ensemble": lambda: gp.ParallelEnsemble(["eap", "exact-patching"]),
    "sequential-ensemble": lambda: gp.SequentialEnsemble("eap", short(gp.EdgePruning)),
    "hybrid-ensemble": lambda: gp.HybridEnsemble(
        ["exact-patching", gp.SequentialEnsemble("eap", short(gp.EdgePruning))]
    ),
}


def short(kind):
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in QUICK.items() if name in names})


def fitted(name, system, place):
    method = MADE[name]() if name in MADE else short(type(gp.make_method(name)))
    model, task = SYSTEMS[system](*place)
    return method.fit(model, task, size=None if hasattr(method, "tau") else 0.4)


def same_on_the_device(name, system, places):
    try:
        want = fitted(name, system, CPU)
    except UnsupportedModelError as refused:
        with pytest.raises(UnsupportedModelError, match=re.escape(str(refused))):
            fitted(name, system, BOTH)
        return False
    for place in places:
        assert_same_result(fitted(name, system, place), want)
    return True


@pytest.mark.parametrize(("number", "name"), list(enumerate(gp.method_names())))
def test_every_method(number, name):
    """On one system in turn, the next one where that does not serve it."""
    first = 3 if name in MADE else number % 4  # those of other methods on the smallest
    names = [*SYSTEMS][first:] + [*SYSTEMS][:first]
    assert name in ODD or any(same_on_the_device(name, system, [BOTH]) for system in names)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", gp.method_names())
def test_every_method_on_every_system(name, system):
    same_on_the_device(name, system, ALL)


@pytest.mark.parametrize(
    "system", [pytest.param("gpt2", marks=pytest.mark.slow), "llama", "gcn", "argnn"]
)
@pytest.mark.parametrize("place", [MODEL_ALONE, TASK_ALONE], ids=["model", "task"])
def test_prompts_and_graphs_stay_where_they_are(system, place):
    for name in ("eap", "exact-patching"):
        assert same_on_the_device(name, system, [place])


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean_positional"])
@pytest.mark.parametrize("system", ["llama", "argnn"])
def test_ablations(system, ablation):
    everywhere(lambda *given: gp.EAP(ablation=ablation).score(*given).values, system)


@pytest.mark.parametrize("system", [pytest.param("gpt2", marks=pytest.mark.slow), "argnn"])
def test_learned_constants(system):
    method = gp.UGS(ablation="optimal", samples=2, steps=4, batch_size=4, size=0.4)
    everywhere(lambda *given: method.fit(*given).mask.values, system)


# ------------------------------------------------------------------ judging


def a_mask(model, size=0.4):
    draw = torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(2))
    return gp.EdgeScores(model.graph, draw).greedy(size)


@pytest.mark.parametrize("system", SYSTEMS)
def test_evaluation(system):
    def judged(model, task):
        report = gp.evaluate(model, task, a_mask(model), batch_size=2)
        return report.to_dict()

    everywhere(judged, system)


@pytest.mark.parametrize("system", SYSTEMS)
def test_curves_and_compiled_circuits(system):
    def curve(model, task):
        scores = gp.EdgeScores(
            model.graph, a_mask(model).values - torch.arange(model.graph.num_edges)
        )
        made = gp.faithfulness_curve(model, task, scores, sizes=[0.1, 0.5, 1.0])
        run = gp.Circuit.from_mask(a_mask(model)).compile(model, task)
        return made.to_frame().to_dict("list"), run()

    everywhere(curve, system)


def test_fresh_inputs_of_a_compiled_circuit():
    def outputs(model, task):
        batch = next(task.batches())
        return gp.Circuit.from_mask(a_mask(model)).compile(model, task)(batch.clean, batch.corrupt)

    everywhere(outputs, "llama")


def test_exactness():
    def exact(model, task):
        ones = gp.EdgeMask.full(model.graph)
        return (
            gp.equivalent(model, task, ones),
            gp.removable_edges(model, task, a_mask(model, 0.9)).values,
            gp.fidelity(model, task, a_mask(model)),
        )

    everywhere(exact, "argnn")


@pytest.mark.parametrize("test", st.TESTS)
def test_statistics(test):
    few = {} if test == "equivalence" else {"draws": 4}
    if test == "completeness":
        few |= {"greedy": 1, "steps": 2}
    if test == "necessity":
        few |= {"source": "graph"}

    def found(model, task):
        return st.TESTS[test](model, task, a_mask(model), **few).to_dict()

    everywhere(found, "argnn")
    if test in ("independence", "sufficiency"):
        everywhere(found, "gpt2", [BOTH])


@pytest.mark.parametrize("system", ["gcn", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_controls_and_stability(system):
    def made(model, task):
        controls = st.controls(
            model, task, method=gp.EAP(), size=0.4, kinds=("labels", "weights"), reruns=2, draws=3
        )
        stable = st.stability(gp.EAP(), model, task, size=0.4, resamples=2, draws=3)
        moved = st.transfer(model, {"a": a_mask(model)}, {"a": task, "b": task}, draws=5)
        return controls.to_dict(), stable.to_dict(), moved.to_dict()

    everywhere(made, system)


def test_comparisons():
    def compared(model, task):
        fits = {
            name: gp.make_method(name).fit(model, task, 0.4) for name in ("eap", "information-flow")
        }
        circuits = {
            n: gp.Circuit.from_result(fit, model=model, task=task) for n, fit in fits.items()
        }
        both = gp.compare_circuits(circuits, samples=5)
        profile = gp.compare_profiles(circuits, draws=9)
        return (
            both.to_dict(),
            profile.to_dict(),
            [c.provenance["model"]["weights"] for c in circuits.values()],
        )

    everywhere(compared, "llama")


def test_metrics_and_losses_of_ones_own():
    """They get the batch beside the outputs, wherever the prompts lie."""

    def chosen(outputs, batch, full=None):
        return outputs.gather(-1, batch.answer)[:, 0]

    chosen.higher_is_better = True

    def found(model, task):
        own = task.with_metric(chosen)
        method = gp.EdgePruning(size=0.4, steps=3, refine=0, batch_size=4, loss=chosen)
        return gp.EAP().score(model, own).values, method.fit(model, task).mask.values

    everywhere(found, "argnn")


def test_a_step_waits_for_the_device_a_few_times():
    """A loss that is shown, checks of masks and of finite numbers; not one for each part."""

    def waits(system, steps):
        method = gp.EdgePruning(size=0.4, steps=steps, refine=0, batch_size=4)
        model, task = SYSTEMS[system](*MODEL_ALONE)
        with synchronisations() as seen:
            method.fit(model, task)
        return len(seen)

    for system in ("gpt2", "gcn"):  # whose batches have all been seen after three steps
        assert 0 < waits(system, 6) - waits(system, 3) <= 3 * 6


# ------------------------------------------------------------------ files


def test_circuit_folder(tmp_path):
    def read(model, task):
        fit = gp.EAP().fit(model, task, 0.4)
        report = gp.evaluate(model, task, fit.mask)
        circuit = gp.Circuit.from_result(fit, model=model, task=task, report=report)
        again = gp.load(circuit.save(tmp_path / "circuit", overwrite=True))
        assert again == circuit
        return again.mask.values, again.scores.values, again.report.to_dict()

    for system in ("gpt2", "gcn"):
        everywhere(read, system, [BOTH])


def test_exported_model(tmp_path):
    """Exported from the device it is the CPU's own, and runs on the CPU."""

    def outputs(model, task):
        ablation = model.mean_ablation(task.batches())
        pruned = model.pruned(a_mask(model), ablation)
        ids = next(task.batches()).clean["input_ids"]
        return pruned.module(ids.to(model.arch.device))

    everywhere(outputs, "gpt2")
    everywhere(outputs, "llama", [BOTH])


# ------------------------------------------------------------------ runs


def test_a_stopped_run_goes_on_on_the_device(tmp_path):
    def run(place, folder, event="", at=-1):
        loss = make_loss(event, at)
        method = gp.EdgePruning(
            size=0.4, steps=8, refine=0, batch_size=4, loss=loss, run_dir=folder, checkpoint_every=2
        )
        return method.fit(*SYSTEMS["argnn"](*place))

    whole = run(CPU, None)
    for first, then in ((BOTH, CPU), (CPU, MODEL_ALONE)):
        folder = tmp_path / f"{first[0]} {then[0]} {then[1]}"
        assert run(first, folder, "interrupt", 5).stopped
        assert_same_result(run(then, folder), whole)


def test_acdc_goes_on_on_the_device(tmp_path):
    def acdc(**more):
        return gp.ACDC(tau=1e-2, **more)

    whole = acdc().fit(*SYSTEMS["llama"](*CPU))
    part = acdc(run_dir=tmp_path, max_evaluations=30).fit(*SYSTEMS["llama"](*BOTH))
    assert part.stopped
    assert_same_result(acdc(run_dir=tmp_path).fit(*SYSTEMS["llama"](*BOTH)), whole)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generated_text(temperature):
    def text(model, task):
        ids = next(task.batches()).clean["input_ids"][0]
        return model.generate_with(a_mask(model), ids, temperature=temperature, max_new_tokens=4)

    everywhere(text, "llama")


POLICIES = {
    "paper": {"head": "fp8", "mlp": "bf16"},
    "rounded": {"head": "int8", "mlp": "int4"},
}


@pytest.mark.parametrize(("family", "kinds"), rotated(["gpt2", "llama"], list(POLICIES)))
def test_precision_policies(family, kinds):
    def outputs(model, task):
        policy = gp.PrecisionPolicy(POLICIES[kinds], emulate=True)
        low = model.at_precision(policy.with_nodes({"a0.h0": "fp32"}))
        batch = next(task.batches())
        reference = low.reference(batch)
        return low.run(batch, a_mask(model), reference), reference.full

    everywhere(outputs, family)


# ------------------------------------------------------------------ the device itself


def test_what_a_gpu_refuses_is_refused():
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    cpu = torch.Generator()
    refused = [
        lambda: here + there,
        lambda: there.add_(here),
        lambda: torch.cat([here, there]),
        lambda: torch.stack([here.sum(), there.sum()]),
        lambda: there[torch.tensor([0], device=DEVICE)],
        lambda: here.index_select(0, torch.tensor([0])),
        lambda: torch.where(here > 0, there, here),
        lambda: torch.ones(3, 3) @ here,
        lambda: torch.rand(2, device=DEVICE, generator=cpu),
        lambda: torch.multinomial(here, 1, generator=cpu),
        lambda: here.numpy(),
    ]
    for job in refused:
        with pytest.raises((RuntimeError, TypeError)):
            job()
    assert (here + torch.tensor(2.0)).tolist() == [3, 3, 3]
    assert here[torch.tensor([0, 2])].tolist() == [1, 1]
    assert there.copy_(here * 2).tolist() == [2, 2, 2]
    with synchronisations() as seen:
        (here * here).add_(1)
        assert seen == []
        float(here.sum())
        assert len(seen) == 1


# ------------------------------------------------------------------ loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    tiny("llama", **SMALL["llama"]).save_pretrained(place)
    return place


@pytest.mark.parametrize("dtype", [None, "float64", torch.bfloat16])
def test_a_folder_is_loaded_onto_the_device(folder, dtype):
    model = gp.wrap(folder, device=DEVICE, dtype=dtype)
    want = torch.float32 if dtype is None else getattr(torch, str(dtype).split(".")[-1])
    assert {(p.device.type, p.dtype) for p in model.module.parameters()} == {(DEVICE, want)}
    assert {p.device.type for p in gp.wrap(str(folder)).module.parameters()} == {"cpu"}
    same = tiny("llama", **SMALL["llama"]).to(want)
    for ours, theirs in zip(model.module.parameters(), same.parameters(), strict=True):
        assert torch.equal(ours.cpu(), theirs)


def test_a_module_is_not_moved_behind_its_owners_back(folder):
    module = tiny("gpt2").to(DEVICE)
    assert gp.wrap(module, device=DEVICE, dtype="float32").module is module
    with pytest.raises(InputError, match=r"on sim:0 and not on cpu; .* call module\.to\(\.\.\.\)"):
        gp.wrap(module, device="cpu")
    with pytest.raises(
        InputError, match=r"on sim:0 and not on cpu, and torch\.float32 and not torch\.float64"
    ):
        gp.wrap(module, device="cpu", dtype="float64")
    with pytest.raises(InputError, match=r"float32 and not torch\.float16"):
        gp.wrap(GCN(), data=a_graph(), dtype=torch.float16)
    with pytest.raises(InputError, match="such as 'bfloat16', got 'floaty'"):
        gp.wrap(folder, dtype="floaty")
    with pytest.raises(InputError, match="wrapped already"):
        gp.wrap(gp.wrap(module), device="cpu")
    with pytest.raises(InputError, match="the device nowhere cannot be used"):
        gp.wrap(folder, device="nowhere")
    with pytest.raises(InputError, match="the device nowhere cannot be used"):
        gp.wrap(module, device="nowhere")
    with pytest.raises(InputError, match="not there"):
        gp.wrap(folder / "missing", device="cpu")
