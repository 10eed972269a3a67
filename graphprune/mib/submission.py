"""Submissions to MIB's circuit track: a folder for each task and model, written, read, checked.

A submission holds folders such as ``ioi_gpt2``. Each has one file of scores (of edges, nodes or
neurons; JSON or ``.pt``), or nine files with circuits, one for each size below 1 (ten where one is
the whole graph). What is not ``.json`` or ``.pt`` is not looked at.

Names and files are read as the benchmark's own loader reads them. Where it is lenient, its result
is followed and a remark says so: see :mod:`graphprune.mib.parsing`. Four checks are stricter,
for it would score what its README forbids or what says nothing: NaN and infinite scores of edges
(it ranks NaN first), constant scores, another number of circuits or circuits above their sizes, and
a file that describes another model's shape.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.scores import EdgeScores, NodeScores
from graphprune.core.sizes import MIB_SIZES
from graphprune.errors import FormatError, GraphPruneError, InputError
from graphprune.mib.content import MIBNodes, Ungrouped
from graphprune.mib.data import MIB_TASKS
from graphprune.mib.files import to_mib_json, to_mib_pt
from graphprune.mib.layout import UngroupedLayout, field_graph
from graphprune.mib.names import MIB_MODELS, SCORED_TASKS, known_name, split_name
from graphprune.mib.parsing import load, parse
from graphprune.selection.combine import require_informative
from graphprune.util.checks import usable

PathLike = str | os.PathLike[str]
Level = Literal["edge", "node", "neuron"]

_SUFFIXES = (".json", ".pt")
_LARGEST = 1 << 32
_SCORES = EdgeScores | NodeScores | MIBNodes


@dataclass(frozen=True, eq=False)
class Submission:
    """One folder's content on a graph.

    Args:
        folder: where it lies.
        task, model: the benchmark's names, ``None`` where the folder's name says neither.
        graph: what scores and circuits belong to.
        scores: of edges, from a file of scores.
        nodes: of nodes, where the file has any.
        circuits: nine or ten, smallest first; empty where there are scores.
        remarks: faults that MIB's own loader passes over, and what it makes of them.

    Example:
        >>> found = gp.EdgeScores(gp.export.field_graph(6, 4), torch.linspace(0, 1, 1108))
        >>> path = gp.export.write_submission(folder, "ioi", "interpbench", found, d_model=64)
        >>> read = gp.export.read_submission(path)
        >>> read.task, read.model, read.level
        ('ioi', 'interpbench', 'edge')
    """

    folder: Path
    task: str | None
    model: str | None
    graph: ComputationalGraph
    scores: EdgeScores | None = None
    nodes: MIBNodes | None = None
    circuits: tuple[EdgeMask, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def level(self) -> Level:
        """The kind of what is scored: neurons, nodes, else edges (circuits are made of edges)."""
        if self.nodes is not None and self.nodes.scores.neurons:
            return "neuron"
        return "edge" if self.nodes is None else "node"

    @property
    def found(self) -> EdgeScores | MIBNodes | tuple[EdgeMask, ...]:
        """The scores or circuits that :func:`graphprune.mib_curve` takes.

        Raises :class:`InputError` for scores of neurons: masks here are of edges.
        """
        if self.circuits:
            return self.circuits
        if self.level == "neuron":
            raise InputError(
                f"{self.folder}: circuits of single neurons are read and written, not run: a mask "
                "here keeps or cuts whole messages"
            )
        if self.nodes is not None:
            return self.nodes
        assert self.scores is not None
        return self.scores


@dataclass(frozen=True)
class Checked:
    """The check of one folder: ``problem`` is ``""`` where there is none.

    ``remarks`` say where MIB's loader is lenient: what it passes over, and what it makes of it.
    """

    folder: str
    task: str | None
    model: str | None
    level: str
    files: int
    problem: str = ""
    remarks: tuple[str, ...] = ()


# -------------------------------------------------------------------- writing


def write_submission(
    root: PathLike,
    task: str,
    model: str,
    found: EdgeScores | NodeScores | MIBNodes | Sequence[EdgeMask],
    *,
    d_model: int | None = None,
    form: Literal["json", "pt"] = "json",
) -> Path:
    """Writes ``root/task_model`` with one file of scores, or nine or ten of circuits.

    Args:
        root: the submission's folder; others in it stay.
        task, model: the benchmark's names, such as ``"arc-easy"`` and ``"llama3"``.
        found: scores of edges or of nodes (neurons too, where they are scored); or a circuit for
            each size below 1, and one for 1 if you like, in any order.
        d_model: the residual stream's width; ``None`` means the benchmark's model's.
        form: of the files.

    Returns the folder. Raises :class:`InputError` for unknown names, a graph of another shape than
    the model's, circuits of other sizes, and a folder that has circuit files already.

    Example:
        >>> found = gp.EdgeScores(gp.export.field_graph(6, 4), torch.linspace(0, 1, 1108))
        >>> write_submission(folder, "ioi", "interpbench", found, d_model=64).name
        'ioi_interpbench'
    """
    task = known_name("task", task, list(MIB_TASKS))
    model = known_name("model", model, list(MIB_MODELS))
    if form not in ("json", "pt"):
        raise InputError(f"form is 'json' or 'pt', got {form!r}")
    circuits: list[EdgeMask] = []
    if not isinstance(found, _SCORES):
        circuits = sorted(found, key=lambda mask: mask.num_kept)
        if not circuits:
            raise InputError("there are no circuits to write")
    graph = found.graph if isinstance(found, _SCORES) else circuits[0].graph
    layout = UngroupedLayout.of(graph)
    _require_shape(layout, model, f"the graph of what is written to {task}_{model}")
    width = MIB_MODELS[model][2] if d_model is None else d_model
    folder = usable(Path(root) / f"{task}_{model}")
    if folder.exists() and (not folder.is_dir() or any(_circuit_files(folder))):
        raise InputError(f"{folder} is a file or has circuit files already; nothing was written")
    write = to_mib_json if form == "json" else to_mib_pt
    if isinstance(found, MIBNodes):
        write(found.scores, folder / f"importances.{form}", nodes=found, d_model=width)
    elif isinstance(found, EdgeScores | NodeScores):
        write(found, folder / f"importances.{form}", d_model=width)
    else:
        _check_sizes(circuits, layout, str(folder))
        for size, mask in zip(MIB_SIZES, circuits, strict=False):
            write(mask, folder / f"circuit_{size:g}.{form}", d_model=width)
    return folder


def _check_sizes(masks: Sequence[EdgeMask], layout: UngroupedLayout, where: str) -> None:
    """Nine circuits (or ten with the whole graph), each within its size's number of edges."""
    total = int(layout.real.sum())
    counts = [int(layout.matrix(mask.kept.numpy())[layout.real].sum()) for mask in masks]
    if len(masks) not in (9, 10) or (len(masks) == 10 and counts[-1] != total):
        raise InputError(
            f"{where}: expected nine circuits, one for each size below 1 (a tenth is the whole "
            f"graph); got {len(masks)} of {counts} edges"
        )
    for size, count in zip(MIB_SIZES, sorted(counts), strict=False):
        if count > int(size * total):
            raise InputError(
                f"{where}: the circuit for the size {size:g} may have {int(size * total)} of "
                f"{total} edges, but has {count}"
            )


