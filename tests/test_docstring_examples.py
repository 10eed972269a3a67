"""Every public class and function has an example in its docstring, which runs as a doctest.

Public is what ``graphprune`` and its documented packages name. Examples are run where their module
is collected (``--doctest-modules``); here they are counted. Some use names that they do not make:
a small model, its task and so on, see ``support.documented``.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from support.documented import NAMES

import graphprune as gp

ROOT = Path(__file__).parent.parent
# What an example cannot do while the tests run: these show the call and skip it.
SKIPPED = {
    "celegans": "gets a package from the index",
    "fly": "gets a package from the index",
    "from_hub": "downloads a circuit",
    "mib": "reads a data set that must be downloaded",
    "push_to_hub": "uploads a circuit",
    "masked_tokens": "needs a tokenizer with a mask token",
    "sequences": "needs an encoder-decoder's tokenizer",
    "text_classes": "needs a tokenizer of pairs of texts",
    "ExportedModel": "torch.export takes seconds",
    "tracr": "jax takes seconds to load",
    "tracr_truth": "jax takes seconds to load",
    "tracr_wiring": "jax takes seconds to load",
}


def public() -> Iterator[tuple[str, Any]]:
    """Every public class and function once, errors left out: their messages are their text."""
    modules = [gp, *(getattr(gp, name) for name in gp.__all__)]
    names = {
        getattr(module, name): f"{module.__name__}.{name}"
        for module in reversed([module for module in modules if isinstance(module, ModuleType)])
        for name in getattr(module, "__all__", ())
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
    }
    for value, name in names.items():
        if not (inspect.isclass(value) and issubclass(value, Exception)):
            yield name, value


def examples(value: Any) -> list[doctest.Example]:
    parsed = doctest.DocTestParser().get_examples(inspect.cleandoc(value.__doc__ or ""))
    return [example for example in parsed if not example.options.get(doctest.SKIP)]


def test_every_public_class_and_function_has_an_example_that_runs():
    without = {name: value for name, value in public() if not examples(value)}
    lacking = [
        f"{name} ({value.__module__})"
        for name, value in without.items()
        if name.rpartition(".")[2] not in SKIPPED or "+SKIP" not in (value.__doc__ or "")
    ]
    assert not lacking, "\n".join(["no example (>>> ...) in the docstring of", *sorted(lacking)])
    needless = SKIPPED.keys() - {name.rpartition(".")[2] for name in without}
    assert not needless, f"these have examples that run: {', '.join(sorted(needless))}"


def test_examples_show_something():
    """An example that prints nothing and raises nothing shows a reader no result."""
    mute = [
        name
        for name, value in public()
        if examples(value) and not any(e.want or e.exc_msg for e in examples(value))
    ]
    assert not mute, f"examples without a result: {', '.join(sorted(mute))}"


def test_names_that_examples_do_not_make_are_explained():
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", page))
    assert {*NAMES, "folder"} <= explained
