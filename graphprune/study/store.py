"""A study's folder: one file for each finished job, written whole, and tables made from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graphprune import __version__
from graphprune.errors import FormatError, InputError
from graphprune.files import write_text

__all__ = ["MADE_BY", "NOT_ASKED", "Store"]

_FORMAT = {"format": "graphprune-job", "version": 2}  # 1 was found by names, not by contents
MADE_BY = f"graphprune {__version__}"
NOT_ASKED = "not of this study"
OTHER_SETTINGS = "found with other settings"


class Store:
    """Records of jobs by key under ``folder/jobs``.

    Raises :class:`InputError` if the folder holds something else than a study.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"expected a folder for the study, but {self.folder} is a file")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self._jobs.is_dir():
            raise InputError(
                f"the folder {self.folder} is not empty and holds no study; nothing was touched, "
                "name another"
            )
        self._jobs.mkdir(parents=True, exist_ok=True)

    @property
    def _jobs(self) -> Path:
        return self.folder / "jobs"

    def load(self, key: str) -> dict[str, Any] | None:
        """The record of a job, or ``None``; raises :class:`FormatError` if it is damaged."""
        path = self._jobs / f"{key}.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: no record of a job: {error}") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT["format"]:
            raise FormatError(f"{path}: expected the format {_FORMAT['format']!r}")
        if found.get("version") != _FORMAT["version"]:
            raise FormatError(f"{path}: version {found.get('version')!r} is not known, expected 2")
        return found

    def save(self, record: dict[str, Any]) -> None:
        """Writes a record with the library's version (``made_by``), whole or not at all."""
        told = {**_FORMAT, "made_by": MADE_BY, **record}
        text = json.dumps(told, indent=1, allow_nan=False)
        write_text(self._jobs / f"{record['key']}.json", text + "\n")

    def aside(
        self, current: Collection[str], jobs: Mapping[tuple[Any, ...], Any]
    ) -> dict[str, int]:
        """Why finished jobs in the folder are not those asked for, with their numbers.

        Args:
            current: the keys of the jobs asked for.
            jobs: by the values of their labels the ``contents`` that each has now, or ``None``.
        """
        found: dict[str, int] = {}
        for path in sorted(self._jobs.glob("*.json")):
            if path.stem in current:
                continue
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                why = _why_aside(record, jobs)
            except (OSError, ValueError, TypeError, AttributeError, KeyError):
                why = "damaged"
            if why:
                found[why] = found.get(why, 0) + 1
        return found


def _why_aside(record: Mapping[str, Any], jobs: Mapping[tuple[Any, ...], Any]) -> str:
    if record["state"] not in ("done", "refused"):
        return ""
    if record["version"] != _FORMAT["version"]:
        return "of an earlier version, which did not say what they were found on"
    if record["made_by"] != MADE_BY:
        return f"made by {record['made_by']}"
    label = tuple(record["label"].values())
    if label not in jobs:
        return NOT_ASKED
    now, before = jobs[label], record["contents"]
    if now is None or before is None:
        return "of prompts and weights that cannot be read now"
    if any(now[name] != before[name] for name in ("train", "test", "truth")):
        return "found on other prompts"
    return "found with other weights" if now["weights"] != before["weights"] else OTHER_SETTINGS
