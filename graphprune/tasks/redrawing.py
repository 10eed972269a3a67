"""Other corrupted prompts for prompts that were drawn: parts of a task must not share any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from graphprune.core.overlap import token_digest

Option = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Token ids of a clean prompt, of one corrupted prompt that it can have, and its distractors."""


def choose_options(
    options: Iterable[Option], wanted: Mapping[tuple[int, ...], int], taken: Set[int]
) -> dict[int, tuple[Sequence[int], Sequence[int]]]:
    """For each wanted clean prompt its first option without a fingerprint in ``taken``.

    Args:
        options: all options, those of one clean prompt in a row; every wanted prompt comes up.
        wanted: numbers of examples by their clean prompts.
        taken: fingerprints that no corrupted prompt may have.

    Returns:
        The corrupted prompt and distractors by number, of those that have such an option.
    """
    chosen: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
    met: set[int] = set()
    for clean, corrupt, distractor in options:
        number = wanted.get(tuple(clean))
        if number is None:
            if len(met) == len(wanted):
                break
            continue
        met.add(number)
        if number not in chosen and token_digest(corrupt) not in taken:
            chosen[number] = corrupt, distractor
            if len(chosen) == len(wanted):
                break
    return chosen
