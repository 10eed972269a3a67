"""Texts to token ids, for any Hugging Face tokenizer.

A prompt is what ``tokenizer(text)`` gives: special tokens that the tokenizer adds by itself (a
BOS in front, an EOS behind) are kept as they are and never added a second time: of a text that
begins with them already, as every chat template's does, the tokens are those of
``tokenizer(text, add_special_tokens=False)``, with an EOS behind where the tokenizer adds one. An
answer is what
the tokenizer adds to the prompt's tokens when the answer follows the prompt as the user wrote it:

* byte-level BPE (GPT-2, Llama-3): ``"... gave it to" + " Mary"`` adds ``Ġ Mary``, one token;
* SentencePiece (Llama-2): the same text adds ``▁Mary``. On its own ``" Mary"`` would get a second
  ``▁`` in front, which is why answers are not tokenised alone;
* word-level vocabularies: the space goes, and the word is left.

Where prompt and answer run together into other tokens (``"... the year 18" + "45"`` where 1845 is
one token), the prompt stays as it is and the answer is tokenised alone, behind a line break, so
that no space is put in front of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from graphprune.errors import InputError

CHUNK = 8192  # texts encoded at a time
REMEMBERED = 8192  # texts whose ids are kept
START = "decoder_start_token_id"  # an attribute that the command line gives a tokenizer
PROBES = ("a", "the", "A", "1")  # texts whose ids show what is put around a prompt


def know_start(tokenizer: Any, config: Any) -> None:
    """Tells the tokenizer of an encoder-decoder which token the decoder's text begins with."""
    start = getattr(config, START, None)
    if tokenizer is not None and start is not None and config.is_encoder_decoder:
        setattr(tokenizer, START, start)


def _overlap(added: Sequence[int], own: Sequence[int]) -> int:
    """Number of tokens that begin ``own`` and also end ``added``."""
    most = min(len(added), len(own))
    return next((n for n in range(most, 0, -1) if list(added[-n:]) == list(own[:n])), 0)


