"""A property test fails for what it has found, and not because another program had the processor for a while."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_no_property_fails_for_being_slow() -> None:
    pauses = iter([0.25])  # once longer than Hypothesis would allow, as on a busy machine

    @given(st.integers())
    def holds(number: int) -> None:
        time.sleep(next(pauses, 0))

    holds()
    assert settings.default and HealthCheck.too_slow in settings.default.suppress_health_check
