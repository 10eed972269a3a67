"""Tricks in JSON: nesting, numbers, repeated keys, and texts that are no values of their place."""

import json

import pytest

import graphprune as gp
from graphprune.cli.facts import graph_facts
from graphprune.errors import FormatError, InputError
from graphprune.util.readers import json_value, read_json

REFUSED = {
    "brackets that end the recursion": (b"[" * 100_000, "nested more than 100 deep"),
    "nesting that reads, and breaks what walks it": (
        b"[" * 101 + b"1" + b"]" * 101,
        "nested more than 100 deep",
    ),
    "objects in objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 100 deep"),
    "a number of 5,000 digits": (b"9" * 5000, "whole number of 5,000 digits"),
    "a negative one inside": (b'{"a": [-' + b"9" * 400 + b"]}", "whole number of 401 digits"),
    "a key twice": (b'{"a": 1, "a": 2}', "'a' stands there twice"),
    "no number": (b"[NaN]", "NaN is no JSON number"),
    "not UTF-8": (b'"\xff"', "codec can't decode"),
}


@pytest.mark.parametrize("trick", REFUSED)
def test_refused(trick, tmp_path):
    data, sentence = REFUSED[trick]
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(FormatError, match=sentence):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("deep", [1, 50, 100])
def test_what_is_as_deep_as_allowed_is_read(deep):
    value = json_value("[" * deep + "]" * deep)
    for _ in range(deep - 1):
        (value,) = value
    assert value == []


def test_a_device_is_no_file():
    with pytest.raises(FormatError, match="a folder, a device or a pipe"):
        read_json("/dev/zero")


NODE_LINKS = {
    "nothing": ({}, "undirected"),
    "a list": ([], "valid dictionary"),
    "no nodes": ({"directed": True}, "nodes: Field required"),
    "a node without a name": ({"directed": True, "nodes": [{}], "edges": []}, r"nodes\.0\.id"),
    "an edge to nowhere": (
        {"directed": True, "nodes": [{"id": 1}], "edges": [{"source": 1}]},
        r"edges\.0\.target",
    ),
    "a name that cannot be one": (
        {"directed": True, "nodes": [{"id": {"a": 1}}], "edges": []},
        r"nodes\.0\.id",
    ),
    "a weight that is none": (
        {
            "directed": True,
            "nodes": [{"id": 1}],
            "edges": [{"source": 1, "target": 1, "weight": float("nan")}],
        },
        "weight of an edge is NaN",
    ),
}


@pytest.mark.parametrize("trick", NODE_LINKS)
def test_graphs_are_refused(trick, tmp_path):
    document, sentence = NODE_LINKS[trick]
    (tmp_path / "g.json").write_text(json.dumps(document))
    with pytest.raises((FormatError, InputError), match=sentence):
        graph_facts(tmp_path / "g.json")


@pytest.mark.parametrize("line", ['{"clean": ' + "9" * 5000 + "}", "[" * 3000])
def test_prompts_are_refused_with_their_line(line, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"clean": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"p\.jsonl:2: the JSON is refused"):
        gp.tasks.read_jsonl(tmp_path / "p.jsonl")
    (tmp_path / "p.csv").write_text('clean,spans\na,"' + "[" * 3000 + '"\n')
    with pytest.raises(InputError, match=r"p\.csv:2: the JSON of spans is refused"):
        gp.tasks.read_csv(tmp_path / "p.csv")


ROW = '"rows": [{"density": 0.1, "kept": 7, "kl": '
RECORDS = {
    "edges of 64 bits and more": ('"edges": 82', f'"edges": {-(2**63) - 1}'),
    "a figure of 64 bits and more": (ROW, ROW + f'{2**63}, "kl_": '),
    "a density of 290 digits": ('"density": 0.5', '"density": ' + "9" * 290),
    "a seed of 290 digits": ('"seed": 0', '"seed": ' + "9" * 290),
}


@pytest.mark.parametrize("trick", RECORDS)
def test_numbers_that_no_table_holds_are_refused_in_a_record(trick, tmp_path):
    from attacks.fuzz_runs import blank_record, read_record, write_record

    before, after = RECORDS[trick]
    text = json.dumps(blank_record())
    assert before in text
    write_record(tmp_path, text.replace(before, after, 1).encode())
    with pytest.raises(FormatError, match="beyond 64 bits"):
        read_record(tmp_path)


def test_a_record_with_an_infinite_value_of_a_prompt_is_shown(tmp_path):
    from attacks.fuzz_runs import blank_record, read_record, write_record

    record = blank_record()
    record["examples"]["rows"][1]["accuracy"][0] = 1e999
    write_record(tmp_path, json.dumps(record).encode())
    read_record(tmp_path)
    assert (tmp_path / "summary.csv").exists()
