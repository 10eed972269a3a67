"""Methods in several variants: our own settings, and those that the authors published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from graphprune.core.method import Method
from graphprune.errors import unknown_name

__all__ = ["HasVariants"]


@dataclass(frozen=True, kw_only=True)
class HasVariants(Method):
    """A method whose settings are also known as its authors published them.

    A variant is a row of ``variants``: settings by name. It fills in whatever was not said. A
    setting that was said stays, ``None`` being "not said". Afterwards they are settings like all
    others: in fields, copies and records of a circuit. (``dataclasses.replace`` says them all, so
    make a method anew to change its variant.) A subclass calls ``super().__post_init__()`` before
    it checks its settings.

    Args:
        variant: ``"default"`` or a name in ``variants``.

    Example:
        >>> from graphprune import EAPIG
        >>> EAPIG(variant="paper").points_at, EAPIG(variant="paper", points_at="right").points_at
        ('left', 'right')
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    variant: str = "default"

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Notes which settings are said: afterwards a default looks like any other value."""
        made = super().__new__(cls)
        if args or settings:  # a copy is made without, and takes its settings from the original
            by_place = [f.name for f in fields(cls) if f.init and not f.kw_only]
            object.__setattr__(made, "_names_said", {*by_place[: len(args)], *settings})
        return made

    def __post_init__(self) -> None:
        said: set[str] = getattr(self, "_names_said", set())
        vars(self).pop("_names_said", None)
        known = {"default": {}, **self.variants}
        if self.variant not in known:
            raise unknown_name("variant", self.variant, known)
        for name, value in known[self.variant].items():
            if name not in said or getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _usual_settings(self) -> dict[str, Any]:
        return super()._usual_settings() | dict(self.variants.get(self.variant, {}))
