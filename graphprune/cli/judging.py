"""Which examples a saved circuit is judged on: by default those that did not find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from graphprune.cli.job import Job
    from graphprune.core.circuit import Circuit
    from graphprune.core.task import Task

__all__ = ["AllExamples", "Judged", "judged_on"]

AllExamples = Annotated[
    bool,
    typer.Option(
        "--all-examples",
        help="Judge on all prompts, also on those that found the circuit, which are left out "
        "otherwise.",
    ),
]

FEW = 8  # new prompts below which a note says how to get more


@dataclass(frozen=True)
class Judged:
    """The examples to judge on, what they are called, a line about them, the same as values."""

    task: Task
    called: str
    said: str
    document: dict[str, Any]


def judged_on(out: Job, circuit: Circuit, task: Task, everything: bool) -> Judged:
    """The part of ``task`` that did not find the circuit, or all of it if asked for.

    Where nothing is left all examples are taken, called old; where little is, a note says so.
    ``document`` has ``given``, ``judged``, ``old`` (given ones that found the circuit or share a
    prompt with one that did; ``None``: not known), ``redrawn`` (judged ones with another corrupted
    prompt, since theirs found the circuit) and ``held_out``, whether no judged example found it.
    """
    from graphprune.core.overlap import as_table, without_overlap

    count = len(task)
    if circuit.found_on is None:
        said = f"it is not known which prompts found the circuit; some of these {count} may have"
        return _judged(task, "prompts", said, count, old=None, held_out=None)
    found = without_overlap(task, as_table(circuit.found_on))
    shared = found.dropped + found.redrawn
    said = (
        f"{shared} of {count} prompts are old: they, or one that shares a prompt with them, found "
        "the circuit"
    )
    if not shared:
        said = f"none of these {count} prompts found the circuit"
        return _judged(task, "new prompts", said, count, old=0)
    if everything:
        said += "; judged on all, as asked for"
        called = "old prompts" if found.task is None else "old and new prompts"
        return _judged(task, called, said, count, old=shared, held_out=False)
    if found.task is None:
        said = (
            f"all {count} prompts are old: the figures are of the prompts that found the circuit; "
            "more --examples or another --seed give new ones"
        )
        out.note(said)
        return _judged(task, "old prompts", said, count, old=count, held_out=False)
    if len(found.task) < FEW:
        out.note(
            f"only {len(found.task)} of {count} prompts are new to the circuit; more --examples or "
            "another --seed give more"
        )
    said = f"judged on {len(found.task)} new prompts: {said}; {found.dropped} were left out"
    if found.redrawn:
        said += f", {found.redrawn} got another corrupted prompt"
    return _judged(found.task, "new prompts", said, count, old=shared, redrawn=found.redrawn)


def _judged(
    task: Task,
    called: str,
    said: str,
    given: int,
    *,
    old: int | None,
    redrawn: int = 0,
    held_out: bool | None = True,
) -> Judged:
    document = {
        "given": given,
        "judged": len(task),
        "old": old,
        "redrawn": redrawn,
        "held_out": held_out,
    }
    return Judged(task, called, said, document)
