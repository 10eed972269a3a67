"""The commands. Their bodies import what they need, so that ``--help`` answers at once."""

from __future__ import annotations

import typer

from graphprune.cli.compare import compare
from graphprune.cli.demo import demo
from graphprune.cli.discover import discover
from graphprune.cli.evaluate import evaluate
from graphprune.cli.export import export
from graphprune.cli.export_model import export_model
from graphprune.cli.fetch import fetch
from graphprune.cli.info import info
from graphprune.cli.job import root
from graphprune.cli.plan import plan
from graphprune.cli.study import study
from graphprune.cli.submission import submission
from graphprune.cli.testing import examine

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


app.callback()(root)
app.command("demo")(demo)
app.command("fetch")(fetch)
app.command("discover")(discover)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("test")(examine)
app.command("export")(export)
app.command("export-model")(export_model)
app.command("plan")(plan)
app.command("study")(study)
app.command("submission")(submission)
app.command("info")(info)
