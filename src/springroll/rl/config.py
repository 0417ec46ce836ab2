"""The options of `springroll rl`, and PPO's for the sixteen tasks of the paper. Imports no JAX."""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from springroll.errors import InputError
from springroll.run.config import RunConfig
from springroll.run.options import (
    COUNT,
    LARGEST,
    NOT_NEGATIVE,
    NOT_ZERO,
    PAIRS,
    POSITIVE,
    PROCESSES,
    SECONDS,
    TIMEOUT,
    TINIEST,
    UNIT_INTERVAL,
    FormerName,
    accepts_former_names,
    check_ranges,
    option,
)

ARRAYS = 1000  # bytes that the arrays of a layer take, however small
ACTIVATIONS = ("relu", "swish", "tanh")


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Options of the method `ppo`. One iteration takes `num_envs * num_steps` environment steps.

    The defaults are rejax's, but for tanh, bounded gradients and normalised rewards.

    Source: Schulman et al., arXiv 1707.06347; the names in brackets are those of rejax.
    """

    lr: float = option(3e-4, POSITIVE)
    """Learning rate of Adam, for policy and value (learning_rate)."""
    num_envs: int = option(64, COUNT)
    """Environments that are stepped side by side."""
    num_steps: int = option(64, COUNT)
    """Steps of each environment in one iteration."""
    epochs: int = option(8, COUNT)
    """Passes over what one iteration collected (num_epochs)."""
    minibatches: int = option(16, COUNT)
    """Gradient steps of a pass; they divide `num_envs * num_steps` evenly (num_minibatches)."""
    gamma: float = option(0.99, UNIT_INTERVAL)
    """Discount of a reward one step later."""
    gae_lambda: float = option(0.95, UNIT_INTERVAL)
    """Discount of an advantage one step later, beside gamma."""
    clip: float = option(0.2, POSITIVE)
    """Largest change of the ratio of probabilities from 1 (clip_eps)."""
    entropy: float = option(0.01, NOT_NEGATIVE)
    """Weight of the entropy bonus (ent_coef)."""
    value: float = option(0.5, NOT_NEGATIVE)
    """Weight of the value loss (vf_coef)."""
    max_grad: float = option(0.5, POSITIVE)
    """Bound on each entry of a gradient (max_grad_norm, which is no norm in rejax 0.1.3)."""
    activation: str = "tanh"
    """Activation of the three hidden layers: relu, swish or tanh."""
    normalise_rewards: bool = True
    """Divide rewards by the running deviation of discounted returns: without it Pendulum-v1, whose
    returns are in the thousands, is not learnt."""

    def __post_init__(self) -> None:
        check_ranges(self, "ppo.")
        if self.steps % self.minibatches:
            raise InputError(
                f"ppo.minibatches is {self.minibatches}; it must divide num_envs * num_steps, "
                f"{self.steps}, evenly"
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"ppo.activation is {self.activation!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def steps(self) -> int:
        """Environment steps of one iteration."""
        return self.num_envs * self.num_steps


# The paper (arXiv 2511.16652v2, tables 33 and 34) chose by random search: clip 0.1 to 0.3, gamma
# 0.95 to 0.999, lr 1e-4 to 1e-3, 64 to 256 environments of 64 to 256 steps, 4 to 16 epochs of 16 to
# 64 minibatches. These lie in its ranges and are what is usual for such tasks; none was searched.
_BRAX = PPOSettings(num_envs=256, epochs=4, minibatches=32, gamma=0.97, entropy=0.0)
_CRAFTAX = PPOSettings(num_envs=256, epochs=4, minibatches=16, gae_lambda=0.8)
_KINETIX = PPOSettings(num_envs=256, num_steps=128, minibatches=32, gamma=0.995, gae_lambda=0.9)
_NAVIX = PPOSettings(num_steps=128)
TASKS: Mapping[str, PPOSettings] = MappingProxyType(
    {
        "CartPole-v1": PPOSettings(lr=1e-3, epochs=4, entropy=0.0),
        "Pendulum-v1": PPOSettings(lr=1e-3, gamma=0.95, entropy=0.0),
        "brax-ant": _BRAX,
        "brax-humanoid": _BRAX,
        "brax-inverted_double_pendulum": PPOSettings(gamma=0.97, entropy=0.0),
        "craftax-Classic-Symbolic": _CRAFTAX,
        "craftax-Symbolic": _CRAFTAX,
        "jumanji-Game2048": PPOSettings(num_envs=128, num_steps=128, minibatches=32),
        "jumanji-Knapsack": PPOSettings(num_envs=128, gamma=0.999),
        "jumanji-Snake": PPOSettings(num_envs=128, num_steps=128, minibatches=32),
        "kinetix-l-hard_pinball": _KINETIX,
        "kinetix-m-h17_thrustcontrol_left": _KINETIX,
        "kinetix-s-h1_thrust_over_ball": _KINETIX,
        "navix-DoorKey-8x8": _NAVIX,
        "navix-Dynamic-Obstacles-6x6-Random": _NAVIX,
        "navix-FourRooms": _NAVIX,
    }
)


def settings_for(env: str) -> PPOSettings:
    """The settings of a task of the paper; the defaults for any other."""
    return TASKS.get(env, PPOSettings())


Method = Literal["eggroll", "openes", "ppo"]


def half_life_of(factor: float) -> float | None:
    """Generations in which a value that is multiplied by `factor` in each has halved.

    Args:
        factor: Above 0. Above 1 the half-life is negative: the value doubles in so many.

    Returns:
        A half-life for which `factor_of` gives the same float32, so that a run that was started
        with the factor goes on bit for bit; None for the factor 1.

    Raises:
        InputError: The factor is not a number above 0.

    >>> half_life_of(0.5), half_life_of(1.0), round(half_life_of(0.999), 2)
    (1.0, None, 692.8)
    """
    if not TINIEST <= factor <= LARGEST:
        raise InputError(f"a factor per generation is {factor}; it must be above 0")
    if factor == 1:
        return None
    half_life = math.log(0.5) / math.log(factor)
    for candidate in _neighbours(half_life):
        if _float32(factor_of(candidate)) == _float32(factor):
            return candidate
    return half_life


def factor_of(half_life: float) -> float:
    """What a value is multiplied by in each generation to halve in so many."""
    return 0.5 ** (1 / half_life)


def _neighbours(value: float) -> Iterator[float]:
    """The number itself and the floats next to it, outwards."""
    yield value
    below = above = value
    for _ in range(32):
        below, above = math.nextafter(below, -math.inf), math.nextafter(above, math.inf)
        yield from (below, above)


def _float32(value: float) -> float:
    """The nearest number in 32 bits."""
    return struct.unpack("f", struct.pack("f", value))[0]


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class RLConfig(RunConfig):
    """Options of `springroll rl`: a policy learns from the return of its episodes."""

    command: ClassVar[str] = "rl"

    seconds: float | None = option(None, SECONDS, changeable=True)
    """Seconds of training, over all resumes, after which the run stops. Neither validation nor, on
    the device, compiling is counted."""
    env: str = "CartPole-v1"
    """Environment: an id (`springroll rl --list` shows them), or `module:function`: an objective in
    Python, a function that makes a Gymnasium environment, or one of springroll's."""
    initial: str | None = None
    """First weights of an objective in Python: a `module:function` that returns them; default: the
    function `initial_weights` beside it."""
    policy: str | None = None
    """Policy of your own instead of the paper's: a `module:function` that is given the numbers of
    inputs and outputs and returns an object with `init(key)` and `apply(params, observation)`.
    `springroll.models.policy:linear` is one."""
    width: int = option(256, COUNT)
    """Width of the paper's policy."""
    layers: int = option(3, COUNT)
    """Hidden layers of the paper's policy."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that hidden layers multiply in; auto: bfloat16 where the device has units for it."""
    method: Method = "eggroll"
    """`eggroll` perturbs by low-rank matrices, `openes` by full ones; `ppo` is the gradient
    baseline."""
    pop_size: int = option(512, PAIRS, formerly="members")
    """Members of a generation: an even number, as they come in antithetic pairs."""
    episodes: int = option(1, COUNT)
    """Episodes of each member; its fitness is their mean return."""
    rank: int = option(1, COUNT)
    """Rank of a member's perturbation of each matrix."""
    sigma: float = option(0.1, POSITIVE)
    """Size of a perturbation, in the units of the weights."""
    sigma_half_life: float | None = option(
        None, NOT_ZERO, formerly=FormerName("sigma_decay", half_life_of)
    )
    """Generations until sigma has fallen to half: it is sigma 2^(-t / T) in generation t. None:
    constant."""
    lr: float = option(0.02, POSITIVE)
    """Learning rate: of sgd the move per generation in units of sigma, else the move itself."""
    lr_half_life: float | None = option(
        None, NOT_ZERO, formerly=FormerName("lr_decay", half_life_of)
    )
    """Generations until the learning rate has fallen to half: it is lr 2^(-t / T) in generation t.
    None: constant."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Optimizer applied to the gradient that evolution estimates."""
    ranks: bool = False
    """Shape the fitness by ranks instead of z-scores."""
    deterministic: bool = False
    """Take the likeliest action instead of drawing one."""
    normalise: bool = False
    """Normalise observations by their running mean and deviation."""
    max_steps: int | None = option(None, COUNT)
    """Steps after which episodes are cut; default: the environment's own limit."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    """Options of `--method ppo`."""
    workers: int | None = option(None, PROCESSES, changeable=True)
    """Worker processes for environments that are not written in JAX; default: one per core."""
    timeout: float = option(60.0, TIMEOUT, changeable=True)
    """Seconds that a call of an environment that is not written in JAX may take."""
    devices: int | None = option(None, PROCESSES, changeable=True)
    """Devices to spread episodes over; default: all, and on a CPU one per core."""
    eval_every: float = option(3.0, SECONDS, changeable=True)
    """Seconds between two validations, which never take more than a tenth of the time."""
    eval_episodes: int = option(100, COUNT, changeable=True)
    """Episodes that the weights themselves are validated on."""
    gif: bool = option(True, changeable=True)
    """Draw an episode of the final policy, where the suite can."""

    def sizes(self) -> Mapping[str, int]:
        """The weights of the paper's policy, and the episodes of a generation."""
        layer = max(4 * self.width**2, ARRAYS)
        sizes = {f"the policy (width {self.width:,}, layers {self.layers:,})": layer * self.layers}
        if self.policy is not None or ":" in self.env:
            sizes = {}
        if self.method == "ppo":
            what = f"ppo.num_envs {self.ppo.num_envs:,}, ppo.num_steps {self.ppo.num_steps:,}"
            return sizes | {f"the steps of an iteration ({what})": 16 * self.ppo.steps}
        what = f"pop_size {self.pop_size:,}, episodes {self.episodes:,}"
        return sizes | {f"the episodes of a generation ({what})": 4 * self.pop_size * self.episodes}
