"""The options of reward fine-tuning. Imports no JAX: commands read them first."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from springroll.errors import InputError
from springroll.memory import parse_bytes
from springroll.run.config import CHANGEABLE, RunConfig
from springroll.train.config import Optimizer

Method = Literal["es", "grpo"]
ES_OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Options of `springroll finetune`: a language model learns from a reward."""

    command: ClassVar[str] = "finetune"

    generations: Annotated[int | None, tyro.conf.arg(aliases=["--steps"])] = field(
        default=None, metadata=CHANGEABLE
    )
    """Stop after this many generations, over all resumes, or the seconds, whichever is first."""
    model: str = ""
    """A Hugging Face folder or hub name: Llama, Qwen2, Qwen3, Qwen3-MoE, RWKV-7."""
    task: str = "countdown"
    """`countdown`, `arithmetic`, `gsm8k`, or `module:function`, which takes texts and returns
    rewards; with options, as in "countdown numbers=4 largest=50"."""
    data: str | None = field(default=None, metadata=CHANGEABLE)
    """JSONL with the problems of `gsm8k` or the prompts of `module:function`."""
    method: Method = "es"
    """`es` perturbs weights and never forms a gradient; `grpo` is the gradient baseline."""
    members: int | None = None
    """Population size (even); of `grpo` the answers per prompt. Default: 256, and 16."""
    prompts: int | None = None
    """Problems per generation, the same for every member. Default: 32."""
    answers: int = 1
    """Answers of a member to each prompt; the best counts (pass@k). More than 1 needs a
    temperature."""
    max_tokens: int = 64
    """Tokens of an answer at most."""
    temperature: float | None = None
    """0 takes the likeliest token. Default: 0 of `es`, 1 of `grpo`."""
    rank: int | None = None
    """Rank of a member's perturbation of each matrix (default 1), or of the subspace of a
    low-rank optimizer."""
    sigma: float | None = None
    """Size of a perturbation, in the units of the weights. Default: a tenth of the root mean
    square of the matrices, over the square root of the layers."""
    sigma_decay: float | None = None
    """Generations after which sigma has fallen to half; None: constant."""
    lr: float | None = None
    """Learning rate. Of `es` with sgd the move per generation in units of sigma, default 0.005;
    with adam the move itself, default a twentieth of sigma. Of `grpo` default: 1e-4 for adamw."""
    lr_decay: float | None = None
    """Generations after which the learning rate has fallen to half; None: constant."""
    optimizer: Literal["sgd", "adam"] | Optimizer | None = None
    """Of `es`: sgd or adam, on the estimate; of `grpo`: any optimizer of springroll train. Default:
    sgd, and adamw."""
    momentum: float = 0.9
    """Of sgd, and the first decay of adam."""
    state_bits: Literal[32, 8, 4] = 32
    """Bits per number of the optimizer's moments."""
    noise_reuse: int = 1
    """Generations in a row with the same perturbations."""
    max_step_ratio: float | None = 0.02
    """Bound on |step| / |weights|, so that no step destroys the model; None: no bound."""
    anchor: float = 0.0
    """Share of the way back to the first weights that every generation goes: against
    forgetting."""
    unperturbed: int = 0
    """Further members of sigma 0, whose spread is the noise floor of the fitness."""
    group_clip: float = 0.2
    """Of `grpo`: how far a token's probability ratio may leave 1."""
    epochs: int = 1
    """Of `grpo`: steps on every batch of answers."""
    kl: float = 0.0
    """Of `grpo`: weight of the divergence from the first weights."""
    accumulate: int = 1
    """Of `grpo`: micro-batches per step."""
    clip: float | None = 1.0
    """Of `grpo`: largest norm of a step's gradient; None for no limit."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """How weights are held: int8 ones per output channel, with the rounding error of every step
    kept and fed back."""
    rounding: Literal["stochastic", "float32"] = "stochastic"
    """Of bfloat16 weights: rounding at random with no more memory, or a float32 copy. Of int8
    ones: what rounding loses is kept in one more byte each, or in a float32 copy."""
    memory: str | None = field(default=None, metadata=CHANGEABLE)
    """What the rows under generation may take for keys and values or states, such as 2GiB; those
    that do not fit wait for a free row. Default: half of what is free."""
    rows: int | None = field(default=None, metadata=CHANGEABLE)
    """Answers written side by side; default: all that fit the memory."""
    eval_problems: int = field(default=256, metadata=CHANGEABLE)
    """Held-out problems that the weights themselves answer, greedily, at each validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "answers", "noise_reuse", "epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("members", "prompts", "rank", "rows", "eval_problems"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        for name in ("sigma", "sigma_decay", "lr", "lr_decay", "max_step_ratio", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be above 0")
        for name in ("anchor", "kl", "unperturbed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum}; it must be from 0 to below 1")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.anchor >= 1:
            raise InputError(f"anchor is {self.anchor}; it must be below 1")
        self.memory_bytes  # noqa: B018  raises what is wrong with it
        (self._check_es if self.method == "es" else self._check_grpo)()

    def _check_es(self) -> None:
        if self.optimizer not in (None, *ES_OPTIMIZERS):
            raise InputError(
                f"optimizer is {self.optimizer}; --method es takes {' or '.join(ES_OPTIMIZERS)}"
            )
        if self.population < 2 or self.population % 2:
            raise InputError(
                f"members is {self.members}; they come in pairs: an even number, 2 or more"
            )
        if self.answers > 1 and not self.heat:
            raise InputError(
                f"{self.answers} answers to a prompt would all be the same at temperature 0; "
                "give --temperature 1"
            )

    def _check_grpo(self) -> None:
        if self.optimizer in ES_OPTIMIZERS:
            raise InputError(
                f"optimizer is {self.optimizer}; --method grpo takes those of springroll train"
            )
        if self.population < 2:
            raise InputError(f"members is {self.members}; grpo compares 2 answers or more")
        if not self.heat:
            raise InputError("grpo draws its answers; give a temperature above 0")
        for name, usual in (("answers", 1), ("unperturbed", 0), ("weights", "float32")):
            if getattr(self, name) != usual:
                raise InputError(f"{name} is {getattr(self, name)}; that is of --method es")

    @property
    def population(self) -> int:
        """Members as given, or the method's own."""
        return self.members or (256 if self.method == "es" else 16)

    @property
    def batch(self) -> int:
        """Prompts as given, or by default."""
        return self.prompts or 32

    @property
    def heat(self) -> float:
        """Temperature as given, or the method's own."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.method == "es" else 1.0

    @property
    def memory_bytes(self) -> int | None:
        """memory in bytes."""
        return None if self.memory is None else parse_bytes(self.memory, "memory")
