"""``NAME=VALUE`` settings from the command line, typed and checked against what takes them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from graphprune.errors import InputError, nearest, unknown_name

__all__ = [
    "hints_of",
    "known_ablation",
    "known_name",
    "method_from",
    "pairs",
    "parse_size",
    "same_name",
    "task_settings",
    "typed",
    "typed_settings",
    "unknown_setting",
]


def same_name(text: str, known: Iterable[str]) -> str | None:
    """The known name that ``text`` is, whatever its case and its dashes; ``None``: it is none."""
    plain = {_plain(name): name for name in known}
    return plain.get(_plain(text))


def known_name(what: str, text: str, known: Iterable[str], hint: str = "", where: str = "") -> str:
    """:func:`same_name`; raises :class:`InputError` with the nearest name for an unknown one.

    Example:
        >>> known_name("task", "Greater-Than", ["ioi", "greater_than"])
        'greater_than'
    """
    names = list(known)
    name = same_name(text, names)
    if name is None:
        raise unknown_name(what, text, names, hint, where=where)
    return name


def known_ablation(name: str | None) -> str | None:
    """The ablation of a name, whatever its case; raises :class:`InputError` for another one."""
    from graphprune.core.ablation import ABLATIONS

    return None if name is None else known_name("ablation", name, (*ABLATIONS, "optimal"))


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", "-")


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


def typed_settings(
    texts: Sequence[str], option: str, what: str, owner: Any, known: Mapping[str, str]
) -> dict[str, Any]:
    """``["steps=5"]`` as values of the types that ``owner`` gives its arguments or fields.

    Args:
        texts: as they stand on the command line.
        option: the option that they come from, such as ``"--set"``.
        what: what takes them, for errors.
        owner: the function or class whose annotations say the types.
        known: the names that may be set, each with a word about its default.
    """
    given = pairs(texts, option)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise unknown_setting(what, unknown, known)
    types = hints_of(owner)
    return {name: typed(name, text, types.get(name, Any), what) for name, text in given.items()}


def unknown_setting(what: str, unknown: Sequence[str], known: Mapping[str, str]) -> InputError:
    """The error for settings that ``what`` does not have."""
    shown = ", ".join(f"{name} ({value})" if value else name for name, value in known.items())
    close = nearest(unknown[0], known)
    meant = f"did you mean {close!r}? It has" if close else "it has"
    return InputError(
        f"{what} has no setting {', '.join(map(repr, unknown))}; {meant}: {shown or 'none'}"
    )


def hints_of(thing: Any) -> dict[str, Any]:
    """Types of a function's arguments or a class's fields."""
    try:
        return get_type_hints(thing)
    except NameError:  # names imported for type checkers only
        return {}


def typed(name: str, text: str, hint: Any, what: str) -> Any:
    """``text`` as a value of the type ``hint``; JSON and comma-separated lists are read too."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    readings: list[Any] = [text]
    try:
        readings.append(json.loads(text))
    except ValueError:
        words = {"none": None, "true": True, "false": False}
        readings = [words[text.lower()], text] if text.lower() in words else readings
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
    reasons: dict[str, None] = {}
    for reading in readings:
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            reasons = reasons or dict.fromkeys(problem["msg"] for problem in problems)
    raise InputError(f"{what}: {name}={text!r} does not fit: {'; '.join(reasons)}")


def method_from(method: str, texts: Sequence[str], *, seed: int | None, **given: Any) -> Any:
    """The method of a name with the settings ``texts``; ``given`` are those of other options.

    ``seed`` goes to methods that have one, unless it is ``None`` or the settings name another.
    """
    from graphprune.core.registry import make_method, method_class, method_names

    name = known_name("method", method, method_names())
    kind = method_class(name)
    fields = {
        f.name: "" if f.default is dataclasses.MISSING else f"default {f.default}"
        for f in dataclasses.fields(kind)
        if f.init
    }
    for key in pairs(texts, "--set"):
        if given.get(key) is not None:
            flag = key.replace("_", "-")
            raise InputError(f"--set {key}=... and --{flag} say the same; give one of them")
    values = typed_settings(texts, "--set", f"method {name!r}", kind, fields)
    values |= {k: v for k, v in given.items() if v is not None and k in fields}
    if "seed" in fields and seed is not None:
        values.setdefault("seed", seed)
    return make_method(name, **values)


# Options or positions of their own.
_ELSEWHERE = ("n", "seed", "metric", "batch_size", "tokenizer", "name", "options")


def task_settings(make: Callable[..., Any], texts: Sequence[str], what: str) -> dict[str, Any]:
    """Settings of a task's function from ``--task-set``."""
    parameters = list(inspect.signature(make).parameters)[1:]
    known = {name: "" for name in parameters if name not in _ELSEWHERE}
    return typed_settings(texts, "--task-set", what, make, known)
