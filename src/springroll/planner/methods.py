"""What each way of training keeps per parameter; the state is asked of the optimizer itself."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import optax

from springroll.errors import InputError, expect, suggestion
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import (
    DecoderConfig,
    Shapes,
    shape_leaves,
    shapes,
    size,
    structs,
)
from springroll.models.hf.load import coded_structs
from springroll.subspace.adapters import CODES, adapted, first_adapters
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.optimizers import (
    OPTIMIZERS,
    OptimizerEntry,
    OptimizerSettings,
    StateBits,
    axis_roles,
    is_block_matrix,
    subspaces,
)
from springroll.subspace.stored_basis import BasisBits, checked_bits
from springroll.thin.roles import WeightRoles
from springroll.trees import tree_bytes

Mode = Literal["resident", "host", "device", "lowgrad", "evolve"]
Dtype = Literal["bfloat16", "float32"]
Rounding = Literal["split", "stochastic"]
BaseBits = Literal[8, 4]

SGD = OptimizerEntry(
    description="no state",
    learning_rate=1.0,
    build=lambda settings: optax.sgd(1.0),
    rest=lambda settings: optax.sgd(1.0),
    state_bits=(32,),
)
TRAINED = OPTIMIZERS | {"sgd": SGD}
METHODS = {name: entry.description for name, entry in TRAINED.items()} | {
    "evolve": "EGGROLL: forward passes only"
}


class OptimizerState(NamedTuple):
    """Bytes that an optimizer keeps, and of the gradient of a layer where it is in a subspace."""

    layer: int
    rest: int
    layer_gradient: int = 0


# Of (method, model, bits of the state, rank, bits of the bases).
Ask = Callable[[str, DecoderConfig, StateBits, int | None, BasisBits], OptimizerState]


@dataclass(frozen=True)
class MethodBytes:
    """Bytes of a method for one model.

    weights: per number, as computed with; low: per number, the rest of an exact float32 master;
    layer_state, rest_state: of a layer and of what is in no layer, travelling with the weights;
    layer_held, rest_held: the same, but on the device all the time;
    updates: where updates of streamed layers can run;
    layer_thin: of the gradient of a layer that only exists in a subspace, or of its adapters;
    layer_frozen: of the weights of a layer that are never updated, as they are held; None where
    they are.
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
    layer_frozen: int | None = None

    @property
    def trains(self) -> bool:
        """By gradients."""
        return "evolve" not in self.updates

    @property
    def cuts_layers(self) -> bool:
        """Whether experts can pass by themselves."""
        return self.full_gradients

    @property
    def full_gradients(self) -> bool:
        """Whether the gradient of every weight is computed."""
        return self.trains and "lowgrad" not in self.updates and self.layer_frozen is None


