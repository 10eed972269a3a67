"""Changes to a valid file, drawn by hypothesis, and the limits that reading it must keep."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from graphprune.errors import GraphPruneError

SECONDS, MEBIBYTES = 1.0, 200
TARGETS: dict[str, Target] = {}

# Stand for texts that Python's own writer of JSON does not write.
_RAW = {
    "@digits@": "9" * 5000,
    "@deep@": "[" * 3000 + "]" * 3000,
    "@nest@": "[" * 300 + "]" * 300,
    "@infinite@": "1e999",
}
ODD = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**290, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "NaN", "a\0b", "\ud800", "\x1b[2J", "a" * 300),
    *("../../x", "=1+1", "[1", "{", [], {}, [[]], [None], {"a": {}}, {"": 1}, [1, "a"], [1e400]),
    *_RAW,
]
_SNIPPETS = [
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r"),
    *(b"{", b"}", b"[", b"]", b"[" * 3000, b"{" * 3000, b'"', b"'", b",", b":", b"\n", b"\t", b"-"),
    *(
        b"9" * 5000,
        b"1e999",
        b"NaN",
        b"null",
        b"true",
        b"&a ",
        b"*a",
        b"!!int ",
        b"!!bool ",
        b"<<: ",
    ),
    *(
        b"!!python/object:os.system ",
        b"!!timestamp ",
        b"!!float ",
        b"!!binary ",
        b"? ",
        b"0x_",
        b"1:9",
    ),
    *(
        b"<",
        b">",
        b"</a>",
        b"<a>" * 300,
        b"&lt;",
        b"&x;",
        b"<!DOCTYPE a [<!ENTITY x 'y'>]>",
        b"id=",
    ),
    *(b"\x80\x02", b"cos\nsystem\n", b"R", b"0", b"q\x00", b"h\x00", b"(", b"t", b"}", b"u.", b"."),
    *(b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"a" * 300, b"PK\x05\x06", b"\x1b]0;x\x07"),
]


@st.composite
def changed_bytes(draw, data: bytes) -> bytes:
    """The bytes with one to four changes."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 2, 8, 64]))
        kind = draw(st.sampled_from(["flip", "insert", "replace", "cut", "end", "repeat", "move"]))
        if kind == "flip" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            changed[at:at] = draw(st.sampled_from(_SNIPPETS))
        elif kind == "replace":
            changed[at : at + length] = draw(st.sampled_from(_SNIPPETS))
        elif kind == "cut":
            del changed[at : at + length]
        elif kind == "end":
            del changed[at:]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + length] * draw(st.sampled_from([1, 2, 50]))
        else:
            piece = changed[at : at + length]
            del changed[at : at + length]
            to = draw(st.integers(0, max(len(changed) - 1, 0)))
            changed[to:to] = piece
    return bytes(changed)


def _places(value, path=()):
    """Every place in nested values, as keys from the top."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(item, (*path, key))


@st.composite
def changed_values(draw, document):
    """The document with one to three of its values replaced, removed, repeated or renamed."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        path = draw(st.sampled_from(places))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not path:
            # Rarely: nothing of the document is left then.
            changed = odd if draw(st.integers(0, 9)) == 0 else changed
            continue
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        key = path[-1]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "swap"]))
        if kind == "replace":
            holder[key] = odd
        elif kind == "remove":
            del holder[key]
        elif kind == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == "repeat":
            holder[str(odd)[:400]] = holder[key]
        else:
            other = draw(st.sampled_from(places))
            with suppress(KeyError, IndexError, TypeError):  # an earlier change removed it
                found = changed
                for step in other:
                    found = found[step]
                holder[key] = copy.deepcopy(found)
    return changed


def json_bytes(value) -> bytes:
    """JSON, with what Python's own writer would not write."""
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw).replace(name, "odd")
    return text.encode()


def changed_json(document):
    """A document's JSON with values or with bytes changed."""
    return st.one_of(
        changed_values(document).map(json_bytes),
        changed_values(document).map(json_bytes),
        changed_bytes(json.dumps(document).encode()),
    )


def require_sound(read, folder: Path) -> bool:
    """Reads; ``True`` for a valid object, ``False`` for a refusal.

    Any other error passes, and so does one for too much time or memory.
    """
    before, start = _peak(), time.process_time()
    sentence = None
    try:
        read(folder)
    except GraphPruneError as error:
        sentence = str(error)
    seconds, grown = time.process_time() - start, _peak() - before
    assert seconds < SECONDS, f"{seconds:.2f} s"
    assert grown < MEBIBYTES, f"{grown:.0f} MiB"
    assert sentence is None or 0 < len(sentence) < 4000, f"a sentence of {len(sentence)} letters"
    return sentence is None


def _peak() -> float:
    """MiB: the most that this process ever had resident."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# -------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """``write(folder, drawn)`` lays a changed file down, ``read(folder)`` reads it.

    ``valid()`` is what no change would draw: reading it must work.
    """

    changed: Callable[[], Any]
    write: Callable[[Path, Any], None]
    read: Callable[[Path], Any]
    valid: Callable[[], Any]


def target(name: str, valid: Callable[[], bytes], changed: Callable[[bytes], Any], file: str):
    """Registers a reader of one file; it gets the file's path."""

    def add(read):
        TARGETS[name] = Target(
            lambda: changed(valid()),
            lambda folder, data: (folder / file).write_bytes(data) and None,
            lambda folder: read(folder / file),
            valid,
        )
        return read

    return add


def as_json(data: bytes):
    return changed_json(json.loads(data))
