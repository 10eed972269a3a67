"""Files that hold the SHA-256 of themselves, so that a flipped bit is found when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from graphprune.util.plain import plain
from graphprune.util.readers import file_bytes, json_value, tensors_of, validated

__all__ = ["Seal"]

_NOTES = "graphprune"  # the key of a file's notes among its metadata


class _Sealed(BaseModel):
    model_config = ConfigDict(extra="allow")
    sha256: str


@dataclass(frozen=True)
class Seal:
    """The SHA-256 of a file that stands inside it: a flipped bit is found when it is read.

    The file is written with :attr:`blank` in the digest's place; ``name`` makes that unlike any
    other text.

    Example:
        >>> seal = Seal("example")
        >>> data = seal.closed(f"1 {seal.blank}".encode())
        >>> seal.require(data, data.decode().split()[1])
    """

    name: str

    @property
    def blank(self) -> str:
        """What stands where the digest goes."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    def closed(self, data: bytes) -> bytes:
        """The bytes with the digest in its place."""
        return data.replace(self.blank.encode(), hashlib.sha256(data).hexdigest().encode(), 1)

    def require(self, data: bytes, digest: object) -> None:
        """Raises :class:`ValueError` unless the bytes are those that the digest was made of."""
        said = digest.encode() if isinstance(digest, str) and digest.isascii() else b""
        blank = data.replace(said, self.blank.encode(), 1) if said else data
        if hashlib.sha256(blank).hexdigest().encode() != said:
            raise ValueError("its bytes are not those that were written (digests differ)")

    def tensors(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> bytes:
        """A safetensors file of tensors and of notes, plain values by name."""
        from safetensors.torch import save

        text = json.dumps(plain({"sha256": self.blank, **notes}))
        stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        return self.closed(save(stored, {_NOTES: text}))

    def read_tensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What :meth:`tensors` made a file of; :class:`ValueError` or :class:`OSError` if not."""
        data = file_bytes(path, most=None)
        tensors, metadata = tensors_of(data)
        notes = json_value(metadata.get(_NOTES, ""))
        self.require(data, validated(_Sealed, notes, "its notes").sha256)
        del notes["sha256"]
        return tensors, notes
