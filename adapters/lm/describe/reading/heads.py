"""How many heads a configuration says a layer has, and under which name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["HeadCount", "head_settings"]

_HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "attention_heads",
    "decoder_attention_heads",
)
_KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "kv_n_heads",
    "attn_config.kv_n_heads",
)


@dataclass(frozen=True)
class HeadCount:
    """A number of query heads, and where the configuration has it (``None``: as usual)."""

    heads: int
    name: str | None

    def settings(self, config: Any, kv_heads: int) -> dict[str, Any]:
        """The settings of a :class:`Family` that say so many heads, and key/value heads."""
        settings: dict[str, Any] = {} if self.name is None else {"heads": self.name}
        usual = _value(config, "num_key_value_heads") or self.heads
        if kv_heads != usual:
            names = [name for name in _KV_HEADS[1:] if _value(config, name) == kv_heads]
            settings["kv_heads"] = names[0] if names else kv_heads
        return settings


def _value(config: Any, path: str) -> int | None:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config if isinstance(config, int) and not isinstance(config, bool) else None


def head_settings(config: Any, module: nn.Module, width: int) -> HeadCount | None:
    """The number of query heads that divides an output map's ``width``."""
    for name in _HEADS:
        count = _value(config, name)
        if count and width % count == 0:
            return HeadCount(count, None if name == "num_attention_heads" else name)
    return None
