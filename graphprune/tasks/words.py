"""The words and prompt templates that prompts are made from, read from ``prompts.toml``."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any


def _tuples(value: Any) -> Any:
    """``value`` with tuples in place of lists, so that no task can change another's words."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


_TEXT = (files("graphprune.tasks") / "prompts.toml").read_text(encoding="utf-8")
PROMPTS: dict[str, dict[str, Any]] = _tuples(tomllib.loads(_TEXT))
"""The tables of ``prompts.toml``."""

_WORDS = PROMPTS["words"]
MALE: tuple[str, ...] = _WORDS["male"]
FEMALE: tuple[str, ...] = _WORDS["female"]
NAMES = tuple(sorted({*MALE, *FEMALE}))
PLACES: tuple[str, ...] = _WORDS["places"]
OBJECTS: tuple[str, ...] = _WORDS["objects"]
NOUNS: tuple[tuple[str, str], ...] = _WORDS["nouns"]
PLAIN_WORDS: tuple[str, ...] = _WORDS["plain"]
