"""Small tokenizers of every kind the tasks must work with, made from the tasks' own words."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from graphprune.tasks import vocabulary

DIGITS = {
    1: pre_tokenizers.Digits(individual_digits=True),
    2: pre_tokenizers.Split(Regex(r" ?\d{2}"), "isolated"),
    3: pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
    4: pre_tokenizers.Split(Regex(r" ?\d{4}"), "isolated"),
}


def _wrapped(raw: Tokenizer, bos: bool, eos: bool, **special: str) -> Any:
    names = [name for name, wanted in (("<s>", bos), ("</s>", eos)) if wanted]
    raw.add_special_tokens(names)
    if names:
        raw.post_processor = processors.TemplateProcessing(
            single=" ".join((["<s>"] if bos else []) + ["$A"] + (["</s>"] if eos else [])),
            special_tokens=[(name, raw.token_to_id(name)) for name in names],
        )
    special |= {"bos_token": "<s>"} if bos else {}
    special |= {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


@cache
def byte_bpe(digits: int = 1, bos: bool = False, eos: bool = False, size: int = 8000) -> Any:
    """Byte-level BPE as GPT-2 has it; years split into pieces of ``digits`` digits.

    ``size=256`` learns no merges: every letter is a token.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [DIGITS[digits], pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(vocabulary(), trainer)
    return _wrapped(raw, bos, eos)


@cache
def sentence_piece() -> Any:
    """BPE with ``▁`` for spaces, one more in front of every text, and a BOS: as Llama-2 has it."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), DIGITS[1]]
    )
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=8000, show_progress=False, special_tokens=["<unk>"])
    raw.train_from_iterator(vocabulary(), trainer)
    return _wrapped(raw, bos=True, eos=False, unk_token="<unk>")


@cache
def word_level(known: int | None = None) -> Any:
    """Whole words and signs; words outside the vocabulary are ``[UNK]``.

    ``known`` limits the vocabulary to that many words.
    """
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    size = {} if known is None else {"vocab_size": known}
    trainer = trainers.WordLevelTrainer(
        show_progress=False, special_tokens=["[UNK]", "[PAD]"], **size
    )
    raw.train_from_iterator(vocabulary(), trainer)
    return _wrapped(raw, bos=False, eos=False, unk_token="[UNK]", pad_token="[PAD]")


TOKENIZERS = {
    "byte_bpe": byte_bpe,
    "two_digits": lambda: byte_bpe(digits=2),
    "three_digits": lambda: byte_bpe(digits=3),
    "whole_years": lambda: byte_bpe(digits=4),
    "bos_and_eos": lambda: byte_bpe(bos=True, eos=True),
    "letters": lambda: byte_bpe(size=256),
    "sentence_piece": sentence_piece,
    "word_level": word_level,
}
