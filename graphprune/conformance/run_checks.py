"""Running the checks: one test each, or all with one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphprune.core.method import Method
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import GraphPruneError

from .checks_of_capabilities import CAPABILITY_CHECKS
from .checks_of_contract import CONTRACT_CHECKS, AdapterCheck
from .checks_of_methods import METHOD_CHECKS, MethodCheck
from .common import ConformanceError


def adapter_checks(model: MaskedModel | None = None) -> tuple[AdapterCheck, ...]:
    """The checks of an adapter, each ``check(model, task)``; for ``pytest.mark.parametrize``.

    Without a model those of the contract alone; with one also those of its capabilities.

    Example:
        >>> [check.__name__ for check in adapter_checks(model)][:3]
        ['graph_is_stable', 'ends_are_the_references',
        'full_outputs_are_the_same_under_every_ablation']
    """
    claimed = tuple(c for c, kind in CAPABILITY_CHECKS.items() if isinstance(model, kind))
    return CONTRACT_CHECKS + claimed


def method_checks() -> tuple[MethodCheck, ...]:
    """The checks of a method, each ``check(method, model, task)``.

    Example:
        >>> [check.__name__ for check in method_checks()][:3]
        ['settings_are_frozen', 'result_is_of_this_graph', 'result_is_reproducible']
    """
    return METHOD_CHECKS


def _all(
    checks: tuple[Callable[..., str | None], ...], args: tuple[Any, ...], excused: Mapping[str, str]
) -> dict[str, str]:
    names = [check.__name__ for check in checks]
    unknown = sorted(set(excused) - set(names))
    if unknown:
        raise ConformanceError(f"expected_failures names no check: {unknown}; checks: {names}")
    outcomes, broken = {}, []
    for check in checks:
        try:
            unseen = check(*args)
            outcomes[check.__name__] = f"not tested: {unseen}" if unseen else "passed"
            if check.__name__ in excused:
                broken.append(f"{check.__name__}: passed, though excused")
        except Exception as error:  # the code that is tested may raise anything
            if not isinstance(error, GraphPruneError):
                error = ConformanceError(f"raised {type(error).__name__}: {error}")
            if check.__name__ in excused:
                outcomes[check.__name__] = f"expected failure: {excused[check.__name__]}"
            else:
                broken.append(f"{check.__name__}: {error}")
    if broken:
        listed = "\n".join(broken)
        raise ConformanceError(f"{len(broken)} of {len(checks)} checks failed:\n{listed}")
    return outcomes


def check_adapter(
    model: MaskedModel, task: Task, *, expected_failures: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Runs the checks of the contract and of each capability that the model has.

    Gives ``{check: "passed"}``, ``"no <capability>"`` for those of capabilities that it lacks, or
    raises with all failures.

    Example:
        >>> check_adapter(model, task)["graph_is_stable"]
        'passed'
    """
    outcomes = _all(adapter_checks(model), (model, task), expected_failures or {})
    return outcomes | {
        check.__name__: f"no {kind.__name__}"
        for check, kind in CAPABILITY_CHECKS.items()
        if check.__name__ not in outcomes
    }


def check_method(
    method: Method,
    model: MaskedModel,
    task: Task,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Runs every check of a method on one model; gives ``{check: "passed"}`` or raises.

    Example:
        >>> check_method(gp.EAP(), model, task)["result_is_of_this_graph"]
        'passed'
    """
    return _all(METHOD_CHECKS, (method, model, task), expected_failures or {})
