"""The public names of springroll."""

from .errors import InputError as InputError
from .evolve import best_member as best_member
from .evolve import eggroll as eggroll
from .evolve import evaluate as evaluate
from .evolve import lattice as lattice
from .evolve import member as member
from .evolve import open_es as open_es
from .models import load_hf as load_hf
from .models import save_hf as save_hf
from .planner import plan as plan
from .quant import high_half as high_half
from .quant import quantize_state as quantize_state
from .quant import with_split_master as with_split_master
from .quant import with_stochastic_rounding as with_stochastic_rounding
from .stream import Streamed as Streamed
from .subspace import apollo as apollo
from .subspace import apollo_mini as apollo_mini
from .subspace import fira as fira
from .subspace import galore as galore
from .subspace import layerwise as layerwise
from .subspace import lowgrad as lowgrad
from .thin import Factored as Factored
from .thin import discover as discover
from .thin import explain as explain
from .thin import factored as factored

__version__: str
__all__: list[str]
