"""``graphprune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, job


def export(
    folder: Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="FILE_OR_FORMAT",
            help="A file, whose suffix says the format, or a format: graphml, gexf, node-link, "
            "cytoscape, dot, mib, mib-pt, csv, html, svg, png, pdf (written into CIRCUIT_DIR). "
            "Repeatable.",
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a circuit in the formats that other programs read."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.circuit import Circuit
        from graphprune.cli.output import export_target, require_absent, write_export

        targets = [export_target(wish, folder) for wish in to]
        require_absent(targets, overwrite)
        circuit = Circuit.load(folder)
        files = [str(write_export(circuit, target)) for target in targets]
        out.result(
            {"circuit": str(folder), "files": files},
            lambda console: console.print("\n".join(files), markup=False),
        )
