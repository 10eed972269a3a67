"""Sends `pytest adapters/...` and `pytest spectral/...` through the package.

The two folders are `graphprune.adapters` and `graphprune.spectral`. Collected by their own path
they would be imported a second time, under a bare name, and every class would exist twice.
"""

import os

# Tests run tiny models: one thread is faster than two that wait for each other. Set before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_collection() -> None:
    """Imports a package whose files doctest would import a second time, one by one."""
    import graphprune.adapters.residual  # noqa: F401


@pytest.fixture
def float64(monkeypatch):
    """Float64 all through, backward passes included, which autograd runs outside of such a mode."""
    from support.tiny import Float64

    from graphprune.adapters.lm.passes import backward

    pull_back = backward.pull_back

    def exact(*args):
        with Float64():
            return pull_back(*args)

    monkeypatch.setattr(backward, "pull_back", exact)
    with Float64():
        yield


@pytest.fixture
def one_thread():
    """Without gradients; with several threads thousands of tiny operations wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_models_decide(monkeypatch):
    """For models that do no task, so that nothing tells them from their ablated selves."""
    monkeypatch.setattr("graphprune.core.sanity_checks.ENOUGH", 10**6)


@pytest.fixture(autouse=True)
def documented(request):
    """The names that an example in a docstring uses, made when the first one does."""
    example = getattr(request.node, "dtest", None)
    if example is None:
        return
    from support.documented import NAMES

    namespace = request.getfixturevalue("doctest_namespace")
    namespace.clear()
    words = set(re.findall(r"\w+", " ".join(line.source for line in example.examples)))
    for name in words & NAMES.keys() - example.globs.keys():
        namespace[name] = NAMES[name]()
    if "folder" in words:
        namespace["folder"] = request.getfixturevalue("tmp_path")


def pytest_configure(config: pytest.Config) -> None:
    config.args = [_through_package(arg, config.invocation_params.dir) for arg in config.args]


def _through_package(arg: str, cwd: Path) -> str:
    path, *selection = arg.split("::", 1)
    absolute = cwd / path
    for folder in ("adapters", "spectral"):
        if absolute.is_relative_to(ROOT / folder):
            inside = ROOT / "graphprune" / folder / absolute.relative_to(ROOT / folder)
            return "::".join([str(inside), *selection])
    return arg
