"""``graphprune plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.options import Device, Dtype
from graphprune.errors import InputError


def plan(
    out: CommandOutput,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH_OR_ID",
            help="A model's folder or Hugging Face id; only its config.json is read.",
        ),
    ],
    method: Annotated[
        str, typer.Option(help="Any method's name, such as eap, eap-ig, acdc or edge-pruning.")
    ] = "edge-pruning",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest prompt.")] = 32,
    answers: Annotated[int, typer.Option(min=1, help="Answer positions of an example.")] = 1,
    copies: Annotated[
        int | None, typer.Option(min=1, help="Masks drawn a step (default: the method's own).")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps (default: the method's own, 3000 of a mask optimiser)."),
    ] = None,
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
) -> None:
    """Say what memory and time a run will need, before it; no weights are loaded."""
    from graphprune.core.registry import method_names
    from graphprune.methods.costs import Throughput
    from graphprune.methods.planning import plan as make_plan
    from graphprune.study.by_name import choose_model
    from graphprune.study.settings import known_name

    method = known_name("method", method, method_names())
    throughput = None
    if flops is not None and bandwidth is not None:
        throughput = Throughput(flops, bandwidth)
    elif flops is not None or bandwidth is not None:
        raise InputError("--flops and --bandwidth go together: both describe the other device")
    chosen = choose_model(model, dtype=dtype)
    if chosen.system is not None:
        raise InputError(f"a plan is made for a language model; {chosen.name!r} is a system")
    out.start()
    folder = chosen.place(quiet=out.quiet)
    named_by_folder = folder is not None and chosen.folder is not None and not chosen.on_hub
    name = folder.resolve().name if folder is not None and named_by_folder else chosen.name
    if throughput is None:
        out.note("measuring the device on a few layers of this shape")
    estimate = make_plan(
        chosen.name if folder is None else str(folder), method=method, batch_size=batch_size,
        tokens=tokens, answers=answers, copies=copies, steps=steps, examples=examples,
        dtype=dtype, device=device, throughput=throughput, embedding_nodes=embedding_nodes,
    )  # fmt: skip
    shape = f"{batch_size} x {tokens} tokens, {estimate.dtype}, {estimate.device}"
    title = f"{estimate.method} on {name}: {shape}"
    document = {**estimate.to_dict(), "model": name}
    out.result(document, lambda console: table(console, title, ["", "", ""], estimate.rows()))
    if estimate.seconds["calibration"]:
        out.note(f"measured in {estimate.seconds['calibration']:.1f} s; nothing is kept")