def method_bytes(
    config: DecoderConfig,
    method: str,
    *,
    dtype: Dtype = "bfloat16",
    state_bits: int = 32,
    basis_bits: BasisBits = 32,
    rank: int | None = None,
    rounding: Rounding = "split",
    base_bits: BaseBits | None = None,
    ask: Ask | None = None,
) -> MethodBytes:
    """The bytes of `method`, one of `METHODS`, also spelt with its state: "adamw-8bit".

    Args:
        basis_bits: 32, 16, 8 or 4 per number of the bases of subspaces.
        rank: of subspaces, by default a quarter of the hidden size; or of adapters, 16.
        base_bits: per number of the matrices that `lora` adapts; None for those of `dtype`.
        rounding: of bfloat16 weights: "split" keeps the exact float32 in two more bytes,
            "stochastic" keeps none.
        ask: for the state; by default `optimizer_state`.

    Raises:
        InputError: an unknown method, state that a method has not, a rank that is too large.
    """
    method, state_bits = _method(method, state_bits)
    for name, given, known in (("dtype", dtype, Dtype), ("rounding", rounding, Rounding)):
        if given not in get_args(known):
            raise InputError(f"{name} is {given!r}; expected one of {', '.join(get_args(known))}")
    if rank is not None and rank > config.hidden:
        raise InputError(f"rank is {rank}; expected at most the hidden size, {config.hidden}")
    if base_bits is not None and (method != "lora" or base_bits not in CODES):
        raise InputError(f"base_bits is {base_bits}; expected 8 or 4, of the method lora")
    weights = 2 if dtype == "bfloat16" else 4
    unsplit = method in ("lowgrad", "evolve", "lora") or rounding == "stochastic"
    low = 0 if weights == 4 or unsplit else 2
    bits = "" if state_bits == 32 else f"-{state_bits}bit"
    if checked_bits(basis_bits) != 32 and not stores_bases(method):
        raise InputError(
            f"{method} stores no bases of subspaces; leave out basis_bits {basis_bits}"
        )
    if method == "evolve":
        return MethodBytes(method, weights, low, 0, 0, 0, 0, ("evolve",))
    updates = TRAINED[method].streamed_updates(state_bits, exact=bool(low) or weights == 4)
    state = (ask or optimizer_state)(method, config, state_bits, rank, basis_bits)
    if method == "lora":
        sizes = (0, 0, state.layer, 0)
        frozen = frozen_bytes(config, dtype, base_bits)
        held = f" on {base_bits} bits" if base_bits else ""
        name = method + bits + held
        return MethodBytes(name, weights, low, *sizes, updates, state.layer_gradient, frozen)
    if method == "lowgrad":
        sizes = (0, 0, state.layer, state.rest)
        return MethodBytes(method + bits, weights, low, *sizes, updates, state.layer_gradient)
    return MethodBytes(method + bits, weights, low, state.layer, state.rest, 0, 0, updates)


def stores_bases(method: str) -> bool:
    """Whether it keeps the bases of subspaces, in so many bits as `basis_bits` says."""
    name = method.removesuffix("-8bit").removesuffix("-4bit")
    return name in TRAINED and TRAINED[name].bases


def optimizer_state(
    method: str,
    config: DecoderConfig,
    state_bits: StateBits,
    rank: int | None,
    basis_bits: BasisBits = 32,
) -> OptimizerState:
    """What the optimizer's own `init` makes of the shapes of a layer, and of what is in no layer.

    rank: as asked for; None is the optimizer's default.
    """
    return _optimizer_state(method, _one_layer(config), state_bits, rank, basis_bits)


