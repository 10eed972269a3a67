"""A study's YAML file: its values, and the line that each of them stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from graphprune.errors import InputError, MissingExtraError

from .mistakes import Mistake, Place, StudyMistakes

__all__ = ["StudyFile", "read_yaml"]

_DEPTH = 20  # a study is 4 deep; a YAML alias may hold itself


class StudyFile(NamedTuple):
    """``values`` by ``yaml.safe_load``, and the line of each key and of each item of a list."""

    values: dict[str, Any]
    lines: dict[Place, int]


def read_yaml(path: str | Path) -> StudyFile:
    """The mapping that a YAML file holds; nothing of it is executed.

    Raises :class:`InputError` for a file that is no YAML, holds no mapping, or a key twice.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError('studies need PyYAML: pip install "graphprune[study]"') from error
    try:
        text = Path(path).read_text(encoding="utf-8")
        values, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"cannot read the study {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping (name, systems, methods, ...)")
    lines: dict[Place, int] = {}
    twice: list[Mistake] = []

    def walk(node: Any, place: Place) -> None:
        if len(place) > _DEPTH:
            return
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below, line = (*place, str(key.value)), key.start_mark.line + 1
                if below in lines and below[-1] != "<<":
                    message = f"the key stands on line {lines[below]} already; YAML takes the last"
                    twice.append(Mistake(below, message, line))
                lines[below] = line
                walk(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines[*place, number] = item.start_mark.line + 1
                walk(item, (*place, number))

    walk(root, ())
    if twice:
        raise StudyMistakes(twice, str(path))
    return StudyFile(values, lines)
