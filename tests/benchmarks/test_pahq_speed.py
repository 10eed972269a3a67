"""PAHQ beside float32 ACDC on GPT-2 small's shape: time, memory, decisions changed.

Random weights, 8 x 16 tokens, KL, tau 1e-3, one thread. Each run is a process of its own, so that
its peak of resident memory is its own. "MLPs in bf16" runs on native kernels where the CPU has
them; PAHQ's fp8 heads are emulated, which shows no time: its row says what emulation costs.

2-core AMD EPYC virtual machine, 2026-11-25: ACDC 32 s, 1,280 MiB, 38 edges kept in 1,365 runs. MLPs
in bf16: 0.79 of the time, 1.05 of the memory, no decision changed; rechecked 3.3 of the time (83
decisions by whole runs) and 1.16 of the memory. PAHQ, emulated: 1.16 and 1.17, one changed.
"""

import json
import subprocess
import sys

import pytest
import torch

import graphprune as gp

from .measuring import BATCH, fresh_batch, gpt2_small

METHODS = {
    "ACDC, float32": lambda tau: gp.ACDC(tau=tau, recheck="same"),
    "MLPs in bf16": lambda tau: gp.PAHQ(
        tau=tau, policy=gp.PrecisionPolicy({"mlp": "bf16"}), raised=()
    ),
    "MLPs in bf16, rechecked": lambda tau: gp.PAHQ(
        tau=tau, policy=gp.PrecisionPolicy({"mlp": "bf16"}), raised=(), recheck="same"
    ),
    "PAHQ (emulated)": lambda tau: gp.PAHQ(tau=tau),
}
TAU = 1e-3


def _measure(name):
    """One run, in a process of its own; prints its figures as JSON."""
    import resource
    import time

    torch.set_num_threads(1)
    model = gp.wrap(gpt2_small())
    batch = fresh_batch()
    ids = [batch.clean["input_ids"], batch.corrupt["input_ids"]]
    task = gp.Task.from_tensors(*ids, answer=[1] * BATCH, metric="kl")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = METHODS[name](TAU).fit(model, task)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = torch.nonzero(found.mask.values)[:, 0].tolist()
    print(
        json.dumps(
            {"seconds": seconds, "mib": peak / 1024, "over": (peak - before) / 1024, "kept": kept}
            | {name: found.notes[name] for name in ("evaluations", "rechecks")}
        )
    )


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_time_memory_and_decisions():
    found = {}
    for name in METHODS:
        code = f"from tests.benchmarks.test_pahq_speed import _measure; _measure({name!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    base = found["ACDC, float32"]
    print()
    for name, row in found.items():
        changed = len(set(row["kept"]) ^ set(base["kept"]))
        print(
            f"{name}: {row['seconds']:.0f} s (x{row['seconds'] / base['seconds']:.2f}), peak "
            f"{row['mib']:.0f} MiB (x{row['mib'] / base['mib']:.2f}), {len(row['kept'])} kept, "
            f"{changed} changed, {row['evaluations']} runs, {row['rechecks']} rechecked"
        )
    assert found["MLPs in bf16, rechecked"]["kept"] == base["kept"]
