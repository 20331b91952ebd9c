"""Readers fed with what nobody would write; SYNTHGEN_FUZZ=100 tries a hundred times as much."""

import os

from hypothesis import HealthCheck, settings


def tries(count: int) -> settings:
    """So many examples, or a multiple of them."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=count * int(os.environ.get("SYNTHGEN_FUZZ", "1")),
        deadline=None,
        suppress_health_check=slow,
    )