class Encoder:
    """Prompts and answers as token ids, and what a tokenizer puts around a text.

    Args:
        tokenizer: a Hugging Face tokenizer (anything called with a list of texts that gives
            ``input_ids``). Raises :class:`~graphprune.errors.InputError` for anything else.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise InputError(
                "texts need a tokenizer, and the model has none: tasks for models that read images "
                "are made in Python, gp.Task.from_tensors(images, corrupt_images, answer=...)"
            )
        if not callable(tokenizer):
            raise InputError(
                "tokenizer must be a Hugging Face tokenizer such as "
                f"AutoTokenizer.from_pretrained(...), got {type(tokenizer).__name__} "
                f"{str(tokenizer)[:40]!r}"
            )
        self._tokenizer: Any = tokenizer
        self._bodies: dict[str, list[int]] = {}
        self.prefix, self.suffix = self._special_tokens()

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """The special tokens in front of and behind every prompt."""
        doubtful: list[tuple[list[int], list[int]]] = []
        for probe in PROBES:
            bare = self._encode([probe], special=False)[0]
            full = self._encode([probe], special=True)[0]
            starts = [i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare]
            around = [(full[:i], full[i + len(bare) :]) for i in starts]
            if len(around) == 1:
                return around[0]
            doubtful += around  # an unknown word's id is the BOS's too
        if doubtful:
            return doubtful[0]
        raise InputError(f"the tokenizer turns none of the texts {PROBES} into tokens")

    def _encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        out: list[list[int]] = []
        for start in range(0, len(texts), CHUNK):
            coded = self._tokenizer(
                list(texts[start : start + CHUNK]),
                add_special_tokens=special,
                return_attention_mask=False,
            )
            out.extend(coded["input_ids"])
        return out

    # ---------------------------------------------------------------- the tokenizer

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of token ids, added tokens included."""
        return len(self._tokenizer)

    @cached_property
    def pad_id(self) -> int:
        """The id that fills padding: the pad token, else EOS, else 0. It is always masked."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self._tokenizer, name, None)
            if value is not None:
                return int(value)
        return 0

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of words that the vocabulary does not have, where there is one."""
        value = getattr(self._tokenizer, "unk_token_id", None)
        return None if value is None else int(value)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens."""
        return frozenset(int(i) for i in getattr(self._tokenizer, "all_special_ids", ()))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids."""
        return str(self._tokenizer.decode(list(ids)))

    def quoted(self, ids: Sequence[int]) -> str:
        """The text of some token ids in quotes, so that spaces at its ends are seen."""
        return repr(self.decode(ids))

    # ---------------------------------------------------------------- texts

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole prompts, special tokens as the tokenizer adds them, none twice."""
        rows = self._encode(texts, special=True)
        return [self._once(row, text) for row, text in zip(rows, texts, strict=True)]

    def _once(self, row: list[int], text: str) -> list[int]:
        """``row`` without the special tokens that the tokenizer added beside the text's own."""
        front, back = self.prefix, self.suffix
        end = len(row) - len(back)
        if row[: len(front)] != front or row[end:] != back:
            return row
        own = row[len(front) : end]
        own = own[_overlap(front, own) if self._written(front, text) else 0 :]
        again = _overlap(back[::-1], own[::-1]) if self._written(back, text) else 0
        return [*front, *own[: len(own) - again], *back]

    def _written(self, special: Sequence[int], text: str) -> bool:
        """``True`` if the text may hold these tokens: an unknown word may have the BOS's id."""
        return self.unknown_id not in special or self.decode(special).strip() in text

    def extended(self, prompt: list[int], end: Sequence[int]) -> list[int]:
        """A prompt's ids with more tokens at its end, in front of what the tokenizer appends."""
        if not end:
            return prompt
        return [*prompt[: len(prompt) - len(self.suffix)], *end, *self.suffix]

    def body(self, text: str) -> list[int]:
        """Token ids of a text without any special token."""
        if text not in self._bodies:
            if len(self._bodies) >= REMEMBERED:  # any number of prompts, in constant memory
                self._bodies.clear()
            self._bodies[text] = self._encode([text], special=False)[0]
        return self._bodies[text]

    def continuation(self, prompt: str, text: str) -> list[int]:
        """The ids that ``text`` adds when it follows ``prompt``; see the head of this module.

        Only the prompt's last two words are looked at, so that many prompts with one ending cost
        one call of the tokenizer.
        """
        ending = " ".join(prompt.rsplit(" ", 2)[-2:])
        before, joint = self.body(ending), self.body(ending + text)
        follows = len(joint) > len(before) and joint[: len(before)] == before
        return joint[len(before) :] if follows else self.alone(text)

    def alone(self, text: str) -> list[int]:
        """The ids of ``text`` as it stands, without a space that a tokenizer puts before it."""
        anchor = self.body("\n")
        behind = self.body("\n" + text)
        return behind[len(anchor) :] if behind[: len(anchor)] == anchor else self.body(text)

    def in_context(self, word: str) -> tuple[int, ...]:
        """The ids that ``" " + word`` adds in the middle of a sentence.

        Empty where the vocabulary does not have the word.
        """
        ids = tuple(self.continuation("so the", f" {word}"))
        return () if self.unknown_id in ids else ids

    def blanks(self, ids: Sequence[int]) -> int:
        """Number of tokens in front of the first that is more than white space.

        Letter by letter, and with digits kept apart, a space before a word is its own token.
        """
        count = 0
        while count < len(ids) - 1 and not self.decode(ids[count : count + 1]).strip():
            count += 1
        return count

    def same_length(self, words: Iterable[str], enough: int) -> list[str]:
        """The words of one token each, or the largest set of words of one other length.

        Words that share their first token (spaces aside) with an earlier one are left out, so that
        answers can be told apart. One-token words are taken if there are at least ``enough``.
        """
        by_length: dict[int, dict[int, str]] = {}
        for word in words:
            ids = self.in_context(word)
            if ids:
                by_length.setdefault(len(ids), {}).setdefault(ids[self.blanks(ids)], word)
        if not by_length:
            return []
        single = by_length.get(1, {})
        best = single if len(single) >= enough else max(by_length.values(), key=len)
        return list(best.values())

    def partners(self, words: Iterable[str]) -> dict[str, list[str]]:
        """For each known word the others of its token length, leaving out words without any."""
        by_length: dict[int, list[str]] = {}
        for word in dict.fromkeys(words):
            ids = self.in_context(word)
            if ids:
                by_length.setdefault(len(ids), []).append(word)
        return {
            word: [other for other in group if other != word]
            for group in by_length.values()
            if len(group) > 1
            for word in group
        }
