"""A tiny GPT-2 with two planted circuits that share their last three edges.

The last token names the task: ``FIRST`` asks for the first token, ``SECOND`` for the second. Each
answer travels from the input through a head of its own, then for both tasks through the same MLP,
head and MLP. Training is that of :mod:`support.planted`, with both tasks in every batch.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

import graphprune as gp
from support.planted import WORDS, edge_names, loaded, run, untrained

FIRST, SECOND = WORDS, WORDS + 1
SHARED = ("m0->a1.h0<v>", "a1.h0->m1", "m1->logits")
CIRCUITS = {
    "first": ("input->a0.h1<v>", "a0.h1->m0", *SHARED),
    "second": ("input->a0.h0<v>", "a0.h0->m0", *SHARED),
}
PLACE = {"first": 0, "second": 1}


def pair_prompts(n: int, task: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids ``[n, 4]``; the tokens that are asked for differ."""
    clean = torch.randint(WORDS, (n, 4), generator=generator)
    corrupt = torch.randint(WORDS, (n, 4), generator=generator)
    at = PLACE[task]
    corrupt[:, at] = (clean[:, at] + 1 + corrupt[:, at] % (WORDS - 1)) % WORDS
    clean[:, 3] = corrupt[:, 3] = FIRST if task == "first" else SECOND
    return clean, corrupt


@cache
def planted_pair() -> GPT2LMHeadModel:
    """The model of :func:`plant_pair`, as it was trained once."""
    return loaded("planted_pair", WORDS + 2)


@torch.enable_grad()
def plant_pair(steps: int = 400, seed: int = 0) -> GPT2LMHeadModel:
    model = untrained(WORDS + 2, seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    half = 32
    for _ in range(steps):
        parts = [_examples(task, half, generator) for task in CIRCUITS]
        clean, corrupt, wanted = (torch.cat(rows) for rows in list(zip(*parts, strict=True))[:3])
        mask = {e: torch.cat([part[3][e] for part in parts]) for e in edge_names()}
        other, _ = run(model, corrupt, None, None)
        _, logits = run(model, clean, mask, other)
        loss = F.cross_entropy(logits, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def _examples(
    task: str, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Prompts, answers and masks: the circuit is whole or cut at one edge, the rest at random."""
    clean, corrupt = pair_prompts(n, task, generator)
    share = torch.rand(n, generator=generator)
    share = torch.where(share < 1 / 3, 0.0, torch.where(share > 2 / 3, 1.0, share))
    mask = {e: (torch.rand(n, generator=generator) < share).float() for e in edge_names()}
    cut = torch.rand(n, generator=generator) < 0.5
    which = torch.randint(len(CIRCUITS[task]), (n,), generator=generator)
    for number, edge in enumerate(CIRCUITS[task]):
        mask[edge] = 1.0 - (cut & (which == number)).float()
    at = PLACE[task]
    return clean, corrupt, torch.where(cut, corrupt[:, at], clean[:, at]), mask


def pair_task(task: str, n: int = 64, seed: int = 1) -> gp.Task:
    clean, corrupt = pair_prompts(n, task, torch.Generator().manual_seed(seed))
    at = PLACE[task]
    return gp.Task.from_tensors(
        clean, corrupt, answer=clean[:, at], distractor=corrupt[:, at], name=task
    )
