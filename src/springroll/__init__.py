"""springroll trains models past the memory wall, in JAX, with or without gradients.

Every public name is loaded when it is first used, so that importing the package starts no backend
and costs nothing.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from springroll.errors import InputError as InputError
    from springroll.evolve.eggroll import eggroll as eggroll
    from springroll.evolve.lattice import lattice as lattice
    from springroll.evolve.members import evaluate as evaluate
    from springroll.evolve.open_es import open_es as open_es
    from springroll.factored.discover import discover as discover
    from springroll.factored.explain import explain as explain
    from springroll.factored.factored import Factored as Factored
    from springroll.factored.interpret import factored as factored
    from springroll.lowgrad.apollo import apollo as apollo
    from springroll.lowgrad.apollo import apollo_mini as apollo_mini
    from springroll.lowgrad.fira import fira as fira
    from springroll.lowgrad.galore import galore as galore
    from springroll.lowgrad.layerwise import layerwise as layerwise
    from springroll.lowgrad.lowgrad import lowgrad as lowgrad
    from springroll.models.hf import load_hf as load_hf
    from springroll.models.hf_write import save_hf as save_hf
    from springroll.plan.plan import plan as plan
    from springroll.quant.quantize_state import quantize_state as quantize_state
    from springroll.quant.split_master import high_half as high_half
    from springroll.quant.split_master import with_split_master as with_split_master
    from springroll.quant.stochastic_rounding import (
        with_stochastic_rounding as with_stochastic_rounding,
    )
    from springroll.stream.streamed import Streamed as Streamed

_WHERE = {
    "apollo": "springroll.lowgrad.apollo",
    "apollo_mini": "springroll.lowgrad.apollo",
    "discover": "springroll.factored.discover",
    "eggroll": "springroll.evolve.eggroll",
    "evaluate": "springroll.evolve.members",
    "explain": "springroll.factored.explain",
    "Factored": "springroll.factored.factored",
    "factored": "springroll.factored.interpret",
    "fira": "springroll.lowgrad.fira",
    "galore": "springroll.lowgrad.galore",
    "high_half": "springroll.quant.split_master",
    "InputError": "springroll.errors",
    "lattice": "springroll.evolve.lattice",
    "layerwise": "springroll.lowgrad.layerwise",
    "load_hf": "springroll.models.hf",
    "lowgrad": "springroll.lowgrad.lowgrad",
    "open_es": "springroll.evolve.open_es",
    "plan": "springroll.plan.plan",
    "quantize_state": "springroll.quant.quantize_state",
    "save_hf": "springroll.models.hf_write",
    "Streamed": "springroll.stream.streamed",
    "with_split_master": "springroll.quant.split_master",
    "with_stochastic_rounding": "springroll.quant.stochastic_rounding",
}

__version__ = "0.1.0"
__all__ = [*_WHERE, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'springroll' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    # A room that bears the name of the function it holds is callable (see _room.py).
    value = sys.modules.get(f"{__name__}.{name}") or getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
