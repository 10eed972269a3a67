"""Runs that are killed, interrupted, broken or resumed differently."""

import gc
import os
import signal
import weakref

import pytest
import torch
from support.marks import quick
from support.optimising import make_loss, make_method, toy_task
from support.processes import in_a_process
from support.toy import EDGES, Toy, ToyExamples

import graphprune as gp
from graphprune.errors import FormatError, InputError, NumericalError


def whole(kind):
    return make_method(kind, None, make_loss()).fit(Toy(seed=3), toy_task())


RUNS = [("default", 1), ("default", 23), ("default", 40), ("paper", 17), ("ugs", 31)]
RUNS += [("minimal", 300)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    cases = [f"{kind},{at}" for kind, at in RUNS]
    done = in_a_process("-m", "support.optimising", folder, *cases)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("kind", "at"), quick(RUNS, [RUNS[1], RUNS[3], RUNS[5]]))
def test_killed_and_resumed_ends_in_the_same_bits(kind, at, killed):
    run = killed / f"{kind},{at}"
    resumed = make_method(kind, run, make_loss()).fit(Toy(seed=3), toy_task())
    straight = whole(kind)
    assert torch.equal(resumed.scores.values, straight.scores.values)
    assert resumed.mask == straight.mask
    assert resumed.circuits == straight.circuits
    assert resumed.history == straight.history
    assert resumed.notes["loss"] == straight.notes["loss"]
    leftovers = {p.name for p in run.iterdir()}
    assert leftovers == {"run.json", "checkpoint.safetensors"}


def test_a_finished_run_is_read_not_repeated(tmp_path):
    first = make_method("default", tmp_path, make_loss(), refine=0).fit(Toy(seed=3), toy_task())
    broken = make_loss("nan", 1)  # any step would fail
    again = make_method("default", tmp_path, broken, refine=0).fit(Toy(seed=3), toy_task())
    assert again.mask == first.mask
    assert again.history == first.history


def test_ctrl_c_gives_a_mask_that_says_what_it_is_and_can_be_resumed(tmp_path, caplog):
    loss = make_loss("interrupt", 15)
    stopped = make_method("default", tmp_path / "run", loss).fit(Toy(seed=3), toy_task())
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert said == (
        "stopped at step 15 of 40: the circuit is no finished result, but the mask of the gates at "
        f"step 15, which were still moving; the same run goes on from {tmp_path / 'run'}"
    )
    assert stopped.notes["stopped"] == stopped.stopped
    assert stopped.notes["circuit_is"] in said
    assert stopped.stopped == "stopped at step 15 of 40"
    assert stopped.mask.num_kept == 4
    assert stopped.mask.prune_dead_ends() == stopped.mask
    assert len(stopped.history) == 15
    resumed = make_method("default", tmp_path / "run", make_loss()).fit(Toy(seed=3), toy_task())
    straight = whole("default")
    assert torch.equal(resumed.scores.values, straight.scores.values)
    assert not resumed.stopped
    assert "stopped" not in resumed.notes


def rising_loss(at, judged):
    """Ctrl-C in the ``at``-th step; of masks that are judged each is worse than the one before."""
    step, number = make_loss("interrupt", at), [judged]

    def loss(outputs, batch, full):
        if torch.is_grad_enabled():
            return step(outputs, batch, full)
        number[0] += 1
        return torch.full((len(outputs),), float(number[0]))

    return loss


class Halting(gp.EdgePruning):
    """Judged at step 10 too."""

    def points(self):
        return [10, self.steps]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_stopped_run_says_which_steps_mask_it_gives(resumed, tmp_path, caplog):
    """The mask judged at step 10 is made the better one; it stays that of step 10 when resumed."""
    common = {"size": 4, "steps": 40, "batch_size": 4, "checkpoint_every": 6}
    folder = tmp_path / "run" if resumed else None
    loss = rising_loss(13, 0)
    fit = Halting(loss=loss, run_dir=folder, **common).fit(Toy(seed=3), toy_task())
    if resumed:
        fit = Halting(loss=rising_loss(5, 100), run_dir=folder, **common).fit(
            Toy(seed=3), toy_task()
        )
    assert fit.notes["circuit_is"] == "the mask of step 10, the best of those judged"
    assert fit.stopped == ("stopped at step 18 of 40" if resumed else "stopped at step 13 of 40")
    said = caplog.records[-1].getMessage()
    assert ("run_dir=, --run-dir" in said) == (not resumed)


