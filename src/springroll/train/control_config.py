"""The options of `springroll rl`. Imports no JAX: commands read them first."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from springroll.errors import InputError
from springroll.train.config import CHANGEABLE, RunConfig
from springroll.train.ppo_settings import PPOSettings

Method = Literal["eggroll", "openes", "ppo"]


@dataclass(frozen=True, kw_only=True)
class RLConfig(RunConfig):
    """Options of `springroll rl`: a policy learns from the return of its episodes."""

    command: ClassVar[str] = "rl"

    seconds: float | None = field(default=None, metadata=CHANGEABLE)
    """Stop after this many seconds of training, over all resumes. Neither validation nor, on the
    device, compiling is counted."""
    env: str = "CartPole-v1"
    """An id (`springroll rl --list` shows them), or `module:function`: an objective in Python, a
    function that makes a Gymnasium environment, or one of springroll's."""
    initial: str | None = None
    """Of an objective in Python: `module:function` that returns the first weights; default: the
    function `initial_weights` beside it."""
    policy: str | None = None
    """`module:function` of your own policy instead of the paper's: it is given the numbers of
    inputs and outputs and returns an object with `init(key)` and `apply(params, observation)`.
    `springroll.models.policy:linear` is one."""
    width: int = 256
    """Of the paper's policy."""
    layers: int = 3
    """Hidden layers of the paper's policy."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """What hidden layers multiply in; auto: bfloat16 where the device has units for it."""
    method: Method = "eggroll"
    """`eggroll` perturbs by thin matrices, `openes` by full ones, `ppo` is the gradient
    baseline."""
    pop_size: Annotated[int, tyro.conf.arg(aliases=["--members"])] = 512
    """Members of a generation (even)."""
    episodes: int = 1
    """Episodes of each member, whose mean return is its fitness."""
    rank: int = 1
    """Rank of a member's perturbation of each matrix."""
    sigma: float = 0.1
    """Size of a perturbation, in the units of the weights."""
    sigma_decay: float = 1.0
    """What sigma is multiplied by after every generation."""
    lr: float = 0.02
    """Learning rate: of sgd the move per generation in units of sigma, else the move itself."""
    lr_decay: float = 1.0
    """What the learning rate is multiplied by after every generation."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """On the estimate of evolution."""
    ranks: bool = False
    """Shape the fitness by ranks instead of z-scores."""
    deterministic: bool = False
    """Take the likeliest action instead of drawing one."""
    normalise: bool = False
    """Divide observations by their running deviation, after taking off their mean."""
    max_steps: int | None = None
    """Cut episodes after so many steps; default: as the environment says."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    """Of `--method ppo`."""
    workers: int | None = field(default=None, metadata=CHANGEABLE)
    """Processes of what is no JAX; default: one per core."""
    timeout: float = field(default=60.0, metadata=CHANGEABLE)
    """Seconds that a call of what is no JAX may take."""
    devices: int | None = field(default=None, metadata=CHANGEABLE)
    """Devices to spread episodes over; default: all, of a CPU its cores."""
    eval_every: float = field(default=3.0, metadata=CHANGEABLE)
    """Seconds between two validations; they never take more than a tenth of the time."""
    eval_episodes: int = field(default=100, metadata=CHANGEABLE)
    """Episodes that the weights themselves are validated on."""
    gif: bool = field(default=True, metadata=CHANGEABLE)
    """Draw an episode of the final policy, where the suite can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "layers", "episodes", "rank", "eval_episodes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_steps", "workers", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        for name in ("sigma", "sigma_decay", "lr", "lr_decay", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.pop_size < 2 or self.pop_size % 2:
            raise InputError(
                f"pop_size is {self.pop_size}; members come in pairs: an even number, 2 or more"
            )
