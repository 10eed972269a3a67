"""Two gloo processes that share a batch give the gradients of one process that has it all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inside.data_parallel import gradient
from safetensors.torch import load_file
from support.processes import TESTS, free_port, launch

from graphprune.errors import InputError
from graphprune.search.distributed import Workers

pytestmark = pytest.mark.inside
SCRIPT = Path(__file__).parent / "data_parallel.py"


def compare(folder: Path) -> None:
    """Shares of 3 and 2, of 1 and 1, and of 1 and none; both processes hold the same result."""
    ranks = [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]
    for examples in ([0, 1, 2, 3, 4], [0, 1], [3]):
        grad, value = gradient(examples, Workers())
        assert float(grad.abs().max()) > 1e-3
        for found in ranks:
            gap = (found[f"grad{examples}"] - grad).abs().max()
            assert float(gap) < 1e-5 * float(grad.abs().max())
            torch.testing.assert_close(found[f"value{examples}"], value, rtol=1e-6, atol=0)
        assert torch.equal(ranks[0][f"grad{examples}"], ranks[1][f"grad{examples}"])


def test_two_processes_give_the_gradient_of_one(tmp_path):
    launch(SCRIPT, str(tmp_path))
    compare(tmp_path)


@pytest.mark.slow
def test_torchrun_gives_the_gradient_of_one(tmp_path):
    """`accelerate launch` starts GPU processes the same way; for CPUs alone it wants MPI."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_port", str(free_port()), str(SCRIPT), str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    compare(tmp_path)


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
    assert workers.broadcast_(tensor).tolist() == [1.5, -2.0]
    workers.barrier()


def test_sharded_weights_need_an_example_for_each():
    with pytest.raises(InputError, match="1 examples cannot be shared by 2 processes"):
        Workers(0, 2, sharded=True).share([4])
    with pytest.raises(InputError, match="rank 2 is not one of 2"):
        Workers(2, 2)
