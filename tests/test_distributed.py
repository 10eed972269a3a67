"""Two gloo processes that share every batch find the mask of one process that has them all."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from support.parallel_run import fits
from support.processes import launch

SCRIPT = Path(__file__).parent / "support" / "parallel_run.py"


def test_two_processes_optimise_the_mask_of_one(tmp_path):
    """Whole runs: last batches of one example (a share of none), checkpoints by one process."""
    launch(SCRIPT, str(tmp_path))
    ranks = [load_file(tmp_path / f"fits{rank}.safetensors") for rank in range(2)]
    alone = fits()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "checkpoint.safetensors"}
    for name, want in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], want, rtol=2e-3, atol=2e-3, msg=name)
