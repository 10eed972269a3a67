"""One circuit against the full model and the task.

``faithfulness = (m(circuit) - m(ablated)) / (m(full) - m(ablated))`` with m the mean of the task's
metric: 1 is the full model, 0 the model with every edge ablated, and a circuit may overshoot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.errors import NumericalError
from graphprune.mask import EdgeMask, mask_density, require_same_graph
from graphprune.methods.base import AblationLike, resolve_ablation
from graphprune.metrics import Metric, as_metric, kendall_tau
from graphprune.model import MaskedModel
from graphprune.progress import track
from graphprune.task import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvaluationReport", "bootstrap_interval", "check_outputs", "evaluate"]

DEFAULT_METRICS = ("kl", "logit_diff", "prob_diff", "accuracy", "exact_match")


def bootstrap_interval(
    values: Tensor, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values [n]``."""
    sample = values.double().numpy()
    pick = np.random.default_rng(seed).integers(len(sample), size=(draws, len(sample)))
    means = sample[pick].mean(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _ratio_interval(
    circuit: Tensor, full: Tensor, ablated: Tensor, *, level: float, seed: int, draws: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``(circuit - ablated) / (full - ablated)`` of the means."""
    sample = torch.stack([circuit - ablated, full - ablated]).double().numpy()
    pick = np.random.default_rng(seed).integers(sample.shape[1], size=(draws, sample.shape[1]))
    above, below = sample[:, pick].mean(-1)
    tail = (1 - level) / 2
    low, high = np.quantile(above[below != 0] / below[below != 0], [tail, 1 - tail])
    return float(low), float(high)


def check_outputs(outputs: Tensor, batch: Batch, what: str) -> None:
    """Raises :class:`NumericalError` naming the examples whose outputs are NaN or infinite."""
    finite = torch.isfinite(outputs).flatten(1).all(1)
    if not bool(finite.all()):
        bad = torch.nonzero(~finite)[:, 0].tolist()
        numbers = [batch.indices[i] if batch.indices else i for i in bad]
        raise NumericalError(
            f"{what} gave NaN or infinite outputs on {len(bad)} of {batch.size} examples; example "
            f"numbers {numbers[:10]}"
        )


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """What :func:`evaluate` found.

    ``values`` maps a measure to its mean, ``examples`` to its value for every example, ``absent``
    to the reason why a measure is missing. ``full`` and ``ablated`` hold the same metrics of the
    full and of the wholly ablated model, ``full_examples`` and ``ablated_examples`` for every
    example.
    """

    values: dict[str, float]
    examples: dict[str, Tensor]
    full: dict[str, float]
    ablated: dict[str, float]
    absent: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    full_examples: dict[str, Tensor] = field(default_factory=dict)
    ablated_examples: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        if name not in self.values:
            raise KeyError(f"{name}: {self.absent.get(name, 'not measured')}")
        return self.values[name]

    def interval(self, name: str, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval over examples of a measure's mean.

        For ``"faithfulness"`` the circuit, the full and the ablated model are drawn together.
        """
        if name == "faithfulness" and name in self.values:
            metric = self.settings["metric"]
            sides = (self.examples, self.full_examples, self.ablated_examples)
            return _ratio_interval(*(side[metric] for side in sides), level=level, seed=seed)
        return bootstrap_interval(self.examples[name], level=level, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Every measure as a plain number; absent ones are left out and stand under ``absent``."""
        return {
            **self.values,
            "full": dict(self.full),
            "ablated": dict(self.ablated),
            "absent": dict(self.absent),
            "settings": dict(self.settings),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each measure: columns measure, circuit, low, high, full, ablated, note."""
        import pandas as pd

        rows = []
        for name, value in self.values.items():
            known = name in self.examples or name == "faithfulness"
            low, high = self.interval(name) if known else (np.nan, np.nan)
            rows.append(
                {
                    "measure": name,
                    "circuit": value,
                    "low": low,
                    "high": high,
                    "full": self.full.get(name, np.nan),
                    "ablated": self.ablated.get(name, np.nan),
                    "note": "",
                }
            )
        rows += [{"measure": name, "note": why} for name, why in self.absent.items()]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v:.4g}" for k, v in self.values.items())
        return f"EvaluationReport({shown})"


def faithfulness(circuit: float, full: float, ablated: float) -> float | str:
    """The normalised metric, or the reason why it has none."""
    gap = full - ablated
    if abs(gap) <= 1e-6 * max(1.0, abs(full), abs(ablated)):
        return (
            f"the full model ({full:.4g}) and the wholly ablated one ({ablated:.4g}) score the "
            "same; there is nothing to be faithful to"
        )
    return (circuit - ablated) / gap


def evaluate(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask,
    *,
    ablation: AblationLike = "counterfactual",
    metrics: Sequence[str | Metric] | None = None,
    batch_size: int | None = None,
    cost: bool = False,
) -> EvaluationReport:
    """Runs the circuit on the task and compares it with the full and the wholly ablated model.

    Args:
        mask: the circuit; dead ends change nothing and are not removed.
        ablation: what stands in for edges outside.
        metrics: names or metrics; ``None`` takes KL, logit and probability difference, accuracy and
            exact match (same choice as the full model), and Kendall's tau with the full model's
            logits over answers and distractors.
        cost: also count FLOPs of the circuit's and the full model's forward passes, and time them.

    Raises:
        GraphMismatchError: the mask belongs to another graph.
        NumericalError: NaN or infinite outputs, naming the examples.
    """
    require_same_graph(model.graph, mask.graph, "the model and the mask")
    wanted = [as_metric(m) for m in (DEFAULT_METRICS if metrics is None else metrics)]
    if task.metric.name not in {m.name for m in wanted}:
        wanted.append(task.metric)
    chosen = resolve_ablation(model, task, ablation)
    rows: dict[str, dict[str, list[Tensor]]] = {k: {} for k in ("circuit", "full", "ablated")}
    absent: dict[str, str] = {}
    taus: list[Tensor] = []
    size = task.batch_size if batch_size is None else batch_size
    seconds = {"circuit": 0.0, "full": 0.0}
    flops = {"circuit": 0, "full": 0}
    for batch in track(task.batches(size), "evaluate", -(-len(task) // size)):
        reference = model.reference(batch, chosen)
        with torch.no_grad():
            full, ablated = reference.full, reference.ablated
            outputs = model.run(batch, mask, reference)
            if cost:
                _measure(model, batch, mask, reference, seconds, flops)
        check_outputs(full, batch, "the full model")
        check_outputs(outputs, batch, "the circuit")
        for metric in wanted:
            why = metric.missing(batch, full)
            if why:
                absent[metric.name] = why
                continue
            for side, out in (("circuit", outputs), ("full", full), ("ablated", ablated)):
                rows[side].setdefault(metric.name, []).append(metric(out, batch, full).cpu())
        if metrics is None:
            _kendall(outputs, full, batch, taus, absent)
    found = {
        side: {n: torch.cat(v).double() for n, v in named.items() if n not in absent}
        for side, named in rows.items()
    }
    examples = dict(found["circuit"])
    if taus and "kendall_tau" not in absent:
        examples["kendall_tau"] = torch.cat(taus).double()
    values: dict[str, float] = {"n_edges": mask.num_kept, **mask_density(mask)}
    values |= {name: float(v.mean()) for name, v in examples.items()}
    full_means = {n: float(v.mean()) for n, v in found["full"].items()}
    ablated_means = {n: float(v.mean()) for n, v in found["ablated"].items()}
    name = task.metric.name
    if name in absent:
        absent["faithfulness"] = absent[name]
    else:
        ratio = faithfulness(values[name], full_means[name], ablated_means[name])
        if isinstance(ratio, str):
            absent["faithfulness"] = ratio
        else:
            values["faithfulness"] = ratio
    if cost:
        values |= {f"seconds_{k}": v for k, v in seconds.items()}
        values |= {f"flops_{k}": float(v) for k, v in flops.items()}
    settings = {
        "task": task.name,
        "examples": len(task),
        "metric": name,
        "ablation": chosen.name,
        "graph": model.graph.fingerprint,
    }
    return EvaluationReport(
        values,
        examples,
        full_means,
        ablated_means,
        absent,
        settings,
        found["full"],
        found["ablated"],
    )


def _kendall(
    outputs: Tensor, full: Tensor, batch: Batch, taus: list[Tensor], absent: dict[str, str]
) -> None:
    if batch.answer is None or batch.distractor is None:
        absent["kendall_tau"] = "the task has no answer and no distractor to rank"
        return
    ids = torch.cat([batch.answer, batch.distractor], -1)
    if outputs.ndim != 2 or ids.ndim != 2:
        absent["kendall_tau"] = "a ranking is made at one answer position an example"
        return
    if int((ids >= 0).sum(-1).min()) < 3:
        absent["kendall_tau"] = "a ranking needs at least three candidate answers an example"
        return
    for row, mine, theirs in zip(ids, outputs, full, strict=True):
        keep = row[row >= 0].to(mine.device)
        taus.append(kendall_tau(mine[keep][None], theirs[keep][None]))


def _measure(
    model: MaskedModel,
    batch: Batch,
    mask: EdgeMask,
    reference: Any,
    seconds: dict[str, float],
    flops: dict[str, int],
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    jobs: dict[str, Callable[[], Tensor]] = {
        "circuit": lambda: model.run(batch, mask, reference),
        "full": lambda: model.reference(batch).full,
    }
    for side, job in jobs.items():
        start = time.perf_counter()
        job()
        seconds[side] += time.perf_counter() - start
        with FlopCounterMode(display=False) as counter:
            job()
        flops[side] += int(counter.get_total_flops())
