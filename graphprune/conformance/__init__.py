"""Checks that anyone can run on their own adapter or method.

    from graphprune.conformance import adapter_checks, check_adapter

    check_adapter(my_model, my_task)                       # all at once, one report
    @pytest.mark.parametrize("check", adapter_checks())    # or one test each
    def test_my_adapter(check):
        check(my_model, my_task)

``expected_failures={"name of the check": "why"}`` excuses a check, and reports it if it passes
after all. The task needs clean and corrupted inputs and a differentiable metric.
"""

from graphprune.util.attributes import suggest_names

from .common import ConformanceError
from .run_checks import adapter_checks, check_adapter, check_method, method_checks

__all__ = ["ConformanceError", "adapter_checks", "check_adapter", "check_method", "method_checks"]

suggest_names(__name__)
