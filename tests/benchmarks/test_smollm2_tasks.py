"""How well SmolLM2 does the tasks, and how long many prompts take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.named import metric

from graphprune import Task, tasks
from graphprune.util.fetch import ARTIFACTS, cache_folder

SOLVED = [
    ("ioi", {"corruption": "abc"}),
    ("ioi", {"corruption": "swap"}),
    ("greater_than", {}),
    ("gendered_pronoun", {}),
    ("gender_because", {}),
    ("docstring", {}),
    ("capitals", {"n": 50}),
    ("antonyms", {"n": 50}),
    ("successor", {"n": 50}),
    *(
        (name, {"n": 50, "style": style})
        for name in ("capitals", "antonyms", "successor")
        for style in ("instruction", "few_shot")
    ),
    ("subject_verb_agreement", {}),
    ("subject_verb_agreement", {"structure": "phrase"}),
]
METRIC = {name: metric(name) for name in ("logit_diff", "accuracy")}
HARDER = [
    ("subject_verb_agreement", {"structure": "relative"}),
    ("induction", {"of": "words"}),
    ("induction", {"of": "tokens"}),
    ("boolean_expressions", {}),
]


def _folder() -> Any:
    artifact = ARTIFACTS["smollm2"]
    folder = cache_folder() / f"{artifact.name}-{artifact.version}"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no checkpoint in {folder}; `graphprune fetch smollm2` puts it there")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder())


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, os.cpu_count() or 1))
    yield AutoModelForCausalLM.from_pretrained(_folder(), dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@torch.no_grad()
def measured(model: Any, task: Task) -> dict[str, float]:
    """Accuracy, share of prompts whose likeliest token is an answer, mean logit differences."""
    sums: dict[str, float] = {}
    for batch in task.batches(25):
        assert batch.positions is not None
        assert batch.answer is not None
        for name, inputs in (("clean", batch.clean), ("corrupt", batch.corrupt)):
            hidden = model.model(**inputs).last_hidden_state
            logits = model.lm_head(hidden[torch.arange(batch.size), batch.positions])
            found = {f"logit_diff_{name}": METRIC["logit_diff"](logits, batch).sum()}
            if name == "clean":
                found["accuracy"] = METRIC["accuracy"](logits, batch).sum()
                best = logits.argmax(-1, keepdim=True)
                found["top1"] = (best == batch.answer).any(1).sum()
            for key, value in found.items():
                sums[key] = sums.get(key, 0.0) + float(value) / len(task)
    return sums


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "options"), SOLVED + HARDER, ids=str)
def test_smollm2_does_the_tasks(
    name: str, options: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    task = tasks.make(name, tokenizer, **{"n": 100, **options})
    found = measured(model, task)
    figures = "  ".join(f"{key} {value:5.2f}" for key, value in sorted(found.items()))
    print(f"\n{name} {options}: {len(task)} prompts  {figures}")
    if (name, options) in SOLVED:
        assert found["accuracy"] >= (0.95 if "style" in options else 0.9)
        assert found["logit_diff_clean"] > found["logit_diff_corrupt"] + 1
    assert 0 <= found["accuracy"] <= 1


@pytest.mark.slow
def test_a_hundred_thousand_prompts(tokenizer: Any) -> None:
    start, used = time.perf_counter(), time.process_time()
    task = tasks.ioi(tokenizer, n=100_000)
    spent = time.process_time() - used
    print(f"\n100,000 IOI pairs: {time.perf_counter() - start:.1f} s, {spent:.1f} s of processor")
    assert len(task) == 100_000
    assert spent < 120
