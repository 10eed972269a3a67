"""``graphprune export-model``: a circuit as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, cells, job
from graphprune.cli.loading import Device, Dtype, Examples, ModelName, Seed, TaskSettings

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["export_model"]


def export_model(
    folder: Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")],
    model: ModelName,
    out: Annotated[Path, typer.Option(help="A folder that is new or empty.")],
    ablation: Annotated[
        str | None,
        typer.Option(help="zero, mean or mean_positional; by default the circuit's, else zero."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Whose prompts means are taken over and tried on."),
    ] = None,
    task_set: TaskSettings = [],  # noqa: B006
    examples: Examples = None,
    logits_to_keep: Annotated[
        int, typer.Option(min=0, help="Last positions with logits; 0: all. 1 is fastest.")
    ] = 0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a circuit as a model.pt2 that torch alone runs, with its cost beside the original's."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as now:
        from graphprune.circuit import Circuit
        from graphprune.cli.loading import load_model, load_task

        circuit = Circuit.load(folder)
        loaded = load_model(now, model, dtype=dtype, device=device, tokenizer=tokenizer)
        made = None
        if task is not None:
            made = load_task(
                task, loaded.tokenizer, examples=examples, seed=seed, metric=None,
                batch_size=None, settings=task_set,
            )  # fmt: skip
        done = circuit.export_model(
            out,
            loaded.model,
            ablation=ablation,
            task=made,
            logits_to_keep=logits_to_keep,
            overwrite=overwrite,
        )

        used, found = done.report["ablation"], done.report["found_under"]
        if found not in (None, used):
            now.warn(
                f"the circuit was found under {found} ablation and is exported under {used} "
                "ablation: compare it on its task (graphprune evaluate --ablation) before use"
            )

        def show(console: Console) -> None:
            sides = [done.report["original"], done.report["exported"]]
            names = [name for name in sides[0] if name in sides[1]]
            rows = [[name, *(_text(side[name]) for side in sides)] for name in names]
            cells(console, "cost", ["", "original", "exported"], rows, numbers=True)
            console.print(f"written to {done.path}", markup=False)

        now.result({"path": str(done.path), "report": dict(done.report)}, show)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
