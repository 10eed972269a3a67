"""Small models and a tokenizer that are made on the spot, for examples that need no download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import graphprune as gp
from graphprune.adapters.reference_models.language import word_tokenizer


def small_tokenizer() -> Any:
    """Byte-level BPE that holds every word of the indirect-object task as one token."""
    return word_tokenizer()


def random_llama(vocabulary: int, seed: int = 0) -> Any:
    """Two layers, four query heads on two key/value heads, random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return _made(LlamaForCausalLM, config, seed)


def random_gpt2(vocabulary: int, layers: int = 3, seed: int = 0) -> Any:
    """A GPT-2 of width 64 with four heads a layer, random weights."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=64,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _made(GPT2LMHeadModel, config, seed)


def _made(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()


def train(model: Any, task: gp.Task, steps: int, seed: int = 0) -> float:
    """Teaches ``model`` the answers of ``task``; gives the last batch's loss.

    The task's corrupted prompts must have its distractors for answers.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    loss, done = torch.tensor(float("nan")), 0
    while done < steps:
        for batch in task.batches(64, shuffle=seed + done):
            loss = torch.zeros(())
            for inputs, answer in ((batch.clean, batch.answer), (batch.corrupt, batch.distractor)):
                hidden = model.transformer(**inputs).last_hidden_state
                logits = model.lm_head(hidden[torch.arange(batch.size), batch.positions])
                loss = loss + torch.nn.functional.cross_entropy(logits, answer[:, 0])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            done += 1
            if done == steps:
                break
    return float(loss.detach())
