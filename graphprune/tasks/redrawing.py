"""Other corrupted prompts for prompts that were drawn: parts of a task must not share any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from graphprune.core.overlap import token_digest

__all__ = ["Option", "Redraw"]

Option = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Token ids of a clean prompt, of one corrupted prompt that it can have, and its distractors."""


@dataclass(frozen=True, eq=False)
class Redraw:
    """Where other corrupted prompts come from.

    Args:
        options: gives all options, those of one clean prompt in a row; every prompt of the task
            comes up again.
    """

    options: Callable[[], Iterator[Option]]

    def find(
        self, wanted: Mapping[tuple[int, ...], int], taken: Set[int]
    ) -> dict[int, tuple[Sequence[int], Sequence[int]]]:
        """For each wanted clean prompt its first option without a fingerprint in ``taken``.

        Args:
            wanted: numbers of examples by their clean prompts.
            taken: fingerprints that no corrupted prompt may have.

        Returns:
            The corrupted prompt and distractors by number, of those that have such an option.
        """
        found: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        met: set[int] = set()
        for clean, corrupt, distractor in self.options():
            number = wanted.get(tuple(clean))
            if number is None:
                if len(met) == len(wanted):
                    break
                continue
            met.add(number)
            if number not in found and token_digest(corrupt) not in taken:
                found[number] = corrupt, distractor
                if len(found) == len(wanted):
                    break
        return found
