"""What a machine can train, how, and how fast: bytes and seconds of a step before it is made."""

from springroll.planner.devices import CARDS, Card, Rates
from springroll.planner.measured_rates import measure_rates
from springroll.planner.plan import plan
from springroll.planner.plan_result import Plan

__all__ = [
    "CARDS",
    "Card",
    "Plan",
    "Rates",
    "measure_rates",
    "plan",
]
