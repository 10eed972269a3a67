"""Reading what others wrote: one guarded way for each kind of file.

Text and bytes come in, plain values come out, or a :class:`ValueError` that says what is wrong;
``read_json`` and ``validated`` know the file and raise :class:`FormatError`. Nothing is executed.
What a few bytes could make large or slow is refused first: nesting beyond :data:`DEPTH`, numbers of
many digits, YAML aliases that unfold, XML entities, compressed parts, files beyond a size.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graphprune.errors import FormatError, MissingExtraError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

DEPTH = 100
"""Levels that values of a file may be nested in."""

MOST_BYTES = 2**30
"""The largest file that is read into memory at once."""

_DIGITS = 300  # of a whole number; more are no float either
_YAML_BYTES, _YAML_NODES = 2**18, 20_000  # a study of hundreds of jobs has a few hundred nodes
_SHOWN = 5  # mistakes that an error lists


def file_bytes(path: str | os.PathLike[str], most: int | None = MOST_BYTES) -> bytes:
    """A file's bytes; :class:`ValueError` for devices, pipes and files of more than ``most``.

    Raises :class:`OSError` as opening and reading do.
    """
    place = Path(path)
    if place.exists() and not place.is_file():
        raise ValueError("it is a folder, a device or a pipe, not a file")
    with place.open("rb") as file:
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


# -------------------------------------------------------------------- JSON


def json_value(text: str | bytes, *, strict: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: the text, bytes in UTF-8, 16 or 32.
        strict: whether repeated keys, NaN and infinities are refused too.

    Raises :class:`ValueError`, of bad syntax :class:`json.JSONDecodeError`.

    Example:
        >>> json_value('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
        >>> json_value("[" * 5000 + "]" * 5000)
        Traceback (most recent call last):
        ValueError: its values are nested more than 100 deep
    """
    hooks: dict[str, Any] = {"parse_int": _whole_number}
    if strict:
        hooks |= {"object_pairs_hook": _each_once, "parse_constant": _no_constant}
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise _too_deep() from None
    _require_shallow(value)
    return value


def read_json(path: str | os.PathLike[str], *, strict: bool = True) -> Any:
    """The value in a JSON file; :class:`FormatError` for anything else. See :func:`json_value`."""
    try:
        return json_value(file_bytes(path), strict=strict)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is no readable JSON: {error}") from error


def _require_shallow(value: Any) -> None:
    """Raises :class:`ValueError` for lists and mappings nested more than :data:`DEPTH` deep."""
    level = [value]
    for _ in range(DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def require_small(root: Any, parts: Callable[[Any], Sequence[Any]], most: int) -> None:
    """Raises :class:`ValueError` for values that a walk through all of them would not end with.

    Where one value may stand in many places (an alias, a memo), few bytes unfold to very many.

    Args:
        root: the value to start from.
        parts: the values inside one.
        most: how many there may be when each is counted wherever it stands.
    """
    known: dict[int, tuple[int, int] | None] = {}  # size and depth; None while they are counted

    def measure(value: Any, level: int) -> tuple[int, int]:
        if id(value) not in known:
            known[id(value)] = None
            if level > DEPTH:
                raise _too_deep()
            inside = [measure(part, level + 1) for part in parts(value)]
            size = 1 + sum(size for size, _ in inside)
            depth = 1 + max((depth for _, depth in inside), default=0)
            if size > most:
                raise ValueError(f"unfolded it has more than {most:,} values")
            if depth > DEPTH:
                raise _too_deep()
            known[id(value)] = (size, depth)
        measured = known[id(value)]
        if measured is None:
            raise ValueError("it holds a value that is part of itself")
        return measured

    measure(root, 0)


def _too_deep() -> ValueError:
    return ValueError(f"its values are nested more than {DEPTH} deep")


def _whole_number(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"it holds a whole number of {len(text):,} digits")
    return int(text)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands there twice")
    return out


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


Schema = TypeVar("Schema", bound="BaseModel")


def validated(schema: type[Schema], document: Any, where: object) -> Schema:
    """A document as its schema has it; :class:`FormatError` names the places that do not fit."""
    from pydantic import ValidationError

    try:
        return schema.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        shown = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'document'}: {p['msg']}" for p in problems[:_SHOWN]
        )
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise FormatError(f"{where} does not fit the schema: {shown}{more}") from error


# -------------------------------------------------------------------- YAML


def yaml_value(data: bytes) -> tuple[Any, Any]:
    """The value of a YAML text, and its root node with the lines of all keys.

    Plain YAML only: a tag that makes text another type must be one that YAML would guess itself.
    Raises :class:`ValueError`.

    Example:
        >>> yaml_value(b"a: [1, yes]")[0]
        {'a': [1, True]}
        >>> yaml_value(b"a: !!int x")
        Traceback (most recent call last):
        ValueError: line 1: 'x' is no int
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError('studies need PyYAML: pip install "graphprune[study]"') from error
    if len(data) > _YAML_BYTES:
        raise ValueError(f"it has more than {_YAML_BYTES:,} bytes")
    text = data.decode("utf-8")
    try:
        loader = yaml.SafeLoader(text)
        # Depth by events, which are read without recursion: making nodes of them has some.
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise _too_deep()
        root: Any = loader.get_single_node()
        if root is None:
            return None, None
        require_small(root, lambda node: _parts_of_node(node, loader), _YAML_NODES)
        return loader.construct_document(root), root
    except (yaml.YAMLError, OverflowError) as error:  # OverflowError: of a number in base 60
        raise ValueError(str(error)) from None


def _parts_of_node(node: Any, loader: Any) -> list[Any]:
    """The nodes inside a YAML node, whose tag must be what YAML would guess of it."""
    line, text = node.start_mark.line + 1, isinstance(node.value, str)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    guess = loader.resolve(type(node), node.value if text else None, (True, False))
    if node.tag != guess and not (text and kind == "str"):
        shown = repr(node.value)[:60] if text else f"a {node.id}"
        raise ValueError(f"line {line}: {shown} is no {kind}")
    if kind == "int" and len(node.value) > _DIGITS:
        raise ValueError(f"line {line}: a whole number of {len(node.value):,} digits")
    pairs = node.value if not text else ()
    return list(chain.from_iterable(p if isinstance(p, tuple) else (p,) for p in pairs))


# -------------------------------------------------------------------- XML and CSV


def xml_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an XML file without a document type, so that nothing in it can unfold.

    Raises :class:`ValueError` for that, for bad syntax and for deep nesting.
    """
    from xml.parsers import expat

    data = file_bytes(path)
    parser = expat.ParserCreate()
    depth = 0

    def opened(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise _too_deep()

    def closed(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type (DOCTYPE), which may define entities")

    parser.StartElementHandler, parser.EndElementHandler = opened, closed
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that is not known
        raise ValueError(str(error)) from None
    return data


def csv_rows(lines: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Rows of cells with the number of the line that each ends on, without empty lines.

    Raises :class:`ValueError` that begins with the line.
    """
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        yield from ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise ValueError(f"{reader.line_num}: no CSV: {error}") from None


# -------------------------------------------------------------------- tensors


def tensors_of(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes of a safetensors file; :class:`ValueError` for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json_value(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    except KeyError as error:  # a type that torch has not
        raise ValueError(f"a tensor has the unknown type {error}") from None
    return tensors, header.get("__metadata__", {})
