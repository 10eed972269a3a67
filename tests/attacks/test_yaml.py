"""Tricks in a study's YAML: tags that make objects, aliases that unfold, nesting, numbers."""

import time

import pytest

import graphprune as gp
from graphprune.errors import InputError
from graphprune.util.readers import yaml_value

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "k0: &k0 [1]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 2000))

REFUSED = {
    "a call": ("a: !!python/object/apply:os.system ['touch executed']\n", "no python/object"),
    "an object": ("a: !!python/object:os.PathLike {}\n", "is no python/object"),
    "a tag that does not fit": ("a: !!int word\n", "line 1: 'word' is no int"),
    "a tag on a mapping": ("a: !!bool {=: word}\n", "is no bool"),
    "a date by tag": ("a: !!timestamp word\n", "is no timestamp"),
    "an own tag": ("a: !mine 1\n", "is no !mine"),
    "a date that is none": ("a: 2001-99-99\n", "month must be in"),
    "aliases that unfold": (LAUGHS, "unfolded it has more than 20,000 values"),
    "merges that unfold": (MERGES, "unfolded it has more than 20,000 values"),
    "aliases that nest": (CHAIN, "nested more than 100 deep|more than 20,000"),
    "a list in itself": ("a: &a [*a]\n", "part of itself"),
    "brackets": ("a: " + "[" * 3000 + "\n", "nested more than 100 deep"),
    "dashes": ("- " * 3000 + "1\n", "nested more than 100 deep"),
    "a number of 5,000 digits": ("a: " + "9" * 5000 + "\n", "whole number of 5,000 digits"),
    "a number in base 60": ("a: 1" + ":59" * 200 + ".0\n", "int too large|is no"),
    "a large file": ("# " + "x" * 2**18 + "\na: 1\n", "more than 262,144 bytes"),
    "no UTF-8": (b"a: \xff\n", "codec can't decode"),
    "a control character": ("a: \x1b[2J\n", "special characters"),
}


@pytest.mark.parametrize("trick", REFUSED)
def test_refused(trick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, sentence = REFUSED[trick]
    (tmp_path / "s.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    with pytest.raises(InputError, match=sentence):
        gp.Study.from_yaml(tmp_path / "s.yaml")
    assert time.process_time() - start < 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_plain_yaml_is_read():
    text = b"a: &a {x: 1, y: !!str 2}\nb: {<<: *a, z: [0.5, yes, ~, 'q', 2001-01-01]}\n"
    values, _ = yaml_value(text)
    assert values["a"] == {"x": 1, "y": "2"}
    assert values["b"]["z"][:4] == [0.5, True, None, "q"]
    assert values["b"]["x"] == 1
