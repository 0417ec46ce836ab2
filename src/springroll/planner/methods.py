"""What each way of training keeps per parameter, counted over the shapes of a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from springroll.errors import InputError, suggestion
from springroll.models.decoder_config import DecoderConfig, shapes

Mode = Literal["resident", "host", "device", "lowgrad", "evolve"]
Dtype = Literal["bfloat16", "float32"]
Rounding = Literal["split", "stochastic"]

METHODS = {
    "adamw": "exact AdamW",
    "muon": "Muon for matrices, Adam for the rest",
    "galore": "Adam on projected gradients",
    "apollo-mini": "a scale per matrix from a rank of one",
    "sgd": "no state",
    "lowgrad": "gradients that only exist in a subspace",
    "evolve": "EGGROLL: forward passes only",
}
BLOCK = {8: 256, 4: 128}  # numbers per scale of coded state, `quant.quantize_state`
EXACT_BELOW = 4096  # leaves with fewer numbers are not coded


@dataclass(frozen=True)
class MethodBytes:
    """Bytes of a method for one model.

    weights: per number, as computed with; low: per number, the rest of an exact float32 master;
    layer_state, rest_state: of a layer and of what is in no layer, travelling with the weights;
    layer_held, rest_held: the same, but on the device all the time;
    updates: where updates of streamed layers can run;
    layer_thin: of the gradient of a layer that only exists in a subspace.
    """

    name: str
    weights: int
    low: int
    layer_state: int
    rest_state: int
    layer_held: int
    rest_held: int
    updates: tuple[Mode, ...]
    layer_thin: int = 0

    @property
    def trains(self) -> bool:
        """By gradients."""
        return "evolve" not in self.updates

    @property
    def cuts_layers(self) -> bool:
        """Whether experts can pass by themselves: where full gradients are trained."""
        return self.trains and "lowgrad" not in self.updates


def method_bytes(
    config: DecoderConfig,
    method: str,
    *,
    dtype: Dtype = "bfloat16",
    state_bits: int = 32,
    rank: int | None = None,
    rounding: Rounding = "split",
) -> MethodBytes:
    """The bytes of `method`, one of `METHODS`, also spelt with its state: "adamw-8bit".

    Args:
        rank: of subspaces; by default a quarter of the hidden size.
        rounding: of bfloat16 weights: "split" keeps the exact float32 in two more bytes,
            "stochastic" keeps none.

    Raises:
        InputError: an unknown method, state that a method has not, a rank that is too large.
    """
    method, state_bits = _method(method, state_bits)
    for name, given, known in (("dtype", dtype, Dtype), ("rounding", rounding, Rounding)):
        if given not in get_args(known):
            raise InputError(f"{name} is {given!r}; expected one of {', '.join(get_args(known))}")
    rank = rank or max(1, config.hidden // 4)
    if rank > config.hidden:
        raise InputError(f"rank is {rank}; expected at most the hidden size, {config.hidden}")
    weights = 2 if dtype == "bfloat16" else 4
    unsplit = method in ("lowgrad", "evolve") or rounding == "stochastic"
    low = 0 if weights == 4 or unsplit else 2
    layer = sum(_state(method, path, shape, state_bits, rank) for path, shape in _layer(config))
    rest = sum(_state("adamw", path, shape, state_bits, rank) for path, shape in _rest(config))
    held = method == "lowgrad"
    if method in ("sgd", "evolve"):
        rest = 0
    exact = method == "adamw" and state_bits == 32 and (low or weights == 4)
    updates: dict[str, tuple[Mode, ...]] = {"lowgrad": ("lowgrad",), "evolve": ("evolve",)}
    bits = "" if state_bits == 32 else f"-{state_bits}bit"
    return MethodBytes(
        method + bits,
        weights,
        low,
        0 if held else layer,
        0 if held else rest,
        layer + _projectors(config, rank) if held else 0,
        rest if held else 0,
        updates.get(method, ("host", "device") if exact else ("device",)),
        sum(_thin(path, shape, rank) for path, shape in _layer(config)) if held else 0,
    )


def per_parameter(method: str, *, state_bits: int = 32, rounding: Rounding = "split") -> float:
    """Bytes per parameter that a method keeps, of a model so large that only matrices count."""
    wide = DecoderConfig(
        vocab=1, hidden=8192, layers=1, heads=64, kv_heads=64, head_dim=128, ffn=24576
    )
    kept = method_bytes(wide, method, state_bits=state_bits, rounding=rounding)
    numbers = sum(math.prod(shape) for _, shape in _layer(wide))
    return kept.weights + kept.low + (kept.layer_state + kept.layer_held) / numbers


@functools.cache
def layer_numbers(config: DecoderConfig) -> int:
    """Parameters of one layer."""
    return sum(math.prod(shape) for _, shape in _layer(config))


@functools.cache
def rest_numbers(config: DecoderConfig) -> int:
    """Parameters in no layer: embedding, last norm, head."""
    return sum(math.prod(shape) for _, shape in _rest(config))


def _method(method: str, state_bits: int) -> tuple[str, int]:
    for bits in BLOCK:
        if method.endswith(f"-{bits}bit"):
            method, state_bits = method.removesuffix(f"-{bits}bit"), bits
    if method not in METHODS:
        hint = suggestion(method, METHODS, otherwise=f"known are {', '.join(METHODS)}")
        raise InputError(f"no method named {method!r}{hint}")
    if state_bits not in (32, *BLOCK):
        raise InputError(f"state_bits is {state_bits}; expected 32, 8 or 4")
    if state_bits != 32 and method in ("sgd", "evolve"):
        raise InputError(f"{method} has no state; leave out {state_bits} bits")
    return method, state_bits


def _layer(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((path, shape[1:]) for path, shape in _leaves(shapes(config)["layers"]))


def _rest(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    return _leaves({name: tree for name, tree in shapes(config).items() if name != "layers"})


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from _leaves(node, f"{path}{name}/")
        else:
            yield path + name, node


def _state(method: str, path: str, shape: tuple[int, ...], bits: int, rank: int) -> int:
    """Bytes of state of one parameter; what is no matrix of a layer is left to Adam."""
    count = math.prod(shape)
    matrix = path.endswith("_proj")
    if method in ("sgd", "evolve"):
        return 0
    if method == "adamw" or not matrix:
        return 2 * _coded(count, bits)
    if method == "muon":
        return _coded(count, bits)
    stack, outputs, inputs = math.prod(shape[:-2]), *shape[-2:]
    if method == "apollo-mini":  # projected to one vector along the longer side
        return 2 * _coded(stack * max(outputs, inputs), bits)
    low = stack * outputs * min(rank, outputs, inputs)
    if method == "galore":  # P float32 of every matrix, and moments of the projected gradient
        return 4 * stack * min(rank, outputs, inputs) * inputs + 2 * _coded(low, bits)
    return 4 * low + 2 * _coded(low, bits)  # lowgrad: S and its moments


def _thin(path: str, shape: tuple[int, ...], rank: int) -> int:
    """Bytes of the float32 gradient of S, or of what is no matrix."""
    if not path.endswith("_proj"):
        return 4 * math.prod(shape)
    return 4 * math.prod(shape[:-1]) * min(rank, *shape[-2:])


def _projectors(config: DecoderConfig, rank: int) -> int:
    """Bytes of the projectors of a layer of `lowgrad`: one per activation, shared by the weights
    that meet it. Experts share that of their input; each has its own after its own hidden layer."""
    heads = config.heads * config.head_dim
    after = max(1, config.experts) * config.ffn * min(rank, config.ffn)
    return 4 * (2 * config.hidden * rank + heads * min(rank, heads) + after)


def _coded(count: int, bits: int) -> int:
    """Bytes of a moment in codes with a float32 scale per block, or in float32."""
    if bits == 32 or count < EXACT_BELOW:
        return 4 * count
    return math.ceil(count * bits / 8) + 4 * math.ceil(count / BLOCK[bits])
