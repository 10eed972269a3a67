"""Fingerprints of contents: alike where values are equal, and nowhere else."""

import functools
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import Toy

import graphprune as gp
from graphprune.core.contents import file_fingerprint, files_fingerprint, fingerprint

pytestmark = pytest.mark.inside

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def typed(value):
    """Tells what == does not: 1, 1.0 and True, 0.0 and -0.0."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return (type(value).__name__, repr(value))


@settings(max_examples=200, deadline=None)
@given(PLAIN, PLAIN)
def test_equal_values_and_no_others_are_alike(one, two):
    assert (fingerprint(one) == fingerprint(two)) is (typed(one) == typed(two))


SCALE = 2.0


def helper(x):
    return x * SCALE


def make(alpha, code="plus"):
    notes = []

    def plus(x):
        notes.append(x)
        return helper(x) + alpha

    def minus(x):
        return helper(x) - alpha

    return {"plus": plus, "minus": minus}[code]


def test_functions_count_by_what_they_do(monkeypatch):
    same = make(1.0)
    before = fingerprint(same)
    same(3)  # what it noted does not make it another
    assert fingerprint(same) == before == fingerprint(make(1.0))
    others = [make(2.0), make(1.0, "minus"), functools.partial(make(1.0), 1), lambda x: x]
    assert len({before, *map(fingerprint, others)}) == 5
    monkeypatch.setitem(globals(), "SCALE", 3.0)  # two calls away
    assert fingerprint(make(1.0)) != before


def test_tensors_scores_and_ablations_count_by_their_numbers():
    a = torch.arange(6.0)
    different = [a, a.reshape(2, 3), a.double(), a + 1e-6, a.bfloat16(), a.numpy(), a.to_sparse()]
    assert len({fingerprint(x) for x in different[:-1]}) == 6
    assert fingerprint(a) == fingerprint(a.clone()) == fingerprint(different[-1])
    assert fingerprint(np.arange(6)[::2]) == fingerprint(np.array([0, 2, 4]))
    graph = Toy().graph
    scores = [gp.EdgeScores(graph, torch.full((graph.num_edges,), v)) for v in (1.0, 1.0, 2.0)]
    first, again, other = map(fingerprint, scores)
    assert first == again != other
    means = [gp.Ablation("mean", values=(torch.full((3,), v),)) for v in (0.0, 0.1)]
    assert repr(means[0]) == repr(means[1])  # which is why names are not enough
    assert fingerprint(means[0]) != fingerprint(means[1])


def test_objects_that_hold_themselves_end():
    loop = [1]
    loop.append(loop)
    twin = [1]
    twin.append(twin)
    assert fingerprint(loop) == fingerprint(twin)
    part = [1, 2]
    assert fingerprint([part, part]) == fingerprint([[1, 2], [1, 2]])


def test_a_file_is_read_again_when_it_changed(tmp_path):
    """Even where size and time of modification are the old ones."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"aaaa")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    first = file_fingerprint(path)
    path.write_bytes(b"bbbb")
    os.utime(path, ns=times)
    assert path.stat().st_mtime_ns == times[1]
    assert file_fingerprint(path) != first
    with pytest.raises(gp.InputError, match=r"cannot read .*gone"):
        file_fingerprint(tmp_path / "gone")
    whole = files_fingerprint(tmp_path)
    shutil.copytree(tmp_path, tmp_path / ".copy")
    assert files_fingerprint(tmp_path) == whole == files_fingerprint(tmp_path / ".copy")
    path.rename(tmp_path / "other.bin")
    assert files_fingerprint(tmp_path) != whole
