"""The options of pretraining by evolution. Imports no JAX: commands read them first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from springroll.cluster.spans import usual_block
from springroll.errors import InputError
from springroll.memory import parse_bytes
from springroll.run.config import RunConfig
from springroll.run.options import (
    COUNT,
    NOT_NEGATIVE,
    PAIRS,
    POSITIVE,
    PROCESSES,
    SHARE,
    accepts_former_names,
    option,
)


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Options of `springroll pretrain`: a byte model learns text without gradients."""

    command: ClassVar[str] = "pretrain"

    data: str = "stdlib"
    """Text to learn: `stdlib` (Python's own source), a file, a folder, `minipile` or a hub name."""
    n_layers: int = option(1, COUNT)
    """Layers of the minGRU."""
    hidden: int = option(64, COUNT)
    """Width D; an integer model has 513 D + L (4 D + 12 D^2) parameters."""
    precision: Literal["int8", "compat", "float32", "bfloat16"] = "int8"
    """Arithmetic: integers, the published integers bit for bit, or the same network in floats."""
    pop_size: int = option(1024, PAIRS)
    """Members of a generation: an even number, as they come in antithetic pairs."""
    rank: int = option(1, COUNT)
    """Rank of a member's perturbation of each matrix."""
    sigma: float | None = option(None, POSITIVE)
    """Size of a perturbation, in units where weights start with deviation 1; default: 2^-4."""
    rule: Literal["residual", "threshold", "published"] | None = None
    """Rule by which votes move integer weights. Default: `residual`; of `compat`, `published`.
    `threshold` is the published rule, corrected."""
    lr: float | None = option(None, POSITIVE)
    """Learning rate. Of `residual`: steps (1/16) per generation, default 0.1. Of floats: the move
    in units of sigma, default 0.04, which moves weights about as far."""
    momentum: float = option(0.9, SHARE)
    """Momentum of the rule `residual` and of the float optimizer."""
    lr_half_life: float | None = option(1000.0, POSITIVE, formerly="decay")
    """Generations until the learning rate (or the published alpha) has fallen to half: it is
    lr / (1 + t / T) in generation t. None: constant."""
    alpha: float = option(4.0, POSITIVE)
    """Alpha of the rules `threshold` and `published`."""
    tokens_per_member: int = option(16, COUNT, formerly="tokens")
    """Bytes that each member reads per generation."""
    streams: int | None = option(None, COUNT)
    """Streams of text side by side, over which members are split evenly. Default: pop_size / 8."""
    noise_budget_mib: int = option(256, NOT_NEGATIVE, changeable=True)
    """MiB of low-rank factors to keep during a generation; more are redrawn where they are used."""
    members_per_chunk: int | None = option(None, COUNT, changeable=True)
    """Members that run at once on one device; default: as many as fit 1 GiB of activations."""
    block: int | None = option(None, COUNT)
    """Pairs that are scored by one call, whichever process makes it. Of integers, numbers do not
    depend on it. Default: all pairs; of floats on several processes, a share of them."""
    devices: int | None = option(None, PROCESSES, changeable=True)
    """Devices to split the population over; default: all, and on a CPU one per core."""
    engine: Literal["auto", "resident", "stream"] = option("auto", changeable=True)
    """Where weights live: on the device (`resident`), or in host memory, from where each layer
    passes through the device once per generation (`stream`). `auto` streams what does not fit.
    Results on integers are the same either way."""
    device_memory: str | None = option(None, memory=True, changeable=True)
    """Device memory for weights and streaming buffers, such as 2GiB; default: all."""
    valid_streams: int = option(128, COUNT, changeable=True)
    """Rows of the validation sample."""
    valid_tokens: int = option(1024, COUNT, changeable=True)
    """Bytes per row of the validation sample."""

    def for_processes(self, count: int) -> "PretrainConfig":
        if self.integer or self.block is not None:
            return self
        return replace(self, block=usual_block(self.pop_size // 2, count))

    def check_together(self) -> None:
        if self.rank > self.hidden:
            raise InputError(
                f"rank is {self.rank}, above min(m, n) = {self.hidden} of a {self.hidden} wide "
                "model"
            )
        if self.rule is not None and not self.integer:
            raise InputError(
                f"rule {self.rule!r} moves integer weights; precision is {self.precision}"
            )
        if self.precision == "compat":
            if self.rank != 1:
                raise InputError(f"rank is {self.rank}; the published integer rule has rank 1")
            self.sigma_shift  # noqa: B018  raises what is wrong with sigma
        pairs = self.pop_size // 2
        if self.streams is not None and pairs % self.streams:
            raise InputError(
                f"streams is {self.streams}; the {pairs} pairs of pop_size {self.pop_size} must "
                "divide evenly over them"
            )
        if self.engine == "stream" and self.devices not in (None, 1):
            raise InputError(f"devices is {self.devices}; --engine stream runs on one device")

    def sizes(self) -> Mapping[str, int]:
        """The weights, and what members remember and read in a generation."""
        width, layers = self.hidden, self.n_layers
        each = {"float32": 4, "bfloat16": 2}.get(self.precision, 1)
        weights = 513 * width + layers * (4 * width + 12 * width**2)
        member = layers * width * (1 if self.integer else 4) + self.tokens_per_member + 1
        return {
            f"the weights (hidden {width:,}, n_layers {layers:,})": each * weights,
            f"the members' memories and texts (pop_size {self.pop_size:,})": self.pop_size * member,
        }

    @property
    def device_bytes(self) -> int | None:
        """The device memory in bytes."""
        given = self.device_memory
        return None if given is None else parse_bytes(given, "device_memory")

    @property
    def integer(self) -> bool:
        """Whether weights are integers."""
        return self.precision in ("int8", "compat")

    @property
    def sigma_shift(self) -> int:
        """How far the published integers shift: sigma is 2**-sigma_shift."""
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
