"""Parameters of tests of which only some run by default."""

import pytest


def quick(every, chosen):
    """Every value, or tuple of values, as a parameter; what is not chosen is marked slow."""
    slow = pytest.mark.slow
    return [
        x if x in chosen else pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=slow)
        for x in every
    ]
