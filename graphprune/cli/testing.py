"""``graphprune test``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.evaluate import compare_weights, warn_of_stop
from graphprune.cli.job import AsJson, Debug, Quiet, job
from graphprune.cli.judging import AllExamples, judged_on
from graphprune.cli.options import (
    Ablations,
    BatchSize,
    Device,
    Dtype,
    Examples,
    MetricName,
    ModelName,
    Seed,
    TaskName,
    TaskSettings,
)

if TYPE_CHECKING:
    from rich.console import Console


def examine(
    folder: Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")],
    model: ModelName,
    task: TaskName,
    tests: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Which, with commas between: equivalence, independence, minimality, sufficiency, "
            "necessity (by default these five), controls, completeness, wang-minimality; or all.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Random circuits, permutations or sets of each test. By default each test's own, "
            "enough for a verdict at .05; tests with too few say that they are underpowered.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="The level each test is decided at.")] = 0.05,
    task_set: TaskSettings = [],  # noqa: B006 - typer copies it
    examples: Examples = None,
    all_examples: AllExamples = False,
    metric: MetricName = None,
    ablation: Ablations = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Test a circuit as a hypothesis: is it equivalent, independent of the rest, minimal?

    Prompts that found the circuit are left out; a line says how many these are.
    """
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.core.circuit import Circuit
        from graphprune.core.mask import require_same_graph
        from graphprune.statistics import examine as run_tests
        from graphprune.study.loading import load_model, load_task

        names = _names(tests)
        circuit = Circuit.load(folder)
        loaded = load_model(model, dtype=dtype, device=device, tokenizer=tokenizer, note=out.told)
        masked = loaded.model
        require_same_graph(masked.graph, circuit.graph, f"the model {model!r} and {folder}")
        compare_weights(out, circuit, masked)
        warn_of_stop(out, circuit)
        made = load_task(
            task, loaded.tokenizer, examples=examples, seed=seed, metric=metric,
            batch_size=batch_size, settings=task_set,
        )  # fmt: skip
        judged = judged_on(out, circuit, made, all_examples)
        made = judged.task
        kind = ablation or circuit.ablation or "counterfactual"
        found = run_tests(
            masked, made, circuit.mask, names, draws=draws, ablation=kind, alpha=alpha, seed=seed
        )
        document: dict[str, Any] = {
            "circuit": str(folder), "model": model, "examples": judged.document, **found.to_dict(),
        }  # fmt: skip

        def show(console: Console) -> None:
            from graphprune.cli.job import cells

            rows = []
            for name, finding in found.findings.items():
                p = "" if finding.p_value is None else f"{finding.p_value:.2g}"
                verdict = {True: "yes", False: "no", None: ""}[finding.passed]
                verdict = "underpowered" if finding.underpowered else verdict
                rows.append((name, verdict, p, finding.said))
            rows += [(name, "not made", "", why) for name, why in found.not_made.items()]
            title = (
                f"{circuit.mask.num_kept} of {circuit.graph.num_edges} edges on {len(made)} "
                f"{judged.called} of {made.name} ({kind} ablation)"
            )
            cells(console, title, ["test", "passed", "p", "found"], rows)
            console.print(judged.said, markup=False)
            for name, finding in found.findings.items():
                if finding.underpowered:
                    console.print(
                        f"{name}: underpowered: with these settings p is at least "
                        f"{finding.least_p:.2g}",
                        markup=False,
                    )
                for remark in finding.remarks:
                    console.print(f"{name}: {remark}", markup=False)

        out.result(document, show)


def _names(tests: str | None) -> list[str] | None:
    """``"equivalence,minimality"`` as names; ``"all"`` is every one."""
    from graphprune.errors import unknown_name
    from graphprune.statistics import TESTS

    if tests is None:
        return None
    names = [name.strip().replace("_", "-") for name in tests.split(",") if name.strip()]
    if names == ["all"]:
        return list(TESTS)
    unknown = [name for name in names if name not in TESTS]
    if unknown or not names:
        raise unknown_name("test", unknown[0] if unknown else tests, TESTS, "all", where="--tests")
    return names
