"""Methods by name: what is a wrong setting, and what is a fault of the method."""

from dataclasses import dataclass

import pytest

import graphprune as gp
from graphprune.core import registry

pytestmark = pytest.mark.inside


@dataclass(frozen=True, kw_only=True)
class Faulty(gp.EAP):
    """A method whose constructor has a fault of its own."""

    def __post_init__(self):
        raise TypeError("a fault in here")


def test_a_fault_of_a_method_is_not_called_a_wrong_setting(monkeypatch):
    monkeypatch.setattr(registry, "method_class", lambda name: Faulty)
    with pytest.raises(TypeError, match="a fault in here"):
        gp.make_method("faulty")
    with pytest.raises(gp.InputError, match=r"does not take these settings: .*'stepz'"):
        gp.make_method("faulty", stepz=3)
