"""Weights as base + thin term, and the transform that runs any JAX function on them."""

from springroll.thin.discovery import discover
from springroll.thin.factored_array import Factored
from springroll.thin.report import explain
from springroll.thin.roles import Plan
from springroll.thin.transform import factored

__all__ = [
    "Factored",
    "Plan",
    "discover",
    "explain",
    "factored",
]
