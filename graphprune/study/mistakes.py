"""Mistakes in a study: collected, each with its place, and told all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from graphprune.errors import GraphPruneError, InputError

__all__ = ["Mistake", "MistakeCollector", "Place", "StudyMistakes"]

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One mistake: keys from the top of the study down to it, what is wrong, the file's line.

    Example:
        >>> print(Mistake(("systems", "small", "tasks", 0), "no such task", line=4))
        line 4, systems.small.tasks[0]: no such task
    """

    place: Place
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.place)
        parts = [*([f"line {self.line}"] if self.line else []), where.removeprefix(".")]
        head = ", ".join(part for part in parts if part)
        return f"{head}: {self.message}" if head else self.message


class StudyMistakes(InputError):
    """A study that cannot run as it is written; ``mistakes`` holds each :class:`Mistake`."""

    def __init__(self, mistakes: Iterable[Mistake], file: str = "") -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = f"{file}: " if file else ""
        if count == 1:
            super().__init__(f"{head}{self.mistakes[0]}")
        else:
            lines = "".join(f"\n  {mistake}" for mistake in self.mistakes)
            super().__init__(f"{head}{count} mistakes{lines}")

    def in_file(self, file: str, lines: Mapping[Place, int]) -> StudyMistakes:
        """The same in the order of the file, with the line of each that has one in ``lines``."""
        located = [_located(mistake, lines) for mistake in self.mistakes]
        return StudyMistakes(sorted(located, key=lambda mistake: mistake.line or 0), file)


def _located(mistake: Mistake, lines: Mapping[Place, int]) -> Mistake:
    """The mistake with the line of its place, or of the nearest place above that has one."""
    places = (mistake.place[:end] for end in range(len(mistake.place), 0, -1))
    known = next((place for place in places if place in lines), None)
    return mistake if known is None else replace(mistake, line=lines[known])


@dataclass
class MistakeCollector:
    """Collects mistakes while a study is read."""

    mistakes: list[Mistake] = field(default_factory=list)

    def add(self, place: Place, message: str) -> None:
        """Notes one."""
        self.mistakes.append(Mistake(place, message))

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """Inside, an error of the library is noted as a mistake at this place."""
        try:
            yield
        except StudyMistakes as error:
            self.mistakes += error.mistakes
        except GraphPruneError as error:
            self.add(place, str(error))

    def require_none(self) -> None:
        """Raises :class:`StudyMistakes` if there is one."""
        if self.mistakes:
            raise StudyMistakes(self.mistakes)
