"""The circuit: a graph, the edges kept of it, their scores, and where it all came from.

A circuit is a frozen value. Exports, figures and pages read only what stands here, whichever
method made the mask; :meth:`Circuit.save` and :meth:`Circuit.load` keep it (see
``graphprune/export/FORMAT.md``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.core.edge_table import edge_table
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, one_ablation, require_same_graph
from graphprune.core.method import ablation_name, provenance_of
from graphprune.core.overlap import ExampleFingerprint, fingerprint_set
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError
from graphprune.util.fetch import model_title
from graphprune.util.notebook import notebook_card
from graphprune.util.plain import HasToDict, flatten, plain, recorded, versions_now

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from graphprune.core.ablation import AblationLike
    from graphprune.core.compiled import CompiledCircuit
    from graphprune.core.model import MaskedModel
    from graphprune.core.pruned import ExportedModel
    from graphprune.core.result import Result
    from graphprune.core.task import Task


@dataclass(frozen=True, eq=False)
class Circuit:
    """Part of a model's computational graph, with its provenance.

    Args:
        graph: the whole graph; ``mask`` and ``scores`` belong to it.
        mask: which edges are kept.
        scores: how useful each edge is, where a method said so.
        report: how well the circuit does; an object with ``to_dict()``, or a dict.
        provenance: plain values: ``model``, ``task``, ``method``, ``seed``, ``versions``,
            ``created``, ``notes``, each present where known.
        found_on: fingerprints of the examples that its method saw; ``None`` where that is not
            known. Figures on these say how well the method has fitted:
            ``task.unseen(circuit.found_on)`` are others.
        ablation: the name of the ablation that it was found under; ``None`` where that is not
            known. It is judged under this one unless another is asked for.

    Raises :class:`~graphprune.errors.GraphMismatchError` where mask or scores belong to another
    graph.

    Example:
        >>> import torch
        >>> graph = ComputationalGraph.from_edges([("input", "h"), ("h", "out"), ("input", "out")])
        >>> scores = EdgeScores(graph, torch.tensor([0.5, -2.0, 1.0]))
        >>> circuit = Circuit.from_mask(scores.top(2), scores=scores)
        >>> circuit.edges(), circuit.nodes()
        (['h->out', 'input->out'], ['input', 'h', 'out'])
        >>> (circuit & Circuit.from_mask(scores.top(1))).edges()
        ['h->out']
    """

    graph: ComputationalGraph
    mask: EdgeMask
    scores: EdgeScores | None = None
    report: Any = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    found_on: frozenset[ExampleFingerprint] | None = None
    ablation: str | None = None
    _model: weakref.ref[MaskedModel] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        require_same_graph(self.graph, self.mask.graph, "the circuit and its mask")
        if self.scores is not None:
            require_same_graph(self.graph, self.scores.graph, "the circuit and its scores")
        if not isinstance(self.provenance, Mapping):
            raise InputError(
                f"provenance must be a dict of plain values, got {type(self.provenance).__name__}"
            )
        if not isinstance(self.report, Mapping | HasToDict | None):
            raise InputError(
                "report must be a dict or have to_dict(), as an EvaluationReport has; got "
                f"{type(self.report).__name__}"
            )
        object.__setattr__(self, "provenance", plain(self.provenance))
        if self.found_on is not None:
            object.__setattr__(self, "found_on", fingerprint_set(self.found_on))

    @classmethod
    def from_mask(
        cls,
        mask: EdgeMask,
        scores: EdgeScores | None = None,
        model: MaskedModel | None = None,
        task: Task | None = None,
        report: Any = None,
        method: Any = None,
        seed: int | None = None,
        notes: Mapping[str, Any] | None = None,
        found_on: Task | Iterable[ExampleFingerprint] | None = None,
        ablation: AblationLike | None = None,
    ) -> Circuit:
        """A circuit with everything that is known of how it came about.

        Args:
            mask: the kept edges.
            scores: the scores they were chosen by.
            model: whose graph it is; its ``provenance()`` (name, hash of the weights) is kept.
            task: the examples that the circuit was found on; the task's name, size, metric and
                notes are kept, and the examples' fingerprints as ``found_on``.
            report: what :func:`graphprune.evaluate` gave.
            method: the scorer or pruner (its settings are kept), or a name; ``None`` takes
                ``scores.method``.
            seed: ``None`` takes the method's own ``seed`` setting.
            notes: any further plain values.
            found_on: the examples that the circuit was found on, as a task or as fingerprints,
                where they are others than those of ``task``.
            ablation: what the circuit was found under; ``None`` takes the method's, else the
                mask's, else the report's.
        """
        if model is not None:
            require_same_graph(model.graph, mask.graph, "the model and the circuit's mask")
        provenance = provenance_of(model, task, method, scores, seed)
        if notes:
            provenance["notes"] = dict(notes)
        seen: Any = task if found_on is None else found_on  # made fingerprints of
        under = ablation_name(ablation, method) or ablation_name(mask.ablation, report=report)
        circuit = cls(mask.graph, mask, scores, report, provenance, seen, under)
        if model is not None:
            object.__setattr__(circuit, "_model", weakref.ref(model))
        return circuit

    @classmethod
    def from_result(
        cls,
        result: Result,
        model: MaskedModel | None = None,
        task: Task | None = None,
        *,
        method: Any = None,
        report: Any = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Circuit:
        """The circuit of what a method's ``fit`` gave, with its scores, ablation and examples.

        Arguments as :meth:`from_mask` takes them; ``task=None`` is the one it was found on.

        Example:
            >>> graph = ComputationalGraph.from_edges([("input", "h"), ("h", "out")])
            >>> from graphprune.core.result import Result
            >>> Circuit.from_result(Result(EdgeMask.full(graph), ablation="zero")).ablation
            'zero'
        """
        if result.mask is None:
            raise InputError("the result ranks edges and keeps none: fit it with a size")
        run = {"stopped": result.stopped, "remarks": list(result.remarks)}
        known = {name: value for name, value in run.items() if value}
        return cls.from_mask(
            result.mask,
            result.scores,
            model,
            result.task if task is None else task,
            report,
            method,
            notes={**known, **(notes or {})},
            found_on=result.task,
            ablation=result.ablation,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}  # a weak reference neither copies nor travels

    def edges(self) -> list[str]:
        """Names of the kept edges, in graph order."""
        return self.mask.edges()

    def nodes(self) -> list[str]:
        """Names of the nodes that a kept edge touches, in graph order."""
        return self.mask.nodes()

    @property
    def title(self) -> str:
        """The model and the task, where they are known."""
        names = [recorded(self.provenance, *key) for key in (("model", "model"), ("task", "name"))]
        return " · ".join(model_title(name) for name in names if name) or "circuit"

    def report_dict(self) -> dict[str, Any]:
        """The report as plain values; empty where there is none."""
        if self.report is None:
            return {}
        values = self.report if isinstance(self.report, Mapping) else self.report.to_dict()
        return dict(plain(values))

    def to_frame(self) -> pd.DataFrame:
        """A row for each edge of the graph: edge, source, target, kind, kept, and score if any."""
        columns = {"kept": self.mask.values.numpy()}
        if self.scores is not None:
            columns["score"] = self.scores.values.numpy()
        return edge_table(self.graph, columns)

    def to_networkx(self) -> nx.DiGraph[Any]:
        """The kept edges and the nodes they touch, with plain Python attributes.

        A ``MultiDiGraph`` (keys: the edges' kinds) where the graph has parallel edges, as a
        transformer's q, k and v; else a ``DiGraph``. Nodes carry ``kind``, ``layer`` and
        ``index`` where known; edges ``name``, ``kind``, ``kept`` (the mask's value), ``number``
        and, where there are scores, ``score``. Wires between touched nodes carry ``fixed=True``.

        Example:
            >>> graph = ComputationalGraph.from_edges([("input", "h"), ("h", "out")])
            >>> dict(Circuit.from_mask(EdgeMask.full(graph)).to_networkx()["input"]["h"])
            {'name': 'input->h', 'kind': 'message', 'kept': 1.0, 'number': 0}
        """
        from graphprune.export.to_networkx import circuit_to_networkx

        return circuit_to_networkx(self)

    def plot(self, path: str | os.PathLike[str] | None = None, **options: Any) -> Any:
        """A figure that fits a page, written to ``path`` (SVG, PNG, PDF) if given.

        Options as :func:`graphprune.export.plot` takes them: ``orientation="landscape"``,
        ``max_edges``, ``width`` in centimetres, ``node_colours`` of a graph network.
        """
        from graphprune.drawing.figure import plot

        return plot(self, path, **options)

    def compile(
        self,
        model: MaskedModel,
        task: Task,
        *,
        ablation: AblationLike | None = None,
        batch_size: int | None = None,
    ) -> CompiledCircuit:
        """The circuit ready to run: ``run = circuit.compile(model, task)``, then ``run()``.

        Only the circuit's nodes are computed and only its edges read; what stands in for the rest
        is computed here, once. ``run(clean, corrupt)`` does the same on fresh inputs.
        ``ablation=None``: the one the circuit was found under, else counterfactual.
        """
        from graphprune.core.compiled import CompiledCircuit

        under = self.ablation if ablation is None else ablation
        return CompiledCircuit(model, task, self.mask, ablation=under, batch_size=batch_size)

    def save(self, directory: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes ``circuit.json`` and ``tensors.safetensors``, whole or not at all.

        A folder that exists and holds anything is an :class:`InputError`, unless ``overwrite``
        and it is itself a circuit folder; then only these two files are replaced.
        """
        from graphprune.export.folder import save_circuit

        return save_circuit(self, directory, overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Circuit:
        """Reads what :meth:`save` wrote; :class:`FormatError` says what is wrong and where.

        A report of older folders, which hold its figures alone, comes back as a dict.
        """
        from graphprune.export.folder import load_circuit

        return load_circuit(directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the circuit with a card; see :func:`graphprune.export.push_to_hub`."""
        from graphprune.export.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)

    @classmethod
    def from_hub(cls, repo_id: str, **options: Any) -> Circuit:
        """Downloads a circuit; see :func:`graphprune.export.from_hub`."""
        from graphprune.export.hub import from_hub

        return from_hub(repo_id, **options)

    def export_model(
        self,
        path: str | os.PathLike[str],
        model: MaskedModel | None = None,
        **options: Any,
    ) -> ExportedModel:
        """The circuit as an ordinary torch module, in memory and in the folder ``path``.

        The module needs no corrupted prompt and no graphprune; it holds copies of the circuit's
        weights and no others. The folder has ``model.pt2`` (``torch.export.load(...).module()``
        runs it with torch alone), the circuit in ``circuit/``, and ``report.json``, which sets
        size, FLOPs and seconds of the original model beside the exported one's. Prompts may be
        padded on the right; there is no attention mask, so not on the left.

        Args:
            path: a folder that is new or empty.
            model: whose circuit it is; ``None`` takes the one given to :meth:`from_mask`, while it
                lives.
            ablation: ``"zero"``, ``"mean"``, ``"mean_positional"`` (prompts then have one length)
                or an :class:`~graphprune.Ablation`, learned constants included. ``None`` takes what
                the circuit was found with, where that was a mean, else ``"zero"``.
            task: whose prompts means are taken over, and which the module is compared on:
                ``report["performance"]`` has KL, accuracies and the metric of the circuit as found
                (under its own ablation), of the masked run under this one, of the exported and of
                the original model. Without a task nothing of that is known.
            shape: examples and positions that seconds are measured on; ``None`` takes the task's
                first batch, or 8 and 16.
            repeats: how many times.
            overwrite: whether an exported model at ``path`` is replaced.
            allow_difference: whether to write a model that is another one than the circuit as
                found: with a KL from it of more than 0.1 nats a prompt of the task.
            **options: the adapter's own, such as ``logits_to_keep`` of a language model (see
                :meth:`graphprune.adapters.lm.LanguageModel.pruned`).

        Raises:
            InputError: an ablation that needs the corrupted prompt, a mask with values between 0
                and 1, another model than the circuit's, a folder in use; a model that is another
                one than the circuit as found (see ``allow_difference``).
            UnsupportedModelError: no module can be made of this architecture's circuits.
            NumericalError: the module differs from the masked run on the task.
        """
        from graphprune.export.model import export_model

        if model is None and self._model is not None:
            model = self._model()
        if model is None:
            raise InputError(
                "the circuit does not hold its model; give it: circuit.export_model(path, model)"
            )
        return export_model(self, path, model, **options)

    # ---------------------------------------------------------------- set algebra

    def _combined(self, other: Circuit, mask: EdgeMask, operation: str) -> Circuit:
        provenance = {
            "operation": operation,
            "operands": [self.provenance, other.provenance],
            **versions_now(),
        }
        model = self.provenance.get("model")
        if model is not None and model == other.provenance.get("model"):
            provenance["model"] = model
        scores = self.scores if self.scores is not None else other.scores
        known = self.found_on is not None and other.found_on is not None
        seen = (self.found_on or frozenset()) | (other.found_on or frozenset()) if known else None
        under = one_ablation(self.ablation, other.ablation)
        return Circuit(self.graph, mask, scores, None, provenance, seen, under)

    def __and__(self, other: Circuit) -> Circuit:
        """Edges of both. The scores are the left circuit's, or the right's if it has none."""
        return self._combined(other, self.mask & other.mask, "and")

    def __or__(self, other: Circuit) -> Circuit:
        return self._combined(other, self.mask | other.mask, "or")

    def __sub__(self, other: Circuit) -> Circuit:
        return self._combined(other, self.mask - other.mask, "minus")

    def __xor__(self, other: Circuit) -> Circuit:
        return self._combined(other, self.mask ^ other.mask, "xor")

    def jaccard(self, other: Circuit) -> float:
        """Size of the intersection over size of the union of the two sets of edges."""
        return self.mask.jaccard(other.mask)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit) or self.mask != other.mask:
            return False
        ours, theirs = (
            (c.found_on, c.ablation, c.scores and c.scores.method, c.provenance, c.report_dict())
            for c in (self, other)
        )
        if ours != theirs or self.scores is None or other.scores is None:
            return ours == theirs and self.scores is other.scores
        return self.scores.values.equal(other.scores.values)

    def __hash__(self) -> int:
        return hash(self.mask)

    def _repr_html_(self) -> str:
        """The circuit in a notebook: what is known of it, and a drawing where matplotlib is."""
        from graphprune.drawing.figure import notebook_picture

        told = {"title": self.title, "method": self.provenance.get("method"),
                "ablation": self.ablation, "report": self.report_dict()}  # fmt: skip
        facts = [row for row in flatten(plain(told)) if row[1] not in ("–", "")]
        return notebook_card(repr(self), facts[:12], picture=notebook_picture(self))

    def __repr__(self) -> str:
        return (
            f"Circuit({self.mask.num_kept} of {self.graph.num_edges} {self.graph.counted}, "
            f"{len(self.nodes())} nodes)"
        )
