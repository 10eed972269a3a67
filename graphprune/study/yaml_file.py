"""A study's YAML file: its values, and the line that each of them stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from graphprune.errors import InputError
from graphprune.util.readers import file_bytes, yaml_value

from .mistakes import Mistake, Place, StudyMistakes

__all__ = ["StudyFile", "read_yaml"]


class StudyFile(NamedTuple):
    """``values``, and the line of each key and of each item of a list."""

    values: dict[str, Any]
    lines: dict[Place, int]


def read_yaml(path: str | Path) -> StudyFile:
    """The mapping that a YAML file holds; nothing of it is executed.

    Raises :class:`InputError` for a file that is no YAML, holds no mapping, or a key twice.
    """
    try:
        values, root = yaml_value(file_bytes(path))
    except OSError as error:
        raise InputError(f"cannot read the study {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping (name, systems, methods, ...)")
    lines: dict[Place, int] = {}
    twice: list[Mistake] = []

    def walk(node: Any, place: Place) -> None:
        if node.id == "mapping":
            for key, value in node.value:
                below, line = (*place, str(key.value)), key.start_mark.line + 1
                if below in lines and below[-1] != "<<":
                    message = f"the key stands on line {lines[below]} already; YAML takes the last"
                    twice.append(Mistake(below, message, line))
                lines[below] = line
                walk(value, below)
        elif node.id == "sequence":
            for number, item in enumerate(node.value):
                lines[*place, number] = item.start_mark.line + 1
                walk(item, (*place, number))

    walk(root, ())
    if twice:
        raise StudyMistakes(twice, str(path))
    return StudyFile(values, lines)
