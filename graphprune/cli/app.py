"""The commands with their examples. Bodies import what they need: ``--help`` answers at once."""

from __future__ import annotations

import typer

from graphprune.cli.command import as_command, root
from graphprune.cli.compare import compare
from graphprune.cli.demo import demo
from graphprune.cli.discover import discover
from graphprune.cli.evaluate import evaluate
from graphprune.cli.export import export
from graphprune.cli.export_model import export_model
from graphprune.cli.fetch import fetch
from graphprune.cli.hypothesis_tests import examine
from graphprune.cli.info import info
from graphprune.cli.plan import plan
from graphprune.cli.show import show
from graphprune.cli.study import study
from graphprune.cli.submission import submission

__all__ = ["app"]

app = typer.Typer(
    name="graphprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the small part of a model that does a task, and show how faithful it is.",
    epilog="Exit codes: 0 done, 1 could not be done (stderr says why), 2 wrong usage, 130 stopped.",
)

START, JUDGE, WRITE, PLAN = "Find a circuit", "Judge circuits", "See and export", "Prepare"

COMMANDS = (
    (START, "demo", demo, (
        "graphprune demo",
        "graphprune demo --examples 16 --out small-demo",
    )),
    (START, "discover", discover, (
        "graphprune discover --model smollm2 --task ioi --size 0.01 --out ioi --export html",
        "graphprune discover --model DIR --task pairs.jsonl --method edge-pruning --size 200 "
        "--set steps=300 --out own",
    )),
    (JUDGE, "evaluate", evaluate, (
        "graphprune evaluate ioi --model smollm2 --task ioi --seed 1",
        "graphprune evaluate ioi --model smollm2 --task ioi --seed 1 --curve --plot curve.png",
    )),
    (JUDGE, "test", examine, (
        "graphprune test ioi --model smollm2 --task ioi --seed 1",
        "graphprune test ioi --model smollm2 --task ioi --tests equivalence,sufficiency "
        "--draws 30",
    )),
    (JUDGE, "compare", compare, (
        "graphprune compare ioi own",
        "graphprune compare ioi own pruned --strata kind --out compared",
    )),
    (JUDGE, "study", study, (
        "graphprune study study.yaml --check",
        "graphprune study study.yaml --out results --jobs 2",
    )),
    (JUDGE, "submission", submission, (
        "graphprune submission DIR",
        "graphprune submission DIR/ioi_gpt2 --model gpt2 --task mib-ioi",
    )),
    (WRITE, "show", show, (
        "graphprune show ioi",
        "graphprune show ioi --all --no-open",
    )),
    (WRITE, "export", export, (
        "graphprune export ioi --to svg --to graphml",
        "graphprune export ioi --to figures/ioi.pdf --overwrite",
    )),
    (WRITE, "export-model", export_model, (
        "graphprune export-model ioi --model smollm2 --ablation zero --out ioi-model",
        "graphprune export-model ioi --model smollm2 --task ioi --ablation mean "
        "--logits-to-keep 1 --out ioi-model",
    )),
    (PLAN, "info", info, (
        "graphprune info --method edge-pruning --system language",
        "graphprune info --model smollm2 --task greater_than",
    )),
    (PLAN, "plan", plan, (
        "graphprune plan --model smollm2 --batch-size 8 --tokens 16",
        "graphprune plan --model gpt2 --method ugs --flops 4e14 --bandwidth 2e12",
    )),
    (PLAN, "fetch", fetch, (
        "graphprune fetch",
        "graphprune fetch smollm2",
    )),
)  # fmt: skip

app.callback()(root)
for panel, name, function, examples in COMMANDS:
    epilog = "\n\n".join(["Examples:", *examples])
    app.command(name, epilog=epilog, rich_help_panel=panel)(as_command(function))
