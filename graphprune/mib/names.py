"""Names of MIB's circuit track: its models with their shapes, its tasks, its folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphprune.errors import unknown_name
from graphprune.mib.data import MIB_TASKS

__all__ = ["MIB_MODELS", "SCORED_TASKS", "known_name", "split_name"]

# layers, heads, d_model; none of them computes attention and MLP in parallel
MIB_MODELS = {
    "gpt2": (12, 12, 768),
    "qwen2.5": (24, 14, 896),
    "gemma2": (26, 8, 2304),
    "llama3": (32, 32, 4096),
    "interpbench": (6, 4, 64),
}
"""The benchmark's models as it names them in folders, with their shapes."""

SCORED_TASKS = {
    "gpt2": ("ioi",),
    "qwen2.5": ("ioi", "mcqa"),
    "gemma2": ("ioi", "mcqa", "arc-easy"),
    "llama3": tuple(MIB_TASKS),
    "interpbench": ("ioi",),
}
"""The tasks that the benchmark scores each model on."""


def split_name(name: str) -> tuple[str | None, str | None]:
    """Task and model from a folder's name, as the benchmark's evaluator finds them.

    Each stands at the beginning or behind an underscore, in letters of any case; of several the
    first in the benchmark's own order counts.

    Example:
        >>> split_name("ioi_gpt2"), split_name("EAP_arc_easy_llama3"), split_name("eap-ioi-gpt2")
        (('ioi', 'gpt2'), ('arc-easy', 'llama3'), (None, None))
    """
    behind = f"_{name.lower()}"

    def first(known: Iterable[str]) -> str | None:
        for one in known:
            if f"_{one}" in behind or f"_{one.replace('-', '_')}" in behind:
                return one
        return None

    return first(MIB_TASKS), first(MIB_MODELS)


def known_name(kind: str, name: str, known: Sequence[str]) -> str:
    """A name as the benchmark writes it; :class:`InputError` where it is none of ``known``."""
    plain = name.replace("_", "-")
    if plain not in known:
        raise unknown_name(f"{kind} of MIB", name, known)
    return plain
