"""Timing and memory for the benchmarks: one thread, fresh inputs, the baseline beside it.

Times are CPU seconds of this process at one thread (which a busy machine disturbs least), medians
of interleaved repeats; memory is the peak resident size above what stood before, or the peak of
what tensors were allocated (which leaves out the allocator's slack, and is the same every time).
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from graphprune import Batch

BATCH, TOKENS, VOCAB = 8, 16, 50257


def gpt2_small():
    """GPT-2 small's shape, random weights, 32,491 edges."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def fresh_batch(batch: int = BATCH, tokens: int = TOKENS, vocab: int = VOCAB) -> Batch:
    clean, corrupt = torch.randint(vocab, (2, batch, tokens))
    return Batch({"input_ids": clean}, {"input_ids": corrupt}, batch)


def objective(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[..., 5] - outputs[..., 6]


def plain_forward(module) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            module(input_ids=fresh_batch().clean["input_ids"])

    return run


def plain_forward_backward(module, last: bool = False) -> Callable[[], None]:
    """A plain forward and backward with frozen weights (gradients to the embeddings only).

    ``last``: logits of the last position alone, which is all that the objective reads; else of all
    positions, as a call without further settings gives them.
    """
    keep = {"logits_to_keep": 1} if last else {}

    def run() -> None:
        flags = [p.requires_grad for p in module.parameters()]
        module.requires_grad_(False)
        try:
            embeds = module.get_input_embeddings()(fresh_batch().clean["input_ids"])
            logits = module(inputs_embeds=embeds.requires_grad_(True), **keep).logits
            objective(logits[:, -1]).sum().backward()
        finally:
            for p, flag in zip(module.parameters(), flags, strict=True):
                p.requires_grad_(flag)

    return run


def medians(jobs: dict[str, Callable[[], None]], repeats: int = 5) -> dict[str, float]:
    """CPU seconds of each job, run in turn ``repeats`` times after one warm-up."""
    seen: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if turn:
                seen[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seen.items()}


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def peak_mb(job: Callable[[], None]) -> float:
    """Peak resident memory of a job above what was resident before it, in MiB (Linux).

    Only meaningful in a process that has not freed large blocks before: see :func:`fresh_peak_mb`.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    job()
    return _status("VmHWM") - before


def allocated_bytes(job: Callable[[], object]) -> int:
    """Peak of all tensors' memory during a job above what stood before it (CPU)."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        job()
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def allocated_mb(job: Callable[[], object]) -> float:
    """:func:`allocated_bytes` in MiB."""
    return allocated_bytes(job) / 2**20


def fresh_peak_mb(setup: str, job: str, measure: str = "peak_mb") -> float:
    """:func:`peak_mb` (or ``measure``) of ``job`` in a new process, after ``setup``."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import graphprune as gp\n"
        "from benchmarks.measuring import *\n"
        f"{setup}\n"
        f"def job():\n    {job}\n"
        f"print('peak', {measure}(job))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split("peak")[-1])
