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


def drawn(ax):
    return {
        line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")
    }


def test_intervals_are_bands_and_unbounded_ones_leave_a_gap():
    from matplotlib.collections import PolyCollection

    ends = [(0.1, 0.3), (float("-inf"), 2.0), (1.0, 1.0)]
    curve = gp.FaithfulnessCurve((0.1, 0.5, 1.0), {"abs": BOTH["abs"]}, KEPT, BOTH, 1.0, 0.0,
                                 "logit_diff", "EAP", "", {"abs": ends}, "tiny")  # fmt: skip
    ax = curve.plot()
    assert ax.get_title(loc="left") == "tiny"
    [band] = [c for c in ax.collections if isinstance(c, PolyCollection)]
    ys = [y for path in band.get_paths() for y in path.vertices[:, 1]]
    assert (min(ys), max(ys)) == (0.1, 1.0)
    assert not [c for c in CURVE.plot().collections if isinstance(c, PolyCollection)]


def test_curves_of_random_scores_are_one_grey_baseline():
    def random(value):
        f = {"abs": [value, value, 1.0]}
        return gp.FaithfulnessCurve(
            (0.1, 0.5, 1.0), f, KEPT, f, 1.0, 0.0, "m", f"Random(seed={value})"
        )

    lines = drawn(CURVE.plot(beside=[random(0.0), random(0.2)]))
    baseline = lines["random edges (abs, 2 seeds)"]
    assert baseline.get_ydata().tolist() == pytest.approx([0.1, 0.1, 1.0])
    assert set(lines) == {"scores (signed)", "scores (abs)", "random edges (abs, 2 seeds)"}
    short = gp.FaithfulnessCurve((0.1, 1.0), {"abs": [0, 1]}, KEPT, BOTH, 1.0, 0.0, "m", "Random")
    with pytest.raises(InputError, match="same sizes"):
        CURVE.plot(beside=[random(0.0), short])


def test_a_notebook_shows_figures_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    graph = gp.ComputationalGraph.from_edges([("input", "h"), ("h", "out"), ("input", "out")])
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(graph))
    figures = [
        CURVE.plot(),
        CURVE.plot().figure,
        circuit.plot(),
        gp.export.plot_circuits({"a": circuit, "b": circuit}),
    ]
    for figure in figures:
        shown, _ = DisplayFormatter().format(figure)
        assert shown["image/png"].startswith(b"\x89PNG")


def test_a_fetched_model_goes_by_its_title():
    graph = gp.ComputationalGraph.from_edges([("in", "out")])
    for model, title in (("smollm2-0.1.2", "SmolLM2-135M"), ("my-smollm2", "my-smollm2")):
        known = {"model": {"model": model}, "task": {"name": "plural"}}
        circuit = gp.Circuit(graph, gp.EdgeMask.full(graph), provenance=known)
        assert circuit.title == f"{title} · plural"
        assert circuit.provenance["model"]["model"] == model
