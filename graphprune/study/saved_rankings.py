"""Rankings of a study, kept to be judged at other densities or taken as an ensemble's members.

A ranking is found by its case (fingerprints of the model's weights and of the examples), by its
method with all settings and by the version of the library: another one makes its own. What it cost
is kept beside it and counts for the ensemble too, so that tables show what a method takes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphprune.core.contents import fingerprint
from graphprune.core.graph import ComputationalGraph
from graphprune.core.method import Method
from graphprune.core.scores import EdgeScores
from graphprune.errors import FormatError
from graphprune.methods.optimiser import MaskOptimiser
from graphprune.util.files import write_bytes

from . import job_records

__all__ = ["RankingCost", "SavedRankings"]


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


class SavedRankings:
    """Rankings of one case under ``folder/scores``; without a folder it is empty and keeps nothing.

    ``case`` is a hash of the case's contents, ``code`` one of a method's own file, where it comes
    by an import path. Each is an ``.npz`` file of ``values`` (``[E]``,
    float32, the graph's order of edges), ``method``, ``fingerprint`` and ``cost``
    (:class:`RankingCost`'s four, NaN where not known; older files have the first three). The zip
    archive's comment is the SHA-256 of all bytes before it.
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
        known = (cost.seconds, cost.cpu_seconds, cost.mib, cost.in_passes)
        numbers = [float("nan") if number is None else number for number in known]
        file = io.BytesIO()
        np.savez_compressed(
            file,
            values=scores.values.cpu().numpy(),
            noise=scores.noise,
            method=method.label,
            fingerprint=scores.graph.fingerprint,
            cost=numbers,
        )
        write_bytes(path, _sealed(file.getvalue()))

    def find(
        self, method: Any, graph: ComputationalGraph, taus: Sequence[float] = ()
    ) -> tuple[EdgeScores, RankingCost] | None:
        """A ranking that stands here and its cost; :class:`FormatError` for a damaged file."""
        path = self._path(method, taus)
        if path is None or not path.exists():
            return None
        try:
            with np.load(io.BytesIO(_unsealed(path.read_bytes())), allow_pickle=False) as saved:
                if str(saved["fingerprint"]) != graph.fingerprint:
                    raise ValueError("it belongs to another graph")
                values = torch.from_numpy(saved["values"])
                seconds, cpu, *others = (float(x) for x in saved["cost"])
                scores = EdgeScores(
                    graph, values, method=str(saved["method"]), noise=float(saved["noise"])
                )
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise FormatError(
                f"{path}: no ranking of a study: {error}. Delete the file, and the study finds the "
                "ranking anew"
            ) from None
        mib, in_passes = [None if np.isnan(x) else x for x in (*others, np.nan)[:2]]
        return scores, RankingCost(seconds, cpu, mib, in_passes)

    def _path(self, method: Any, taus: Sequence[float]) -> Path | None:
        if self._folder is None:
            return None
        method = method.resolved() if isinstance(method, Method) else method
        key = fingerprint(job_records.MADE_BY, self._case, method, [float(tau) for tau in taus])
        return self._folder / f"{key[:16]}.npz"


_DIGEST = 64  # bytes of a SHA-256 in hexadecimal


def _sealed(archive: bytes) -> bytes:
    """A zip archive (without a comment) whose comment is the digest of all before it."""
    body = archive[:-2] + _DIGEST.to_bytes(2, "little")  # an archive ends with its comment's length
    return body + hashlib.sha256(body).hexdigest().encode()


def _unsealed(data: bytes) -> bytes:
    """The same bytes; :class:`ValueError` if one of their bits is not as it was written."""
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("it is damaged, or of a version that wrote no digest (digests differ)")
    return data
