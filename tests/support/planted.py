"""A tiny GPT-2 in which a circuit was planted: the edges outside it do nothing.

The task is to say the first of three tokens. Training runs the model with edges outside the circuit
replaced at random by their messages on another prompt, and asks for the same answer; when the
circuit's path is cut, by whichever edge, the other prompt's answer is asked for. That is strict
interchange intervention training as InterpBench uses it (Gupta et al., arXiv 2407.14494), on edges.

The masked forward pass here is plain batched PyTorch, independent of the library's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import graphprune as gp

GOLDEN = Path(__file__).parent.parent / "golden"
LAYERS, HEADS, WIDTH, WORDS, END = 2, 2, 32, 10, 10
CIRCUIT = (
    "input->a0.h1<v>",
    "a0.h1->m0",
    "m0->a1.h0<v>",
    "a1.h0->m1",
    "m1->logits",
)


def edge_names() -> list[str]:
    names, before = [], ["input"]
    for layer in range(LAYERS):
        heads = [f"a{layer}.h{head}" for head in range(HEADS)]
        names += [f"{u}->{h}<{port}>" for port in "qkv" for h in heads for u in before]
        names += [f"{u}->m{layer}" for u in [*before, *heads]]
        before = [*before, *heads, f"m{layer}"]
    return names + [f"{u}->logits" for u in before]


def run(model: GPT2LMHeadModel, ids: Tensor, mask: dict[str, Tensor] | None, other: dict | None):
    """Messages by writer ``[B, T, D]`` and logits ``[B, V]`` at the end; mask values ``[B]``."""
    base, dim = model.transformer, WIDTH // HEADS
    positions = base.wpe(torch.arange(ids.shape[1]))
    sent = {"input": base.wte(ids)}
    future = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)

    def read(reader: str, writers: list[str]) -> Tensor:
        x = positions
        for u in writers:
            y = sent[u]
            if mask is not None and other is not None:
                m = mask[f"{u}->{reader}"][:, None, None]
                y = m * y + (1 - m) * other[u]
            x = x + y
        return x.expand(len(ids), -1, -1)

    before = ["input"]
    for layer, block in enumerate(base.h):
        names = [f"a{layer}.h{head}" for head in range(HEADS)]
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        for head, name in enumerate(names):
            parts = []
            for number, port in enumerate("qkv"):
                columns = slice(number * WIDTH + head * dim, number * WIDTH + (head + 1) * dim)
                x = block.ln_1(read(f"{name}<{port}>", before))
                parts.append(x @ weight[:, columns] + bias[columns])
            q, k, v = parts
            pattern = (q @ k.transpose(1, 2) / dim**0.5 + future).softmax(-1)
            out = block.attn.c_proj.weight[head * dim : (head + 1) * dim]
            sent[name] = pattern @ v @ out
        # The output projection's bias belongs to no head.
        positions = positions + block.attn.c_proj.bias
        sent[f"m{layer}"] = block.mlp(block.ln_2(read(f"m{layer}", [*before, *names])))
        before = [*before, *names, f"m{layer}"]
    logits = model.lm_head(base.ln_f(read("logits", before)[:, -1]))
    return sent, logits


def prompts(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids ``[n, 4]``; their first tokens differ."""
    clean = torch.randint(WORDS, (n, 4), generator=generator)
    corrupt = torch.randint(WORDS, (n, 4), generator=generator)
    corrupt[:, 0] = (clean[:, 0] + 1 + corrupt[:, 0] % (WORDS - 1)) % WORDS
    clean[:, 3] = corrupt[:, 3] = END
    return clean, corrupt


def untrained(words: int, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of this size for prompts of four of ``words`` tokens, drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=words, n_positions=4, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None,
                eos_token_id=None,
            )
        )  # fmt: skip


@cache
def planted() -> GPT2LMHeadModel:
    """The model of :func:`plant`, as it was trained once: ``test_planted.py`` shows its circuit."""
    return loaded("planted", WORDS + 1)


def loaded(name: str, words: int) -> GPT2LMHeadModel:
    model = untrained(words, 0)
    load_model(model, GOLDEN / f"{name}.safetensors")
    return model.eval().requires_grad_(False)


@torch.enable_grad()
def plant(steps: int = 1200, seed: int = 0) -> GPT2LMHeadModel:
    model = untrained(WORDS + 1, seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    batch = 64
    for _ in range(steps):
        clean, corrupt = prompts(batch, generator)
        # A third of the examples keeps everything, a third nothing but the circuit.
        share = torch.rand(batch, generator=generator)
        share = torch.where(share < 1 / 3, 0.0, torch.where(share > 2 / 3, 1.0, share))
        mask = {e: (torch.rand(batch, generator=generator) < share).float() for e in edge_names()}
        cut = torch.rand(batch, generator=generator) < 0.5
        which = torch.randint(len(CIRCUIT), (batch,), generator=generator)
        for number, edge in enumerate(CIRCUIT):
            mask[edge] = 1.0 - (cut & (which == number)).float()
        other, _ = run(model, corrupt, None, None)
        _, logits = run(model, clean, mask, other)
        loss = F.cross_entropy(logits, torch.where(cut, corrupt[:, 0], clean[:, 0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def planted_task(n: int = 64, seed: int = 1) -> gp.Task:
    clean, corrupt = prompts(n, torch.Generator().manual_seed(seed))
    return gp.Task.from_tensors(
        clean, corrupt, answer=clean[:, 0], distractor=corrupt[:, 0], name="planted"
    )
