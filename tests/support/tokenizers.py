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

from graphprune.tasks import (
    agreement,
    booleans,
    docstrings,
    indirect_object,
    lookups,
    pronouns,
    words,
    years,
)

DIGITS = {
    1: pre_tokenizers.Digits(individual_digits=True),
    2: pre_tokenizers.Split(Regex(r" ?\d{2}"), "isolated"),
    3: pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
    4: pre_tokenizers.Split(Regex(r" ?\d{4}"), "isolated"),
}
STYLED = (lookups.CAPITAL_WORDINGS, lookups.OPPOSITE_WORDINGS, lookups.SUCCESSOR_WORDINGS)


@cache
def corpus() -> tuple[str, ...]:
    """Every word and template of the generators, each word behind another one."""
    texts = [
        *indirect_object.FRAMES,
        *years.SPANS_OF_TIME,
        *pronouns.TAGS,
        *pronouns.REASONS,
        *booleans.SHOTS,
        *lookups.CAPITAL_WORDINGS.statement,
        *lookups.OPPOSITE_WORDINGS.statement,
        *lookups.SUCCESSOR_WORDINGS.statement,
        *(text for wordings in STYLED for text in (*wordings.instruction, *wordings.few_shot)),
        docstrings.TEXT,
    ]
    texts += [f"{lead} x" for lead in (*agreement.LEADS, *agreement.PHRASES)]
    singles = [
        *words.NAMES,
        *words.PLACES,
        *words.OBJECTS,
        *words.PLAIN_WORDS,
        *docstrings.PARAMETERS,
        *years.EVENTS,
        *lookups.CAPITALS.keys(),
        *lookups.CAPITALS.values(),
        *(w for pair in (*words.NOUNS, *lookups.OPPOSITES, *agreement.CLAUSES) for w in pair),
        *(w.strip() for verbs in agreement.VERBS for w in verbs),
        *" ".join((*lookups.CYCLES, *lookups.ROWS)).split(),
        *("he", "she", "True", "False", "not", "and", "or", "is", "that"),
    ]
    texts += [f"the {word}" for word in singles]
    texts += [f"year {y}" for y in range(1000, 2100)]
    return tuple(text.replace("{", "").replace("}", "") for text in texts)


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
def byte_bpe(digits: int = 1, bos: bool = False, eos: bool = False, vocabulary: int = 8000) -> Any:
    """Byte-level BPE as GPT-2 has it; years split into pieces of ``digits`` digits.

    ``vocabulary=256`` learns no merges: every letter is a token.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [DIGITS[digits], pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(corpus(), trainer)
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
    raw.train_from_iterator(corpus(), trainer)
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
    raw.train_from_iterator(corpus(), trainer)
    return _wrapped(raw, bos=False, eos=False, unk_token="[UNK]", pad_token="[PAD]")


TOKENIZERS = {
    "byte_bpe": byte_bpe,
    "two_digits": lambda: byte_bpe(digits=2),
    "three_digits": lambda: byte_bpe(digits=3),
    "whole_years": lambda: byte_bpe(digits=4),
    "bos_and_eos": lambda: byte_bpe(bos=True, eos=True),
    "letters": lambda: byte_bpe(vocabulary=256),
    "sentence_piece": sentence_piece,
    "word_level": word_level,
}
