"""What PPO is told, and what it is told on the sixteen tasks of the paper. Imports no jax."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from springroll.errors import InputError

ACTIVATIONS = ("relu", "swish", "tanh")


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Options of the method `ppo`. One iteration takes `num_envs * num_steps` environment steps.

    The defaults are rejax's, but for tanh, bounded gradients and normalised rewards.

    Source: Schulman et al., arXiv 1707.06347; the names in brackets are those of rejax.
    """

    lr: float = 3e-4
    """Learning rate of Adam, for policy and value (learning_rate)."""
    num_envs: int = 64
    """Environments that are stepped side by side."""
    num_steps: int = 64
    """Steps of each in one iteration."""
    epochs: int = 8
    """Passes over what one iteration collected (num_epochs)."""
    minibatches: int = 16
    """Gradient steps of a pass; they divide `num_envs * num_steps` evenly (num_minibatches)."""
    gamma: float = 0.99
    """Discount of a reward one step later."""
    gae_lambda: float = 0.95
    """Discount of an advantage one step later, beside gamma."""
    clip: float = 0.2
    """How far the ratio of probabilities may go from 1 (clip_eps)."""
    entropy: float = 0.01
    """Weight of the entropy bonus (ent_coef)."""
    value: float = 0.5
    """Weight of the value loss (vf_coef)."""
    max_grad: float = 0.5
    """Bound on each entry of a gradient (max_grad_norm, which is no norm in rejax 0.1.3)."""
    activation: str = "tanh"
    """Of the three hidden layers: relu, swish or tanh."""
    normalise_rewards: bool = True
    """Divide rewards by the running deviation of discounted returns: without it Pendulum-v1, whose
    returns are in the thousands, is not learnt."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"ppo.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("lr", "clip", "max_grad"):
            if not getattr(self, name) > 0:
                raise InputError(f"ppo.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"ppo.{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("entropy", "value"):
            if not getattr(self, name) >= 0:
                raise InputError(f"ppo.{name} is {getattr(self, name)}; it must be 0 or more")
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
