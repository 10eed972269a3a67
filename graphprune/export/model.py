"""A circuit's own model as a folder: ``model.pt2``, ``circuit/`` and ``report.json``.

``model.pt2`` is what ``torch.export`` writes: ``torch.export.load(path).module()(input_ids)`` runs
it where only torch is installed. Nothing is pickled by us; example inputs, which torch would
pickle, are left out. A folder appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.capabilities import ExportedModules, identity_of, require
from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.mask import require_same_graph
from graphprune.core.model import Ablation, MaskedModel, ablation_kind, require_model
from graphprune.core.pruned import ExportedModel, Pruned, tolerance
from graphprune.errors import InputError, NumericalError, UnsupportedModelError
from graphprune.export.agreement import NO_TASK, agreement, require_agreement
from graphprune.export.folder import JSON_NAME, TENSORS_NAME
from graphprune.util.checks import at_least, is_integer
from graphprune.util.files import atomic_folder, contents, require_free, states_format
from graphprune.util.quantities import synchronise

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit
    from graphprune.core.task import Task

FORMAT, VERSION = "graphprune-model", 1
MODEL_NAME, REPORT_NAME, CIRCUIT_NAME = "model.pt2", "report.json", "circuit"
_SHAPE = (8, 16)


def export_model(
    circuit: Circuit,
    path: str | os.PathLike[str],
    model: MaskedModel,
    *,
    ablation: AblationLike | None = None,
    task: Task | None = None,
    shape: tuple[int, int] | None = None,
    repeats: int = 5,
    overwrite: bool = False,
    allow_difference: bool = False,
    **options: Any,
) -> ExportedModel:
    """Writes a circuit as a module; see :meth:`graphprune.Circuit.export_model`.

    Example:
        >>> import tempfile
        >>> import torch, transformers
        >>> import graphprune as gp
        >>> sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 20}
        >>> config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
        >>> _ = torch.manual_seed(0)
        >>> model = gp.wrap(transformers.GPT2LMHeadModel(config).eval())
        >>> kept = ["->a0.h0" in e or e == "a0.h0->logits" for e in model.graph.edge_names]
        >>> mask = gp.EdgeMask(model.graph, torch.tensor(kept))
        >>> circuit = gp.Circuit.from_mask(mask, model=model)
        >>> folder = tempfile.mkdtemp()
        >>> exported = circuit.export_model(folder, logits_to_keep=1)
        >>> program = torch.export.load(exported.path / "model.pt2").module()
        >>> program(torch.tensor([[3, 1, 4, 1, 5]])).shape
        torch.Size([1, 1, 20])
        >>> old, new = exported.report["original"], exported.report["exported"]
        >>> old["parameters"], new["parameters"]
        (9240, 8508)
    """
    require_model(model)
    require_same_graph(model.graph, circuit.graph, "the model and the circuit")
    at_least(repeats, 1, "repeats")
    target = Path(path).resolve()
    require_free(target, overwrite, "model", lambda: _is_exported_model(target))
    _require_same_weights(circuit, model)
    given = _ablation(circuit, model, task, ablation)
    modules = require(model, ExportedModules, "export_model")
    pruned = modules.pruned(circuit.mask, given, **options)
    shape = _shape(pruned, task, shape)
    gap, where = pruned.gap, "drawn inputs"
    figures: dict[str, Any] = {"absent": {"task": NO_TASK}}
    if task is not None:
        gap, figures = agreement(pruned, model, circuit, given, task)
        where = f"answer positions of {len(task)} prompts of {task.name}"
        if not allow_difference:
            require_agreement(figures)
    with atomic_folder(target, whole=True) as staging:
        _write_program(pruned, staging / MODEL_NAME)
        saved = _read_back(pruned, staging / MODEL_NAME)
        report = {
            "format": FORMAT,
            "version": VERSION,
            "ablation": given.name,
            "found_under": circuit.ablation,
            "edges": circuit.mask.num_kept,
            "of_edges": circuit.graph.num_edges,
            **pruned.options,
            **compare(pruned, saved, shape, repeats),
            "max_difference": gap,
            "compared_on": where,
            "performance": figures,
            "longest": pruned.longest,
            "shortest": pruned.shortest,
            "exact_length": pruned.exact,
            "bytes_on_disk": (staging / MODEL_NAME).stat().st_size,
        }
        circuit.save(staging / CIRCUIT_NAME)
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        (staging / REPORT_NAME).write_text(text, encoding="utf-8", newline="\n")
    return ExportedModel(target, pruned.module, report)


# -------------------------------------------------------------------- checks


def _is_exported_model(folder: Path) -> bool:
    names = {
        path.relative_to(folder).as_posix()
        for top in contents(folder)
        for path in (top, *top.rglob("*"))
    }
    known = {MODEL_NAME, REPORT_NAME, CIRCUIT_NAME}
    known |= {f"{CIRCUIT_NAME}/{name}" for name in (JSON_NAME, TENSORS_NAME)}
    return names <= known and states_format(folder / REPORT_NAME, FORMAT)


def _require_same_weights(circuit: Circuit, model: MaskedModel) -> None:
    known = circuit.provenance.get("model")
    hashed = known.get("weights") if isinstance(known, Mapping) else None
    if hashed is None:
        return
    now = identity_of(model)
    if now.get("weights") != hashed:
        raise InputError(
            f"the circuit was found in a model with the weights {str(hashed)[:12]}, this model "
            f"({now.get('model')}) has {str(now.get('weights'))[:12]}; give the model it was found "
            "in (were its weights changed since?)"
        )


def _ablation(
    circuit: Circuit, model: MaskedModel, task: Task | None, ablation: AblationLike | None
) -> Ablation:
    if ablation is None:
        own = circuit.ablation
        if own == "optimal":
            raise InputError(
                "the circuit was found with learned constants, which it does not keep: give the "
                "Ablation that was learned (ablation=result.ablation), or name another"
            )
        ablation = own if own in ("mean", "mean_positional") else "zero"
    if ablation_kind(ablation) == "counterfactual":
        raise InputError(
            "a circuit under counterfactual ablation needs the corrupted prompt at every call, so "
            "it is no model of its own; use ablation='zero', 'mean' or 'mean_positional'"
        )
    if isinstance(ablation, Ablation) or ablation == "zero":
        return ablation if isinstance(ablation, Ablation) else Ablation("zero")
    if task is None:
        raise InputError(
            f"ablation={ablation!r} is taken over a task's prompts: give task=, or the Ablation "
            "that model.mean_ablation(batches) makes"
        )
    return resolve_ablation(model, task, ablation)


def _shape(pruned: Pruned, task: Task | None, shape: tuple[int, int] | None) -> tuple[int, int]:
    if shape is None:
        given = _SHAPE if task is None else pruned.size(next(iter(task.batches())))
        return given[0], pruned.length(given[1])
    numbers = list(shape) if isinstance(shape, (tuple, list)) else []
    if len(numbers) != 2 or not all(map(is_integer, numbers)):
        raise InputError(f"shape must be two integers, examples and positions, got {shape!r}")
    if min(numbers) < 1 or pruned.length(numbers[1]) != numbers[1]:
        wanted = pruned.exact or f"{pruned.shortest} to {pruned.longest or 'any number'}"
        raise InputError(
            f"shape {shape!r} cannot be run: expected 1 example or more and {wanted} positions"
        )
    return numbers[0], numbers[1]


# -------------------------------------------------------------------- figures


def parameter_count(module: nn.Module) -> int:
    """Numbers in a module's parameters, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and saved buffers, shared ones counted once."""
    seen = {t.data_ptr(): t.numel() * t.element_size() for t in module.state_dict().values()}
    return sum(seen.values())


