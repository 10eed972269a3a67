"""On a second device everything gives the CPU's numbers, and nothing mixes two devices.

The device is simulated (:mod:`support.second_device`), so what runs here also refuses what a GPU
would. Prompts, labels and graphs lie on the device with the model, or stay on the CPU.
"""

import dataclasses
import math
import re

import pytest
import torch
from support.optimising import make_loss
from support.second_device import DEVICE, install, synchronisations
from support.tiny import SMALL, random_pair, tiny
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import graphprune as gp
from graphprune import statistics as st
from graphprune.adapters import ARGNN
from graphprune.core.registry import method_class
from graphprune.errors import InputError, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("device", "small_models_decide")

BOTH, MODEL_ALONE, TASK_ALONE = (DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)
ALL = (BOTH, MODEL_ALONE, TASK_ALONE)


@pytest.fixture(scope="module")
def device():
    install()


# ------------------------------------------------------------------ systems


def language(family, on, task_on, **options):
    module = tiny(family, dtype=torch.float64, **SMALL[family])  # so that no rounding decides
    clean, corrupt = (ids.to(task_on) for ids in random_pair(module, batch=4, length=7))
    corrupt[:, 0] = clean[:, 0]
    right, wrong = (torch.full((4,), token).to(task_on) for token in (1, 2))
    task = gp.Task.from_tensors(clean, corrupt, answer=right, distractor=wrong)
    module.to(on).tie_weights()  # torch unties parameters that change to a device of Python's
    return gp.wrap(module, **options), task


class GCN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(4, 6), GCNConv(6, 3)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


def a_graph():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    index = pairs[torch.randperm(len(pairs), generator=generator)[:24]].T.contiguous()
    return Data(x=torch.randn(9, 4, generator=generator), edge_index=index, y=torch.arange(9) % 3)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def gcn(on, task_on):
    return gp.wrap(seeded(GCN).to(on), data=a_graph()), gp.tasks.nodes(a_graph().to(task_on))


def argnn(on, task_on):
    index = a_graph().edge_index
    index = index[:, index[1] >= 3]  # nodes 0 to 2 are clamped
    sizes = {"num_nodes": 9, "inputs": [0, 1, 2], "outputs": [6, 7, 8], "steps": 4}
    patterns = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).to(task_on)
    return gp.wrap(seeded(lambda: ARGNN(index, **sizes)).to(on)), gp.tasks.patterns(
        patterns, torch.arange(6).to(task_on) % 3
    )


SYSTEMS = {
    "gpt2": lambda *places: language("gpt2", *places),
    "llama": lambda *places: language("llama", *places),
    "gcn": gcn,
    "argnn": argnn,
}


# ------------------------------------------------------------------ comparing


def assert_same(ours, theirs, where="it"):
    """The same results, numbers within 1e-5, however they are nested."""
    if dataclasses.is_dataclass(ours) and not isinstance(ours, type):
        ours, theirs = (
            {f.name: getattr(x, f.name) for f in dataclasses.fields(x)} for x in (ours, theirs)
        )
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_same(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-5, atol=1e-5, equal_nan=True)
    elif isinstance(ours, float):
        close = math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-5)
        assert close or (math.isnan(ours) and math.isnan(theirs)), (where, ours, theirs)
    else:
        assert ours == theirs, where


def assert_same_result(ours, theirs):
    assert ours.mask == theirs.mask
    if ours.scores is not None:
        torch.testing.assert_close(ours.scores.values, theirs.scores.values, rtol=1e-5, atol=1e-5)
    assert not on_device(ours)


def on_device(result):
    """Whether a result's mask or scores lie on the device: values are the CPU's."""
    return any(
        x is not None and x.values.device.type != "cpu" for x in (result.mask, result.scores)
    )


def everywhere(job, system="gpt2", places=ALL):
    """What ``job(model, task)`` gives on the CPU is what it gives at the places."""
    want = job(*SYSTEMS[system]("cpu", "cpu"))
    for place in places:
        assert_same(job(*SYSTEMS[system](*place)), want)
    return want


# ------------------------------------------------------------------ methods

# Settings of any method that has them, so that a new one is quick too.
QUICK = {"steps": 4, "samples": 2, "batch_size": 4, "tau": 1e-2, "seed": 0}
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
    method = MADE[name]() if name in MADE else short(method_class(name))
    model, task = SYSTEMS[system](*place)
    return method.fit(model, task, size=None if hasattr(method, "tau") else 0.4)


