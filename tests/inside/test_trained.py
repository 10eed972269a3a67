"""The small trained model of the slow tests: its prompts, its cache, and that it does the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import graphprune as gp
from graphprune.adapters.reference_models import language as trained
from graphprune.adapters.reference_models.language import (
    TrainingSettings,
    accuracy,
    trained_ioi,
    trained_task,
    trained_tokenizer,
)

pytestmark = pytest.mark.inside

TINY = TrainingSettings(layers=1, heads=2, width=8, prompts=200, steps=3, batch=8, accuracy=0.0)


def prompts(task: gp.Task) -> set[tuple[int, ...]]:
    return {tuple(b.clean["input_ids"][0].tolist()) for b in task.batches(1)}


def test_held_out_prompts_are_not_trained_on() -> None:
    tokenizer = trained_tokenizer()
    seen = set()
    for seed in (0, 1):
        train = prompts(trained_task(tokenizer, 800, seed, held_out=False))
        test = prompts(trained_task(tokenizer, 200, seed))
        assert (len(train), len(test)) == (800, 200)
        seen |= train
        assert seen.isdisjoint(test)
    assert prompts(trained_task(tokenizer, 50, 0)) == prompts(trained_task(tokenizer, 50, 0))


def test_words_are_one_token() -> None:
    tokenizer = trained_tokenizer()
    for word in (*trained.PEOPLE, *trained.PLACES, *trained.OBJECTS):
        assert len(tokenizer(f"the {word}")["input_ids"]) == 2


def test_the_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    model, tokenizer = trained_ioi(3, TINY, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    [kept] = tmp_path.rglob("*.safetensors")
    assert kept.name.startswith("trained-ioi-")
    fresh, _ = trained_ioi(3, TINY, tmp_path / "other")
    # A second call must not train. What trains is part of the key, so its inside is taken out.
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    again, _ = trained_ioi(3, TINY, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, fresh.state_dict()[name])
    assert model.config.vocab_size == len(tokenizer)


def test_a_model_that_does_not_learn_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the held-out prompts"):
        trained_ioi(0, TrainingSettings(**{**vars(TINY), "accuracy": 0.9}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_trained_model_does_the_task() -> None:
    model, tokenizer = trained_ioi()
    task = trained_task(tokenizer, 1000, seed=5)
    found = accuracy(model, task)
    wrapped = gp.wrap(model)
    report = gp.evaluate(wrapped, task.take(200), gp.EdgeMask.full(wrapped.graph))
    print(f"\nheld-out accuracy {found:.3f}", report.full, report.ablated, wrapped.graph)
    assert found >= 0.97
    assert report.full["accuracy"] >= 0.97
    assert report.ablated["accuracy"] < 0.7
