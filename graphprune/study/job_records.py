"""A study's folder: one file for each finished job, written whole, and tables made from them.

A record's ``sha256`` is that of its file with a placeholder in its place, so that a flipped bit
gives no other figure. Records of versions that wrote none count as not finished and are found anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeInt, model_validator

from graphprune import __version__
from graphprune.errors import FormatError, InputError
from graphprune.util.checks import usable
from graphprune.util.files import remove_stale, write_bytes
from graphprune.util.readers import file_bytes, json_value, validated
from graphprune.util.sealed import Seal

__all__ = ["FIGURES", "MADE_BY", "NOT_OF_STUDY", "JobRecords"]

log = logging.getLogger(__name__)

# 1 was found by names, not by contents; 2 had no digest
_FORMAT: dict[str, Any] = {"format": "graphprune-job", "version": 3}
_SEAL = Seal("graphprune-job")
MADE_BY = f"graphprune {__version__}"
NOT_OF_STUDY = "not of this study"
FIGURES = (
    "cpr", "cpr_clipped", "cpr_weighted", "cmd", "cmd_weighted", "log_area", "auroc", "seconds",
    "cpu_seconds", "time_in_passes", "passes", "trials", "mib",
)  # fmt: skip
"""A job's own figures; those of its densities stand in ``rows``."""
OTHER_SETTINGS = "found with other settings"


