"""``NAME=VALUE`` settings from the command line, typed and checked against what takes them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from graphprune.errors import InputError, nearest

__all__ = [
    "hints_of",
    "method_from",
    "pairs",
    "parse_size",
    "task_options",
    "typed",
    "unknown_setting",
]


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """``["steps=5"]`` as a dict.

    Example:
        >>> pairs(["steps=5", "points_at=left"], "--set")
        {'steps': '5', 'points_at': 'left'}
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise InputError(f"{option} expects NAME=VALUE, such as {option} steps=5; got {text!r}")
        if name in found:
            raise InputError(f"{option} gives {name!r} twice")
        found[name] = value.strip()
    return found


def parse_size(text: str) -> int | float:
    """A whole number counts edges, any other number is a fraction of them.

    Example:
        >>> parse_size("200"), parse_size("0.01"), parse_size("1.0")
        (200, 0.01, 1.0)
    """
    try:
        size: int | float = int(text)
    except ValueError:
        try:
            size = float(text)
        except ValueError:
            raise InputError(
                "--size expects a number of edges (such as 200) or a fraction of them (such as "
                f"0.01), got {text!r}"
            ) from None
    if isinstance(size, int) and size < 1:
        raise InputError(f"--size expects at least one edge, or a fraction in (0, 1]; got {text}")
    if isinstance(size, float) and not 0 < size <= 1:
        raise InputError(f"--size expects a density in (0, 1], got {text}")
    return size


def typed(name: str, text: str, hint: Any, what: str) -> Any:
    """``text`` as a value of the type ``hint``; JSON and comma-separated lists are read too."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    readings: list[Any] = [text]
    try:
        readings.append(json.loads(text))
    except ValueError:
        if text.lower() in ("none", "true", "false"):
            readings.insert(0, {"none": None, "true": True, "false": False}[text.lower()])
    if "," in text and not text.startswith("["):
        readings.append([part.strip() for part in text.split(",")])
    try:
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(
                hint, config=ConfigDict(arbitrary_types_allowed=True)
            )
        except PydanticUserError:  # a type that brings its own configuration
            adapter = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise InputError(f"{what}: {name!r} cannot be set from the command line") from None
    reason = ""
    for reading in readings:
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            reason = reason or "; ".join(
                dict.fromkeys(problem["msg"] for problem in error.errors(include_url=False))
            )
    raise InputError(f"{what}: {name}={text!r} does not fit: {reason}")


def unknown_setting(what: str, unknown: Sequence[str], known: Mapping[str, str]) -> InputError:
    """The error for settings that ``what`` does not have."""
    shown = ", ".join(f"{name} ({value})" if value else name for name, value in known.items())
    close = nearest(unknown[0], known)
    meant = f"did you mean {close!r}? It has" if close else "it has"
    return InputError(
        f"{what} has no setting {', '.join(map(repr, unknown))}; {meant}: {shown or 'none'}"
    )


def method_from(name: str, texts: Sequence[str], *, seed: int | None, **given: Any) -> Any:
    """The method ``name`` with the settings ``texts``; ``given`` are those of other options.

    ``seed`` goes to methods that have one, unless it is ``None`` or the settings name another.
    """
    from graphprune.core.registry import _entries, make_method, method_names

    if name not in method_names():
        make_method(name)  # raises, naming the known ones
    kind = _entries("graphprune.methods")[name].load()
    what = f"method {name!r}"
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    chosen = pairs(texts, "--set")
    unknown = [key for key in chosen if key not in fields]
    if unknown:
        raise unknown_setting(what, unknown, {n: _default(f) for n, f in fields.items()})
    both = [key for key in chosen if given.get(key) is not None]
    if both:
        flag = both[0].replace("_", "-")
        raise InputError(f"--set {both[0]}=... and --{flag} say the same; give one of them")
    hints = hints_of(kind)
    values = {key: typed(key, text, hints.get(key, Any), what) for key, text in chosen.items()}
    values |= {k: v for k, v in given.items() if v is not None and k in fields}
    if "seed" in fields and seed is not None:
        values.setdefault("seed", seed)
    return make_method(name, **values)


def _default(field: dataclasses.Field[Any]) -> str:
    missing = field.default is dataclasses.MISSING
    return "" if missing else f"default {field.default}"


def hints_of(thing: Any) -> dict[str, Any]:
    """Types of a function's arguments or a class's fields."""
    try:
        return get_type_hints(thing)
    except NameError:  # names imported for type checkers only
        return {}


_ELSEWHERE = ("n", "seed", "metric", "batch_size", "tokenizer")  # options or positions of their own


def task_options(make: Callable[..., Any], texts: Sequence[str], what: str) -> dict[str, Any]:
    """Options of a task's function from ``--task-set``."""
    known = list(inspect.signature(make).parameters.values())[1:]
    names = {p.name: "" for p in known if p.name not in _ELSEWHERE}
    names = {n: v for n, v in names.items() if n not in ("name", "options")}
    chosen = pairs(texts, "--task-set")
    unknown = [key for key in chosen if key not in names]
    if unknown:
        raise unknown_setting(what, unknown, names)
    hints = hints_of(make)
    return {key: typed(key, text, hints.get(key, Any), what) for key, text in chosen.items()}
