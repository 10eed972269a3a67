"""Studies on a local Dask and a local Ray cluster: the tables of one process, a worker killed."""

import contextlib
import os
import signal
import subprocess
import threading

import joblib
import pandas as pd
import pytest
from support.studies import small_plan

from graphprune.errors import GraphPruneError
from graphprune.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
COLUMNS = ["system", "task", "method", "seed", "density", "kept", "kl", "cpr", "cmd"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    plan = small_plan(tmp_path_factory.mktemp("model"))
    return Study.from_dict({**plan, "seeds": [0, 1, 2]})


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory):
    """The table as one process makes it."""
    return study.run(tmp_path_factory.mktemp("alone")).to_frame()[COLUMNS]


def finished(folder):
    return len(list(folder.glob("jobs/*.json")))


@contextlib.contextmanager
def one_killed(folder, workers):
    """Kills one of ``workers()`` (process ids) when the first job is finished; gives whom."""
    killed, over = [], threading.Event()

    def kill():
        while not finished(folder) and not over.wait(0.01):
            pass
        killed.append(min(workers()))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def run_to_the_end(study, folder, backend, workers):
    """The table of a run on the backend, begun anew if the killed worker ended it."""
    on_backend = joblib.parallel_config(backend=backend, n_jobs=2)
    with on_backend, one_killed(folder, workers) as killed:
        try:
            results = study.run(folder)
        except GraphPruneError as stopped:
            message, before = str(stopped), finished(folder)
            results = study.run(folder)
        else:
            message, before = "what was finished is kept", 1  # the backend gave the job to another
    assert "what was finished is kept" in message
    assert 0 < before < len(study.jobs())
    assert len(killed) == 1
    assert results.counts == {"done": len(study.jobs())}
    return results.to_frame()[COLUMNS]


def test_dask(study, alone, tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:

        def workers():
            return client.run(os.getpid).values()

        table = run_to_the_end(study, tmp_path, "dask", workers)
    pd.testing.assert_frame_equal(table, alone)


def test_ray(study, alone, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra 'cluster' is not installed")
    from ray.util.joblib import register_ray

    def workers():
        found = subprocess.run(["pgrep", "-f", "ray::PoolActor"], capture_output=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        table = run_to_the_end(study, tmp_path, "ray", workers)
    finally:
        ray.shutdown()
    pd.testing.assert_frame_equal(table, alone)
