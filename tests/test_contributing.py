"""CONTRIBUTING.md's adapter and method, as someone who pastes them runs them."""

import ast
import re
from pathlib import Path

from graphprune.conformance import method_checks

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_its_adapter_and_its_method_conform(capsys):
    place = {"__name__": "contributing"}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, place)
    told = capsys.readouterr().out.splitlines()
    adapter, scored, optimised, method, _, pruner, kept = told
    assert "'gradient_is_finite_difference': 'passed'" in adapter
    assert "EdgeScores(6 edges, method='EAP')" in scored
    assert optimised.startswith("Result(EdgeMask(3 of 6 edges")
    # The model has no module to change, and batches are asked of scorers alone.
    assert method.count("passed") == len(method_checks()) - 1
    assert pruner.count("passed") == len(method_checks()) - 2
    assert len(ast.literal_eval(kept)) == 4
