"""The options of language-model training by gradients. Imports no JAX: commands read them first."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from springroll.errors import InputError
from springroll.run.config import CHANGEABLE, RunConfig

Optimizer = Literal["adamw", "galore", "apollo", "apollo-mini", "fira", "muon", "lowgrad"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Options of `springroll train`: a decoder learns text by gradients."""

    command: ClassVar[str] = "train"

    generations: Annotated[int | None, tyro.conf.arg(aliases=["--steps"])] = field(
        default=None, metadata=CHANGEABLE
    )
    """Stop after this many optimizer steps, over all resumes, or the seconds, whichever is
    first."""
    data: str = "stdlib"
    """Text to learn: `stdlib` (Python's own source), a file, a folder, `minipile` or a hub name."""
    model: str = "llama-1m"
    """A name such as `llama-60m` or `moe-1m` (its vocabulary becomes the 256 bytes), or a Hugging
    Face folder, whose tokenizer is used."""
    optimizer: Optimizer = "adamw"
    """`lowgrad` never forms a full gradient; `galore`, `apollo`, `apollo-mini` and `fira` project
    full ones; what is not a matrix of a block is left to Adam by all."""
    lr: float | None = None
    """Peak learning rate; default: one for each optimizer, set for small models."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, times the learning rate."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    rank: int | None = None
    """Rank of the subspace; default: a quarter of the hidden size (of APOLLO-Mini: 1)."""
    refresh: Literal["random", "power"] = "random"
    """Where `lowgrad` takes a new subspace from: drawn at random, or a power step on the gradient,
    for which the step is computed twice."""
    gap: int | None = None
    """Steps between two refreshes of a subspace; default: 10 of `lowgrad` with random subspaces,
    which cost nothing to find, and 200 of all others."""
    scale: float | None = None
    """Factor of the projected update; default: the method's own."""
    state_bits: Literal[32, 8, 4] = 32
    """Bits per number of the optimizer's moments."""
    layerwise: bool = False
    """Update every layer during the backward pass, so that one layer's gradient is alive. No
    accumulation; clipping is per layer."""
    engine: Literal["auto", "resident", "stream"] = "auto"
    """`stream` keeps weights and state in host memory and passes them through the device layer by
    layer; `auto` does so when a step does not fit otherwise."""
    update: Literal["auto", "host", "device"] = field(default="auto", metadata=CHANGEABLE)
    """Where streamed layers are updated: exact AdamW by the processor, anything by the device."""
    depth: int = field(default=3, metadata=CHANGEABLE)
    """Streamed layers that are on the device at a time."""
    experts_per_bundle: int | None = None
    """Of streaming a mixture of experts: pass a layer as attention and then so many experts at a
    time; `depth` and clipping by layer then mean these bundles. Default: whole layers."""
    host_memory: str | None = field(default=None, metadata=CHANGEABLE)
    """Of streaming: refuse what needs more host memory than this; default: what is free."""
    batch: int = 8
    """Sequences per micro-batch."""
    tokens: int = 256
    """Tokens per sequence."""
    accumulate: int = 1
    """Micro-batches per step."""
    clip: float | None = 1.0
    """Largest norm of a step's gradient; None for no limit."""
    clip_by: Literal["global", "previous", "layer"] = "global"
    """Whose norm, when streaming: the whole gradient's, for which gradients wait on the host; that
    of the step before; each layer's own."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Of the learning rate after the warm-up, down to a tenth. Without --generations or
    --schedule-steps it stays constant."""
    schedule_steps: int | None = None
    """Steps the schedule is made for; default: the generations that the run began with."""
    warmup: float = 0.1
    """Share of the schedule's steps (or of 1,000) during which the learning rate rises."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations."""
    rounding: Literal["split", "stochastic"] = "split"
    """Of bfloat16 weights: an exact float32 in two halves, or rounding at random with no more
    memory. `lowgrad` writes weights once per gap and always rounds at random."""
    remat: bool = False
    """Compute a block's activations again in the backward pass instead of keeping them."""
    memory: str | None = field(default=None, metadata=CHANGEABLE)
    """Refuse what needs more than this, such as 24GiB; default: what the device or host has."""
    devices: int | None = field(default=None, metadata=CHANGEABLE)
    """Devices to split a batch over; default: all accelerators, or one CPU."""
    valid_streams: int = field(default=64, metadata=CHANGEABLE)
    """Rows of the validation sample."""
    valid_tokens: int = field(default=256, metadata=CHANGEABLE)
    """Tokens per row of the validation sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "tokens", "accumulate", "valid_streams", "valid_tokens", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            *("lr", "clip", "scale", "rank", "gap", "schedule_steps"),
            "experts_per_bundle",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}; it must be a share from 0 to below 1")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if self.layerwise and self.accumulate > 1:
            raise InputError(
                "layerwise updates weights during the backward pass, so there is nothing to "
                f"accumulate over {self.accumulate} micro-batches; leave out one of the two"
            )
        if self.clip_by != "global" and self.engine == "resident":
            raise InputError(f"clip_by {self.clip_by} is of streaming; leave out --engine resident")
        if self.weight_decay and self.optimizer == "lowgrad":
            raise InputError(
                "lowgrad leaves weights alone between two refreshes, so weight_decay would not act "
                "on them; leave it out, or take galore or apollo"
            )
        if self.layerwise and self.optimizer == "lowgrad":
            raise InputError(
                "lowgrad holds no full gradient that layerwise could save; leave out --layerwise"
            )

    @property
    def steps_between(self) -> int:
        """Steps between two refreshes of a subspace, as given or by default."""
        often = self.optimizer == "lowgrad" and self.refresh == "random"
        return self.gap or (10 if often else 200)

    def resolved(self) -> "TrainConfig":
        """With the schedule fixed to the generations the run begins with."""
        if self.schedule_steps is None and self.generations:
            return dataclasses.replace(self, schedule_steps=self.generations)
        return self
