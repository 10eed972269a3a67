"""Options that several commands have, in groups: a dataclass is a panel of ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

__all__ = [
    "Ablations",
    "AnyTask",
    "CircuitFolder",
    "Device",
    "Dtype",
    "ModelOptions",
    "OptionalModel",
    "OptionalTask",
    "Overwrite",
    "Seed",
    "TaskOptions",
    "UnseededTask",
]

_MODEL = (
    "A folder that save_pretrained wrote, a Hugging Face id, smollm2 (the demo's), or a system "
    "with tasks of its own such as argnn-digits (task digits)."
)
_TASK = (
    "A built-in task such as ioi (`graphprune info` lists them), a .jsonl or .csv file with the "
    "columns clean, corrupt, answer, distractor, or a folder with one of MIB's data sets as the "
    "Hugging Face hub has it."
)
_SEED = "Draws the same prompts, splits and intervals again."

CircuitFolder = Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")]
Ablations = Annotated[
    str | None,
    typer.Option(
        help="What replaces an ablated message: counterfactual (default), zero, mean, "
        "mean_positional or (graph networks) delete."
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "float64"],
    typer.Option(help="Of the weights; auto: as they are stored.", case_sensitive=False),
]
Nodes = Annotated[
    Literal["auto", "head", "block"],
    typer.Option(
        help="How fine a language model's are: by head, each layer's attention one (block), or "
        "one where it cannot be split by head (auto)."
    ),
]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:1; auto: a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help=_SEED)]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what an earlier run left there.",
        rich_help_panel="Output",
    ),
]


@dataclass(frozen=True, kw_only=True)
class OptionalModel:
    """A model where a command does without one, and how it is loaded."""

    panel: ClassVar[str] = "Model"
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="PATH_OR_ID", help=_MODEL)
    ] = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None
    nodes: Nodes = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionalModel):
    """The model, and how it is loaded."""

    model: Annotated[str, typer.Option("--model", "-m", metavar="PATH_OR_ID", help=_MODEL)] = (
        field()
    )  # without it the base's default would hold


@dataclass(frozen=True, kw_only=True)
class AnyTask:
    """The prompts, and what is measured on them: what all commands with a task have."""

    panel: ClassVar[str] = "Task"
    task: Annotated[
        str | None, typer.Option("--task", "-t", metavar="NAME_OR_FILE", help=_TASK)
    ] = None
    task_set: Annotated[
        list[str],
        typer.Option("--task-set", metavar="NAME=VALUE", help="A setting of the task; repeatable."),
    ] = field(default_factory=list)
    examples: Annotated[
        int | None,
        typer.Option("--examples", "-n", min=1, help="Prompts to use; by default the task's own."),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            help="logit_diff (default), prob_diff, kl, accuracy or exact_match (answer against "
            "distractor), top1_accuracy or top1_match (of all outputs)."
        ),
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts at a time.")] = None
    seed: Annotated[
        int | None,
        typer.Option(help=f"{_SEED} The method's too, unless --set says one. Default 0."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OptionalTask(AnyTask):
    """A task where a command does without one; its seed is the task's alone."""

    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class TaskOptions(OptionalTask):
    """The same where a task is needed."""

    task: Annotated[str, typer.Option("--task", "-t", metavar="NAME_OR_FILE", help=_TASK)] = field()


@dataclass(frozen=True, kw_only=True)
class UnseededTask(AnyTask):
    """A task that is needed, where the seed may also be a setting of the method."""

    task: Annotated[str, typer.Option("--task", "-t", metavar="NAME_OR_FILE", help=_TASK)] = field()
