"""The options of pretraining by evolution. Imports no JAX: commands read them first."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from springroll.errors import InputError
from springroll.memory import parse_bytes
from springroll.run.config import CHANGEABLE, RunConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Options of `springroll pretrain`: a byte model learns text without gradients."""

    command: ClassVar[str] = "pretrain"

    data: str = "stdlib"
    """Text to learn: `stdlib` (Python's own source), a file, a folder, `minipile` or a hub name."""
    n_layers: int = 1
    """Layers of the minGRU."""
    hidden: int = 64
    """Width D; an integer model has 513 D + L (4 D + 12 D^2) parameters."""
    precision: Literal["int8", "compat", "float32", "bfloat16"] = "int8"
    """Arithmetic: integers, the published integers bit for bit, or the same network in floats."""
    pop_size: int = 1024
    """Members per generation; even, as they come in antithetic pairs."""
    rank: int = 1
    """Rank of a member's perturbation of each matrix."""
    sigma: float | None = None
    """Size of a perturbation, in units where weights start with deviation 1; default 2^-4."""
    rule: Literal["residual", "threshold", "published"] | None = None
    """How votes move integer weights: ours, the published rule mended, or as published."""
    lr: float | None = None
    """Learning rate: steps (1/16) per generation for `residual`, default 0.1; in units of sigma
    for floats, default 0.04, which moves weights about as far."""
    momentum: float = 0.9
    """Of the rule `residual` and of the float optimizer."""
    decay: float = 1000.0
    """Generations after which the learning rate (or the published alpha) has fallen to half."""
    alpha: float = 4.0
    """Of the rules `threshold` and `published`."""
    tokens: int = 16
    """Bytes each member reads per generation."""
    streams: int | None = None
    """Streams of text side by side; members are split evenly over them. Default: pop_size / 8."""
    noise_budget_mib: int = field(default=256, metadata=CHANGEABLE)
    """Factors up to this size are kept for the generation; more are redrawn where they are used."""
    members_per_chunk: int | None = field(default=None, metadata=CHANGEABLE)
    """Members run at once on one device; default: so many that their activations fit 1 GiB."""
    devices: int | None = field(default=None, metadata=CHANGEABLE)
    """Devices to split the population over; default: all, and on a CPU one per core."""
    engine: Literal["auto", "resident", "stream"] = field(default="auto", metadata=CHANGEABLE)
    """Where weights live: on the device, or in host memory from where each layer passes through the
    device once per generation. `auto` streams what does not fit; integers are the same either way.
    """
    device_memory: str | None = field(default=None, metadata=CHANGEABLE)
    """How much of the device to use for weights and what streams by, such as 2GiB; default: all."""
    valid_streams: int = field(default=128, metadata=CHANGEABLE)
    """Rows of the validation sample."""
    valid_tokens: int = field(default=1024, metadata=CHANGEABLE)
    """Bytes per row of the validation sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pop_size < 2 or self.pop_size % 2:
            raise InputError(
                f"pop_size is {self.pop_size}; members come in pairs: an even number, 2 or more"
            )
        if self.rank < 1:
            raise InputError(f"rank is {self.rank}; it must be at least 1")
        if self.rank > self.hidden:
            raise InputError(
                f"rank is {self.rank}, above min(m, n) = {self.hidden} of a {self.hidden} wide "
                "model"
            )
        for name in ("sigma", "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        if self.tokens < 1:
            raise InputError(f"tokens is {self.tokens}; it must be at least 1")
        if self.rule is not None and not self.integer:
            raise InputError(
                f"rule {self.rule!r} moves integer weights; precision is {self.precision}"
            )
        if self.precision == "compat":
            if self.rank != 1:
                raise InputError(f"rank is {self.rank}; the published integer rule has rank 1")
            self.sigma_shift  # noqa: B018  raises what is wrong with sigma
        pairs = self.pop_size // 2
        if self.streams is not None and (self.streams < 1 or pairs % self.streams):
            raise InputError(
                f"streams is {self.streams}; the {pairs} pairs of pop_size {self.pop_size} must "
                "divide evenly over them"
            )
        self.device_bytes  # noqa: B018  raises what is wrong with it
        if self.engine == "stream" and self.devices not in (None, 1):
            raise InputError(f"devices is {self.devices}; --engine stream runs on one device")

    @property
    def device_bytes(self) -> int | None:
        """device_memory in bytes."""
        if self.device_memory is None:
            return None
        return parse_bytes(self.device_memory, "device_memory")

    @property
    def integer(self) -> bool:
        return self.precision in ("int8", "compat")

    @property
    def sigma_shift(self) -> int:
        """Of the published integers, which shift: sigma is 2**-sigma_shift."""
        shift = 4 if self.sigma is None else -math.log2(self.sigma)
        if shift < 0 or shift != int(shift):
            raise InputError(
                f"sigma is {self.sigma}; the published integers shift bits and need a power of two "
                "of at most 1, such as 0.0625"
            )
        return int(shift)

    @property
    def num_streams(self) -> int:
        """Streams as given, or the largest divisor of the pairs up to pop_size / 8 and 1024."""
        if self.streams is not None:
            return self.streams
        pairs, most = self.pop_size // 2, max(1, min(self.pop_size // 8, 1024))
        return next(s for s in range(most, 0, -1) if pairs % s == 0)
