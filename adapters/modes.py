"""The only changes ever made to a user's module; they undo themselves in ``finally``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["quiet"]

_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_GUARD = threading.Lock()


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights, both restored afterwards whatever happens.

    Threads take turns: the modules that run around a masked model's parts hold the values of one
    run at a time, and two threads would restore each other's modes.
    """
    with _turn(module):
        modes = [(m, m.training) for m in module.modules() if m.training]
        trainable = [p for p in module.parameters() if p.requires_grad]
        try:
            for m, _ in modes:
                m.training = False
            for p in trainable:
                p.requires_grad_(False)
            yield
        finally:
            for m, mode in modes:
                m.training = mode
            for p in trainable:
                p.requires_grad_(True)


def _turn(module: nn.Module) -> AbstractContextManager[bool | None]:
    """The module's lock, which one thread may take again and again."""
    # Autograd's threads of devices work for a thread that waits for them and may hold the lock;
    # Python did not start them, so it knows them as dummies.
    if isinstance(threading.current_thread(), threading._DummyThread):
        return nullcontext()
    with _GUARD:
        return _LOCKS.setdefault(module, threading.RLock())
