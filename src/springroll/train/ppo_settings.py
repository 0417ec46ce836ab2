"""What PPO is told, and what it is told on the sixteen tasks of the paper. Imports no jax."""

from dataclasses import dataclass

from springroll.errors import InputError

ACTIVATIONS = ("relu", "swish", "tanh")


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Options of the method `ppo`. One iteration takes `num_envs * num_steps` environment steps.

    Source: Schulman et al., arXiv 1707.06347; the names in brackets are those of rejax.
    """

    lr: float = 3e-4
    """Learning rate of Adam, for policy and value (learning_rate)."""
    num_envs: int = 128
    """Environments that are stepped side by side."""
    num_steps: int = 128
    """Steps of each in one iteration."""
    epochs: int = 8
    """Passes over what one iteration collected (num_epochs)."""
    minibatches: int = 32
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
    normalise_rewards: bool = False
    """Divide rewards by the running standard deviation of discounted returns."""

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
