"""The words of the built-in tasks, for tokenizers that are trained on them alone."""

from __future__ import annotations

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


def vocabulary() -> tuple[str, ...]:
    """Every template and every word of the task generators, each word behind another one.

    A tokenizer trained on these texts has a token for each word that a task asks for, with the
    space in front of it.

    Example:
        >>> "the Paris" in vocabulary()
        True
    """
    styled = (lookups.CAPITAL_WORDINGS, lookups.OPPOSITE_WORDINGS, lookups.SUCCESSOR_WORDINGS)
    texts = [
        *indirect_object.FRAMES,
        *years.SPANS_OF_TIME,
        *pronouns.TAGS,
        *pronouns.REASONS,
        *booleans.SHOTS,
        *lookups.CAPITAL_WORDINGS.statement,
        *lookups.OPPOSITE_WORDINGS.statement,
        *lookups.SUCCESSOR_WORDINGS.statement,
        *(text for wordings in styled for text in (*wordings.instruction, *wordings.few_shot)),
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
