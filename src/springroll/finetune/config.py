"""The options of reward fine-tuning. Imports no JAX: commands read them first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from springroll.errors import InputError
from springroll.memory import parse_bytes
from springroll.run.config import RunConfig
from springroll.run.options import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    PROCESSES,
    SHARE,
    accepts_former_names,
    option,
)
from springroll.run.sampling_options import SamplingOptions
from springroll.train.config import Optimizer

Method = Literal["es", "grpo"]
ES_OPTIMIZERS = ("sgd", "adam")


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SamplingOptions, RunConfig):
    """Options of `springroll finetune`: a language model learns from a reward."""

    command: ClassVar[str] = "finetune"

    generations: Annotated[int | None, tyro.conf.arg(aliases=["--steps"])] = option(
        None, NOT_NEGATIVE, changeable=True
    )
    """Generations (of `grpo`: batches of answers), over all resumes, after which the run stops."""
    model: str = ""
    """Model to fine-tune: a Hugging Face folder or hub name of a Llama, Mistral, Mixtral, Qwen2,
    Qwen3, Qwen3-MoE, OLMoE, Phi-3, SmolLM3, Gemma 2, Gemma 3 (text), gpt-oss or RWKV-7."""
    task: str = "countdown"
    """Task that gives the reward: `countdown`, `arithmetic`, `gsm8k`, or `module:function`, which
    takes texts and returns rewards (of several a sum: `a.py:f*0.7+b.py:g`); with options, as in
    "countdown numbers=4 largest=50"."""
    data: str | None = option(None, changeable=True)
    """Problems of `gsm8k`, or prompts of `module:function`: a JSONL, JSON, CSV or parquet file, a
    folder of them, or `hub:OWNER/NAME[:CONFIG[:SPLIT]]`."""
    method: Method = "es"
    """`es` perturbs weights and never forms a gradient; `grpo` is the gradient baseline."""
    pop_size: int | None = option(None, COUNT, formerly="members")
    """Members of a generation, an even number, default 256; of `grpo` the answers per prompt,
    default 16."""
    prompts: int | None = option(None, COUNT)
    """Problems per generation, the same for every member. Default: 32."""
    answers: int = option(1, COUNT)
    """Answers of a member to each prompt, of which the best counts (pass@k). More than 1 needs a
    temperature."""
    max_tokens: int | None = option(None, COUNT)
    """Largest number of tokens of an answer. Default: what the task needs, such as 16 for plain
    sums, 400 for gsm8k and 64 for `module:function`."""
    max_prompt_tokens: int | None = option(None, COUNT)
    """Largest number of tokens of a prompt; other problems take the place of those whose prompts
    are longer. Default: what the model's context leaves beside an answer."""
    shared_prompt_tokens: int | None = option(None, NOT_NEGATIVE)
    """Largest number of tokens at the beginning of all prompts, such as those of a chat template,
    that a member reads once for all of them. Below 8 every prompt is read whole. Default: as many
    as the held-out prompts and the first generation's share."""
    temperature: float | None = option(None, NOT_NEGATIVE)
    """Sampling temperature; 0 takes the likeliest token. Default: 0 of `es`, 1 of `grpo`."""
    rank: int | None = option(None, COUNT)
    """Rank of a member's perturbation of each matrix (default 1), or of the subspace of a
    low-rank optimizer."""
    sigma: float | None = option(None, POSITIVE)
    """Size of a perturbation, in the units of the weights. Default: a tenth of the root mean
    square of the matrices, over the square root of the layers; a fifth for models of more than 17
    million parameters."""
    sigma_half_life: float | None = option(None, POSITIVE, formerly="sigma_decay")
    """Generations until sigma has fallen to half: it is sigma / (1 + t / T) in generation t.
    None: constant."""
    lr: float | None = option(None, POSITIVE)
    """Learning rate. Of `es` with sgd the move per generation in units of sigma: default 0.005, and
    1 - momentum for models of more than 17 million parameters; with adam the move itself,
    default a twentieth of sigma. Of `grpo` default: 1e-4 for adamw."""
    lr_half_life: float | None = option(None, POSITIVE, formerly="lr_decay")
    """Generations until the learning rate has fallen to half: it is lr / (1 + t / T) in generation
    t. None: constant, and 10 for models of more than 17 million parameters where lr is left to its
    default."""
    optimizer: Literal["sgd", "adam"] | Optimizer | None = None
    """Optimizer. Of `es`: sgd (the default) or adam, applied to the gradient that evolution
    estimates. Of `grpo`: any optimizer of springroll train, by default adamw."""
    momentum: float | None = option(None, SHARE)
    """Momentum of sgd, and decay of adam's first moment. Default: 0.9, and 0 of sgd for models of
    more than 17 million parameters."""
    momentum_generations: int | None = option(None, NOT_NEGATIVE)
    """Generations that the momentum of sgd is summed over, with their noise drawn again, so that it
    takes no memory. 0: the sum is kept, in the size of the weights in float32. Default: as many as
    leave out a hundredth of the sum, and 0 for models of up to 17 million parameters."""
    state_bits: Literal[32, 8, 4] = 32
    """Bits per number of the optimizer's moments."""
    noise_reuse: int = option(1, COUNT)
    """Generations in a row with the same perturbations."""
    max_step_ratio: float | None = option(0.02, POSITIVE)
    """Bound on |step| / |weights|, so that no step destroys the model; None: no bound."""
    anchor: float = option(0.0, NOT_NEGATIVE)
    """Share of the way back to the first weights that every generation goes, against
    forgetting."""
    unperturbed: int = option(0, NOT_NEGATIVE)
    """Additional members of sigma 0, whose spread is the noise floor of the fitness."""
    group_clip: float = option(0.2, NOT_NEGATIVE)
    """Largest change of a token's probability ratio from 1 (`grpo` only)."""
    epochs: int = option(1, COUNT)
    """Steps on every batch of answers (`grpo` only)."""
    kl: float = option(0.0, NOT_NEGATIVE)
    """Weight of the divergence from the first weights (`grpo` only)."""
    accumulate: int = option(1, COUNT)
    """Micro-batches per step (`grpo` only)."""
    clip: float | None = option(1.0, POSITIVE)
    """Largest norm of a step's gradient (`grpo` only); None: no limit."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type in which weights are held. int8 has a scale per output channel; the rounding error of
    every step is kept and fed back (see residual_bits)."""
    rounding: Literal["stochastic", "float32"] = "stochastic"
    """Rounding of bfloat16 weights: at random with no further memory, or with a float32 copy. What
    int8 weights lose by rounding is kept beside them (see residual_bits), or in a float32 copy."""
    residual_bits: Literal[8, 4] | None = None
    """Bits that keep what an int8 weight loses by rounding. Default: 8, and 4 for models of more
    than 17 million parameters."""
    unquantized: Literal["float32", "bfloat16"] | None = None
    """Type of what int8 leaves out: embedding, head and vectors; activations have it too.
    Default: float32, and bfloat16 for models of more than 17 million parameters."""
    devices: int | None = option(None, PROCESSES, changeable=True)
    """Devices that write answers side by side, each with a copy of the weights; default: all
    accelerators, or one CPU. Weights are updated on the first."""
    cache_memory: str | None = option(None, memory=True, changeable=True, formerly="memory")
    """Memory of each device for the keys and values, or states, of answers under generation, such
    as 2GiB; answers that do not fit wait for a free row. Default: what the plan of a generation
    leaves."""
    rows: int | None = option(None, COUNT, changeable=True)
    """Answers generated side by side on each device. If it is given, `cache_memory` is not used.
    Default: as many as fit the cache memory."""
    prefill_tokens: int | None = option(None, COUNT, changeable=True)
    """Tokens of prompts that a device reads at once, at most. Default: 65,536, or what fits."""
    eval_problems: int = option(256, COUNT, changeable=True)
    """Held-out problems that the weights themselves answer, greedily, at each validation."""

    def check_together(self) -> None:
        if self.anchor >= 1:
            raise InputError(f"anchor is {self.anchor}; it must be below 1")
        self._check_int8()
        self.check_drawn(self.sampling_temperature)
        (self._check_es if self.method == "es" else self._check_grpo)()

    def _check_int8(self) -> None:
        for name in ("residual_bits", "unquantized"):
            given = getattr(self, name)
            if given is not None and self.weights != "int8":
                raise InputError(f"{name} is {given}; that is of --weights int8")
        if self.residual_bits and self.rounding != "stochastic":
            raise InputError(
                f"residual_bits is {self.residual_bits}; with rounding {self.rounding} a float32 "
                "copy of int8 weights is kept instead; leave one of them out"
            )

    def _check_es(self) -> None:
        if self.optimizer not in (None, *ES_OPTIMIZERS):
            raise InputError(
                f"optimizer is {self.optimizer}; --method es takes {' or '.join(ES_OPTIMIZERS)}"
            )
        if self.population < 2 or self.population % 2:
            raise InputError(
                f"pop_size is {self.pop_size}; members come in pairs: an even number, 2 or more"
            )
        if self.momentum_generations and (self.optimizer == "adam" or self.state_bits != 32):
            raise InputError(
                f"momentum_generations is {self.momentum_generations}; it is of --optimizer sgd "
                "with --state-bits 32; leave it out"
            )
        if self.answers > 1 and not self.sampling_temperature:
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
            raise InputError(f"pop_size is {self.pop_size}; grpo compares 2 answers or more")
        if not self.sampling_temperature:
            raise InputError("grpo draws its answers; give a temperature above 0")
        defaults = {
            "answers": 1,
            "unperturbed": 0,
            "weights": "float32",
            "momentum_generations": None,
        }
        for name, usual in defaults.items():
            if getattr(self, name) != usual:
                raise InputError(f"{name} is {getattr(self, name)}; that is of --method es")

    def sizes(self) -> Mapping[str, int]:
        """The tokens of all answers of a generation."""
        members, prompts = self.population + self.unperturbed, self.num_prompts * self.answers
        asked = f"pop_size {self.population:,}, unperturbed {self.unperturbed:,}"
        asked += f", prompts {self.num_prompts:,}, answers {self.answers:,}"
        tokens = self.max_tokens or 1  # at least, where the task decides
        what = f"the answers of a generation ({asked}, max_tokens {tokens:,})"
        return {what: 4 * members * prompts * tokens}

    @property
    def population(self) -> int:
        """The population size as given, or the method's own."""
        return self.pop_size or (256 if self.method == "es" else 16)

    @property
    def decay(self) -> float:
        """The momentum as given, or that of small models."""
        return 0.9 if self.momentum is None else self.momentum

    @property
    def num_prompts(self) -> int:
        """The number of prompts as given, or the default."""
        return self.prompts or 32

    @property
    def sampling_temperature(self) -> float:
        """The temperature as given, or the method's own."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.method == "es" else 1.0

    @property
    def rest(self) -> str:
        """Type of what is not int8: that of the weights, or beside int8 `unquantized` as given, or
        that of small models and earlier runs."""
        return (self.unquantized or "float32") if self.weights == "int8" else self.weights

    @property
    def cache_bytes(self) -> int | None:
        """The cache memory in bytes."""
        return None if self.cache_memory is None else parse_bytes(self.cache_memory, "cache_memory")
