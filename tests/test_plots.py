"""Figures of curves: whole files, and refusals before anything is drawn."""

from __future__ import annotations

import pytest

import graphprune as gp
from graphprune.errors import InputError

pytest.importorskip("matplotlib")

BOTH = {"signed": [0.2, 0.8, 1.0], "abs": [0.1, 0.9, 1.0]}
KEPT = {"signed": [1, 5, 10], "abs": [1, 5, 10]}
CURVE = gp.FaithfulnessCurve((0.1, 0.5, 1.0), BOTH, KEPT, BOTH, 1.0, 0.0, "logit_diff")


@pytest.mark.parametrize("name", ["c.png", "c.svg", "c.PDF"])
def test_a_figure_replaces_what_stood_there_and_leaves_nothing_beside(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    CURVE.plot(path=path)
    assert path.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_figure_leaves_the_old_one(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def half(self, path, **options):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    path = tmp_path / "c.png"
    path.write_text("old")
    with pytest.raises(gp.InputError, match="disk full"):
        CURVE.plot(path=path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["c", "c.xyz", "c.html"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"must end in one of .*\.png"):
        CURVE.plot(path=tmp_path / name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the folder .*nowhere is not there"):
        CURVE.plot(path=tmp_path / "nowhere" / "c.png")
    assert not list(tmp_path.iterdir())
