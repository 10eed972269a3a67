"""Compiled programs, each compiled once in a process: Tracr takes seconds for one."""

import functools

import pytest

import graphprune as gp

PROGRAMS = gp.adapters.rasp_programs()
# Numbers, categories by position and categories by counting; the first two are the papers'.
QUICK = ("frac_prevs", "reverse", "length")


def cases(names, chosen=QUICK):
    """Parameters of a test, those that are not quick marked slow."""
    slow = pytest.mark.slow
    return [name if name in chosen else pytest.param(name, marks=slow) for name in names]


@functools.cache
def compiled(name):
    return PROGRAMS[name].compile()


@functools.cache
def program(name):
    """The program as a masked model, and every input as a task."""
    return gp.adapters.tracr(compiled(name), name=name)
