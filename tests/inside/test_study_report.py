"""A study's tables and page from records whose means are plain to see."""

import re

import pytest

from graphprune.study import StudyMethod, StudyResults, StudySystem
from graphprune.study.jobs import StudyJob

SYSTEM = StudySystem("small", "language", ("one", "two"), {"model": "/home/me/models/tiny"})
SIZES = [0.01, 0.1, 1.0]


def job(task, method, seed):
    return StudyJob(SYSTEM, task, StudyMethod(method, "eap"), seed, 8, 6, (0.05,))


def done(cmd, kept, kl=1.0, auroc=None):
    """A record of a graph of 80 edges; four are asked for."""
    record = {
        "state": "done",
        "made_by": "graphprune 7.8",
        "ablation": "zero",
        "edges": 80,
        "cmd": cmd,
        "cpr": 1 - cmd,
        "rows": [{"density": 0.05, "kept": kept, "kl": kl}],
        "curve": {
            "sizes": SIZES,
            "f": {"signed": [0.0, 0.5, 1.0], "abs": [0.0, 0.6, 1.0]},
            "kept": {"signed": [0, 6, 80], "abs": [0, 8, 80]},
        },
    }
    return record if auroc is None else {**record, "auroc": auroc}


def results_of(rows):
    return StudyResults("made by hand", [(job(*label), record) for label, record in rows])


def page_of(results, tmp_path):
    results.write(tmp_path)
    return (tmp_path / "report.html").read_text()


def test_an_empty_circuit_is_not_compared_with_one_that_keeps_edges(tmp_path):
    results = results_of(
        [
            (("one", "half", 0), done(0.1, 0, kl=9.0)),
            (("one", "half", 1), done(0.1, 3, kl=1.0)),
            (("one", "whole", 0), done(0.2, 4, kl=2.0)),
            (("one", "whole", 1), done(0.2, 4, kl=3.0)),
            (("one", "none", 0), done(0.3, 0, kl=0.5)),
            (("one", "none", 1), done(0.3, 0, kl=0.5)),
        ]
    )
    rows = results.summary().set_index("method")
    assert rows.loc["half", "kl@0.05"] == 1.0
    assert rows.loc["whole", "kl@0.05"] == 2.5
    assert rows["kl@0.05"].isna().tolist() == [False, False, True]
    assert rows["kept@0.05"].tolist() == [1.5, 4.0, 0.0]
    assert rows["requested@0.05"].tolist() == [4, 4, 4]
    assert rows["empty@0.05"].tolist() == [1, 0, 2]
    page = page_of(results, tmp_path)
    cells = {
        name: re.search(f"<td>{name}</td>.*?</tr>", page[page.index("KL at 5 %") :])[0]
        for name in ("half", "whole", "none")
    }
    assert "1.5 of 4 edges" in cells["half"]
    assert "1 of 2 seeds keep none: left out" in cells["half"]
    assert "4 of 4 edges" in cells["whole"]
    assert "–<small>0 of 4 edges" in cells["none"]
    assert "Up to 1 % no circuit of any method keeps an edge" in page


def test_the_head_names_what_was_studied(tmp_path):
    page = page_of(results_of([(("one", "a", 3), done(0.1, 4))]), tmp_path)
    head = page[page.index("<h1>") : page.index("<h2>")]
    assert "graphprune 7.8" in head
    assert "seeds 3" in head
    for cell in ("small: one", "tiny", "80", "8 to find, 6 to judge", "zero"):
        assert f"<td>{cell}</td>" in head
    assert "/home/me" not in page


def test_averages_are_over_tasks_that_all_methods_have(tmp_path):
    results = results_of(
        [
            (("one", "a", 0), done(0.1, 4, auroc=0.9)),
            (("two", "a", 0), done(0.9, 4)),
            (("one", "b", 0), done(0.3, 4, auroc=0.5)),
        ]
    )
    frame = results.overall().set_index("method")
    assert frame["cmd"].to_dict() == {"a": 0.1, "b": 0.3}
    assert frame["tasks"].tolist() == [1, 1]
    assert frame["rank_cmd"].to_dict() == {"a": 1, "b": 2}
    note = "averages are over the 1 of 2 tasks that all methods have, without small two"
    assert results.overall_note() == note
    assert results.notes()[0] == note
    assert f"{note[0].upper()}{note[1:]}." in page_of(results, tmp_path)


def test_a_figure_counts_where_all_methods_have_it():
    results = results_of(
        [
            (("one", "a", 0), done(0.1, 4, auroc=0.9)),
            (("two", "a", 0), done(0.2, 4, auroc=0.7)),
            (("one", "b", 0), done(0.3, 4, auroc=0.5)),
            (("two", "b", 0), done(0.5, 4)),
        ]
    )
    frame = results.overall().set_index("method")
    assert frame["auroc"].to_dict() == {"a": 0.9, "b": 0.5}
    assert frame["cmd"].to_dict() == {"a": pytest.approx(0.15), "b": pytest.approx(0.4)}
    assert results.overall_note() == ""


def test_methods_without_a_common_task_are_left_out_and_named():
    results = results_of(
        [
            (("one", "a", 0), done(0.1, 4)),
            (("one", "b", 0), done(0.3, 4)),
            (("two", "c", 0), done(0.2, 4)),
        ]
    )
    assert results.overall()["method"].tolist() == ["a", "b"]
    assert "no task is common to all: c left out of averages" in results.overall_note()


def test_no_two_methods_look_alike(tmp_path):
    methods = [f"m{number}" for number in range(50)]
    page = page_of(results_of([(("one", name, 0), done(0.1, 4)) for name in methods]), tmp_path)
    legend = page[page.index("<p class='legend'>") : page.index("<h2>small: one")]
    styles = re.findall(r"stroke='(#\w+)'(?: stroke-dasharray='([\d ]+)')?", legend)
    assert len(styles) == len(set(styles)) == 50
    assert re.findall(r"</svg>(m\d+)</span>", legend) == methods
