"""Training without gradients: low-rank perturbations are scored and folded into the weights."""

from springroll.evolve.eggroll import eggroll, open_es
from springroll.evolve.in_place import tell_in_place
from springroll.evolve.lattice import lattice
from springroll.evolve.lattice_rules import RULES, Rule
from springroll.evolve.members import Members, evaluate
from springroll.evolve.momentum import Momentum
from springroll.evolve.one_member import best_member, member
from springroll.evolve.roles import Roles
from springroll.evolve.rows import Groups, PreparedRows, prepare_rows
from springroll.evolve.shaping import SHAPINGS, Shaping, group_centred
from springroll.evolve.strategy import EvolutionState, SigmaSchedule, Strategy

__all__ = [
    "RULES",
    "SHAPINGS",
    "EvolutionState",
    "Groups",
    "Members",
    "Momentum",
    "PreparedRows",
    "Roles",
    "Rule",
    "Shaping",
    "SigmaSchedule",
    "Strategy",
    "best_member",
    "eggroll",
    "evaluate",
    "group_centred",
    "lattice",
    "member",
    "open_es",
    "prepare_rows",
    "tell_in_place",
]
