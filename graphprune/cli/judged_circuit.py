"""A saved circuit with what it is judged on: the model, and by default examples new to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.cli.command import CommandOutput
    from graphprune.cli.options import ModelOptions, TaskOptions
    from graphprune.core.circuit import Circuit
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task

__all__ = ["AllExamples", "JudgedCircuit", "judged_circuit", "saved_circuit"]

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
class JudgedCircuit:
    """A circuit, its model, and the examples to judge it on.

    ``called`` says what these examples are, ``remark`` is a line about them and ``about_examples``
    the same as values. ``ablation`` is the one asked for, else the circuit's own.
    """

    circuit: Circuit
    model: MaskedModel
    task: Task
    ablation: str
    called: str
    remark: str
    about_examples: dict[str, Any]

    @property
    def title(self) -> str:
        """The head of a table."""
        edges = f"{self.circuit.mask.num_kept} of {self.circuit.graph.num_edges} edges"
        prompts = f"{len(self.task)} {self.called} of {self.task.name}"
        return f"{edges} on {prompts} ({self.ablation} ablation)"


def saved_circuit(out: CommandOutput, folder: Path) -> Circuit:
    """The circuit of a folder, with a warning where its search did not end by itself."""
    from graphprune.core.circuit import Circuit

    if not folder.exists():
        raise InputError(f"expected a circuit's folder, but {folder} is not there")
    circuit = Circuit.load(folder)
    notes = circuit.provenance.get("notes")
    stopped = notes.get("stopped") if isinstance(notes, dict) else None
    if stopped:
        out.warn(f"the search for this circuit was not finished: {stopped}")
    return circuit


def judged_circuit(
    out: CommandOutput,
    circuit: Circuit,
    folder: Path,
    model: ModelOptions,
    task: TaskOptions,
    ablation: str | None,
    all_examples: bool,
) -> JudgedCircuit:
    """Loads the model and the task, and leaves out examples that found the circuit.

    Raises :class:`~graphprune.errors.GraphMismatchError` for a model with another graph.
    """
    from graphprune.capabilities import identity_of
    from graphprune.core.mask import require_same_graph
    from graphprune.study.settings import known_ablation

    ablation = known_ablation(ablation) or circuit.ablation or "counterfactual"
    loaded, given = out.load(model, task)
    assert given is not None
    masked = loaded.model
    require_same_graph(masked.graph, circuit.graph, f"the model {model.model!r} and {folder}")
    recorded = circuit.provenance.get("model")
    weights = recorded.get("weights") if isinstance(recorded, dict) else None
    if weights not in (None, identity_of(masked).get("weights")):
        out.warn(
            "the circuit was found in a model with other weights (or another dtype) of the same "
            "shape"
        )
    return JudgedCircuit(circuit, masked, *_examples(out, circuit, given, ablation, all_examples))


def _examples(
    out: CommandOutput, circuit: Circuit, task: Task, ablation: str, everything: bool
) -> tuple[Task, str, str, str, dict[str, Any]]:
    """The part of ``task`` that did not find the circuit, or all of it if asked for.

    Where nothing is left all examples are taken, called old; where little is, a note says so.
    The values have ``given``, ``judged``, ``old`` (given ones that found the circuit or share a
    prompt with one that did; ``None``: not known), ``redrawn`` (judged ones with another corrupted
    prompt, since theirs found the circuit) and ``held_out``, whether no judged example found it.
    """
    from graphprune.core.overlap import as_table, without_overlap

    count, redrawn = len(task), 0
    held_out: bool | None = False
    old: int | None = None
    if circuit.found_on is None:
        called, held_out = "prompts", None
        remark = f"it is not known which prompts found the circuit; some of these {count} may have"
    else:
        unseen = without_overlap(task, as_table(circuit.found_on))
        old = unseen.dropped + unseen.redrawn
        remark = (
            f"{old} of {count} prompts are old: they, or one that shares a prompt with them, found "
            "the circuit"
        )
        if not old:
            called, held_out = "new prompts", True
            remark = f"none of these {count} prompts found the circuit"
        elif everything:
            called = "old prompts" if unseen.task is None else "old and new prompts"
            remark += "; judged on all, as asked for"
        elif unseen.task is None:
            called = "old prompts"
            remark = (
                f"all {count} prompts are old: the figures are of the prompts that found the "
                "circuit; more --examples or another --seed give new ones"
            )
            out.note(remark)
        else:
            task, called, held_out, redrawn = unseen.task, "new prompts", True, unseen.redrawn
            if len(task) < FEW:
                out.note(
                    f"only {len(task)} of {count} prompts are new to the circuit; more --examples "
                    "or another --seed give more"
                )
            remark = f"judged on {len(task)} new prompts: {remark}; {unseen.dropped} were left out"
            if redrawn:
                remark += f", {redrawn} got another corrupted prompt"
    values = {"given": count, "judged": len(task), "old": old, "redrawn": redrawn}
    return task, ablation, called, remark, {**values, "held_out": held_out}
