"""Two gloo processes that share every batch, or the weights, give the numbers of one process.

One launch serves all tests, since starting processes takes longer than what they do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inside.data_parallel import gradient
from safetensors.torch import load_file
from support.parallel_run import fits
from support.processes import TESTS, free_port, launch
from support.sharded import results
from support.tiny import tiny

from graphprune.errors import InputError
from graphprune.search.distributed import Workers

pytestmark = pytest.mark.inside
SCRIPT = Path(__file__).parent / "data_parallel.py"


def ranks_of(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"{name}{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    launch(SCRIPT, str(folder), "gpt2")
    return folder


def compare(folder: Path) -> None:
    """Shares of 3 and 2, of 1 and 1, and of 1 and none; both processes hold the same result."""
    ranks = ranks_of(folder, "step")
    for examples in ([0, 1, 2, 3, 4], [0, 1], [3]):
        grad, value = gradient(examples, Workers())
        assert float(grad.abs().max()) > 1e-3
        for found in ranks:
            gap = (found[f"grad{examples}"] - grad).abs().max()
            assert float(gap) < 1e-5 * float(grad.abs().max())
            torch.testing.assert_close(found[f"value{examples}"], value, rtol=1e-6, atol=0)
        assert torch.equal(ranks[0][f"grad{examples}"], ranks[1][f"grad{examples}"])


def test_two_processes_give_the_gradient_of_one(folder):
    compare(folder)


def test_two_processes_optimise_the_mask_of_one(folder):
    """Whole runs: last batches of one example (a share of none), checkpoints by one process."""
    ranks, alone = ranks_of(folder, "fits"), fits()
    assert {p.name for p in (folder / "run").iterdir()} == {"run.json", "checkpoint.safetensors"}
    for name, want in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], want, rtol=2e-3, atol=2e-3, msg=name)


def compare_sharded(folder: Path, family: str) -> None:
    want = results(tiny(family, num_hidden_layers=4))
    for found in ranks_of(folder, family):
        assert found.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_two_fsdp_processes_give_the_numbers_of_one(folder):
    compare_sharded(folder, "gpt2")


@pytest.mark.slow
def test_torchrun_gives_the_gradient_of_one(tmp_path):
    """`accelerate launch` starts GPU processes the same way; for CPUs alone it wants MPI."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_port", str(free_port()), str(SCRIPT), str(tmp_path), "llama",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    compare(tmp_path)
    compare_sharded(tmp_path, "llama")


def test_shares_cover_a_batch_once():
    for world in (1, 2, 3, 7):
        shares = [Workers(rank, world).share(range(5)) for rank in range(world)]
        assert sorted(i for share in shares for i in share) == list(range(5))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_communicates_nothing():
    workers = Workers.current()
    assert (workers.rank, workers.world, workers.is_main) == (0, 1, True)
    tensor = torch.tensor([1.5, -2.0])
    assert workers.mean_(tensor, 3) is tensor
    workers.barrier()


def test_sharded_weights_need_an_example_for_each():
    with pytest.raises(InputError, match="1 examples cannot be shared by 2 processes"):
        Workers(0, 2, sharded=True).share([4])
    with pytest.raises(InputError, match="rank 2 is not one of 2"):
        Workers(2, 2)
