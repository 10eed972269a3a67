"""``graphprune evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput
from graphprune.cli.judged_circuit import AllExamples
from graphprune.cli.options import Ablations, CircuitFolder, ModelOptions, TaskOptions
from graphprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def evaluate(
    out: CommandOutput,
    folder: CircuitFolder,
    model: ModelOptions,
    task: TaskOptions,
    all_examples: AllExamples = False,
    ablation: Ablations = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Also faithfulness over all sizes, with CPR and CMD.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve into this file (.png, .svg or .pdf).")
    ] = None,
) -> None:
    """Compare a circuit with the full model and the wholly ablated one on a task.

    Prompts that found the circuit are left out; a line says how many these are.
    """
    from graphprune.cli.judged_circuit import judged_circuit, saved_circuit
    from graphprune.cli.output import (
        curve_document,
        report_document,
        require_curve_file,
        show_curve,
        show_report,
    )
    from graphprune.evaluation import evaluate as run_evaluation
    from graphprune.evaluation import faithfulness_curve
    from graphprune.methods import resolve_ablation
    from graphprune.util.files import atomic_path

    if plot is not None:
        require_curve_file(plot)
    circuit = saved_circuit(out, folder)
    if (curve or plot) and circuit.scores is None:
        raise InputError(
            f"a curve needs scores, and the circuit in {folder} was found without them"
        )
    judged = judged_circuit(out, circuit, folder, model, task, ablation, all_examples)
    used = resolve_ablation(judged.model, judged.task, judged.ablation)
    report = run_evaluation(judged.model, judged.task, circuit.mask, ablation=used)
    measured = report_document(report, task.seed)
    document: dict[str, Any] = {
        "circuit": str(folder), "model": model.model, "examples": judged.about_examples, **measured,
    }  # fmt: skip
    drawn = None
    undefined = report.absent.get("faithfulness")
    if undefined and curve and not plot:
        out.warn(f"no curve of faithfulness: {undefined}")
    elif (curve or plot) and circuit.scores is not None:
        drawn = faithfulness_curve(judged.model, judged.task, circuit.scores, ablation=used)
        document["curve"] = curve_document(drawn)
        if plot is not None:
            with atomic_path(plot) as temporary:
                drawn.plot(temporary)
            document["plot"] = str(plot)

    def show(console: Console) -> None:
        show_report(console, measured, judged.title)
        console.print(judged.remark)
        if drawn is not None:
            show_curve(console, drawn, f"faithfulness by size ({drawn.method or 'scores'})")

    out.result(document, show)
