"""The tiny leaderboard gives the committed numbers."""

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import graphprune as gp

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_tiny_table_is_the_committed_one(tmp_path, monkeypatch, capsys):
    described = yaml.safe_load((EXAMPLES / "leaderboard_tiny.yaml").read_text())
    found = gp.Study.from_dict({**described, "seeds": [0]}).run(tmp_path).to_frame()
    assert set(found["state"]) == {"done"}
    by = ["task", "method", "density"]
    wanted = pd.read_csv(EXAMPLES / "results" / "leaderboard_tiny.csv").query("seed == 0")
    both = wanted.merge(found, on=by, suffixes=("", "_found"), how="outer", validate="1:1")
    assert len(both) == len(wanted) == len(found)
    for name in ("kept", "passes"):
        assert (both[name] == both[f"{name}_found"]).all(), name
    for name in ("cmd", "cpr", "kl", "top1_match"):
        gap = (both[name] - both[f"{name}_found"]).abs()
        assert gap.max() < 0.01, f"{name}\n{both.loc[gap >= 0.01, [*by, name, f'{name}_found']]}"
    earlier = tmp_path / "earlier.csv"
    pd.DataFrame(
        {"system": ["s"], "task": ["t"], "method": ["EAP"], "cmd": 0.5, "cpr": 0.5}
    ).assign(passes=1).to_csv(earlier, index=False)
    small = tmp_path / "small.csv"
    monkeypatch.setattr(sys, "argv", ["", str(earlier), str(tmp_path), "--csv", str(small)])
    runpy.run_path(str(EXAMPLES.parent / "docs" / "leaderboard_tables.py"), run_name="__main__")
    printed = capsys.readouterr().out
    rows = pd.read_csv(small).set_index(["task", "method"])
    assert rows["cmd"]["t", "EAP"] == 0.5
    rows = rows[rows["system"] != "s"]
    assert len(rows) == wanted.groupby(by[:2]).ngroups
    for (task, method), cmd in wanted.groupby(by[:2])["cmd"].first().items():
        assert rows["cmd"][task, method] == pytest.approx(cmd, abs=0.01)
        assert f"| {method} |" in printed