def same_on_the_device(name, system, places):
    try:
        want = fitted(name, system, ("cpu", "cpu"))
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
    names = [*SYSTEMS][number % 4 :] + [*SYSTEMS][: number % 4]
    assert any(same_on_the_device(name, system, [BOTH]) for system in names)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", gp.method_names())
def test_every_method_on_every_system(name, system):
    same_on_the_device(name, system, ALL)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("place", [MODEL_ALONE, TASK_ALONE], ids=["model", "task"])
def test_prompts_and_graphs_stay_where_they_are(system, place):
    for name in ("eap", "exact-patching"):
        assert same_on_the_device(name, system, [place])


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean_positional"])
@pytest.mark.parametrize("system", ["llama", "argnn"])
def test_ablations(system, ablation):
    everywhere(lambda *given: gp.EAP(ablation=ablation).score(*given).values, system)


@pytest.mark.parametrize("system", ["gpt2", "argnn"])
def test_learned_constants(system):
    method = gp.UGS(ablation="optimal", samples=2, steps=4, batch_size=4, size=0.4)
    everywhere(lambda *given: method.fit(*given).mask.values, system, [BOTH, MODEL_ALONE])


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

    def found(model, task):
        return st.TESTS[test](model, task, a_mask(model), **few).to_dict()

    everywhere(found, "argnn")
    if test in ("independence", "sufficiency"):
        everywhere(found, "gpt2", [BOTH])


def test_controls_and_stability():
    def made(model, task):
        controls = st.controls(
            model, task, method=gp.EAP(), size=0.4, kinds=("labels", "weights"), reruns=2, draws=3
        )
        stable = st.stability(gp.EAP(), model, task, size=0.4, resamples=2, draws=3)
        moved = st.transfer(model, {"a": a_mask(model)}, {"a": task, "b": task}, draws=5)
        return controls.to_dict(), stable.to_dict(), moved.to_dict()

    everywhere(made, "gcn")
    everywhere(made, "gpt2", [BOTH])


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

    everywhere(compared, "llama", [BOTH, MODEL_ALONE])


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

    everywhere(outputs, "gpt2", [BOTH, MODEL_ALONE])
    everywhere(outputs, "llama", [BOTH])


# ------------------------------------------------------------------ runs


def test_a_stopped_run_goes_on_on_the_device(tmp_path):
    def run(place, folder, event="", at=-1):
        loss = make_loss(event, at)
        method = gp.EdgePruning(
            size=10, steps=8, batch_size=4, loss=loss, run_dir=folder, checkpoint_every=2
        )
        return method.fit(*SYSTEMS["gpt2"](*place))

    whole = run(("cpu", "cpu"), None)
    for first, then in ((BOTH, BOTH), (BOTH, ("cpu", "cpu")), (("cpu", "cpu"), MODEL_ALONE)):
        folder = tmp_path / f"{first[0]} {then[0]} {then[1]}"
        assert run(first, folder, "interrupt", 5).stopped
        assert_same_result(run(then, folder), whole)


def test_acdc_goes_on_on_the_device(tmp_path):
    def acdc(**more):
        return gp.ACDC(tau=1e-2, **more)

    whole = acdc().fit(*SYSTEMS["llama"]("cpu", "cpu"))
    part = acdc(run_dir=tmp_path, max_evaluations=30).fit(*SYSTEMS["llama"](*BOTH))
    assert part.stopped
    assert_same_result(acdc(run_dir=tmp_path).fit(*SYSTEMS["llama"](*BOTH)), whole)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generated_text(temperature):
    def text(model, task):
        ids = next(task.batches()).clean["input_ids"][0]
        return model.generate_with(a_mask(model), ids, temperature=temperature, max_new_tokens=4)

    everywhere(text, "llama")


@pytest.mark.parametrize("kinds", [{"head": "fp8", "mlp": "bf16"}, {"head": "int8", "mlp": "int4"}])
def test_precision_policies(kinds):
    def outputs(model, task):
        policy = gp.PrecisionPolicy(kinds, emulate=True)
        low = model.at_precision(policy.with_nodes({"a0.h0": "fp32"}))
        batch = next(task.batches())
        reference = low.reference(batch)
        return low.run(batch, a_mask(model), reference), reference.full

    for family in ("gpt2", "llama"):
        everywhere(outputs, family, [BOTH, MODEL_ALONE])


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
    with pytest.raises(InputError, match="not there"):
        gp.wrap(folder / "missing", device="cpu")
