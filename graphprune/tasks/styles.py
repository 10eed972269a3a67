"""One task asked in three styles: a statement to complete, an instruction, few-shot examples.

Two circuits for one task, found under two styles, can be compared edge by edge, as Edge Pruning
did for boolean expressions by instruction and by few-shot (Bhaskar et al. 2024, arXiv 2406.16778,
case study). No chat template is used: an instruction is plain text that ends where the answer
follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from graphprune.errors import InputError
from graphprune.util.checks import require_one_of

Style = Literal["statement", "instruction", "few_shot"]
STYLES: tuple[str, ...] = get_args(Style)


@dataclass(frozen=True)
class Wordings:
    """The texts of a task in every style.

    Args:
        statement: texts with a ``{}`` for each asked word; the answer follows them.
        instruction: the same, behind an instruction.
        few_shot: one whole demonstration each, such as ``"{} / {}, "``; the last ``" {}"`` is the
            answer's, and a prompt stops in front of it.
        demonstrations: asked words and their answer, for demonstrations, in the order of use.

    Example:
        >>> words = Wordings(("Not {} but",), ("Negate.\\n{} becomes",), ("{} / {}, ",),
        ...                  (("hot", "cold"), ("up", "down")))
        >>> words.texts("few_shot", shots=2)
        ('hot / cold, up / down, {} /',)
        >>> sorted(words.shown("few_shot", shots=1))
        ['cold', 'hot']
    """

    statement: tuple[str, ...]
    instruction: tuple[str, ...]
    few_shot: tuple[str, ...]
    demonstrations: tuple[tuple[str, ...], ...]

    def texts(self, style: Style, shots: int) -> tuple[str, ...]:
        """The prompts' texts, demonstrations included, with ``{}`` for each asked word.

        Raises :class:`~graphprune.errors.InputError` for an unknown style, or (few-shot) more or
        fewer shots than there are demonstrations.
        """
        require_one_of(style, STYLES, "style")
        if style == "statement":
            return self.statement
        if style == "instruction":
            return self.instruction
        given: Any = shots
        if type(given) is not int or not 1 <= given <= len(self.demonstrations):
            raise InputError(f"shots must lie in 1..{len(self.demonstrations)}, got {given!r}")
        return tuple(
            "".join(form.format(*words) for words in self.demonstrations[:shots])
            + form[: form.rindex(" {}")]
            for form in self.few_shot
        )

    def shown(self, style: Style, shots: int) -> frozenset[str]:
        """The words in the demonstrations, which must not be asked."""
        if style != "few_shot":
            return frozenset()
        return frozenset(word for words in self.demonstrations[:shots] for word in words)

    def notes(self, style: Style, shots: int) -> dict[str, Any]:
        """Provenance: the style, and the number of shots where there are any."""
        return {"style": style, **({"shots": shots} if style == "few_shot" else {})}