def least_state(
    method: str,
    config: DecoderConfig,
    state_bits: StateBits,
    rank: int | None,
    basis_bits: BasisBits,
) -> OptimizerState:
    """No more than `optimizer_state` finds, at once: what does not fit with it need not be asked.

    Nothing but what every `lowgrad` has: small gradients in float32 and two moments of them, bases
    of the matrices that are wide enough, and two moments of what is in no layer.
    """
    if method != "lowgrad":
        return OptimizerState(0, 0)
    rank = rank or TRAINED[method].rank or max(1, config.hidden // 4)
    leaves = shape_leaves(shapes(dataclasses.replace(config, layers=1))).items()
    matrices = [shape for path, shape in leaves if is_block_matrix(path)]
    small = sum(math.prod(shape[:-1]) * min(rank, *shape[-2:]) for shape in matrices)
    wide = [shape for shape in matrices if min(shape[-2:]) >= rank]
    bases = sum(math.prod(shape[:-2]) * min(shape[-2:]) * rank for shape in wide)
    moments = lambda numbers: numbers * state_bits // 4
    layer = moments(small) + bases * basis_bits // 8
    return OptimizerState(layer, moments(rest_numbers(config)), 4 * small)


def _one_layer(config: DecoderConfig) -> DecoderConfig:
    """What an optimizer sees: one layer, without what changes no shape."""
    same = {"norm_eps": 1e-6, "init_std": 0.02, "rope_theta": 1e4, "rope_scaling": None}
    return dataclasses.replace(config, layers=1, **same)


@functools.lru_cache(maxsize=64)
def _axis_roles(model: Decoder) -> WeightRoles:
    """`axis_roles`, once for all methods."""
    return axis_roles(model, structs(shapes(model.config)))


@functools.lru_cache(maxsize=512)
def _optimizer_state(
    method: str,
    one_layer: DecoderConfig,
    state_bits: StateBits,
    rank: int | None,
    basis_bits: BasisBits,
) -> OptimizerState:
    model, entry = decoder(one_layer), TRAINED[method]
    settings = OptimizerSettings(
        learning_rate=optax.constant_schedule(entry.learning_rate),
        state_bits=state_bits,
        basis_bits=basis_bits,
        **subspaces(entry, model, rank, _axis_roles),
    )
    optimizer, rest = entry.build(settings), entry.rest(settings)
    params = structs(shapes(one_layer))
    if method == "lora":
        thin = jax.eval_shape(
            lambda: first_adapters(jax.random.key(0), params, rank or entry.rank or 1)
        )
        moments = tree_bytes(jax.eval_shape(optimizer.init, thin))
        return OptimizerState(tree_bytes(thin) + moments, 0, tree_bytes(thin))
    others = {name: leaf for name, leaf in params.items() if name != "layers"}
    rest_bytes = tree_bytes(jax.eval_shape(rest.init, others))
    if method != "lowgrad":
        layer = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype), params["layers"])
        return OptimizerState(
            tree_bytes(jax.eval_shape(optimizer.init, {"layers": layer})), rest_bytes
        )
    trainer = lowgrad(
        model.loss,
        params,
        optimizer,
        roles=settings.roles,
        rank=settings.rank,
        select=settings.select,
        basis_bits=basis_bits,
        has_aux=True,
    )
    state = jax.eval_shape(trainer.init, params)
    trainable = trainer.layout.trainable(params, state.low)
    gradient = {"layers": trainable["layers"]}
    moments = tree_bytes(jax.eval_shape(optimizer.init, gradient))
    subspace = tree_bytes((state.projectors, state.low))
    return OptimizerState(subspace + moments, rest_bytes, tree_bytes(gradient))


def frozen_bytes(config: DecoderConfig, dtype: Dtype, bits: BaseBits | None) -> int:
    """Of the weights of a layer, those of its matrices in so many bits."""
    params = structs(shapes(dataclasses.replace(config, layers=1)), dtype)
    held = coded_structs(params, CODES[bits], adapted) if bits else params
    return tree_bytes(held["layers"])


@functools.cache
def layer_numbers(config: DecoderConfig) -> int:
    """Parameters of one layer."""
    return size(_layers(config)) // config.layers


@functools.cache
def rest_numbers(config: DecoderConfig) -> int:
    """Parameters in no layer: embedding, last norm, head."""
    return size(shapes(config)) - size(_layers(config))


def _method(method: str, state_bits: int) -> tuple[str, StateBits]:
    expect(isinstance(method, str), "method", method, "a name such as 'adamw'")
    for bits in (8, 4):
        if method.endswith(f"-{bits}bit"):
            method, state_bits = method.removesuffix(f"-{bits}bit"), bits
    if method not in METHODS:
        hint = suggestion(method, METHODS, otherwise=f"known are {', '.join(METHODS)}")
        raise InputError(f"no method named {method!r}{hint}")
    if isinstance(state_bits, bool) or state_bits not in (32, 8, 4):
        raise InputError(f"state_bits is {state_bits}; expected 32, 8 or 4")
    if state_bits != 32 and (method == "evolve" or state_bits not in TRAINED[method].state_bits):
        raise InputError(f"{method} has no state; leave out {state_bits} bits")
    return method, state_bits


def _layers(config: DecoderConfig) -> Shapes:
    return shapes(config)["layers"]
