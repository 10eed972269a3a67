"""A small GPT-2 that was taught indirect object identification, and prompts it has never seen.

Training takes one or two minutes on one core, once: the weights stay in graphprune's cache folder,
under a hash of everything that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import zlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from graphprune.core.batch import Batch
from graphprune.core.task import Task
from graphprune.tasks.indirect_object import FRAMES, ioi
from graphprune.tasks.words import NAMES, OBJECTS, PLACES
from graphprune.util.fetch import cache_folder

log = logging.getLogger(__name__)
hf_logging: Any = transformers_logging

__all__ = ["Settings", "accuracy", "trained_ioi", "trained_task", "trained_tokenizer"]

PEOPLE = NAMES[:12]
HELD_OUT = 5  # one prompt in five is never trained on
RECIPE = 1


@dataclass(frozen=True)
class Settings:
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


@cache
def trained_tokenizer() -> Any:
    """Byte-level BPE that holds every word of these prompts as one token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = [f"the {word}" for word in (*PEOPLE, *PLACES, *OBJECTS)]
    frames = [f.replace("{place}", "x").replace("{object}", "x") for f in FRAMES]
    raw.train_from_iterator([frame.replace("{}", "x") for frame in frames] + words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


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
    seed: int = 0, settings: Settings | None = None, cache: Path | None = None
) -> tuple[Any, Any]:
    """The model, in ``eval`` mode with frozen weights, and its tokenizer."""
    settings = settings or Settings()
    tokenizer = trained_tokenizer()
    base = cache_folder() if cache is None else cache
    folder = base / f"trained-ioi-{_key(seed, settings, tokenizer)}"
    if not folder.is_dir():
        log.info("training a small GPT-2 into %s", folder)
        model, record = _train(seed, settings, tokenizer)
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=base) as scratch:
            made = Path(scratch, "made")
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            (made / "trained.json").write_text(json.dumps(record, indent=2) + "\n")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # not made by another process meanwhile
                    raise
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # of a file of a megabyte
    try:
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    finally:
        if shown:
            hf_logging.enable_progress_bar()
    return model.requires_grad_(False), tokenizer


def _key(seed: int, settings: Settings, tokenizer: Any) -> str:
    words = tokenizer.backend_tokenizer.to_str()
    told = json.dumps([RECIPE, seed, asdict(settings), words, PEOPLE], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _train(seed: int, settings: Settings, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(
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
    data = trained_task(tokenizer, settings.prompts, seed, held_out=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=settings.steps, pct_start=0.1
    )
    done, epoch = 0, 0
    while done < settings.steps:
        for batch in data.batches(settings.batch, shuffle=seed + epoch):
            loss = cross_entropy(_logits(model, batch), _answers(batch))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            done += 1
            if done == settings.steps:
                break
        epoch += 1
    model.eval()
    found = accuracy(model, trained_task(tokenizer, 1000, seed + 1))
    if found < settings.accuracy:
        raise RuntimeError(f"the model answers {found:.3f} of the held-out prompts; {settings}")
    return model, {"seed": seed, **asdict(settings), "held_out_accuracy": found}


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
