"""Low-rank gradients: training in a subspace of each weight's gradient."""

from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.layerwise import layerwise
from springroll.subspace.lowgrad import lowgrad

__all__ = [
    "apollo",
    "apollo_mini",
    "fira",
    "galore",
    "layerwise",
    "lowgrad",
]
