"""``NAME=VALUE`` settings from the command line, typed and checked against what takes them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from graphprune.errors import InputError, nearest, unknown_name
from graphprune.util.readers import json_value

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "built",
    "hints_of",
    "known_ablation",
    "known_name",
    "method_from",
    "method_kind",
    "pairs",
    "parse_size",
    "require_type",
    "same_name",
    "settings_of",
    "task_settings",
    "type_text",
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
    from pydantic import ValidationError

    readings: list[Any] = [text]
    try:
        readings.append(json_value(text))
    except ValueError:
        words = {"none": None, "true": True, "false": False}
        readings = [words[text.lower()], text] if text.lower() in words else readings
    if "," in text and not text.startswith("["):
        readings.append([part.strip() for part in text.split(",")])
    adapter = _adapter(hint)
    if adapter is None:
        raise InputError(f"{what}: {name!r} cannot be set from the command line")
    reasons: dict[str, None] = {}
    for reading in readings:
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            reasons = reasons or dict.fromkeys(problem["msg"] for problem in problems)
    raise InputError(f"{what}: {name}={text!r} does not fit: {'; '.join(reasons)}")


def require_type(value: Any, hint: Any) -> None:
    """Raises :class:`InputError` unless a value from YAML or Python is of the type ``hint``.

    A text is no number, and ``true`` none either. Types that cannot be checked pass.
    """
    from pydantic import ValidationError

    adapter = _adapter(hint)
    if adapter is None:
        return
    try:
        read = adapter.validate_python(value)
    except ValidationError:
        fits = False
    else:
        converted = type(read) is not type(value)
        fits = not (converted and isinstance(value, str | bool) and isinstance(read, int | float))
    if not fits:
        raise InputError(f"expected {type_text(hint)}, got {value!r:.200}")


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """What checks values against a type; ``None`` for a type that cannot be checked."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        try:
            return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:  # a type that brings its own configuration
            return TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


def type_text(hint: Any) -> str:
    """A type as messages and tables name it.

    Example:
        >>> type_text(int), type_text(float | None)
        ('int', 'float or None')
    """
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return " or ".join(map(type_text, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint is type(None):
        return "None"
    plain_class = isinstance(hint, type) and get_origin(hint) is None
    return hint.__name__ if plain_class else re.sub(r"\b(\w+\.)+", "", str(hint))


def method_kind(name: str) -> type[Any]:
    """The class of a registered method, or of an import path (``my_package.module:MyMethod``).

    An import path runs the module that it names, as ``import`` does. Raises :class:`InputError`
    for what is not known, cannot be imported, or is no method.
    """
    from graphprune.core.method import Method
    from graphprune.core.registry import method_class, method_names

    module_name, colon, attribute = name.partition(":")
    if not colon:
        hint = "or an import path, package.module:Class"
        return method_class(known_name("method", name, method_names(), hint))
    try:
        kind = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise InputError(
            f"cannot import the method {name!r}: {error}. It is package.module:Class, and Python "
            "must find the package: install it, or put its folder in PYTHONPATH"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise InputError(f"{name!r} is no method: expected a subclass of gp.Scorer or gp.Pruner")
    return kind


def settings_of(kind: type[Any]) -> dict[str, str]:
    """The settings of a method's class, each with a word about its default."""
    return {
        f.name: "" if f.default is dataclasses.MISSING else f"default {f.default}"
        for f in dataclasses.fields(kind)
        if f.init
    }


def method_from(method: str, texts: Sequence[str], *, seed: int | None, **given: Any) -> Any:
    """The method of a name with the settings ``texts``; ``given`` are those of other options.

    ``seed`` goes to methods that have one, unless it is ``None`` or the settings name another.
    """
    kind = method_kind(method)
    settings = settings_of(kind)
    for key in pairs(texts, "--set"):
        if given.get(key) is not None:
            flag = key.replace("_", "-")
            raise InputError(f"--set {key}=... and --{flag} say the same; give one of them")
    values = typed_settings(texts, "--set", f"method {method!r}", kind, settings)
    values |= {k: v for k, v in given.items() if v is not None and k in settings}
    if "seed" in settings and seed is not None:
        values.setdefault("seed", seed)
    return built(kind, method, values)


def built(kind: type[Any], name: str, settings: Mapping[str, Any]) -> Any:
    """A method of a class; raises :class:`InputError` for settings that it does not take."""
    try:
        return kind(**settings)
    except TypeError as error:
        raise InputError(f"method {name!r} does not take these settings: {error}") from None


# Options or positions of their own.
_ELSEWHERE = ("n", "seed", "metric", "batch_size", "tokenizer", "name", "options")


def task_settings(make: Callable[..., Any], texts: Sequence[str], what: str) -> dict[str, Any]:
    """Settings of a task's function from ``--task-set``."""
    parameters = list(inspect.signature(make).parameters)[1:]
    known = {name: "" for name in parameters if name not in _ELSEWHERE}
    return typed_settings(texts, "--task-set", what, make, known)
