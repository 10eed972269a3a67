"""What a run of any method will cost, before it: memory by part, time by part, peak and total.

Nothing of the model is loaded: an adapter reads the configuration alone. Memory is counted part by
part from the shapes (bytes); time is measured on a short calibration (a model of the same width and
a few layers, random weights, on the device itself), or follows from a given :class:`Throughput`
where the device is another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

import torch

from graphprune.core.method import Method
from graphprune.core.registry import make_method, method_class, method_names
from graphprune.errors import InputError, UnsupportedModelError, unknown_name
from graphprune.methods.costs import (
    PHASES,
    CostEstimate,
    CostEstimator,
    MemoryPart,
    Operations,
    RunShape,
    Throughput,
    gate_memory,
    gate_seconds,
)
from graphprune.methods.optimiser import MaskOptimiser
from graphprune.methods.passes import PlannedRuns, passes_of
from graphprune.search.minibatches import SHARE, available_memory
from graphprune.util.checks import at_least
from graphprune.util.modes import with_gradients
from graphprune.util.quantities import size_text, time_text

__all__ = [
    "Plan",
    "plan",
]

CACHE_BYTES = 2**30
_STEPS = 3000  # of a mask optimiser that is named and says none


@dataclass(frozen=True)
class PlannedPasses:
    """Passes of one kind in a plan: whose and which they are, how many, peak bytes, seconds.

    ``count`` is a bound where ``at_most``: how many edges a descent tries is not known before.
    """

    owner: str
    kind: str
    count: int
    at_most: bool
    peak: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Memory in bytes, time in seconds, for one run. ``str(plan)`` is a table to read.

    ``memory`` has every part with the phases it lives in, of those passes that need most; ``peak``
    is the largest sum over one phase, ``over_model`` the same without the weights. ``passes`` says
    all that the method and its members make. ``seconds`` are ``reference`` (one batch), ``step``
    (one pass: forward, backward and gate update of a mask optimiser, with the reference at hand),
    ``gates`` (the update alone), ``total`` (all passes and references) and ``calibration``.
    ``flops`` are one step's products, by part.

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
    passes: tuple[PlannedPasses, ...] = ()

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
        return 1.0 / each if each else math.inf

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        derived = ("peak", "over_model", "peak_phase", "steps_per_second")
        names = (*(f.name for f in fields(self)), *derived)
        plain = {name: getattr(self, name) for name in names}
        plain["passes"] = [asdict(p) for p in self.passes]
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
        rows.append(("products of a pass", f"{total / 1e9:,.1f} GFLOP", ""))
        if self.passes and self.passes[-1].kind == "step":
            kept = "made once and kept" if self.cached else "made for every step"
            rows.append(("reference of a batch", time_text(self.seconds["reference"]), kept))
            rows.append(
                ("step", time_text(self.seconds["step"]), f"{self.steps_per_second:.2f} a second")
            )
        for p in self.passes:
            many = f"{'at most ' if p.at_most else ''}{p.count:,} x {p.kind}"
            rows.append((p.owner, time_text(p.seconds), f"{many}, {size_text(p.peak)} at the peak"))
        bound = "at most, " if any(p.at_most for p in self.passes) else ""
        rows.append(("whole run", time_text(self.seconds["total"]), f"{bound}no evaluation"))
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
    method: str | Method = "edge-pruning",
    batch_size: int = 32,
    tokens: int = 32,
    answers: int = 1,
    copies: int | None = None,
    steps: int | None = None,
    examples: int = 200,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    throughput: Throughput | None = None,
    cache_bytes: int | None = None,
    **options: Any,
) -> Plan:
    """Memory and time of a method's run, from the model's configuration alone.

    Args:
        subject: a configuration, the folder or id of a model (only ``config.json`` is read), a
            module or a :class:`~graphprune.MaskedModel`.
        method: a registered name or the method itself; an ensemble is the sum of its members.
        batch_size: examples at a time.
        tokens: positions of a batch (its longest prompt).
        answers: answer positions of an example.
        copies: masks drawn in a step; ``None``: the method's own.
        steps: of the method; ``None``: its own, of a mask optimiser that is named 3000.
        examples: of the training set; references of mask optimisers are kept if they fit into
            ``cache_bytes``.
        dtype: of the weights, ``"auto"``: as the configuration says.
        device: ``"auto"``: a GPU if there is one, or the one that ``throughput`` tells of.
        throughput: of a device that is not at hand; without it the device is measured, which takes
            a few seconds.
        cache_bytes: the most that kept references may take; ``None``: a quarter of the device's
            free memory, as the runs themselves decide, 1 GiB for a device that is not at hand.
        options: for the adapter; a language model's: ``embedding_nodes``, ``checkpointing``.

    Raises :class:`InputError` for sizes below 1, an unknown method or one that makes no passes over
    a model, and :class:`UnsupportedModelError` where no adapter knows the model.

    Example:
        >>> made = plan(lm, method="edge-pruning", batch_size=8, tokens=16, steps=1000)
        >>> made.edges, made.steps, made.peak < 2**30
        (110, 1000, True)
    """
    numbers = {
        "batch_size": batch_size, "tokens": tokens, "answers": answers, "examples": examples,
    }  # fmt: skip
    for name, value in {**numbers, "copies": copies, "steps": steps}.items():
        if value is not None:
            at_least(value, 1, name)
    chosen = _method(method, steps)
    batches = -(-examples // batch_size)
    place = _device(device, throughput)
    if cache_bytes is None:
        free = available_memory(place) if throughput is None else 4 * CACHE_BYTES
        cache_bytes = int(SHARE * free)
    run = _Run(
        _planner(subject), subject, place, throughput, batches, cache_bytes, copies,
        RunShape(
            batch_size, tokens, answers, 1, False, _dtype(dtype), place, throughput is None,
            options, here=throughput is None or device != "auto",
        ),
    )  # fmt: skip
    asked = passes_of(chosen) or (PlannedRuns("forward", 0, True, owner=type(chosen).__name__),)
    made = [run.planned(passes) for passes in asked]
    most, last = max(made, key=lambda one: one.peak), made[-1]
    return Plan(
        model=last.cost.model,
        method=method if isinstance(method, str) else method.label,
        device=str(place),
        dtype=str(last.cost.dtype).removeprefix("torch."),
        **numbers,
        copies=last.copies,
        steps=last.count,
        edges=last.cost.edges,
        nodes=last.cost.nodes,
        parameters=last.cost.parameters,
        memory=most.memory,
        flops={work.name: work.flops for work in last.cost.work},
        seconds={
            **last.seconds,
            "total": sum(one.total for one in made),
            "calibration": sum(one.cost.seconds.get("calibration", 0.0) for one in made),
        },
        cached=last.cached,
        passes=tuple(one.row for one in made if one.count),
    )


def _method(method: str | Method, steps: int | None) -> Method:
    if isinstance(method, Method):
        if steps is None:
            return method
        taking: Any = method  # not every method has the field
        if "steps" not in {f.name for f in fields(taking)}:
            raise InputError(f"{method.label} takes no steps; leave them out")
        return cast("Method", replace(taking, steps=steps))
    if method not in method_names():
        raise unknown_name("method", method, method_names(), where="plan")
    if steps is None and issubclass(method_class(method), MaskOptimiser):
        steps = _STEPS
    made: Method = make_method(method, **({} if steps is None else {"steps": steps}))
    return made


@dataclass(frozen=True)
class _Planned:
    """One kind of passes with its costs."""

    passes: PlannedRuns
    cost: CostEstimate
    memory: tuple[MemoryPart, ...]
    copies: int
    count: int
    seconds: Mapping[str, float]
    total: float
    cached: bool

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(sum(p.bytes for p in self.memory if phase in p.phases) for phase in PHASES)

    @property
    def row(self) -> PlannedPasses:
        """What a plan says of it."""
        kind = self.passes.kind
        bound = kind in ("trials", "forward")
        return PlannedPasses(self.passes.owner, kind, self.count, bound, self.peak, self.total)


@dataclass(frozen=True)
class _Run:
    """What all passes of a plan have in common."""

    adapter: CostEstimator
    subject: Any
    place: torch.device
    throughput: Throughput | None
    batches: int
    cache_bytes: int
    copies: int | None
    shape: RunShape

    def planned(self, passes: PlannedRuns) -> _Planned:
        """The costs of one kind of passes."""
        step = passes.kind == "step"
        copies = self.copies if self.copies is not None and step else passes.copies
        request = replace(
            self.shape, copies=copies, per_example=passes.per_example, kind=passes.kind,
            points=passes.points, by_group=passes.by_group, float64=passes.float64,
            rounded=passes.rounded,
        )  # fmt: skip
        cost = self.adapter.plan(self.subject, request)
        masks = copies * (request.batch_size if passes.per_example else 1)
        count = passes.times * (1 if passes.in_all else self.batches)
        if passes.kind == "trials":
            count *= cost.edges
        memory, gates, kept = list(cost.memory), 0.0, False
        if step and passes.in_all:  # of a mask optimiser
            memory += gate_memory(cost.edges, masks)
            kept = self.batches * cost.reference_bytes <= self.cache_bytes
            kept = kept and 2 * self.batches <= count
            gates = self._gates(cost.edges, masks)
            if kept and self.batches > 1:
                held = (self.batches - 1) * cost.reference_bytes
                memory.append(MemoryPart("kept references", held))
        if self.throughput is None:
            each, reference = cost.seconds["step"], cost.seconds["reference"]
        else:
            each = sum(map(self.throughput.seconds, cost.work))
            reference = sum(map(self.throughput.seconds, cost.reference_work))
        each += gates
        references = 0 if not count else self.batches if kept or not passes.in_all else count
        if passes.kind in ("attribution", "messages"):
            references = 0  # their passes are made on the way
        seconds = {"reference": reference, "step": each, "gates": gates}
        total = count * each + references * reference
        return _Planned(passes, cost, tuple(memory), copies, count, seconds, total, kept)

    def _gates(self, edges: int, masks: int) -> float:
        if self.throughput is None:
            return gate_seconds(edges, masks, self.place)
        return self.throughput.seconds(Operations("gates", 0.0, 4.0 * edges * (22 + 14 * masks)))


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
        there = throughput is not None or torch.cuda.is_available()
        return torch.device("cuda" if there else "cpu")
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
