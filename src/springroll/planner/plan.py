"""`sr.plan`: what a machine can train, where everything lives and how fast it goes, beforehand.

    plan = sr.plan("llama-7b", device="24GiB", host="110GiB", tokens_per_step=16384)
    plan.device_bytes, plan.host_bytes      # by kind
    plan.tokens_per_second, plan.bottleneck
    rich.print(*plan.tables())

Bytes are counted over the shapes of the model. What a layer's computation needs beside them is
asked of the compiler. Nothing is allocated. Times are modelled (`step_time`) with the rates of a
card (`devices`) or with measured ones (`measured_rates`). If nothing fits, the error says what is
missing and the nearest change that fits.
"""

from pathlib import Path

from springroll.errors import InputError
from springroll.models.decoder_config import DecoderConfig
from springroll.planner.asked_model import named_model
from springroll.planner.devices import Rates
from springroll.planner.footprint import Clip
from springroll.planner.methods import BaseBits, Dtype, Rounding
from springroll.planner.plan_result import Plan
from springroll.planner.refusal import refusal
from springroll.planner.search import SEQUENCE, TOKENS, Options, fastest_plan, options_of
from springroll.subspace.stored_basis import BasisBits


def plan(
    model: str | Path | DecoderConfig,
    *,
    device: str | int | None = None,
    host: str | int | None = None,
    tokens_per_step: int = TOKENS,
    sequence: int = SEQUENCE,
    micro_batch: int | None = None,
    method: str = "adamw",
    state_bits: int = 32,
    basis_bits: BasisBits = 32,
    rank: int | None = None,
    dtype: Dtype = "bfloat16",
    rounding: Rounding = "split",
    depth: int = 3,
    experts_per_bundle: int | None = None,
    clip: Clip = "previous",
    link: str | int | None = None,
    rates: Rates | None = None,
    disk: str | int | None = None,
    base_bits: BaseBits | None = None,
) -> Plan:
    """How a step of training `model` runs on a machine, in a second or two.

    For the CPU of this process the compiler is asked, which takes a few seconds more.

    Args:
        model: a configuration, a name (`models.decoder_config.CONFIGS`), a Hugging Face folder or
            its config.json, a GGUF file, or a name on the hub.
        device: a card ("RTX 3080"), bytes ("24GiB"), or the one at hand.
        host: bytes of host memory that may be used; by default what this machine has left.
        tokens_per_step: per optimizer step; for evolve of all members of a generation.
        sequence: tokens of a sequence.
        micro_batch: sequences computed together; by default about 4,096 tokens, fewer if those do
            not fit. Link traffic does not depend on it.
        method: one of `methods.METHODS`, also with coded state: "adamw-8bit".
        state_bits: 32, 8 or 4 per number of the optimizer's moments.
        basis_bits: 32, 16, 8 or 4 per number of the bases of subspaces.
        rank: of subspaces; by default a quarter of the hidden size.
        dtype: of weights and activations.
        rounding: of bfloat16 weights: "split" is an exact float32 master in two halves.
        depth: layers on the device at a time.
        experts_per_bundle: of a mixture, pass a layer as attention and then so many experts at a
            time; `depth` counts these.
        clip: "global" holds all gradients on the host until their norm is known.
        link: bytes per second each way, such as "25GB", in place of the card's.
        rates: measured ones, in place of a card's.
        disk: bytes of a fast disk for layers that host memory cannot hold; by default none.
        base_bits: 8 or 4 per number of the matrices that the method lora adapts.

    Raises:
        InputError: unknown names, tokens that do not divide, and a step that fits nowhere: the
            line says what it needs and the nearest that fits.
    """
    name, config = named_model(model, experts_per_bundle)
    options = options_of(
        device,
        host,
        link,
        rates,
        disk,
        tokens=tokens_per_step,
        sequence=sequence,
        micro_batch=micro_batch,
        method=method,
        state_bits=state_bits,
        basis_bits=basis_bits,
        rank=rank,
        dtype=dtype,
        rounding=rounding,
        depth=depth,
        experts_per_bundle=experts_per_bundle,
        clip=clip,
        base_bits=base_bits,
    )
    return plan_or_refuse(name, config, options)


def plan_or_refuse(name: str, config: DecoderConfig, options: Options) -> Plan:
    """The fastest plan that fits.

    Raises:
        InputError: nothing fits; what is missing, and the nearest that fits.
    """
    best = fastest_plan(name, config, options)
    if best is None:
        raise InputError(refusal(name, config, options))
    return best
