"""``graphprune plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, cells, job
from graphprune.cli.options import Device, Dtype

if TYPE_CHECKING:
    from graphprune.cli.job import Job
    from graphprune.methods.planning import Throughput


def plan(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="PATH_OR_ID",
            help="A model's folder or Hugging Face id; only its config.json is read.",
        ),
    ],
    method: Annotated[
        str, typer.Option(help="edge-pruning, matryoshka, subnetwork-probing or ugs.")
    ] = "edge-pruning",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest prompt.")] = 32,
    answers: Annotated[int, typer.Option(min=1, help="Answer positions of an example.")] = 1,
    copies: Annotated[int, typer.Option(min=1, help="Masks drawn a step.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 3000,
    examples: Annotated[int, typer.Option("--examples", "-n", min=1, help="Prompts.")] = 200,
    embedding_nodes: Annotated[
        int, typer.Option(min=1, max=2, help="2: the position table is a node too.")
    ] = 1,
    dtype: Dtype = "auto",
    device: Device = "auto",
    flops: Annotated[
        float | None,
        typer.Option(help="Products a second (such as 4e14) of a device that is not at hand."),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="Bytes a second (such as 2e12); goes with --flops.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Say what memory and time a run will need, before it; no weights are loaded."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.methods.planning import plan as make

        source, name = _subject(out, model)
        throughput = _throughput(flops, bandwidth)
        if throughput is None:
            out.note("measuring the device on a few layers of this shape")
        made = make(
            source, method=method, batch_size=batch_size, tokens=tokens, answers=answers,
            copies=copies, steps=steps, examples=examples, dtype=dtype, device=device,
            throughput=throughput, embedding_nodes=embedding_nodes,
        )  # fmt: skip
        title = (
            f"{made.method} on {name}: {batch_size} x {tokens} tokens, {made.dtype}, {made.device}"
        )
        document = {**made.to_dict(), "model": name}
        out.result(document, lambda console: cells(console, title, ["", "", ""], made.rows()))
        if made.seconds["calibration"]:
            out.note(f"measured in {made.seconds['calibration']:.1f} s; nothing is kept")


def _subject(out: Job, model: str) -> tuple[str, str]:
    """What is read, and what it is called (a folder by its last part)."""
    from graphprune.study.loading import model_folder
    from graphprune.util.fetch import ARTIFACTS

    folder = model_folder(model, quiet=out.quiet)
    if folder is None:
        return model, model
    return str(folder), model if model in ARTIFACTS else folder.resolve().name


def _throughput(flops: float | None, bandwidth: float | None) -> Throughput | None:
    from graphprune.errors import InputError
    from graphprune.methods.planning import Throughput

    if flops is None and bandwidth is None:
        return None
    if flops is None or bandwidth is None:
        raise InputError("--flops and --bandwidth go together: both describe the other device")
    return Throughput(flops, bandwidth)