# -------------------------------------------------------------------- reading


def _circuit_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith("."):
            yield path


def _cfg(path: Path, values: Any) -> dict[str, Any]:
    """The shape that a file says it has."""
    cfg = values.get("cfg") if isinstance(values, dict) else None
    needed = {"n_layers": int, "n_heads": int, "parallel_attn_mlp": bool, "d_model": int}
    if not isinstance(cfg, dict) or any(type(cfg.get(k)) is not t for k, t in needed.items()):
        raise FormatError(f"{path}: cfg should say {', '.join(needed)}, got {reprlib.repr(cfg)}")
    if not 0 < cfg["n_layers"] <= 1000 or not 0 < cfg["n_heads"] <= 1000:
        raise FormatError(f"{path}: {cfg['n_layers']} layers of {cfg['n_heads']} heads")
    if not 0 < cfg["d_model"] < _LARGEST:
        raise FormatError(f"{path}: d_model is {cfg['d_model']}")
    return cfg


def _require_shape(layout: UngroupedLayout, model: str | None, what: str) -> None:
    if model is None:
        return
    layers, heads, _ = MIB_MODELS[model]
    if (layout.n_layers, layout.n_heads, layout.parallel) != (layers, heads, False):
        raise InputError(
            f"{what} has {layout.n_layers} layers of {layout.n_heads} heads, MIB's {model} has "
            f"{layers} of {heads}"
        )


def read_submission(
    folder: PathLike,
    graph: ComputationalGraph | None = None,
    *,
    level: Level | None = None,
    ungrouped: Ungrouped = "any",
) -> Submission:
    """Reads and checks one task's and model's folder.

    Args:
        folder: such as ``submission/ioi_gpt2``.
        graph: what the files belong to; ``None`` means the graph that they describe.
        level: which of its scores a file is for; ``None`` means those of nodes (or neurons) where
            it has any, else of edges.
        ungrouped: see :func:`graphprune.export.from_mib_json`.

    Missing edges and nodes and what else MIB's loader passes over are read as it reads them, and
    ``remarks`` say so. Raises :class:`FormatError` (or :class:`InputError`) for the first thing
    that is wrong: a wrong number of files, missing keys, edges that the graph does not have,
    another model's shape, NaN or constant scores, circuits larger than their sizes allow.

    Example:
        >>> found = gp.EdgeScores(gp.export.field_graph(6, 4), torch.linspace(0, 1, 1108))
        >>> path = gp.export.write_submission(folder, "ioi", "interpbench", found, d_model=64)
        >>> read_submission(path).scores
        EdgeScores(1108 edges, method='file')
    """
    return _read_folder(_folder(folder), graph, level, ungrouped)[0]


