"""How many files a reader walks through to follow one command from its first line to its last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.cli import save_model
from support.tiny import random_pair, tiny

import graphprune as gp

COUNT = """
import inspect, json, sys
from pathlib import Path

import graphprune.cli

root = Path(graphprune.__file__).resolve().parents[1]
rooms = [root / name for name in ("graphprune", "adapters", "spectral")]
walked, importing = set(), 0


def note(frame, event, _):
    global importing
    code = frame.f_code
    if code.co_name == "<module>":
        importing += {"call": 1, "return": -1}.get(event, 0)
    elif event == "call" and not importing and code.co_flags & inspect.CO_OPTIMIZED:
        walked.add(code.co_filename)


sys.setprofile(note)
try:
    graphprune.cli.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
sys.setprofile(None)
paths = {Path(name).resolve() for name in walked if not name.startswith("<")}
ours = sorted(str(p.relative_to(root)) for p in paths if any(r in p.parents for r in rooms))
print(json.dumps([code, ours]), file=sys.stderr)
"""


def test_finding_a_circuit_by_eap_takes_at_most_fifty_files(tmp_path):
    """Those whose functions are called; what runs while a module is imported is aside."""
    model = save_model(tmp_path / "tiny", seed=3)
    options = ["--task", "ioi", "--method", "eap", "-n", "8", "--size", "0.3", "--json"]
    arguments = ["discover", "--model", str(model), *options, "--out", str(tmp_path / "c")]
    run = subprocess.run(
        [sys.executable, "-c", COUNT, *arguments], capture_output=True, text=True, check=True
    )
    code, files = json.loads(run.stderr.splitlines()[-1])
    assert code in (0, None), run.stderr
    assert "graphprune/methods/gradient.py" in files
    assert "adapters/lm/attribution/gradients.py" in files
    assert 30 < len(files) <= 50, "\n".join(files)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_masked_run_takes_at_most_ten_files(gradient):
    """A tiny GPT-2 under a mask of all its edges, its reference made before, counted the same."""
    model = gp.wrap(tiny("gpt2"))
    clean, corrupt = random_pair(model.module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    reference = model.reference(batch)
    assert not torch.equal(reference.full, reference.ablated)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(model.graph.num_edges, generator=generator).requires_grad_(gradient)
    walked = set()
    sys.setprofile(lambda frame, event, _: walked.add(frame.f_code.co_filename))
    try:
        outputs = model.run(batch, mask, reference)
    finally:
        sys.setprofile(None)
    assert outputs.requires_grad is gradient
    root = Path(gp.__file__).resolve().parents[1]
    rooms = [root / name for name in ("graphprune", "adapters", "spectral")]
    paths = {Path(name).resolve() for name in walked if not name.startswith("<")}
    files = {str(p.relative_to(root)) for p in paths if any(r in p.parents for r in rooms)}
    assert "adapters/lm/passes/masked.py" in files
    assert len(files) <= 10, "\n".join(sorted(files))