@pytest.mark.parametrize("inside", ["warm start", "bootstrap", "stability"])
def test_ctrl_c_inside_something_larger_ends_it(inside):
    """Half a run's ranking was taken for the method's, and kept by a study."""
    member = make_method("default", None, make_loss("interrupt", 5))
    model, task = Toy(seed=3), toy_task()

    calls = {
        "warm start": lambda: make_method("default", None, make_loss(), warm_start=member).fit(
            model, task
        ),
        "bootstrap": lambda: gp.bootstrap_scores(member, model, task, resamples=2),
        "stability": lambda: gp.statistics.stability(member, model, task),
    }
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            calls[inside]()
    finally:
        signal.signal(signal.SIGINT, before)
    assert member.fit(model, task).mask.num_kept == 4  # the handler is as before


def test_second_ctrl_c_stops_at_once(tmp_path):
    def loss(outputs, batch, full):
        os.kill(os.getpid(), 2)
        os.kill(os.getpid(), 2)
        return (outputs - full).square().mean(-1)

    with pytest.raises(KeyboardInterrupt):
        make_method("default", tmp_path / "run", loss).fit(Toy(seed=3), toy_task())


def test_nan_names_step_and_cause_and_keeps_the_checkpoint(tmp_path):
    loss = make_loss("nan", 21)
    with pytest.raises(
        NumericalError, match=r"step 20: the loss is nan; the checkpoint of step 18"
    ):
        make_method("default", tmp_path / "run", loss).fit(Toy(seed=3), toy_task())
    resumed = make_method("default", tmp_path / "run", make_loss()).fit(Toy(seed=3), toy_task())
    assert torch.equal(resumed.scores.values, whole("default").scores.values)


def test_nan_gradient_is_named():
    def loss(outputs, batch, full):
        return (outputs[:, 0] - outputs[:, 0].detach()).abs().sqrt()  # 0, with an infinite slope

    with pytest.raises(NumericalError, match=r"step 0: \d of 9 gradients of edges are NaN"):
        gp.EdgePruning(size=4, steps=5, loss=loss).fit(Toy(seed=3), toy_task())


def test_nan_metric_names_the_example():
    def broken(outputs, batch, full):
        values = (outputs - full).square().mean(-1)
        return torch.where(torch.tensor(batch.indices) == 5, float("nan"), values)

    loss = gp.Metric("broken", broken, higher_is_better=False)
    with pytest.raises(NumericalError, match=r"step \d+: metric 'broken' .*example numbers \[5\]"):
        gp.EdgePruning(size=4, steps=5, loss=loss).fit(Toy(seed=3), toy_task())


def test_changed_settings_model_and_task_are_refused(tmp_path):
    make_method("default", tmp_path, make_loss()).fit(Toy(seed=3), toy_task())
    cases = [
        ("default", {"steps": 50}, 10, "steps was 40, is 50"),
        ("paper", {}, 10, "lr was None, is 0.8"),
        ("ugs", {}, 10, "method was EdgePruning"),
        ("default", {}, 9, "task.examples was 10, is 9"),
    ]
    for kind, options, examples, words in cases:
        method = make_method(kind, tmp_path, make_loss(), **options)
        with pytest.raises(InputError, match=words):
            method.fit(Toy(seed=3), toy_task(examples))


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    method = make_method("default", tmp_path / "run", make_loss())
    method.fit(Toy(seed=3), toy_task())
    file = tmp_path / "run" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"checkpoint.safetensors: no checkpoint"):
        method.fit(Toy(seed=3), toy_task())
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(FormatError, match=r"run.json: no run description"):
        method.fit(Toy(seed=3), toy_task())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="holds no run; nothing was touched"):
        make_method("default", tmp_path / "other", make_loss()).fit(Toy(seed=3), toy_task())
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["mine.txt"]


