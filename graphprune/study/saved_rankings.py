"""Rankings of a study, kept to be judged at other densities or taken as an ensemble's members.

A ranking is found by its case (fingerprints of the model's weights and of the examples), by its
method with all settings and by the version of the library: another one makes its own. What it cost
is kept beside it and counts for the ensemble too, so that tables show what a method takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat

from graphprune.core.contents import fingerprint
from graphprune.core.graph import ComputationalGraph
from graphprune.core.method import Method
from graphprune.core.scores import EdgeScores
from graphprune.errors import FormatError, GraphPruneError
from graphprune.methods.optimiser import MaskOptimiser
from graphprune.util.files import write_bytes
from graphprune.util.readers import validated
from graphprune.util.sealed import Seal

from . import job_records

__all__ = ["RankingCost", "SavedRankings"]

_SEAL = Seal("graphprune-ranking")


@dataclass(frozen=True)
class RankingCost:
    """What a ranking took: seconds, CPU seconds, and the most memory (MiB).

    ``in_passes``: seconds by those of one pass on the case. ``None``: not known.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    mib: float | None = None
    in_passes: float | None = 0.0

    def then(self, other: RankingCost) -> RankingCost:
        """Both, one after the other."""
        peaks = [mib for mib in (self.mib, other.mib) if mib is not None]
        known = self.in_passes is not None and other.in_passes is not None
        return RankingCost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(peaks) if peaks else None,
            (self.in_passes or 0.0) + (other.in_passes or 0.0) if known else None,
        )

    def to_dict(self) -> dict[str, float]:
        """What is known of it, for a job's record."""
        figures = {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "mib": self.mib,
            "time_in_passes": self.in_passes,
        }
        return {name: value for name, value in figures.items() if value is not None}


class _Cost(BaseModel):
    seconds: FiniteFloat
    cpu_seconds: FiniteFloat
    mib: FiniteFloat | None
    in_passes: FiniteFloat | None


class _Notes(BaseModel):
    method: str
    noise: FiniteFloat
    fingerprint: str
    cost: _Cost


class SavedRankings:
    """Rankings of one case under ``folder/scores``; without a folder it is empty and keeps nothing.

    ``case`` is a hash of the case's contents, ``code`` one of a method's own file, where it comes
    by an import path. Each is a sealed safetensors file of ``values`` (``[E]``, float32, in the
    graph's order of edges) with the notes ``method``, ``noise``, ``fingerprint`` and ``cost``.
    """

    def __init__(self, folder: str | Path | None, case: str, code: str = "") -> None:
        self._folder = None if folder is None else Path(folder) / "scores"
        self._case = f"{case} {code}" if code else case

    def ready(self, method: Any, graph: ComputationalGraph) -> tuple[Any, RankingCost]:
        """The method with the members' rankings that stand here, and what those cost.

        Raises :class:`FormatError` for a file that is damaged.
        """
        cost = RankingCost()
        if not isinstance(method, Method):
            return method, cost
        members: dict[Method, EdgeScores] = {}
        for member in method.members:
            saved = None if isinstance(member, MaskOptimiser) else self.find(member, graph)
            if saved is not None and member not in members:
                members[member], spent = saved
                cost = cost.then(spent)
        return method.with_scores(members), cost

    def keep(
        self, method: Any, scores: EdgeScores, cost: RankingCost, taus: Sequence[float] = ()
    ) -> None:
        """Writes a ranking, whole or not at all; ``taus``: the thresholds that it comes from."""
        path = self._path(method, taus)
        if path is None:
            return
        notes = {
            "method": method.label,
            "noise": scores.noise,
            "fingerprint": scores.graph.fingerprint,
            "cost": asdict(cost),
        }
        write_bytes(path, _SEAL.tensors({"values": scores.values}, notes))

    def find(
        self, method: Any, graph: ComputationalGraph, taus: Sequence[float] = ()
    ) -> tuple[EdgeScores, RankingCost] | None:
        """A ranking that stands here and its cost; :class:`FormatError` for a damaged file."""
        path = self._path(method, taus)
        if path is None or not path.exists():
            return None
        try:
            tensors, raw = _SEAL.read_tensors(path)
            notes = validated(_Notes, raw, "its notes")
            if notes.fingerprint != graph.fingerprint or tensors.keys() != {"values"}:
                raise ValueError("it belongs to another graph")
            values = tensors["values"]
            scores = EdgeScores(graph, values, method=notes.method, noise=notes.noise)
        except (OSError, ValueError, GraphPruneError) as error:
            raise FormatError(
                f"{path}: no ranking of a study: {error}. Delete the file, and the study finds the "
                "ranking anew"
            ) from None
        return scores, RankingCost(**dict(notes.cost))

    def _path(self, method: Any, taus: Sequence[float]) -> Path | None:
        if self._folder is None:
            return None
        method = method.resolved() if isinstance(method, Method) else method
        key = fingerprint(job_records.MADE_BY, self._case, method, [float(tau) for tau in taus])
        return self._folder / f"{key[:16]}.safetensors"
