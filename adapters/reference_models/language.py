"""A small GPT-2 that was taught indirect object identification, and prompts it has never seen.

Training takes one or two minutes on one core, once.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from graphprune.core.batch import Batch
from graphprune.core.task import Task
from graphprune.tasks.indirect_object import FRAMES, ioi
from graphprune.tasks.words import NAMES, OBJECTS, PLACES
from graphprune.util.modes import with_gradients

from .train_once import cross_entropy_step, train_once

log = logging.getLogger(__name__)

__all__ = [
    "TrainingSettings",
    "accuracy",
    "trained_ioi",
    "trained_task",
    "trained_tokenizer",
    "word_tokenizer",
]

PEOPLE = NAMES[:12]
HELD_OUT = 5  # one prompt in five is never trained on


@dataclass(frozen=True)
class TrainingSettings:
    """How the model is made; ``accuracy`` is what held-out prompts must reach."""

    layers: int = 4
    heads: int = 8
    width: int = 64
    prompts: int = 20_000
    steps: int = 2_000
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.01
    accuracy: float = 0.97


def word_tokenizer(names: Sequence[str] = NAMES) -> Any:
    """Byte-level BPE that holds every word of the indirect-object task as one token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = [f"the {word}" for word in (*names, *PLACES, *OBJECTS)]
    frames = [f.replace("{place}", "x").replace("{object}", "x") for f in FRAMES]
    raw.train_from_iterator([frame.replace("{}", "x") for frame in frames] + words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@cache
def trained_tokenizer() -> Any:
    """The tokenizer of these prompts."""
    return word_tokenizer(PEOPLE)


def trained_task(tokenizer: Any, n: int, seed: int, *, held_out: bool = True) -> Task:
    """``n`` prompts of twelve people with the three names changed in the corrupted prompt.

    Whether a prompt is held out depends on its text alone, so that no two tasks of the two kinds
    share one, whatever their seeds. At most about 280,000 are held out, 1,100,000 are not.
    """
    share = 1 / HELD_OUT if held_out else 1 - 1 / HELD_OUT
    drawn = ioi(tokenizer, n=int(n / share * 1.1) + 100, seed=seed, names=PEOPLE, corruption="abc")
    pairs: Any = drawn.examples
    wanted = (
        number
        for number in range(len(drawn))
        if (zlib.crc32(pairs.clean.row(number).tobytes()) % HELD_OUT == 0) is held_out
    )
    chosen = [number for number, _ in zip(wanted, range(n), strict=False)]
    assert len(chosen) == n
    return drawn.subset(chosen)


def trained_ioi(
    seed: int = 0, settings: TrainingSettings | None = None, cache: Path | None = None
) -> tuple[Any, Any]:
    """The model, in ``eval`` mode with frozen weights, and its tokenizer."""
    settings = settings or TrainingSettings()
    tokenizer = trained_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=64,
                n_embd=settings.width,
                n_layer=settings.layers,
                n_head=settings.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    model.config.name_or_path = "trained-ioi"  # which provenance names
    train = partial(_train, model, settings, seed)
    train_once("trained-ioi", {"seed": seed, **asdict(settings)}, model, train, cache)
    return model.eval().requires_grad_(False), tokenizer


@with_gradients
def _train(model: Any, settings: TrainingSettings, seed: int) -> None:
    tokenizer = trained_tokenizer()
    data = trained_task(tokenizer, settings.prompts, seed, held_out=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=settings.steps, pct_start=0.1
    )
    epochs = (data.batches(settings.batch, shuffle=seed + epoch) for epoch in count())
    for batch in islice(chain.from_iterable(epochs), settings.steps):
        cross_entropy_step(optimiser, _logits(model, batch), _answers(batch))
        schedule.step()
    model.eval()
    found = accuracy(model, trained_task(tokenizer, 1000, seed + 1))
    if found < settings.accuracy:
        raise RuntimeError(f"the model answers {found:.3f} of the held-out prompts; {settings}")
    log.info("it answers %.3f of the held-out prompts", found)


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    hidden = model.transformer(**batch.clean).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[torch.arange(batch.size), batch.positions])
    return logits


def _answers(batch: Batch) -> torch.Tensor:
    assert batch.answer is not None
    return batch.answer[:, 0]


@torch.no_grad()
def accuracy(model: Any, task: Task) -> float:
    """The share of prompts whose likeliest next token, of the whole vocabulary, is the answer."""
    hits = [
        (_logits(model, batch).argmax(-1) == _answers(batch)).numpy() for batch in task.batches(100)
    ]
    return float(np.concatenate(hits).mean())
