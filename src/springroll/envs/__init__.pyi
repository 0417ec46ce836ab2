from .environment import Box as Box
from .environment import Discrete as Discrete
from .environment import Environment as Environment
from .environment import MultiDiscrete as MultiDiscrete
from .environment import Step as Step
from .rollout import Rollout as Rollout
