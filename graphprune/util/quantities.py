"""Seconds and bytes: measured, and written for people."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def size_text(count: float) -> str:
    """Bytes for reading.

    Example:
        >>> size_text(1536), size_text(3 * 2**30)
        ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def time_text(seconds: float) -> str:
    """Seconds for reading.

    Example:
        >>> time_text(0.0123), time_text(75), time_text(7265)
        ('12.3 ms', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def synchronise(device: torch.device) -> None:
    """Waits for the device's queue, where it has one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(job: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Least wall time of ``job()`` after a warm-up: other users of the machine only add to it."""
    times = []
    for turn in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        job()
        synchronise(device)
        if turn:
            times.append(time.perf_counter() - start)
    return min(times)
