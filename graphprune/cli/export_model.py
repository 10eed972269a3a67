"""``graphprune export-model``: a circuit as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.options import CircuitFolder, ModelOptions, OptionalTask, Overwrite

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["export_model"]


def export_model(
    out: CommandOutput,
    folder: CircuitFolder,
    model: ModelOptions,
    task: OptionalTask,
    target: Annotated[Path, typer.Option("--out", help="A folder that is new or empty.")],
    ablation: Annotated[
        str | None,
        typer.Option(help="zero, mean or mean_positional; by default the circuit's, else zero."),
    ] = None,
    logits_to_keep: Annotated[
        int, typer.Option(min=0, help="Last positions with logits; 0: all. 1 is fastest.")
    ] = 0,
    overwrite: Overwrite = False,
    allow_difference: Annotated[
        bool,
        typer.Option(
            "--allow-difference",
            help="Write it even where it is another model than the circuit as found: with a KL "
            "from it above 0.1 nats a prompt of --task.",
        ),
    ] = False,
) -> None:
    """Write a circuit as a model.pt2 that torch alone runs, with its cost beside the original's.

    Where means stand in for messages, they are taken over the prompts of --task; the model is
    judged on these too.
    """
    from graphprune.cli.judged_circuit import saved_circuit
    from graphprune.export.agreement import LIMIT
    from graphprune.study.settings import known_ablation

    ablation = known_ablation(ablation)
    circuit = saved_circuit(out, folder)
    loaded, prompts = out.load(model, task)
    exported = circuit.export_model(
        target,
        loaded.model,
        ablation=ablation,
        task=prompts,
        logits_to_keep=logits_to_keep,
        overwrite=overwrite,
        allow_difference=allow_difference,
    )

    used, found_under = exported.report["ablation"], exported.report["found_under"]
    performance = exported.report["performance"]
    if "task" not in performance:
        why = performance["absent"]["task"]
        if found_under not in (None, used):
            why = f"it was found under {found_under} ablation and is exported under {used}; {why}"
        out.warn(f"nothing is known of how well the exported model does: {why}")
    elif "found" not in performance:
        out.warn(f"not compared with the circuit as found: {performance['absent']['found']}")
    elif performance["exported"].get("kl_from_found", 0.0) > LIMIT:
        kl = performance["exported"]["kl_from_found"]
        out.warn(f"another model than the circuit as found: KL {kl:.3g} nats a prompt from it")

    def show(console: Console) -> None:
        sides = [exported.report["original"], exported.report["exported"]]
        names = [name for name in sides[0] if name in sides[1]]
        rows = [[name, *(_text(side[name]) for side in sides)] for name in names]
        table(console, "cost", ["", "original", "exported"], rows, numbers=True)
        if "task" in performance:
            _show_performance(console, performance)
        console.print(f"written to {exported.path}")

    out.result({"path": str(exported.path), "report": dict(exported.report)}, show)


def _show_performance(console: Console, performance: dict[str, Any]) -> None:
    """A row for each figure: the circuit as found, the masked run, the exported, the original."""
    from graphprune.cli.output import MEANINGS, NAMES
    from graphprune.export.agreement import SIDES

    sides = [side for side in SIDES if side in performance]
    names = dict.fromkeys(name for side in sides for name in performance[side])
    labels = {**NAMES, "kl": "KL from the original", "kl_from_found": "KL from as found"}
    rows = [
        [labels.get(name, name), *(_text(performance[side].get(name, "")) for side in sides)]
        for name in sorted(names, key="ablation".__ne__)
    ]
    title = f"on {performance['prompts']} prompts of {performance['task']}"
    table(console, title, ["", *(SIDES[side] for side in sides)], rows, numbers=True)
    titles = " ".join(row[0] for row in rows)
    shown = [words for words in ("vs distractor", "top-1") if words in titles]
    explanations = [f"{words}: {MEANINGS[words]}" for words in shown]
    console.print("; ".join(explanations))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
