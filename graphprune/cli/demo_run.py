"""The main job from end to end on a small real model: what ``graphprune demo`` runs.

SmolLM2-135M-Instruct says who gets the thing ("When Mary and John went to the park, John gave a
book to" - " Mary"). All edges are scored on some prompts, the smallest faithful circuit is chosen
on these, and what is reported was measured on prompts that neither step has seen.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graphprune.cli.output import require_free
from graphprune.errors import InputError, MissingExtraError
from graphprune.util.files import atomic_folder

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit
    from graphprune.core.model import MaskedModel
    from graphprune.evaluation import FaithfulnessCurve

__all__ = ["FILES", "SIZES", "Demo", "choose", "require_demo_folder", "run_demo"]

SIZES = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
"""Fractions of all edges that are tried, smallest first; the last four if the others fail."""

FAITHFUL = 0.85
STEPS = 5
REPORT = "report.json"
FILES = (
    "circuit.json",
    "tensors.safetensors",
    "circuit.graphml",
    "circuit.mib.json",
    "circuit.svg",
    "circuit.png",
    "circuit.html",
    "curve.png",
    REPORT,
)

Say = Callable[[str], None]


class Tried(NamedTuple):
    """One size on the training prompts."""

    size: float
    kept: int
    faithfulness: float


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found.

    ``curve`` and ``document["report"]`` are of held-out prompts, ``document["selection"]`` says
    which sizes were tried on the training prompts.
    """

    circuit: Circuit
    curve: FaithfulnessCurve
    document: dict[str, Any] = field(repr=False)


def require_demo_folder(out: Path, overwrite: bool) -> None:
    """Raises unless the demo may write to ``out``: a new or empty folder, or an earlier demo's."""
    earlier = (out / REPORT).is_file() and '"graphprune demo"' in (out / REPORT).read_text("utf-8")
    require_free(out, overwrite=overwrite, ours=FILES if earlier else ())


def run_demo(
    model: MaskedModel,
    tokenizer: Any,
    out: Path,
    *,
    examples: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    say: Say = lambda text: None,
) -> Demo:
    """Runs everything and writes :data:`FILES` into ``out``, all of them or none.

    Args:
        model: a wrapped language model.
        tokenizer: its tokenizer.
        out: the folder to write.
        examples: prompts altogether; half find the circuit, half are held out.
        seed: of the prompts, the split and the intervals.
        batch_size: prompts at a time.
        say: takes a line about each step.
    """
    _require_matplotlib()
    from graphprune.cli.output import curve_document, report_document
    from graphprune.evaluation import evaluate, faithfulness_curve
    from graphprune.export import prompt_answers
    from graphprune.methods import EAPIG, Random
    from graphprune.selection.selectors import circuit_of_size
    from graphprune.tasks import ioi

    if examples < 4:
        raise InputError(
            f"the demo needs at least 4 examples, half of them held out; got {examples}"
        )
    start = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(step: str) -> None:
        seconds[step] = round(time.perf_counter() - start - sum(seconds.values()), 2)

    task = ioi(tokenizer, n=examples, seed=seed, corruption="swap", batch_size=batch_size)
    train, held_out = task.split(examples // 2, seed=seed)
    edges = model.graph.num_edges
    lap("prompts")
    method = EAPIG(steps=STEPS)
    say(f"scoring all {edges} edges with EAP-IG ({STEPS} steps) on {len(train)} prompts")
    scores = method.score(model, train)
    lap("scores")
    tried: list[Tried] = []
    for sizes in (SIZES[:4], SIZES[4:]):
        if not any(map(faithful, tried)):
            say(f"how faithful the {sizes[0]:.1%} to {sizes[-1]:.1%} strongest edges are, there")
            found = faithfulness_curve(model, train, scores, sizes, rankings=("abs",))
            tried += map(Tried, found.sizes, found.kept["abs"], found.f["abs"])
    chosen = choose(tried)
    lap("selection")
    mask = circuit_of_size(scores, chosen.size, ablation=method.ablation, task=train)
    say(f"{mask.num_kept} edges kept; measuring them on {len(held_out)} held-out prompts")
    report = evaluate(model, held_out, mask)
    lap("evaluation")
    say("the curve of held-out prompts, beside that of random edges")
    chance = Random(seed=seed).score(model, held_out)
    curve, random_curve = (
        faithfulness_curve(model, held_out, ranking, SIZES, rankings=("abs",))
        for ranking in (scores, chance)
    )
    lap("curve")
    document: dict[str, Any] = {
        "made_by": "graphprune demo",
        "model": None,
        "task": {"name": task.name, "corruption": "swap", "train": len(train),
                 "held_out": len(held_out), "seed": seed},
        "method": method.label,
        "graph_edges": edges,
        "selection": {
            "rule": f"the smallest size whose faithfulness on the training prompts is within "
                    f"{1 - FAITHFUL:.2f} of 1",
            "tried": [found._asdict() for found in tried],
            "chosen": chosen.size,
        },
        "kept": mask.num_kept,
        "report": report_document(report, seed),
        "curve": curve_document(curve),
        "random_curve": curve_document(random_curve),
        "seconds": seconds,
    }  # fmt: skip
    from graphprune.core.circuit import Circuit

    notes = {
        "selection": document["selection"],
        "report_on": "held-out prompts",
        "answers": prompt_answers(model, held_out, mask, tokenizer),
    }
    circuit = Circuit.from_mask(
        mask, scores, model, train, document["report"], method=method, seed=seed, notes=notes
    )
    document["model"] = circuit.provenance["model"]
    _write(circuit, (curve, random_curve), document, out)
    return Demo(circuit, curve, document)


def faithful(found: Tried) -> bool:
    """Whether f is near 1: overshooting the model is no better than falling short of it."""
    return abs(1 - found.faithfulness) <= 1 - FAITHFUL


def choose(tried: Sequence[Tried]) -> Tried:
    """The smallest size that is faithful, or the most faithful one if none is."""
    near = [found for found in tried if faithful(found)]
    return near[0] if near else min(tried, key=lambda found: abs(1 - found.faithfulness))


Curves = tuple["FaithfulnessCurve", "FaithfulnessCurve"]  # the scores', and random edges'


def _write(circuit: Circuit, curves: Curves, document: dict[str, Any], out: Path) -> None:
    from graphprune.cli.output import write_export
    from graphprune.util.plain import plain

    with atomic_folder(out) as scratch:
        circuit.save(scratch / "saved")
        for path in (scratch / "saved").iterdir():
            path.replace(scratch / path.name)
        (scratch / "saved").rmdir()
        for name in FILES:
            if name.startswith("circuit.") and name != "circuit.json":
                write_export(circuit, scratch / name)
        _draw_curves(curves, document, scratch / "curve.png")
        text = json.dumps(plain(document), indent=2, allow_nan=False)
        (scratch / REPORT).write_text(text + "\n", encoding="utf-8")


def _draw_curves(curves: Curves, document: dict[str, Any], path: Path) -> None:
    curve, random_curve = curves
    axes = curve.plot(beside=[random_curve])
    axes.axvline(document["selection"]["chosen"], color="0.6", lw=0.8, ls=":")
    axes.set_title(f"held-out prompts; dotted: the circuit ({document['kept']} edges)", fontsize=9)
    axes.figure.savefig(path, dpi=150)


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "the demo draws figures with matplotlib, which is not installed: pip install "
            '"graphprune[demo]"'
        )
