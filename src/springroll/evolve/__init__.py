"""Training without gradients: low-rank perturbations are scored and folded into the weights."""

from springroll.evolve.eggroll import eggroll, open_es
from springroll.evolve.lattice import lattice
from springroll.evolve.members import evaluate
from springroll.evolve.strategy import State, Strategy

__all__ = [
    "State",
    "Strategy",
    "eggroll",
    "evaluate",
    "lattice",
    "open_es",
]
