"""Weights as base + thin term, and the transform that runs any JAX function on them."""

from springroll.thin.custom_product import product
from springroll.thin.densify import DensifyWarning
from springroll.thin.discovery import discover
from springroll.thin.factored_array import Blocks, Factored, Lattice
from springroll.thin.report import explain
from springroll.thin.roles import WeightRole, WeightRoles
from springroll.thin.transform import factored

__all__ = [
    "Blocks",
    "DensifyWarning",
    "Factored",
    "Lattice",
    "WeightRole",
    "WeightRoles",
    "discover",
    "explain",
    "factored",
    "product",
]
