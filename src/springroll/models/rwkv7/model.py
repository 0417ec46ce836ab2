"""RWKV-7 "Goose": a language model whose memory is a matrix per head, of a size that never grows.

`springroll.models.rwkv7.config` describes the tree of parameters, blocks stacked on a leading layer
axis; `springroll.models.rwkv7.wkv` the recurrence. Source: arXiv 2503.14456, section 4 and
appendix; the reference is BlinkDL's package `rwkv`.

Letters: L layers, B batch, T time, D width of the model, V vocabulary, H heads of width N.
Computation is in the type of the parameters; norms, recurrence and logits are float32.

Fresh parameters are those that its authors begin with. Channels differ from the start: how much of
the token before is mixed in, how fast they forget. Layers begin as the identity: their last
matrices are 0. Matrices that the authors draw orthogonal are drawn normal with the same variance.
Source: github.com/BlinkDL/RWKV-LM, RWKV-v7.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.errors import InputError
from springroll.models.cross_entropy import cross_entropy, token_nats
from springroll.models.decoder_config import shape_leaves, structure
from springroll.models.packed import Batch, Packed, learnt
from springroll.models.rwkv7.config import RWKV7Config, shapes
from springroll.models.rwkv7.mix import channel_mix, layer_norm, time_mix
from springroll.models.rwkv7.wkv import LONGEST
from springroll.models.slices import in_segments, segment_size
from springroll.trees import Params

INNER = 40  # numbers of a layer's inner activations per token, in widths of the model

# A matrix (out, in) is gain / sqrt(in) N(0, 1), those of the small nets' second half
# gain / sqrt(out): the variance of orthogonal ones times the gain its authors give each.
GAINS = {
    "r_proj": 1.0,
    "k_proj": 0.1,
    "v_proj": 1.0,
    "o_proj": 0.0,
    "w_down": 0.0,
    "a_down": 0.0,
    "v_down": 0.0,
    "g_down": 0.0,
    "w_up": 0.1,
    "a_up": 0.1,
    "v_up": 0.1,
    "g_up": 0.1,
    "key": 1.0,
    "value": 0.0,
}


def init(config: RWKV7Config, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
    """The tree of `rwkv7.config`; every matrix has a key of its own."""
    tree = structure(shapes(config))
    by_path = shape_leaves(shapes(config))
    keys = jax.random.split(key, len(by_path))
    vectors = _vectors(config)
    leaves = []
    for (path, shape), k in zip(by_path.items(), keys, strict=True):
        *_, inside, name = ("", *path.split("/"))
        if name in ("embed_tokens", "lm_head") or name in GAINS:
            leaves.append(_matrix(name, shape, k).astype(dtype))
        else:
            value = vectors[f"{inside}/{name}" if inside == "ffn" else name]
            leaves.append(jnp.asarray(np.broadcast_to(value, shape), dtype))
    return tree.unflatten(leaves)


def _matrix(name: str, shape: tuple[int, ...], key: Array) -> Array:
    if name == "embed_tokens":
        return jax.random.uniform(key, shape, jnp.float32, -1e-4, 1e-4)
    out, into = shape[-2:]
    gain = 0.5 if name == "lm_head" else GAINS[name]
    scale = gain * (out if name.endswith("_up") else into) ** -0.5
    return jax.random.normal(key, shape, jnp.float32) * np.float32(scale)


def _vectors(c: RWKV7Config) -> dict[str, np.ndarray | float]:
    """Every vector by name, (D,) or (L, D) or one number."""
    channel, layer = np.arange(c.hidden), np.arange(c.layers)[:, None]
    after = 1 - layer / c.layers  # from 1 down to almost 0
    depth = layer / max(1, c.layers - 1)  # from 0 up to 1
    ratio = channel / c.hidden
    line = channel / max(1, c.hidden - 1)
    zigzag = (channel % c.head_dim) / max(1, c.head_dim - 1) * 2 - 1
    zigzag = zigzag * np.abs(zigzag)
    mixed = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    vectors: dict[str, np.ndarray | float] = {
        f"x_{name}": 1 - ratio ** (power * after) for name, power in mixed.items()
    }
    vectors |= dict.fromkeys(("embed_norm", "attn_norm", "ffn_norm", "norm"), 1.0)
    biases = ("embed_norm_bias", "attn_norm_bias", "ffn_norm_bias", "norm_bias", "g_norm_bias")
    vectors |= dict.fromkeys(biases, 0.0)
    return vectors | {
        "w_bias": -5.5 + 6 * line ** (1 + depth**0.3) + 2.5 * zigzag,
        "a_bias": -0.19 + 0.3 * zigzag + 0.4 * (line - 0.5),
        "v_bias": 0.73 - 0.4 * (line - 0.5),
        "k_k": 0.71 - 0.1 * (line - 0.5),
        "k_a": 1.02,
        "r_k": -0.04,
        "g_norm": np.broadcast_to(((1 + layer) / c.layers) ** 0.7, (c.layers, c.hidden)),
        "ffn/x_k": 1 - ratio ** (after**4),
    }


class State(NamedTuple):
    """What the model remembers of the tokens it has read; of one layer without the leading L."""

    wkv: Array  # (L, B, H, N, N) float32: value by key
    time: Array  # (L, B, D): what the time mix saw last
    channel: Array  # (L, B, D): what the channel mix saw last


Layers: TypeAlias = tuple[State, ...]  # of one layer each, L = 1


@dataclass(frozen=True)
class RWKV7:
    """The model as functions of (params, arrays).

    >>> from springroll.models.rwkv7.config import RWKV7_CONFIGS
    >>> model = RWKV7(RWKV7_CONFIGS["rwkv7-tiny"])
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((1, 8), jnp.int32)).shape
    (1, 8, 256)
    """

    config: RWKV7Config
    remat: bool = False  # keep only the input of every block for the gradient
    chunk: int = 32  # tokens read at once; 0: one by one
    apart: ClassVar[bool] = True  # see `Generative` in `springroll.models.protocols`

    def __post_init__(self) -> None:
        if not 0 <= self.chunk <= LONGEST:
            raise InputError(f"chunk is {self.chunk}; expected at most {LONGEST}, or 0")

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
        """Fresh parameters, see `init`."""
        return init(self.config, key, dtype)

    def start(self, rows: int, dtype: DTypeLike = jnp.float32) -> State:
        """The state before the first token; `dtype` is that of the parameters."""
        return _empty(self.config, self.config.layers, rows, dtype)

    def memory(self, rows: int, length: int, dtype: DTypeLike) -> Layers:
        """See `Generative` in `springroll.models.protocols`; so for the next five."""
        return tuple(_empty(self.config, 1, rows, dtype) for _ in range(self.config.layers))

    def read(
        self, params: Params, tokens: Array, lengths: Array, before: State | None = None
    ) -> tuple[Array, State]:
        real = jnp.arange(-tokens.shape[1], 0, dtype=jnp.int32)[None] >= -lengths[:, None]
        x, state = self.hidden(params, tokens, before, real)
        return self.head(params, x[:, -1:])[:, 0], state

    def reads_on(self, length: int) -> bool:
        return True

    def admit(self, memory: Layers, entries: State, rows: Array, clock: Array) -> Layers:
        put = lambda into, new: into.at[:, rows].set(new, mode="drop", unique_indices=True)
        layer = lambda i: jax.tree.map(lambda x: x[i : i + 1], entries)
        return tuple(jax.tree.map(put, old, layer(i)) for i, old in enumerate(memory))

    def step(
        self, params: Params, tokens: Array, memory: Layers, seen: Array, clock: Array
    ) -> tuple[Array, Layers]:
        layers = params["layers"]
        x, states = self.embed(params, tokens[:, None]), []
        v_first = jnp.zeros_like(x)
        for i, old in enumerate(memory):
            at = lambda leaf, i=i: leaf[i]
            layer = layers[i] if isinstance(layers, list) else jax.tree.map(at, layers)
            before = jax.tree.map(lambda leaf: leaf[0], old)
            x, v_first, after = self.block(layer, x, v_first, before, np.bool_(i == 0))
            states.append(jax.tree.map(lambda leaf: leaf[None], after))
        return self.head(params, x)[:, 0], tuple(states)

    def keep(self, memory: Layers, entries: Layers, clock: Array) -> Layers:
        return entries

    def embed(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> (batch, time, D), normalised."""
        x = jnp.take(params["embed_tokens"], tokens, axis=0)
        return layer_norm(x, params["embed_norm"], params["embed_norm_bias"], self.config.norm_eps)

    def block(
        self,
        layer: Params,
        x_BTD: Array,
        v_first_BTD: Array,
        state: State,
        first: Array | np.bool_,
        real_BT: Array | None = None,
        empty: bool = False,
    ) -> tuple[Array, Array, State]:
        """One layer (a slice of params["layers"]): (x, the first layer's value, state after).

        `first` () bool: this is layer 0, and v_first is to be set; `real_BT` is False where a token
        is padding, which must stand before all others and leaves the state as it is; `empty`: the
        state is, so that nothing is to be done for that. A long text is read in segments, of which
        one exists at a time.
        """
        step = functools.partial(self._segment, first=first, empty=empty)
        inputs = x_BTD, v_first_BTD, real_BT
        size = segment_size(x_BTD.shape[0], INNER * self.config.hidden, LONGEST)
        if x_BTD.shape[1] <= size:
            state, (x_BTD, v_first_BTD) = step(layer, state, inputs)
        else:
            state, (x_BTD, v_first_BTD) = in_segments(step, layer, state, inputs, size)
        return x_BTD, v_first_BTD, state

    def _segment(
        self,
        layer: Params,
        state: State,
        inputs: tuple[Array, Array, Array | None],
        first: Array | np.bool_,
        empty: bool,
    ) -> tuple[State, tuple[Array, Array]]:
        """(state after, (x, the first layer's value)) of one segment; see `block`."""
        x_BTD, v_first_BTD, real_BT = inputs
        eps = self.config.norm_eps
        y = layer_norm(x_BTD, layer["attn_norm"], layer["attn_norm_bias"], eps)
        y = y if real_BT is None else jnp.where(real_BT[..., None], y, state.time[:, None])
        remembered = (state.time, v_first_BTD, state.wkv, first)
        mixed, v_first_BTD, wkv = time_mix(
            self.config, self.chunk, layer["attn"], y, *remembered, None if empty else real_BT
        )
        x_BTD = x_BTD + mixed
        z = layer_norm(x_BTD, layer["ffn_norm"], layer["ffn_norm_bias"], eps)
        z = z if real_BT is None else jnp.where(real_BT[..., None], z, state.channel[:, None])
        x_BTD = x_BTD + channel_mix(layer["ffn"], z, state.channel)
        return State(wkv, y[:, -1], z[:, -1]), (x_BTD, v_first_BTD)

    def hidden(
        self,
        params: Params,
        tokens: Array,
        state: State | None = None,
        real_BT: Array | None = None,
    ) -> tuple[Array, State]:
        """The residual stream after the last block (batch, time, D), and the state after it."""
        x, empty = self.embed(params, tokens), state is None
        state = self.start(tokens.shape[0], x.dtype) if state is None else state

        def step(
            carry: tuple[Array, Array], scanned: tuple[Params, State, Array]
        ) -> tuple[tuple[Array, Array], State]:
            layer, before, first = scanned
            x, v_first, after = self.block(layer, *carry, before, first, real_BT, empty)
            return (x, v_first), after

        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        first = np.arange(self.config.layers) == 0
        (x, _), state = lax.scan(step, (x, jnp.zeros_like(x)), (params["layers"], state, first))
        return x, state

    def head(self, params: Params, x_BTD: Array) -> Array:
        """Last norm and logits: (batch, time, D) -> (batch, time, V) float32."""
        x = layer_norm(x_BTD, params["norm"], params["norm_bias"], self.config.norm_eps)
        return jnp.einsum("BTD,VD->BTV", x, params["lm_head"], preferred_element_type=jnp.float32)

    def apply(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> logits (batch, time, V) float32."""
        return self.head(params, self.hidden(params, tokens)[0])

    def proceed(self, params: Params, tokens: Array, state: State) -> tuple[Array, State]:
        """Read on: (logits (batch, time, V) float32, state after the last token)."""
        x, state = self.hidden(params, tokens, state)
        return self.head(params, x), state

    def loss(self, params: Params, tokens: Batch) -> tuple[Array, dict[str, Array]]:
        """tokens (batch, time + 1) -> mean nats per predicted token () float32, and `nats`.

        Of packed rows only such that begin with their one text: the state goes on along a row.
        """
        read = tokens.tokens if isinstance(tokens, Packed) else tokens[:, :-1]
        x, _ = self.hidden(params, read)
        x = layer_norm(x, params["norm"], params["norm_bias"], self.config.norm_eps)
        targets, count = learnt(tokens)
        nats = cross_entropy(x, params["lm_head"], targets, count=count)
        return nats, {"nats": nats}

    def token_nats(
        self, params: Params, tokens: Array, targets: Array, temperature: float = 1.0
    ) -> tuple[Array, dict[str, Array]]:
        """Nats of each of the targets (batch, time) that follow the tokens (batch, time).

        0 where a target is negative; logits are divided by the temperature. No metrics.
        """
        x, _ = self.hidden(params, tokens)
        x = layer_norm(x, params["norm"], params["norm_bias"], self.config.norm_eps)
        return token_nats(x, params["lm_head"], targets, temperature), {}


def _empty(c: RWKV7Config, layers: int, rows: int, dtype: DTypeLike) -> State:
    last = lambda: jnp.zeros((layers, rows, c.hidden), dtype)
    wkv = jnp.zeros((layers, rows, c.heads, c.head_dim, c.head_dim), jnp.float32)
    return State(wkv, last(), last())
