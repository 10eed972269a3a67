"""What a mask-optimising run will cost, before it: memory by part, time by part, peak and total.

Nothing of the model is loaded: an adapter reads the configuration alone. Memory is counted part by
part from the shapes (bytes); time is measured on a short calibration (a model of the same width and
a few layers, random weights, on the device itself), or follows from a given :class:`Throughput`
where the device is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from graphprune.errors import InputError, UnsupportedModelError, unknown_name
from graphprune.methods.costs import (
    PHASES,
    CostEstimator,
    MemoryPart,
    Operations,
    RunShape,
    Throughput,
)
from graphprune.search.minibatches import SHARE, available_memory
from graphprune.util.checks import at_least
from graphprune.util.modes import with_gradients
from graphprune.util.quantities import best_seconds, size_text, time_text

__all__ = [
    "Plan",
    "plan",
]

METHODS = ("edge-pruning", "matryoshka", "subnetwork-probing", "ugs")
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Plan:
    """Memory in bytes, time in seconds, for one run. ``str(plan)`` is a table to read.

    ``memory`` has every part with the phases it lives in; ``peak`` is the largest sum over one
    phase, ``over_model`` the same without the weights. ``seconds`` are ``reference`` (one batch),
    ``step`` (forward, backward and gate update, with the reference at hand), ``gates`` (the update
    alone), ``total`` (all steps and references) and ``calibration``. ``flops`` are one step's
    products, by part.

    Example:
        >>> made = gp.plan(lm, method="edge-pruning", batch_size=8, tokens=16)
        >>> made.edges, made.batch_size, made.peak_phase
        (110, 8, 'backward')
    """

    model: str
    method: str
    device: str
    dtype: str
    batch_size: int
    tokens: int
    answers: int
    copies: int
    steps: int
    examples: int
    edges: int
    nodes: int
    parameters: int
    memory: tuple[MemoryPart, ...]
    flops: Mapping[str, float]
    seconds: Mapping[str, float]
    cached: bool

    def phase_bytes(self, phase: str) -> int:
        """Bytes that live together in one phase of a step."""
        return sum(part.bytes for part in self.memory if phase in part.phases)

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(PHASES, key=self.phase_bytes)

    @property
    def peak(self) -> int:
        """The most bytes that live at once, weights included."""
        return self.phase_bytes(self.peak_phase)

    @property
    def over_model(self) -> int:
        """The peak without the model's own weights."""
        return self.peak - sum(part.bytes for part in self.memory if part.name == "weights")

    @property
    def steps_per_second(self) -> float:
        """How many steps fit in a second, references included where they are not kept."""
        each = self.seconds["step"] + (0.0 if self.cached else self.seconds["reference"])
        return 1.0 / each

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        derived = ("peak", "over_model", "peak_phase", "steps_per_second")
        names = (*(f.name for f in fields(self)), *derived)
        plain = {name: getattr(self, name) for name in names}
        plain["memory"] = {part.name: part.bytes for part in self.memory}
        plain["phases"] = {phase: self.phase_bytes(phase) for phase in PHASES}
        plain["flops"] = dict(self.flops)
        plain["seconds"] = dict(self.seconds)
        return plain

    def rows(self) -> list[tuple[str, str, str]]:
        """The table's rows: part, figure, remark."""
        rows = [
            ("edges", f"{self.edges:,}", f"{self.nodes:,} nodes, {self.parameters:,} parameters"),
        ]
        peak = self.peak_phase
        for part in self.memory:
            where = "" if peak in part.phases else f"not at the peak: {' and '.join(part.phases)}"
            rows.append((part.name, size_text(part.bytes), where))
        rows.append(("memory at the peak", size_text(self.peak), f"in the {peak} phase"))
        rows.append(("of this over the weights", size_text(self.over_model), ""))
        total = sum(self.flops.values())
        rows.append(("products of a step", f"{total / 1e9:,.1f} GFLOP", ""))
        kept = "made once and kept" if self.cached else "made for every step"
        rows.append(("reference of a batch", time_text(self.seconds["reference"]), kept))
        rows.append(
            ("step", time_text(self.seconds["step"]), f"{self.steps_per_second:.2f} a second")
        )
        rows.append(
            ("whole run", time_text(self.seconds["total"]), f"{self.steps:,} steps, no evaluation")
        )
        return rows

    def __str__(self) -> str:
        title = (
            f"{self.method} on {self.model} ({self.dtype}, {self.device}), "
            f"{self.batch_size} x {self.tokens} tokens"
            + (f", {self.copies} masks" if self.copies > 1 else "")
        )
        rows = self.rows()
        wide = max(len(row[0]) for row in rows)
        number = max(len(row[1]) for row in rows)
        lines = [f"  {a:{wide}s}  {b:>{number}s}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([title, *lines])


@with_gradients
def plan(
    subject: Any,
    *,
    method: str = "edge-pruning",
    batch_size: int = 32,
    tokens: int = 32,
    answers: int = 1,
    copies: int = 1,
    steps: int = 3000,
    examples: int = 200,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    throughput: Throughput | None = None,
    cache_bytes: int | None = None,
    **options: Any,
) -> Plan:
    """Memory and time of a mask-optimising run, from the model's configuration alone.

    Args:
        subject: a configuration, the folder or id of a model (only ``config.json`` is read), a
            module or a :class:`~graphprune.MaskedModel`.
        method: ``"edge-pruning"``, ``"matryoshka"``, ``"subnetwork-probing"`` or ``"ugs"``
            (which draws ``copies`` masks for each example).
        batch_size: examples a step.
        tokens: positions of a batch (its longest prompt).
        answers: answer positions of an example.
        copies: masks drawn in a step.
        steps: of the whole run.
        examples: of the training set; their references are kept if they fit into ``cache_bytes``.
        dtype: of the weights, ``"auto"``: as the configuration says.
        device: ``"auto"``: a GPU if there is one.
        throughput: of a device that is not at hand; without it the device is measured, which takes
            a few seconds.
        cache_bytes: the most that kept references may take; ``None``: a quarter of the device's
            free memory, as the runs themselves decide, 1 GiB for a device that is not at hand.
        options: for the adapter; a language model's: ``embedding_nodes``, ``checkpointing``.

    Raises :class:`InputError` for sizes below 1 or an unknown method, and
    :class:`UnsupportedModelError` where no adapter knows the model.

    Example:
        >>> made = plan(lm, method="edge-pruning", batch_size=8, tokens=16, steps=1000)
        >>> made.edges, made.steps, made.peak < 2**30
        (110, 1000, True)
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS, where="plan")
    numbers = {
        "batch_size": batch_size, "tokens": tokens, "answers": answers, "copies": copies,
        "steps": steps, "examples": examples,
    }  # fmt: skip
    for name, value in numbers.items():
        at_least(value, 1, name)
    place = _device(device, throughput)
    request = RunShape(
        batch_size, tokens, answers, copies, method == "ugs", _dtype(dtype), place,
        throughput is None, options,
    )  # fmt: skip
    cost = _planner(subject).plan(subject, request)
    masks = copies * (batch_size if method == "ugs" else 1)
    batches = -(-examples // batch_size)
    if cache_bytes is None:
        free = available_memory(place) if throughput is None else 4 * CACHE_BYTES
        cache_bytes = int(SHARE * free)
    kept = batches * cost.reference_bytes <= cache_bytes and 2 * batches <= steps
    memory = [*cost.memory, *_gate_memory(cost.edges, masks)]
    if kept and batches > 1:
        memory.append(MemoryPart("kept references", (batches - 1) * cost.reference_bytes))
    gates = Operations("gates", 0.0, 4.0 * cost.edges * (22 + 14 * masks))
    if throughput is None:
        gate_seconds = _gate_seconds(cost.edges, masks, place)
        step, reference = cost.seconds["step"], cost.seconds["reference"]
    else:
        gate_seconds = throughput.seconds(gates)
        step = sum(map(throughput.seconds, cost.work))
        reference = sum(map(throughput.seconds, cost.reference_work))
    step += gate_seconds
    seconds = {
        "reference": reference,
        "step": step,
        "gates": gate_seconds,
        "total": steps * step + (batches if kept else steps) * reference,
        "calibration": cost.seconds.get("calibration", 0.0),
    }
    return Plan(
        model=cost.model,
        method=method,
        device=str(place),
        dtype=str(cost.dtype).removeprefix("torch."),
        batch_size=batch_size,
        tokens=tokens,
        answers=answers,
        copies=copies,
        steps=steps,
        examples=examples,
        edges=cost.edges,
        nodes=cost.nodes,
        parameters=cost.parameters,
        memory=tuple(memory),
        flops={work.name: work.flops for work in cost.work},
        seconds=seconds,
        cached=kept,
    )


def _planner(subject: object) -> CostEstimator:
    from graphprune.core.registry import adapters

    found = [a for a in adapters().values() if isinstance(a, CostEstimator)]
    for adapter in found:
        if adapter.plans(subject):
            return adapter
    raise UnsupportedModelError(
        f"no adapter can plan for {type(subject).__name__}; expected a model's configuration, its "
        "folder or id, or the model itself"
    )


def _device(device: str | torch.device, throughput: Throughput | None) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if throughput is None:
            torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}; give its "
            "throughput to plan for a device elsewhere"
        ) from None
    return chosen


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise unknown_name("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    return found


def _gate_memory(edges: int, masks: int) -> list[MemoryPart]:
    """log-alpha, its gradient and Adam's two moments; then what one draw of the masks keeps."""
    return [
        MemoryPart("gates and optimiser", 4 * 4 * edges),
        MemoryPart("drawn masks", 4 * 4 * edges * masks, ("forward", "backward")),
        MemoryPart("gate temporaries", 4 * 2 * edges * masks, ("backward", "update")),
    ]


def _gate_seconds(edges: int, masks: int, device: torch.device) -> float:
    """Seconds of drawing hard-concrete masks, their gradient, and Adam over all edges."""
    alpha = torch.full((edges,), 2.0, device=device, requires_grad=True)
    adam = torch.optim.Adam([alpha], lr=0.1)

    def update() -> None:
        noise = torch.rand(masks, edges, device=device).clamp_(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((noise.logit_() + alpha) / (2 / 3))
        mask = (1.2 * soft - 0.1).clamp(0, 1)
        mask.backward(noise)
        adam.step()
        adam.zero_grad()

    return best_seconds(update, device)
