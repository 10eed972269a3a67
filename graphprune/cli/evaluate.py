"""``graphprune evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.job import AsJson, Debug, Job, Quiet, job
from graphprune.cli.judging import AllExamples, judged_on
from graphprune.cli.options import (
    Ablations,
    BatchSize,
    Device,
    Dtype,
    Examples,
    MetricName,
    ModelName,
    Seed,
    TaskName,
    TaskSettings,
)

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.core.circuit import Circuit
    from graphprune.core.model import MaskedModel


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")],
    model: ModelName,
    task: TaskName,
    task_set: TaskSettings = [],  # noqa: B006 - typer copies it
    examples: Examples = None,
    all_examples: AllExamples = False,
    metric: MetricName = None,
    ablation: Ablations = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Also faithfulness over all sizes, with CPR and CMD.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve into this file (.png, .svg or .pdf).")
    ] = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare a circuit with the full model and the wholly ablated one on a task.

    Prompts that found the circuit are left out; a line says how many these are.
    """
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.cli.output import (
            curve_document,
            report_document,
            require_curve_file,
            show_curve,
            show_report,
        )
        from graphprune.core.circuit import Circuit
        from graphprune.core.mask import require_same_graph
        from graphprune.errors import InputError
        from graphprune.evaluation import evaluate as run_evaluation
        from graphprune.evaluation import faithfulness_curve
        from graphprune.methods import resolve_ablation
        from graphprune.study.loading import load_model, load_task
        from graphprune.util.files import atomic_path

        if plot is not None:
            require_curve_file(plot)
        circuit = Circuit.load(folder)
        if (curve or plot) and circuit.scores is None:
            raise InputError(
                f"a curve needs scores, and the circuit in {folder} was found without them"
            )
        loaded = load_model(model, dtype=dtype, device=device, tokenizer=tokenizer, note=out.told)
        masked = loaded.model
        require_same_graph(masked.graph, circuit.graph, f"the model {model!r} and {folder}")
        compare_weights(out, circuit, masked)
        warn_of_stop(out, circuit)
        made = load_task(
            task, loaded.tokenizer, examples=examples, seed=seed, metric=metric,
            batch_size=batch_size, settings=task_set,
        )  # fmt: skip
        judged = judged_on(out, circuit, made, all_examples)
        made = judged.task
        kind = ablation or circuit.ablation or "counterfactual"
        chosen = resolve_ablation(masked, made, kind)
        report = run_evaluation(masked, made, circuit.mask, ablation=chosen)
        measured = report_document(report, seed)
        document: dict[str, Any] = {
            "circuit": str(folder), "model": model, "examples": judged.document, **measured,
        }  # fmt: skip
        drawn = None
        undefined = report.absent.get("faithfulness")
        if undefined and curve and not plot:
            out.warn(f"no curve of faithfulness: {undefined}")
        elif (curve or plot) and circuit.scores is not None:
            drawn = faithfulness_curve(masked, made, circuit.scores, ablation=chosen)
            document["curve"] = curve_document(drawn)
            if plot is not None:
                with atomic_path(plot) as temporary:
                    drawn.plot(temporary)
                document["plot"] = str(plot)

        def show(console: Console) -> None:
            edges = f"{circuit.mask.num_kept} of {circuit.graph.num_edges} edges"
            title = f"{edges} on {len(made)} {judged.called} of {made.name} ({kind} ablation)"
            show_report(console, measured, title)
            console.print(judged.said, markup=False)
            if drawn is not None:
                show_curve(console, drawn, f"faithfulness by size ({drawn.method or 'scores'})")

        out.result(document, show)


def warn_of_stop(out: Job, circuit: Circuit) -> None:
    """Warns of a circuit whose search did not end by itself."""
    notes = circuit.provenance.get("notes")
    stopped = notes.get("stopped") if isinstance(notes, dict) else None
    if stopped:
        out.warn(f"the search for this circuit was not finished: {stopped}")


def compare_weights(out: Job, circuit: Circuit, model: MaskedModel) -> None:
    """Warns where the circuit was found in a model with other weights."""
    from graphprune.capabilities import identity_of

    recorded = circuit.provenance.get("model")
    if not isinstance(recorded, dict) or "weights" not in recorded:
        return
    if recorded["weights"] != identity_of(model).get("weights"):
        out.warn(
            "the circuit was found in a model with other weights (or another dtype) of the same "
            "shape"
        )
