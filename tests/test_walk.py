"""How many files a reader walks through to follow one call from its first line to its last."""

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

import torch, transformers  # loaded before the profile, which makes imports slow

import graphprune

{prepared}

root = Path(graphprune.__file__).resolve().parents[1]
rooms = [root / name for name in ("graphprune", "adapters", "spectral")]
walked, importing = set(), 0


def note(frame, event, _):
    global importing
    code = frame.f_code
    if code.co_name == "<module>":
        importing += {{"call": 1, "return": -1}}.get(event, 0)
    elif event == "call" and not importing and code.co_flags & inspect.CO_OPTIMIZED:
        walked.add(code.co_filename)


result = None
sys.setprofile(note)
try:
    result = {call}
except SystemExit as end:
    result = end.code
sys.setprofile(None)
paths = {{Path(name).resolve() for name in walked if not name.startswith("<")}}
ours = sorted(str(p.relative_to(root)) for p in paths if any(r in p.parents for r in rooms))
print(json.dumps([{answer}, ours]), file=sys.stderr)
"""

ON_A_GRAPH_NETWORK = """
import graphprune as gp
import torch
from graphprune.adapters import ARGNN
from graphprune.tasks import patterns

gp.SpectralPruning  # loaded on first use



def network(edges):
    ends = torch.randint(10, (2, edges), generator=torch.Generator().manual_seed(0))
    ends = torch.unique(ends[:, (ends[0] != ends[1]) & (ends[1] >= 2)], dim=1)
    return gp.wrap(ARGNN(ends, 10, inputs=[0, 1], outputs=[8, 9], steps=4, seed=0))


sparse, dense = network(40), network(150)
task = patterns(torch.randn(6, 2), torch.tensor([0, 1] * 3))
"""


def walk(call, *arguments, prepared="", answer="result"):
    """What a call gave, and the files of ours whose functions it called.

    What runs while a module is imported is aside.
    """
    program = COUNT.format(call=call, prepared=prepared, answer=answer)
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(run.stderr.splitlines()[-1])


def test_finding_a_circuit_by_eap_takes_at_most_fifty_four_files(tmp_path):
    model = save_model(tmp_path / "tiny", seed=3)
    options = ["--task", "ioi", "--method", "eap", "-n", "8", "--size", "0.3", "--json"]
    arguments = ["discover", "--model", str(model), *options, "--out", str(tmp_path / "c")]
    code, files = walk(
        "graphprune.cli.main(sys.argv[1:])", *arguments, prepared="import graphprune.cli"
    )
    assert code in (0, None), files
    assert "graphprune/methods/gradient.py" in files
    assert "adapters/lm/attribution/gradients.py" in files
    assert 30 < len(files) <= 54, "\n".join(files)


def test_spectral_pruning_of_a_graph_network_takes_at_most_twenty_files():
    """By default, where cutting cycles is enough, and where exchange and annealing follow."""
    found_by, files = walk(
        "[gp.SpectralPruning().prune(sparse, task), "
        "gp.SpectralPruning(goal='gap', effort=0.02).prune(dense, task)]",
        prepared=ON_A_GRAPH_NETWORK,
        answer="[mask.notes['by'] for mask in result]",
    )
    assert found_by[0] == "cycles cut"
    assert "adapters/gnn/argnn.py" in files
    assert "spectral/search/set_search.py" in files
    assert 10 < len(files) <= 20, "\n".join(files)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_masked_run_takes_at_most_twelve_files(gradient):
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
    assert len(files) <= 12, "\n".join(sorted(files))
