"""Errors for names that a package does not have, with the nearest that it has."""

import sys
from typing import Any

from graphprune.errors import nearest


def suggest_names(package: str) -> None:
    """Makes the error of a missing attribute name the nearest of the package's ``__all__``.

    Called at the end of its ``__init__``; what that loads lazily (a ``__getattr__`` of its own) is
    loaded as before.

    Example:
        >>> import graphprune
        >>> graphprune.tasks.node
        Traceback (most recent call last):
        AttributeError: module 'graphprune.tasks' has no attribute 'node'; did you mean 'nodes'?
    """
    module = sys.modules[package]
    load = vars(module).get("__getattr__")

    def find(name: str) -> Any:
        if load is not None and name in module.__all__:
            return load(name)
        message = f"module {package!r} has no attribute {name!r}"
        # Python itself asks for names such as __path__, which nobody mistyped.
        close = None if name.startswith("__") else nearest(name, module.__all__)
        raise AttributeError(f"{message}; did you mean {close!r}?" if close else message)

    # Not as a `def __getattr__` in the package: type checkers would then believe in any name.
    vars(module)["__getattr__"] = find
