"""A study's folder: one file for each finished job, written whole, and tables made from them.

A record's ``sha256`` is that of its file with a placeholder in its place, so that a flipped bit
gives no other figure. Records of versions that wrote none count as not finished and are found anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graphprune import __version__
from graphprune.errors import FormatError, InputError
from graphprune.util.files import write_bytes

__all__ = ["MADE_BY", "NOT_OF_STUDY", "JobRecords"]

log = logging.getLogger(__name__)

# 1 was found by names, not by contents; 2 had no digest
_FORMAT: dict[str, Any] = {"format": "graphprune-job", "version": 3}
# Stands where the file's digest goes while that is computed; no other text happens to be this one.
_UNSEALED = hashlib.sha256(b"graphprune-job").hexdigest().encode()
MADE_BY = f"graphprune {__version__}"
NOT_OF_STUDY = "not of this study"
OTHER_SETTINGS = "found with other settings"


class JobRecords:
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
        """The record of a job, or ``None``; raises :class:`FormatError` if it is damaged.

        ``None`` too, with a message, for a record of an earlier version.
        """
        path = self._jobs / f"{key}.json"
        if not path.exists():
            return None
        try:
            record = _read(path)
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(
                f"{path}: no record of a job: {error}. Delete the file, and the study finds it anew"
            ) from None
        if record["version"] in _EARLIER:
            log.warning("%s is %s, and counts as not finished", path, _EARLIER[record["version"]])
            return None
        return record

    def save(self, record: dict[str, Any]) -> None:
        """Writes a record with the library's version (``made_by``), whole or not at all."""
        whole = {**_FORMAT, "sha256": _UNSEALED.decode(), "made_by": MADE_BY, **record}
        lines = (f"{json.dumps(key)}: {json.dumps(whole[key], allow_nan=False)}" for key in whole)
        data = ("{\n" + ",\n".join(lines) + "\n}\n").encode()  # values by prompt stay on a line
        digest = hashlib.sha256(data).hexdigest().encode()
        write_bytes(self._jobs / f"{record['key']}.json", data.replace(_UNSEALED, digest, 1))

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
            except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
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
    data = path.read_bytes()
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("format") != _FORMAT["format"]:
        raise ValueError(f"expected the format {_FORMAT['format']!r}")
    if record.get("version") in _EARLIER:
        return record
    if record.get("version") != _FORMAT["version"]:
        raise ValueError(f"version {record.get('version')!r} is not known, expected 3")
    digest = str(record.pop("sha256", "")).encode()
    if hashlib.sha256(data.replace(digest, _UNSEALED, 1)).hexdigest().encode() != digest:
        raise ValueError("its bytes are not those that were written (digests differ)")
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
