"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = [
    "Ablations",
    "BatchSize",
    "Device",
    "Dtype",
    "Dtypes",
    "Examples",
    "MethodSeed",
    "MetricName",
    "ModelName",
    "Seed",
    "TaskName",
    "TaskSettings",
]

Dtypes = Literal["auto", "float32", "bfloat16", "float16", "float64"]

ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="PATH_OR_ID",
        help="A folder that save_pretrained wrote, a Hugging Face id, smollm2 (the demo's), or a "
        "system with tasks of its own such as argnn-digits (task digits).",
    ),
]  # fmt: skip
TaskName = Annotated[
    str,
    typer.Option(
        "--task", "-t", metavar="NAME_OR_FILE",
        help="A built-in task such as ioi (`graphprune info` lists them), a .jsonl or .csv file "
        "with the columns clean, corrupt, answer, distractor, or a folder with one of MIB's data "
        "sets as the Hugging Face hub has it.",
    ),
]  # fmt: skip
TaskSettings = Annotated[
    list[str],
    typer.Option("--task-set", metavar="NAME=VALUE", help="A setting of the task; repeatable."),
]
Examples = Annotated[
    int | None,
    typer.Option("--examples", "-n", min=1, help="Prompts to use; by default the task's own."),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        help="logit_diff (default), prob_diff, kl, accuracy or exact_match (answer against "
        "distractor), top1_accuracy or top1_match (of all outputs)."
    ),
]
Ablations = Annotated[
    str | None,
    typer.Option(
        help="What replaces an ablated message: counterfactual (default), zero, mean, "
        "mean_positional or (graph networks) delete."
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Prompts at a time.")]
_SEED = "Draws the same prompts, splits and intervals again."
Seed = Annotated[int, typer.Option(help=_SEED)]
MethodSeed = Annotated[
    int | None, typer.Option(help=f"{_SEED} The method's too, unless --set says one. Default 0.")
]
Dtype = Annotated[Dtypes, typer.Option(help="Of the weights; auto: as they are stored.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:1; auto: a GPU if there is one.")]