def _of_64_bits(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number beyond 64 bits")
    return value


# Whole numbers where fractions are expected are checked too: tables take what the file says.
_Whole = Annotated[int, BeforeValidator(_of_64_bits)]
_Real = Annotated[float, BeforeValidator(_of_64_bits)]
_Number = _Whole | _Real
_Figure = _Number | Literal["NaN", "Infinity", "-Infinity"] | None
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_Ranking = Literal["signed", "abs"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Row(_Part):
    __pydantic_extra__: dict[str, _Figure]  # pyright: ignore[reportIncompatibleVariableOverride]
    density: _Real
    kept: _Number


class _Curve(_Part):
    sizes: list[_Real]
    f: dict[_Ranking, list[_Number]]
    kept: dict[_Ranking, list[_Number]]
    weighted: dict[_Ranking, list[_Real]] = {}


class _CurveByPrompt(_Part):
    values: list[list[_Number]]
    at: dict[_Ranking, list[NonNegativeInt]]


class _ByPrompt(_Part):
    prompts: list[str] = []
    rows: list[dict[str, list[_Number]]] = []
    curve: _CurveByPrompt | None = None


class _Record(_Part):
    """What tables and the report read of a record."""

    __pydantic_extra__: dict[str, _Number | str | None]  # pyright: ignore[reportIncompatibleVariableOverride]
    made_by: str
    key: str
    label: dict[str, str | _Whole]
    contents: dict[str, str] | None
    state: Literal["done", "refused", "failed"]
    why: str = ""
    edges: _Number | None = None
    remarks: list[str] = []
    rows: list[_Row] = []
    curve: _Curve | None = None
    examples: _ByPrompt = _ByPrompt()

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        examples, curve = self.examples, self.curve
        if self.state == "done" and self.edges is None:
            raise ValueError("a job that is done says how many edges its graph has")
        by_prompt = [values for row in examples.rows for values in row.values()]
        by_size: list[Sequence[float]] = []
        if curve is not None:
            by_size += [*curve.f.values(), *curve.kept.values(), *curve.weighted.values()]
        if examples.curve is not None and curve is not None:
            by_prompt += examples.curve.values
            by_size += examples.curve.at.values()
            last = max(place for places in examples.curve.at.values() for place in places)
            if last >= len(examples.curve.values):
                raise ValueError("the curve names a circuit that is not there")
        texts = [name for name in FIGURES if isinstance(self.__pydantic_extra__.get(name), str)]
        if any(self.__pydantic_extra__[name] not in _NOT_FINITE for name in texts):
            raise ValueError(f"{', '.join(texts)} should be numbers")
        fits = all(len(values) == len(examples.prompts) for values in by_prompt)
        fits &= curve is None or all(len(values) == len(curve.sizes) for values in by_size)
        fits &= len(examples.rows) in (0, len(self.rows))
        if not fits:
            raise ValueError("lists of prompts, sizes or densities have different lengths")
        rankings = [len(curve.f), len(curve.kept)] if curve is not None else []
        rankings += [len(examples.curve.at)] if examples.curve is not None else []
        if any(count < 2 for count in rankings):
            raise ValueError("a curve has both rankings, signed and abs")
        return self


class JobRecords:
    """Records of jobs by key under ``folder/jobs``.

    Raises :class:`InputError` if the folder holds something else than a study.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = usable(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"expected a folder for the study, but {self.folder} is a file")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self._jobs.is_dir():
            raise InputError(
                f"the folder {self.folder} is not empty and holds no study; nothing was touched, "
                "name another"
            )
        try:
            self._jobs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        for left in (self.folder, self._jobs, self.folder / "scores"):
            remove_stale(left)

    @property
    def _jobs(self) -> Path:
        return self.folder / "jobs"

    def load(self, key: str) -> dict[str, Any] | None:
        """The record of a job, or ``None``; raises :class:`FormatError` if it is damaged.

        ``None`` too, with a message, for a record of an earlier version.
        """
        path = self._jobs / f"{key}.json"
        if not path.exists():
            return None
        try:
            record = _read(path)
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{path}: no record of a job: {error}. Delete the file, and the study finds it anew"
            ) from None
        if record["version"] in _EARLIER:
            log.warning("%s is %s, and counts as not finished", path, _EARLIER[record["version"]])
            return None
        return record

    def save(self, record: dict[str, Any]) -> None:
        """Writes a record with the library's version (``made_by``), whole or not at all."""
        whole = {**_FORMAT, "sha256": _SEAL.blank, "made_by": MADE_BY, **record}
        lines = (f"{json.dumps(key)}: {json.dumps(whole[key], allow_nan=False)}" for key in whole)
        data = ("{\n" + ",\n".join(lines) + "\n}\n").encode()  # values by prompt stay on a line
        write_bytes(self._jobs / f"{record['key']}.json", _SEAL.closed(data))

    def not_shown(
        self, current: Collection[str], jobs: Mapping[tuple[Any, ...], Any]
    ) -> dict[str, int]:
        """Why finished jobs in the folder are not those asked for, with their numbers.

        Args:
            current: the keys of the jobs asked for.
            jobs: by the values of their labels the ``contents`` that each has now, or ``None``.
        """
        reasons: dict[str, int] = {}
        for path in sorted(self._jobs.glob("*.json")):
            if path.stem in current:
                continue
            try:
                why = _why_not_shown(_read(path), jobs)
            except (OSError, ValueError):
                why = "damaged"
            if why:
                reasons[why] = reasons.get(why, 0) + 1
        return reasons


_EARLIER = {
    1: "of an earlier version, which did not say what they were found on",
    2: "of an earlier version, which wrote no digest",
}


def _read(path: Path) -> dict[str, Any]:
    """A file's record without its digest; :class:`ValueError` if that is not the file's."""
    data = file_bytes(path)
    record = json_value(data)
    if not isinstance(record, dict) or record.get("format") != _FORMAT["format"]:
        raise ValueError(f"expected the format {_FORMAT['format']!r}")
    if record.get("version") in _EARLIER:
        return record
    if record.get("version") != _FORMAT["version"]:
        raise ValueError(f"version {record.get('version')!r} is not known, expected 3")
    _SEAL.require(data, record.pop("sha256", ""))
    validated(_Record, record, "the record")
    return record


def _why_not_shown(record: Mapping[str, Any], jobs: Mapping[tuple[Any, ...], Any]) -> str:
    if record["state"] not in ("done", "refused"):
        return ""
    if record["version"] in _EARLIER:
        return _EARLIER[record["version"]]
    if record["made_by"] != MADE_BY:
        return f"made by {record['made_by']}"
    label = tuple(record["label"].values())
    if label not in jobs:
        return NOT_OF_STUDY
    now, before = jobs[label], record["contents"]
    if now is None or before is None:
        return "of prompts and weights that cannot be read now"
    if any(now[name] != before[name] for name in ("train", "test", "truth")):
        return "found on other prompts"
    return "found with other weights" if now["weights"] != before["weights"] else OTHER_SETTINGS
