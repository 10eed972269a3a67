"""Scripts in a process of their own, or in several that talk over gloo as launchers start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(script: Path, *arguments: str, world: int = 2, timeout: float = 240) -> list[str]:
    """What each process printed; fails with its errors if one of them ends badly."""
    common = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "PYTHONSAFEPATH": "1",  # the script stands in a folder with files named like packages
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    ended = []
    try:
        for process in running:
            ended.append(process.communicate(timeout=timeout))
    finally:
        for process in running:
            process.kill()
            process.communicate()
    for rank, (process, (_, errors)) in enumerate(zip(running, ended, strict=True)):
        assert process.returncode == 0, f"process {rank} ended badly:\n{errors[-4000:]}"
    return [out for out, _ in ended]


def in_a_process(*command, timeout=300):
    """Python with these arguments; ends within ``timeout`` seconds whatever it returns."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
