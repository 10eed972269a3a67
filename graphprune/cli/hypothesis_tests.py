"""``graphprune test``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.judged_circuit import AllExamples
from graphprune.cli.options import Ablations, CircuitFolder, ModelOptions, TaskOptions

if TYPE_CHECKING:
    from rich.console import Console


def examine(
    out: CommandOutput,
    folder: CircuitFolder,
    model: ModelOptions,
    task: TaskOptions,
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
    alpha: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The level each test is decided at.")
    ] = 0.05,
    all_examples: AllExamples = False,
    ablation: Ablations = None,
) -> None:
    """Test a circuit as a hypothesis: is it equivalent, independent of the rest, minimal?

    Prompts that found the circuit are left out; a line says how many these are.
    """
    from graphprune.cli.judged_circuit import judged_circuit, saved_circuit
    from graphprune.statistics import examine as run_tests

    names = _names(tests)
    circuit = saved_circuit(out, folder)
    judged = judged_circuit(out, circuit, folder, model, task, ablation, all_examples)
    results = run_tests(
        judged.model, judged.task, circuit.mask, names, draws=draws, ablation=judged.ablation,
        alpha=alpha, seed=task.seed,
    )  # fmt: skip
    document: dict[str, Any] = {
        "circuit": str(folder), "model": model.model, "examples": judged.about_examples,
        **results.to_dict(),
    }  # fmt: skip

    def show(console: Console) -> None:
        rows, remarks = [], []
        for name, finding in results.findings.items():
            p = "" if finding.p_value is None else f"{finding.p_value:.2g}"
            verdict = {True: "yes", False: "no", None: ""}[finding.passed]
            if finding.underpowered:
                verdict = "underpowered"
                least = f"with these settings p is at least {finding.least_p:.2g}"
                remedy = f"; {finding.remedy}" if finding.remedy else ""
                remarks.append(f"{name}: underpowered: {least}{remedy}")
            rows.append((name, verdict, p, finding.said))
            remarks += [f"{name}: {remark}" for remark in finding.remarks]
        rows += [(name, "not made", "", why) for name, why in results.not_made.items()]
        table(console, judged.title, ["test", "passed", "p", "found"], rows)
        for remark in [judged.remark, *remarks]:
            console.print(remark)

    out.result(document, show)


def _names(tests: str | None) -> list[str] | None:
    """``"equivalence,minimality"`` as names; ``"all"`` is every one."""
    from graphprune.statistics import TESTS
    from graphprune.study.settings import known_name

    if tests is None:
        return None
    if tests.strip().casefold() == "all":
        return list(TESTS)
    names = [name for name in tests.split(",") if name.strip()] or [tests]
    return [known_name("test", name.strip(), TESTS, "all", where="--tests") for name in names]
