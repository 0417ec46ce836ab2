"""EGG: a byte-level minGRU language model whose weights and activations are all int8.

The architecture of arXiv 2511.16652, App. G: per layer a gated recurrence and a feed-forward net
without activation function (saturation is the nonlinearity), no softmax and no square root before
the loss. It is a model only: nothing here knows how it is trained.

Parameters (D hidden, L layers; all int8 in integer precision, 513 D + L (4 D + 12 D^2) of them):

    embed (256, D)
    blocks: norm_gru, norm_ffn, bias_f, bias_h (L, D); w_f, u_f, w_h, u_h (L, D, D);
            w_up (L, 4 D, D); w_down (L, D, 4 D)
    norm_out (D,); head (256, D)
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.errors import InputError, expect
from springroll.models.egg_arithmetic import (
    BITS_SCALE,
    COMPAT_BITS_SCALE,
    Arithmetic,
    Precision,
    arithmetic,
)
from springroll.quant import fixed_point as fp
from springroll.trees import Params

VOCAB = 256
SEPARATOR = 0  # the byte between documents: the state starts afresh

WIDEST = 2**15 - 1  # of int8: 2**16 times the width fits int32
MATRICES = ("w_f", "u_f", "w_h", "u_h", "w_up", "w_down")
VECTORS_IN_STACKS = {"blocks/norm_*": "sd", "blocks/bias_*": "sd"}  # roles, unless discovered


@dataclass(frozen=True, kw_only=True)
class EggConfig:
    """Size and arithmetic. `compat` is the published integer semantics, bit for bit."""

    n_layers: int = 6
    hidden: int = 256
    precision: Precision = "int8"
    registers: fp.Registers = "int8"  # where integer products are computed; never changes a bit

    def __post_init__(self) -> None:
        if self.n_layers < 1 or self.hidden < 1:
            raise InputError(
                f"n_layers is {self.n_layers} and hidden {self.hidden}; both must be at least 1"
            )
        if self.precision == "int8" and self.hidden > WIDEST:
            raise InputError(
                f"hidden is {self.hidden}; the norms of precision int8 count in 32 bits, so that "
                f"it is {WIDEST:,} at most; take another precision"
            )

    @property
    def integer(self) -> bool:
        return self.precision in ("int8", "compat")

    @property
    def dtype(self) -> DTypeLike:
        return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(self.precision, jnp.int8)

    @property
    def parameters(self) -> int:
        return 513 * self.hidden + self.n_layers * (4 * self.hidden + 12 * self.hidden**2)


class Egg(NamedTuple):
    """The model as functions of (params, arrays); see `egg`."""

    config: EggConfig

    @property
    def stack(self) -> str:
        """The name under which the parameters hold the layers (see `protocols.Stages`)."""
        return "blocks"

    def init(self, key: Array) -> Params:
        """Matrices 16 N(0, 1) rounded, norm weights 16, biases 0; in reals, a sixteenth."""
        return init(self.config, key)

    def state(self, batch: tuple[int, ...] = ()) -> Array:
        """Recurrent state of `batch` streams at the start of a document: (*batch, L, D)."""
        shape = (*batch, self.config.n_layers, self.config.hidden)
        return jnp.zeros(shape, jnp.int8 if self.config.integer else jnp.float32)

    def apply(self, params: Params, tokens: Array, state: Array) -> tuple[Array, Array]:
        """tokens (T,) integers, state (L, D) -> float32 logits (T, 256) and the new state.

        Logits are in log2 units times ln 2: `softmax(logits)` is the model's distribution.
        """
        stored, state = forward(self.config, params, tokens, state)
        return self.natural(stored), state

    def natural(self, stored: Array) -> Array:
        """Stored logits in natural units, float32."""
        unit = fp.ONE if self.config.integer else 1
        return stored.astype(jnp.float32) * np.float32(np.log(2) / unit)

    def score(self, params: Params, tokens: Array, state: Array) -> tuple[Array, Array]:
        """Fitness of one stream: minus the code length of tokens[1:] given tokens[:-1] and `state`.

        tokens (T + 1,) integers, state (L, D) -> fitness () and the new state. Integer precisions
        give int32, exact and the same on any hardware; the unit is 1 / `bits_scale` bits.
        """
        logits, state = forward(self.config, params, tokens[:-1], state)
        bits = arithmetic(self.config.precision).bits(logits, tokens[1:].astype(jnp.int32))
        return -jnp.sum(bits), state

    @property
    def bits_scale(self) -> int:
        """How many units of `score` make one bit."""
        return COMPAT_BITS_SCALE if self.config.precision == "compat" else BITS_SCALE

    # The parts of which `score` is made (see `springroll.models.protocols.Stages`).

    def embed(self, rest: Params, tokens: Array) -> tuple[Array, Array]:
        """tokens (T,) -> x (T, D), stored, and which tokens begin a document (T,) bool."""
        return embed(arithmetic(self.config.precision), rest, tokens), tokens == SEPARATOR

    def block(
        self, layer: Params, x: tuple[Array, Array], index: Array, state: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """One layer with its recurrent state (D,); all layers are alike, whatever their index."""
        numbers = arithmetic(self.config.precision)
        x_TD, state = block(numbers, in_registers(self.config, layer), x[0], state, x[1])
        return (x_TD, x[1]), state

    def stored_logits(self, rest: Params, x: tuple[Array, Array]) -> Array:
        """Logits (T, 256) as `forward` gives them."""
        numbers = arithmetic(self.config.precision)
        return head(numbers, in_registers(self.config, rest), x[0])

    def finish(
        self, rest: Params, x: tuple[Array, Array], state: Array | None, tokens: Array
    ) -> tuple[Array, dict[str, Array]]:
        """(code length () of tokens[1:], in the unit of `score`; no metrics)."""
        bits = arithmetic(self.config.precision).bits
        return jnp.sum(bits(self.stored_logits(rest, x), tokens[1:].astype(jnp.int32))), {}


def egg(config: EggConfig) -> Egg:
    """The byte-level minGRU of a size and an arithmetic, as functions of its parameters.

    >>> model = egg(EggConfig(n_layers=1, hidden=16))
    >>> params = model.init(jax.random.key(0))
    >>> logits, state = model.apply(params, jnp.array([104, 105]), model.state())
    >>> logits.shape, state.shape
    ((2, 256), (1, 16))

    Args:
        config: number of layers, width and precision.

    Returns:
        An `Egg`: `init`, `state`, `apply`, `score` and the parts of which `score` is made.

    Source: arXiv 2511.16652, appendix G.
    """
    expect(isinstance(config, EggConfig), "config", config, "an EggConfig")
    return Egg(config)


def init(config: EggConfig, key: Array) -> Params:
    d, layers = config.hidden, config.n_layers
    shapes = {
        "embed": (VOCAB, d),
        "head": (VOCAB, d),
        "w_up": (layers, 4 * d, d),
        "w_down": (layers, d, 4 * d),
    } | {name: (layers, d, d) for name in ("w_f", "u_f", "w_h", "u_h")}

    def matrix(index: int, shape: tuple[int, ...]) -> Array:
        x = jax.random.normal(jax.random.fold_in(key, index), shape) * fp.ONE
        return _in_precision(config, jnp.clip(jnp.rint(x), -fp.LIMIT, fp.LIMIT))

    matrices = {name: matrix(i, shapes[name]) for i, name in enumerate(sorted(shapes))}
    ones = lambda *shape: _in_precision(config, jnp.full(shape, float(fp.ONE)))
    zeros = lambda *shape: _in_precision(config, jnp.zeros(shape))
    blocks = {name: matrices[name] for name in MATRICES}
    blocks |= {name: ones(layers, d) for name in ("norm_gru", "norm_ffn")}
    blocks |= {name: zeros(layers, d) for name in ("bias_f", "bias_h")}
    return {
        "embed": matrices["embed"],
        "blocks": blocks,
        "norm_out": ones(d),
        "head": matrices["head"],
    }


def _in_precision(config: EggConfig, sixteenths: Array) -> Array:
    if config.integer:
        return sixteenths.astype(jnp.int8)
    return (sixteenths / fp.ONE).astype(config.dtype)


def forward(config: EggConfig, params: Params, tokens: Array, state: Array) -> tuple[Array, Array]:
    """tokens (T,) -> stored logits (T, 256) and the new state (L, D).

    Layer after layer, each over all tokens, so that a layer's weights are fetched once.
    """
    numbers = arithmetic(config.precision)
    fresh = tokens == SEPARATOR
    x = embed(numbers, params, tokens)

    def layer(x: Array, weights_and_state: tuple[Params, Array]) -> tuple[Array, Array]:
        weights, s = weights_and_state
        return block(numbers, in_registers(config, weights), x, s, fresh)

    x, state = lax.scan(layer, x, (params["blocks"], state))
    return head(numbers, in_registers(config, params), x), state


def in_registers(config: EggConfig, params: Params) -> Params:
    """Matrices where this machine multiplies integers fastest; other parameters as they are."""
    if not config.integer:
        return params
    names = (*MATRICES, "head")
    move = lambda w: fp.in_fastest_registers(w, config.registers)
    return {name: move(w) if name in names else w for name, w in params.items()}


def embed(numbers: Arithmetic, params: Params, tokens: Array) -> Array:
    """tokens (T,) -> x (T, D), stored."""
    return numbers.store(numbers.wide(params["embed"][tokens.astype(jnp.int32)]))


def block(
    numbers: Arithmetic, p: Params, x: Array, state: Array, fresh: Array
) -> tuple[Array, Array]:
    """One layer: x (T, D) and state (D,) stored, fresh (T,) bool -> x (T, D) and the new state.

    `fresh` marks tokens that begin a document. Token after token, so that everything a token needs
    stays in the cache.
    """

    def token(s: Array, x_and_fresh: tuple[Array, Array]) -> tuple[Array, Array]:
        x, fresh = x_and_fresh
        s = jnp.where(fresh, jnp.zeros_like(s), s)
        s, x = gated_recurrence(numbers, p, x, s)
        return s, feed_forward(numbers, p, x)

    state, x = lax.scan(token, state, (x, fresh))
    return x, state


def gated_recurrence(n: Arithmetic, p: Params, x: Array, s: Array) -> tuple[Array, Array]:
    """x (D,) and state s (D,) -> the new s, and x + the new s.

    With y = norm(x), f = Wf y + Uf s + bf and h = Wh y + Uh (gate(f) s) + bh, the new state is
    s + gate(f) (h - s).
    """
    y = n.norm(x, p["norm_gru"])
    f = n.store(n.matmul(y, p["w_f"]) + n.matmul(s, p["u_f"]) + n.wide(p["bias_f"]))
    gated = n.store(n.gate(n.wide(f), n.wide(s)))
    h = n.saturate(n.matmul(y, p["w_h"]) + n.matmul(gated, p["u_h"]) + n.wide(p["bias_h"]))
    s = n.store(n.wide(s) + n.gate(n.wide(f), h - n.wide(s)))
    return s, n.store(n.wide(s) + n.wide(x))


def feed_forward(n: Arithmetic, p: Params, x: Array) -> Array:
    """x + W_down (W_up norm(x)), each product saturated."""
    up = n.store(n.matmul(n.norm(x, p["norm_ffn"]), p["w_up"]))
    return n.store(n.matmul(up, p["w_down"]) + n.wide(x))


def head(n: Arithmetic, params: Params, x: Array) -> Array:
    """x (T, D) -> stored logits (T, 256): log2 of the unnormalised probabilities, in sixteenths."""

    def token(_: None, x: Array) -> tuple[None, Array]:
        return None, n.store(n.matmul(n.norm(x, params["norm_out"]), params["head"]))

    return lax.scan(token, None, x)[1]