def compare(
    pruned: Pruned, saved: Callable[[Tensor], Tensor], shape: tuple[int, int], repeats: int
) -> dict[str, Any]:
    """``original`` and ``exported`` on inputs of ``shape``: size, FLOPs, seconds.

    Both give outputs at the same positions; ``saved`` is the exported model as read back. FLOPs are
    those of matrix products and attention as torch counts them (a multiply and an add are two).
    Seconds are wall time of one forward pass, medians of ``repeats`` turns in which each goes
    first in turn, after one turn that is not counted.
    """
    inputs = pruned.draw(*shape)
    jobs: dict[str, Callable[[Tensor], Tensor]] = {"original": pruned.original, "exported": saved}
    seen: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.no_grad(), pruned.quiet():
        flops = {name: _flops(job, inputs) / inputs.numel() for name, job in jobs.items()}
        for turn in range(repeats + 1):
            for name in sorted(jobs, reverse=bool(turn % 2)):
                seconds = _seconds(jobs[name], inputs)
                if turn:
                    seen[name].append(seconds)
    sizes = {"exported": pruned.module, "original": pruned.whole}
    return {
        "shape": list(shape),
        "device": inputs.device.type,
        "dtype": str(next(pruned.module.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **{
            name: {
                "parameters": parameter_count(sizes[name]),
                "bytes": weight_bytes(sizes[name]),
                "flops_per_token": flops[name],
                "seconds": statistics.median(seen[name]),
            }
            for name in jobs
        },
    }


def _flops(job: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Only the plain products of attention are counted on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        job(inputs)
    return int(counter.get_total_flops())


def _seconds(job: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    synchronise(inputs.device)
    start = time.perf_counter()
    job(inputs)
    synchronise(inputs.device)
    return time.perf_counter() - start


# -------------------------------------------------------------------- files


def _write_program(pruned: Pruned, path: Path) -> None:
    """``model.pt2``, for any batch and any length there may be."""
    batch = torch.export.Dim("batch", min=1)
    length: Any = torch.export.Dim.STATIC
    if pruned.exact is None and pruned.longest != 1:
        length = torch.export.Dim("length", min=pruned.shortest, max=pruned.longest)
    # Sizes of 0 and 1 are taken as fixed by tracing, so the example has neither.
    example = pruned.draw(2, pruned.length(pruned.shortest + 4))
    try:
        with torch.no_grad():
            program = torch.export.export(
                pruned.module, (example,), dynamic_shapes=({0: batch, 1: length},)
            )
    except Exception as error:
        raise UnsupportedModelError(
            "torch.export could not make a program of this circuit, so nothing was written; the "
            "module itself, model.pruned(mask, ablation).module, runs. torch said: "
            f"{type(error).__name__}: {str(error)[:500]}"
        ) from error
    program.example_inputs = None
    # In memory first: on a full disk torch's own writer ends the whole process.
    whole = io.BytesIO()
    torch.export.save(program, whole)
    with whole.getbuffer() as content:
        path.write_bytes(content)


@torch.no_grad()
def _read_back(pruned: Pruned, path: Path) -> nn.Module:
    """The saved program, which gives what the module gives on drawn inputs."""
    saved = torch.export.load(path).module()
    inputs = pruned.draw(3, pruned.length(pruned.shortest + 6))
    want = pruned.module(inputs).double()
    gap = float((saved(inputs).double() - want).abs().max())
    dtype = next(pruned.module.parameters()).dtype
    if not gap <= tolerance(dtype) * (1 + float(want.abs().max())):
        raise NumericalError(
            f"the program as saved and the module differ by {gap:.3g} on drawn inputs; nothing was "
            "written"
        )
    return saved