class Chain(Toy):
    """A toy in which input and output are three edges apart."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        far = [
            e
            for e in EDGES
            if e not in (("in", "out"), ("a", "out"), ("in", "b"), ("b", "out"), ("a", "c"))
        ]
        self._graph = gp.ComputationalGraph.from_edges(far)


def test_budget_below_one_path_is_refused_before_anything_runs():
    with pytest.raises(InputError, match=r"a circuit of 2 edges .* the shortest path needs 4"):
        gp.EdgePruning(size=2, steps=5).fit(Chain(), toy_task())
    with pytest.raises(InputError, match="a circuit of 0 edges"):
        gp.EdgePruning(size=0.05, steps=5).fit(Toy(), toy_task())
    with pytest.raises(InputError, match="from 0 to 9, got 10"):
        gp.EdgePruning(size=10, steps=5).fit(Toy(), toy_task())


def test_other_answers_and_another_function_are_another_run(tmp_path):
    class Swapped(ToyExamples):
        def batch(self, indices):
            found = super().batch(indices)
            return gp.Batch(
                found.clean, found.corrupt, found.size, found.indices,
                answer=found.distractor, distractor=found.answer,
            )  # fmt: skip

    first = {
        "size": 4,
        "steps": 4,
        "run_dir": tmp_path,
        "loss": lambda o, b, f: (o - f).abs().mean(-1),
    }
    gp.EdgePruning(**first).fit(Toy(seed=3), toy_task())
    with pytest.raises(InputError, match=r"task.digest was"):
        gp.EdgePruning(**first).fit(Toy(seed=3), gp.Task(Swapped(10), "accuracy", batch_size=4))
    other = {**first, "loss": lambda o, b, f: (o - f).square().mean(-1)}
    with pytest.raises(InputError, match=r"settings.loss was"):
        gp.EdgePruning(**other).fit(Toy(seed=3), toy_task())


def test_ctrl_c_while_masks_are_judged_keeps_the_mask(tmp_path):
    calls = []

    def loss(outputs, batch, full):
        if not outputs.requires_grad and not calls:
            calls.append(1)
            os.kill(os.getpid(), 2)
        return (outputs - full).square().mean(-1)

    fit = gp.EdgePruning(size=4, steps=10, batch_size=4, loss=loss).fit(Toy(seed=3), toy_task())
    assert calls
    assert fit.mask.num_kept == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": None, "sparsity": 1.0}, r"in \[0, 1\)"),
        ({"size": None, "sparsity": "least"}, "or 'minimal'"),
        ({"size": None, "sparsity": True}, "or 'minimal'"),
        ({"size": 0}, "size is a number of edges from 1"),
        ({"size": "least"}, "size is a number of edges"),
        ({"size": 1.5}, r"in \(0, 1\]"),
        ({"steps": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"variant": "best"}, "unknown variant 'best'; known: default, paper"),
        ({"variant": "paper", "size": "minimal"}, "'minimal' needs the default"),
        ({"variant": "paper", "path": (5,)}, "the paper's has none"),
        ({"size": "minimal", "path": (5,)}, "reads neither path nor refine"),
        ({"size": "minimal", "refine": 2}, "reads neither path nor refine"),
        ({"temperature": (0.5, 0.0)}, "positive"),
        ({"start": 1.0}, "shares"),
        ({"lr": -1.0}, "lr must be a number from 0 on"),
        ({"refine": -1}, "refine must be"),
        ({"shape": "round"}, "unknown shape 'round'"),
        ({"variant": "paper", "hold": 0.5}, "variant='paper' does not read hold"),
        ({"target": 0.9}, "variant='default' does not read target"),
        ({"loss": "nll"}, "unknown loss 'nll'; known: auto, kl, mse, task"),
        ({"loss": 3}, "a loss is a name"),
        ({"loss": "task"}, "has no gradient"),
        ({"loss": lambda outputs, batch, full: outputs.detach()[:, 0]}, "without a gradient"),
        ({"loss": lambda outputs, batch, full: outputs.sum()}, "one value for each"),
        ({"warm_start": 3}, "EdgeScores, a scorer or a scorer's name"),
        ({"warm_start": "nonsense"}, "unknown method 'nonsense'"),
        ({"ablation": "optimal"}, "needs constants to learn in place of messages"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(gp.GraphPruneError, match=words):
        gp.EdgePruning(**{"size": 4, "steps": 2, **options}).fit(Toy(), toy_task())


def test_a_data_set_that_ends_early_is_named():
    class Short(ToyExamples):
        def batch(self, indices):
            return super().batch([i for i in indices if i < 7])

    task = gp.Task(Short(10), "accuracy", batch_size=4)
    with pytest.raises(InputError, match=r"the data set ended early: 4 examples were asked for"):
        gp.EdgePruning(size=4, steps=9, loss="mse").fit(Toy(), task)


def test_scores_of_another_graph_do_not_warm_start():
    other = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    scores = gp.EdgeScores(other, torch.zeros(2))
    with pytest.raises(gp.GraphMismatchError, match="warm start"):
        gp.EdgePruning(size=4, steps=2, warm_start=scores).fit(Toy(), toy_task())


@pytest.mark.parametrize("kind", ["default", "paper", "ugs", "calibrated"])
def test_cached_passes_go_with_their_run(kind, monkeypatch):
    """At once: a cycle would keep gigabytes until some later collection."""
    alive = weakref.WeakSet()
    real = Toy.reference

    def watched(self, batch, ablation=None):
        reference = real(self, batch, ablation)
        alive.add(reference)
        return reference

    if kind == "calibrated":
        method = gp.CalibratedRanking("eap", rounds=2)
    else:
        method = make_method(kind, None, make_loss())
    task = gp.Task(ToyExamples(6), "logit_diff", batch_size=3)
    method.score(Toy(seed=3), task)  # the first one imports
    monkeypatch.setattr(Toy, "reference", watched)
    gc.collect()
    gc.disable()
    try:
        method.score(Toy(seed=3), task)
        assert len(alive) == 0
    finally:
        gc.enable()
