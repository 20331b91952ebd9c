"""Tests of readers with random input; SYNTHGEN_FUZZ=100 runs a hundred times as many examples."""

import os

from hypothesis import HealthCheck, settings


def tries(count: int) -> settings:
    """Return settings for a number of examples, multiplied by SYNTHGEN_FUZZ."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=count * int(os.environ.get("SYNTHGEN_FUZZ", "1")),
        deadline=None,
        suppress_health_check=slow,
    )
