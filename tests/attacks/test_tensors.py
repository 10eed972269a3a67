"""Tricks in files of tensors: headers that lie, types that torch lacks, resealed notes, pickles."""

import io
import json
import pickle  # noqa: TID251 - to make what must be refused
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.errors import FormatError
from graphprune.search.checkpoint import RunDirectory
from graphprune.util.readers import tensors_of
from graphprune.util.safe_pt import read_pt
from graphprune.util.sealed import Seal


def header(document, data=b""):
    text = json.dumps(document).encode() if isinstance(document, dict) else document
    return struct.pack("<Q", len(text)) + text + data


ROW = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
LYING = {
    "nothing": b"",
    "a header of exabytes": b"\xff" * 8 + b"{}",
    "a header that ends the recursion": header(b'{"a":' * 5000),
    "a shape beyond the bytes": header({"a": {**ROW, "shape": [2**62]}}, b"\0" * 4),
    "a shape that overflows": header({"a": {**ROW, "shape": [2**40, 2**40]}}, b"\0" * 4),
    "bytes beyond the end": header({"a": {**ROW, "data_offsets": [0, 2**60]}}, b"\0" * 4),
    "bytes twice": header({"a": ROW, "b": ROW}, b"\0" * 4),
    "a type that is none": header({"a": {**ROW, "dtype": "X9"}}, b"\0" * 4),
    "bytes that belong to nobody": header({"a": ROW}, b"\0" * 8),
}


@pytest.mark.parametrize("trick", LYING)
def test_headers_that_lie(trick):
    with pytest.raises(ValueError, match=r"."):
        tensors_of(LYING[trick])


NOTES = {
    "no notes": {},
    "notes that are no JSON": {"graphprune": "{"},
    "notes that nest": {"graphprune": "[" * 3000},
    "a list": {"graphprune": "[]"},
    "a step below 0": {"graphprune": json.dumps({"step": -1, "sha256": ""})},
    "a step that is a text": {"graphprune": json.dumps({"step": "1", "sha256": ""})},
    "a digest that is none": {"graphprune": json.dumps({"step": 1, "sha256": []})},
    "an empty digest": {"graphprune": json.dumps({"step": 1, "sha256": ""})},
}


@pytest.mark.parametrize("trick", NOTES)
def test_checkpoints_with_other_notes(trick, tmp_path):
    run = RunDirectory(tmp_path, {"format": "graphprune-run", "version": 3})
    data = save({"gates": torch.zeros(3)}, NOTES[trick])
    (tmp_path / "checkpoint.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="no checkpoint, the file is damaged"):
        run.load()


@pytest.mark.parametrize("notes", [{}, {"columns": 3}, {"columns": [[]]}, {"branches": [{}]}])
def test_checkpoints_that_are_sealed_and_of_another_search(notes, tmp_path):
    """Somebody who can seal a file still cannot make a search trip over it."""
    from support.documented import model, task

    for number, method in enumerate((gp.EdgePruning(size=4, steps=1), gp.ACDC(tau=0.1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        method = type(method)(**{**vars(method), "run_dir": folder})
        method.fit(model(), task())
        data = Seal("graphprune-run").tensors({"history": torch.zeros(0)}, {"step": 1, **notes})
        (folder / "checkpoint.safetensors").write_bytes(data)
        with pytest.raises(FormatError, match=r"does not (fit|belong)"):
            method.fit(model(), task())


# -------------------------------------------------------------------- pickles


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(pickled, name="archive/data.pkl", **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as made:
        made.writestr(name, pickled)
        made.writestr("archive/version", b"3\n")
    return file.getvalue()


def laughs():
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


def itself():
    value = []
    value.append(value)
    return value


def executed():
    raise AssertionError("a pickle was executed")


PICKLES = {
    "a call": lambda: archive(pickle.dumps(Calls(Path.touch, Path("executed")), 2)),
    "a call without an archive": lambda: pickle.dumps(Calls(executed), 2),
    "an import of os": lambda: archive(b"cos\nsystem\n(S'touch executed'\ntR."),
    "a name by its parts": lambda: archive(b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
    "memory by a call": lambda: archive(b"ctorch\nzeros\n(L100000000000L\ntR."),
    "compressed parts": lambda: archive(
        pickle.dumps("a" * 10**7, 2), compression=zipfile.ZIP_DEFLATED
    ),
    "lists that unfold": lambda: archive(pickle.dumps(laughs(), 2)),
    "a list in itself": lambda: archive(pickle.dumps(itself(), 2)),
    "cut off": lambda: archive(pickle.dumps({"a": 1}, 2)[:-3]),
    "no archive": lambda: b"PK\x03\x04" + b"\0" * 100,
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("trick", PICKLES)
def test_pickles(trick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(PICKLES[trick]())
    with pytest.raises(FormatError, match=r"no \.pt file that can be read safely"):
        read_pt(tmp_path / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_tensor_that_would_grow_is_refused(tmp_path):
    """Four bytes that say they are a terabyte."""
    scores = random_scores(transformer_graph(1, 2, 1))
    path = gp.export.to_mib_pt(scores, tmp_path / "a.pt", d_model=8)
    values = torch.load(path, weights_only=True)
    values["edges_scores"] = torch.zeros(1).expand(2**19, 2**19)
    torch.save(values, path)
    with pytest.raises(FormatError, match="edges_scores should be a tensor"):
        gp.export.from_mib_pt(path, scores.graph)
