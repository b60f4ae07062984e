"""What the lives of a collection and of a service share: how they are run, and what two answers must agree in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def probabilities(no_match: float | None, labels: Sequence[Any] | None) -> dict[str, float]:
    """Those above a thousandth, by name: below it rounding decides who is named."""
    found = {"no match": no_match, **{f"{one.label} {one.id}": one.probability for one in labels or ()}}
    return {what: value for what, value in found.items() if value is not None and value > 1e-3}


def live(life: type[RuleBasedStateMachine], lives: int, steps: int) -> None:
    """Runs so many lives of so many steps. Only where more were asked for are they shortened, which may take long."""
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate, *([Phase.shrink] if "LIVES" in os.environ else [])],
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
