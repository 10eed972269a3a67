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


def by_prompt(kl, cmd):
    """A record whose KL is ``kl`` by prompt, and whose f at both inner sizes is ``1 - cmd``."""
    record = done(0.0, 4, kl=sum(kl) / len(kl))
    prompts = [f"p{number}" for number in range(len(kl))]
    values = [[0.0] * len(kl), [1.0] * len(kl), [1 - each for each in cmd]]
    at = {"signed": [2, 2, 1], "abs": [2, 2, 1]}
    weighted = {"signed": SIZES, "abs": SIZES}
    mean = sum(cmd) / len(cmd)
    return record | {
        "cmd": (SIZES[1] - SIZES[0]) * mean + (SIZES[2] - SIZES[1]) * mean / 2,
        "curve": {**record["curve"], "weighted": weighted},
        "examples": {
            "prompts": prompts,
            "rows": [{"kl": list(kl)}],
            "curve": {"values": values, "at": at},
        },
    }


def test_methods_tied_with_the_best_are_marked(tmp_path):
    noise = [0.01 * (-1) ** number for number in range(24)]
    first = [1.0 + 0.1 * number for number in range(24)]
    rows = [
        (("one", "best", 0), by_prompt(first, [0.1] * 24)),
        (("one", "like it", 0), by_prompt([x + n + 1e-4 for x, n in zip(first, noise, strict=True)],
                                          [0.1 + n for n in noise])),
        (("one", "worse", 0), by_prompt([x + 0.02 + n for x, n in zip(first, noise, strict=True)],
                                        [0.12 + n for n in noise])),
        (("one", "older", 0), done(0.5, 4, kl=9.0)),
    ]  # fmt: skip
    results = results_of(rows)
    ties = results.ties().set_index(["figure", "method"])
    assert ties["tie"].loc["kl@0.05"].to_dict() == {"best": True, "like it": True, "worse": False}
    assert set(ties["best"].loc["kl@0.05"]) == {"best"}
    worse = ties.loc[("kl@0.05", "worse")]
    assert worse["difference"] == pytest.approx(0.02)
    assert 0 < worse["low"] < worse["high"] < 0.03  # though KL itself spreads over 2.3
    assert "older" not in ties.index.get_level_values("method")
    page = page_of(results, tmp_path)
    cells = re.findall(r"<td>(best|like it|worse|older)</td>.*?</tr>", page[page.index("KL at") :])
    assert sorted(cells) == ["best", "like it", "older", "worse"]
    fixed = page[page.index("KL at 5 %") :]
    marks = {
        name: re.search(f"<td>{name}</td><td>1</td><td(.*?)>", fixed)[1] for name in sorted(cells)
    }
    assert marks["best"] == " class='best'"
    assert marks["like it"] == " class='tied'"
    assert marks["worse"] == marks["older"] == ""
    assert "<small class='tie'>tied</small>" in fixed


def test_a_prompt_of_two_seeds_is_one_prompt():
    """Both seeds have the same prompts: as many prompts as one has, and its width."""
    kl, other = [0.1, 0.4, 0.2, 0.9, 0.3, 0.7], [0.2] * 6
    values = {"a": kl, "b": other}
    rows = [(("one", name, 0), by_prompt(values[name], other)) for name in values]
    again = [(("one", name, 1), by_prompt(values[name], other)) for name in values]
    one, two = results_of(rows), results_of(rows + again)
    (alone,) = one.paired("kl@0.05", "a", "b").to_dict("records")
    (both,) = two.paired("kl@0.05", "a", "b").to_dict("records")
    assert (alone["seeds"], both["seeds"]) == (1, 2)
    assert alone["prompts"] == both["prompts"] == 6
    for name in ("first", "second", "difference", "low", "high"):
        assert both[name] == pytest.approx(alone[name])
    assert alone["difference"] == pytest.approx(sum(kl) / 6 - 0.2)


def test_records_of_earlier_versions_show_blanks(tmp_path):
    results = results_of([(("one", "a", 0), done(0.1, 4)), (("one", "b", 0), done(0.2, 4))])
    assert len(results.paired("kl@0.05", "a", "b")) == len(results.over_prompts("cmd")) == 0
    assert len(results.ties()) == 0
    page = page_of(results, tmp_path)
    assert "tied</small>" not in page
    assert results.summary()["note"].tolist() == ["one seed: no interval"] * 2