def _folder(path: PathLike) -> Path:
    folder = usable(path)
    if not folder.is_dir():
        raise InputError(f"expected a submission's folder, but {folder} is not there")
    return folder


def _read_folder(
    folder: Path,
    graph: ComputationalGraph | None = None,
    level: Level | None = None,
    ungrouped: Ungrouped = "any",
) -> tuple[Submission, dict[str, Any]]:
    """The submission in a folder, and what its first file says of the model's shape."""
    task, model = split_name(folder.name)
    files = list(_circuit_files(folder))
    if len(files) not in (1, 9, 10):
        raise FormatError(
            f"{folder} has {len(files)} files that end in .json or .pt; expected one of scores, or "
            "nine with circuits (ten with the whole graph's)"
        )
    values: Any = load(files[0])
    cfg: dict[str, Any] = {}
    if graph is None:
        cfg = _cfg(files[0], values)
        graph = field_graph(cfg["n_layers"], cfg["n_heads"], cfg["parallel_attn_mlp"])
    layout = UngroupedLayout.of(graph)
    _require_shape(layout, model, f"{folder}")
    faults: list[str] = []
    if len(files) > 1:
        masks = []
        for path in files:
            # The first is read already; the others are as large, so one at a time is held.
            values = load(path) if values is None else values
            content = parse(path, values, layout, remarks=faults, circuit=True)
            values = None
            masks.append(content.edges(ungrouped, "zero")[1])
        masks.sort(key=lambda mask: mask.num_kept)
        _check_sizes(masks, layout, str(folder))
        remarks = tuple(dict.fromkeys(faults))
        return Submission(folder, task, model, graph, circuits=tuple(masks), remarks=remarks), cfg
    content = parse(files[0], values, layout, remarks=faults)
    nodes, remarks = content.nodes(), tuple(faults)
    scored = len(nodes.unscored) < len(layout.rows) or bool(nodes.scores.neurons)
    if level in ("node", "neuron") and not scored:
        raise FormatError(f"{files[0]} has no scores of nodes")
    if scored and level != "edge":
        if level == "node" and nodes.scores.neurons:
            alone = NodeScores(graph, nodes.scores.values, method="file")
            nodes = MIBNodes(alone, nodes.kept, nodes.unscored)
        return Submission(folder, task, model, graph, nodes=nodes, remarks=remarks), cfg
    scores, _ = content.edges(ungrouped, "error")
    require_informative(scores, f"the file {files[0]}")
    return Submission(folder, task, model, graph, scores=scores, remarks=remarks), cfg


# -------------------------------------------------------------------- checking


def check_submission(root: PathLike) -> list[Checked]:
    """Checks every folder of a submission, or the one of a single task and model.

    Files are checked against the graph of the model that the folder names, without the model. Of
    folders whose names hold ``abs`` and ``true`` or ``false`` those inside are looked at, as the
    benchmark's evaluator does.
    Raises :class:`InputError` where there is no folder to check.

    Example:
        >>> found = gp.EdgeScores(gp.export.field_graph(6, 4), torch.linspace(0, 1, 1108))
        >>> path = gp.export.write_submission(folder, "ioi", "interpbench", found, d_model=64)
        >>> [(checked.folder, checked.problem) for checked in check_submission(folder)]
        [('ioi_interpbench', '')]
    """
    place = _folder(root)
    folders = [place] if any(_circuit_files(place)) else _folders(place)
    if not folders:
        raise InputError(f"{place} has neither circuit files nor folders with them")
    return [_check(folder) for folder in folders]


def _folders(folder: Path) -> list[Path]:
    folders: list[Path] = []
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if path.is_dir() and not name.startswith("."):
            ranked = "abs" in name and ("true" in name or "false" in name)
            folders += _folders(path) if ranked else [path]
    return folders


def _check(folder: Path) -> Checked:
    task, model = split_name(folder.name)
    count, level, problem = len(list(_circuit_files(folder))), "", ""
    if task is None or model is None:
        problem = (
            f"the name says no {'task' if task is None else 'model'} of MIB's, so it is skipped; "
            f"expected TASK_MODEL such as ioi_gpt2, of {', '.join(MIB_TASKS)} and "
            f"{', '.join(MIB_MODELS)}"
        )
        return Checked(folder.name, task, model, level, count, problem)
    remarks: tuple[str, ...] = ()
    try:
        submission, cfg = _read_folder(folder)
        remarks = submission.remarks
        level = "circuits" if submission.circuits else submission.level
        if cfg["d_model"] != MIB_MODELS[model][2]:
            problem = f"d_model is {cfg['d_model']}, MIB's {model} has {MIB_MODELS[model][2]}"
        elif task not in SCORED_TASKS[model]:
            problem = f"MIB scores {model} on {', '.join(SCORED_TASKS[model])} and skips {task}"
    except GraphPruneError as error:
        problem = str(error)
    return Checked(folder.name, task, model, level, count, problem, remarks)
