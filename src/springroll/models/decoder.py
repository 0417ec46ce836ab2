"""A decoder-only transformer: Llama, Qwen, OLMoE and gpt-oss in one.

`springroll.models.decoder_config` describes the tree of parameters: Hugging Face layout, blocks
stacked on a leading layer axis, so that one compiled block serves any depth.

Computation is in the type of the parameters; softmaxes, norms and logits are float32. For writing
text the model reads whole prompts at once, then one token of every row after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.errors import InputError
from springroll.models import kv_cache
from springroll.models.attention import attention, from_heads, queries_keys_values
from springroll.models.cross_entropy import cross_entropy, token_nats
from springroll.models.decoder_config import DecoderConfig, shape_leaves, shapes
from springroll.models.kv_cache import Cache, Layers, attend_cached, attend_padded, visible
from springroll.models.layers import rms_norm, swiglu
from springroll.models.moe import every_expert, moe
from springroll.models.protocols import LanguageModel
from springroll.models.rope import Rotation, rotate, rotation, rotation_at
from springroll.trees import Params


@dataclass(frozen=True)
class Decoder:
    """The model as functions of (params, arrays); see `decoder`."""

    config: DecoderConfig
    remat: bool = False
    apart: ClassVar[bool] = True  # see `Generative` in `springroll.models.protocols`

    @property
    def stack(self) -> str:
        """The name under which the parameters hold the layers (see `protocols.Stages`)."""
        return "layers"

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
        """Matrices init_std * N(0, 1), norm weights 1, biases 0."""
        return init(self.config, key, dtype)

    def embed(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> (batch, time, D)."""
        return jnp.take(params["embed_tokens"], tokens, axis=0)

    def block(self, layer: Params, x_BTD: Array, index: Array) -> tuple[Array, Params]:
        """One layer (a slice of params["layers"]): x (batch, time, D) -> x, and its statistics.

        `index` () int32 is the layer's number. Statistics of a layer with experts are `load` (E,),
        `switch` and `z` (see `moe`); of a dense layer there are none.
        """
        windows = self.windows(x_BTD.shape[1])
        return self._block(layer, x_BTD, None, None if windows is None else windows[index])

    def _block(
        self, layer: Params, x_BTD: Array, turn: Rotation | None, window: Array | None
    ) -> tuple[Array, Params]:
        """The same with arguments as those of `attend`."""
        config = self.config
        x_BTD, y = self.attend(layer, x_BTD, turn, window)
        y, stats = moe(config, layer["mlp"], y) if config.experts else (swiglu(layer["mlp"], y), {})
        return x_BTD + y, stats

    def attend(
        self,
        layer: Params,
        x_BTD: Array,
        turn: Rotation | None = None,
        window: Array | None = None,
    ) -> tuple[Array, Array]:
        """The first half of a layer: (x after attention, input of the feed-forward half).

        `turn` are the rotary angles, computed here if not given; `window` () int32 is how many
        tokens a position sees (`windows`), None for all.
        """
        config = self.config
        turn = self.rotation(x_BTD.shape[1]) if turn is None else turn
        y = rms_norm(x_BTD, layer["input_layernorm"], config.norm_eps)
        x_BTD = x_BTD + attention(config, layer["self_attn"], y, turn, window)
        return x_BTD, rms_norm(x_BTD, layer["post_attention_layernorm"], config.norm_eps)

    def head(self, params: Params, x_BTD: Array) -> Array:
        """Final norm and logits: (batch, time, D) -> (batch, time, V) float32."""
        x = rms_norm(x_BTD, params["norm"], self.config.norm_eps)
        head = self.head_weight(params)
        return jnp.einsum("BTD,VD->BTV", x, head, preferred_element_type=jnp.float32)

    def apply(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> logits (batch, time, V) float32."""
        return self.head(params, self.hidden(params, tokens)[0])

    def loss(self, params: Params, tokens: Array) -> tuple[Array, dict[str, Array]]:
        """tokens (batch, time + 1) -> mean nats per predicted token () float32, and metrics.

        Metrics: `nats`; with experts also `load` (L, E), picks per expert, and `switch` and `z`,
        means over the layers of the routing losses, which are added to the returned value with the
        weights of the configuration. Differentiate with `jax.value_and_grad(..., has_aux=True)`.
        """
        return self.finish(params, *self.hidden(params, tokens[:, :-1]), tokens)

    def finish(
        self, params: Params, x_BTD: Array, stats: Params, tokens: Array
    ) -> tuple[Array, dict[str, Array]]:
        """`loss` from the residual stream after the last block and statistics per layer."""
        x = rms_norm(x_BTD, params["norm"], self.config.norm_eps)
        nats = cross_entropy(x, self.head_weight(params), tokens[:, 1:])
        if not stats:
            return nats, {"nats": nats}
        switch, z = jnp.mean(stats["switch"]), jnp.mean(stats["z"])
        total = nats + self.config.switch_loss * switch + self.config.z_loss * z
        return total, {"nats": nats, "load": stats["load"], "switch": switch, "z": z}

    def token_nats(
        self, params: Params, tokens: Array, targets: Array, temperature: float = 1.0
    ) -> tuple[Array, dict[str, Array]]:
        """Nats of each of the targets (batch, time) that follow the tokens (batch, time).

        0 where a target is negative; logits are divided by the temperature. The metrics are those
        of `loss` that are needed between steps: `load` where there are experts.
        """
        x_BTD, stats = self.hidden(params, tokens)
        x = rms_norm(x_BTD, params["norm"], self.config.norm_eps)
        nats = token_nats(x, self.head_weight(params), targets, temperature)
        return nats, {"load": stats["load"]} if stats else {}

    def hidden(self, params: Params, tokens: Array) -> tuple[Array, Params]:
        """The residual stream after the last block (batch, time, D), and statistics per layer."""
        turn = self.rotation(tokens.shape[1])
        step = lambda x, scanned: self._block(scanned[0], x, turn, scanned[1])
        if self.remat:
            step = jax.checkpoint(step, prevent_cse=False)
        layers = (params["layers"], self.windows(tokens.shape[1]))
        return lax.scan(step, self.embed(params, tokens), layers)

    def memory(self, rows: int, length: int, dtype: DTypeLike = jnp.float32) -> Layers:
        """See `Generative` in `springroll.models.protocols`; so for the next four."""
        c = self.config
        return kv_cache.empty(c.layers, rows, c.kv_heads, length, c.head_dim, dtype)

    def read(self, params: Params, tokens: Array, lengths: Array) -> tuple[Array, Cache]:
        return read(self, params, tokens, lengths)

    def admit(self, memory: Layers, entries: Cache, rows: Array, clock: Array) -> Layers:
        return kv_cache.admit(memory, entries, rows, clock)

    def step(
        self, params: Params, tokens: Array, memory: Layers, seen: Array, clock: Array
    ) -> tuple[Array, Layers]:
        return step(self, params, tokens, memory, seen, clock)

    def keep(self, memory: Layers, entries: Layers, clock: Array) -> Layers:
        return kv_cache.keep(memory, entries, clock)

    def feed_forward(self, params: Params, x_BTD: Array) -> Array:
        """The second half of a layer when nothing is learnt from it: (B, T, D) -> (B, T, D)."""
        return (
            every_expert(self.config, params, x_BTD)
            if self.config.experts
            else swiglu(params, x_BTD)
        )

    def head_weight(self, params: Params) -> Array:
        return params["embed_tokens"] if self.config.tied else params["lm_head"]

    def rotation(self, time: int) -> Rotation:
        """The rotary angles of the first `time` positions."""
        c = self.config
        return rotation(time, c.head_dim, c.rope_theta, c.rope_scaling)

    def windows(self, time: int) -> Array | None:
        """How many tokens a position of each layer sees, (L,) int32; None if all layers see all."""
        if not self.config.window:
            return None
        limited = jnp.arange(self.config.layers, dtype=jnp.int32) % 2 == 0
        return jnp.where(limited, jnp.int32(self.config.window), jnp.int32(time))


def decoder(config: DecoderConfig, remat: bool = False) -> Decoder:
    """The model of a shape, as functions of its parameters.

    Args:
        config: the shape, such as `named("llama-60m")`.
        remat: whether only the input of every block is stored for the gradient; blocks are then
            computed twice.

    Returns:
        A `Decoder`: `init(key, dtype)`, `apply(params, tokens (batch, time))` to logits (batch,
        time, vocab) float32, `loss(params, tokens (batch, time + 1))` and others.

    >>> from springroll.models.decoder_config import CONFIGS
    >>> model = decoder(CONFIGS["llama-1m"])
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((1, 8), jnp.int32)).shape
    (1, 8, 256)
    """
    return Decoder(config, remat)


def stages(model: LanguageModel) -> Decoder:
    """The model, if its layers can be walked one by one (see `Stages` in `protocols`).

    Args:
        model: of any kind.

    Returns:
        The same model, which `sr.layerwise`, `sr.Streamed` and streamed evolution take.

    Raises:
        InputError: the model is no decoder.
    """
    if not isinstance(model, Decoder):
        raise InputError(
            f"an {type(model).__name__} cannot be walked layer by layer; leave out --layerwise and "
            "--engine stream, or take a smaller model"
        )
    return model


def read(model: Decoder, params: Params, tokens: Array, lengths: Array) -> tuple[Array, Cache]:
    """`Generative.read` of a decoder; its entries are a cache of T slots."""
    config = model.config
    rows, time = tokens.shape
    place = jnp.arange(time, dtype=jnp.int32)[None, :] - (time - lengths)[:, None]
    turn = _turn(model, jnp.maximum(place, 0).reshape(-1))
    flat = lambda y: y.reshape(1, rows * time, *y.shape[2:])
    turned = lambda y: rotate(flat(y), turn).reshape(y.shape)

    def block(x: Array, scanned: tuple[Params, Array | None]) -> tuple[Array, Cache]:
        layer, window = scanned
        y = rms_norm(x, layer["input_layernorm"], config.norm_eps)
        q, k, v = queries_keys_values(config, layer["self_attn"], y)
        k = turned(k)
        sinks = layer["self_attn"].get("sinks")
        y = attend_padded(turned(q), k, v, lengths, window, sinks)
        x = x + from_heads(layer["self_attn"], y)
        return _feed_forward(model, layer, x), Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))

    layers = (params["layers"], model.windows(time))
    x, cache = lax.scan(block, model.embed(params, tokens), layers)
    return model.head(params, x[:, -1:])[:, 0], cache


def step(
    model: Decoder, params: Params, tokens: Array, memory: Layers, seen: Array, clock: Array
) -> tuple[Array, Layers]:
    """`Generative.step` of a decoder; its entries have one slot.

    Layer after layer and not in a scan, which would copy each layer's weights and memory out of
    their stacks before it used them: as much traffic again as the step itself.
    """
    config = model.config
    slots = memory[0].k.shape[3]
    turn = _turn(model, seen)
    turned = lambda y: rotate(y.swapaxes(0, 1), turn).swapaxes(0, 1)  # rows, as if they were times
    windows = model.windows(slots + 1)
    layers = params["layers"]
    x, entries = model.embed(params, tokens[:, None]), []
    for i, old in enumerate(memory):
        layer = layers[i] if isinstance(layers, list) else jax.tree.map(lambda w: w[i], layers)  # noqa: B023
        y = rms_norm(x, layer["input_layernorm"], config.norm_eps)
        q, k, v = queries_keys_values(config, layer["self_attn"], y)
        new = Cache(turned(k).swapaxes(1, 2), v.swapaxes(1, 2))
        see = visible(slots, seen, clock, None if windows is None else windows[i])
        y = attend_cached(
            turned(q)[:, 0], new, (old.k[0], old.v[0]), see, layer["self_attn"].get("sinks")
        )
        x = x + from_heads(layer["self_attn"], y[:, None])
        x = _feed_forward(model, layer, x)
        entries.append(Cache(new.k[None], new.v[None]))
    return model.head(params, x)[:, 0], tuple(entries)


def _feed_forward(model: Decoder, layer: Params, x: Array) -> Array:
    y = rms_norm(x, layer["post_attention_layernorm"], model.config.norm_eps)
    return x + model.feed_forward(layer["mlp"], y)


def _turn(model: Decoder, place: Array) -> Rotation:
    c = model.config
    return rotation_at(place, c.head_dim, c.rope_theta, c.rope_scaling)


def init(config: DecoderConfig, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
    """Fresh parameters; every leaf has a key of its own."""
    tree = jax.tree.structure(shapes(config), is_leaf=lambda node: isinstance(node, tuple))
    return tree.unflatten([values for _, values in leaves(config, key, dtype)])


def leaves(
    config: DecoderConfig, key: Array, dtype: DTypeLike = jnp.float32
) -> Iterator[tuple[str, Array]]:
    """The same parameters by path, one leaf after the other, in the order of the tree."""
    by_path = shape_leaves(shapes(config))
    keys = jax.random.split(key, len(by_path))
    for (path, shape), k in zip(by_path.items(), keys, strict=True):
        yield path, _leaf(config, path.rpartition("/")[2], shape, k, dtype)


def _leaf(
    config: DecoderConfig, name: str, shape: tuple[int, ...], key: Array, dtype: DTypeLike
) -> Array:
    if "norm" in name:
        return jnp.ones(shape, dtype)
    if name.endswith(("bias", "sinks")):
        return jnp.zeros(shape, dtype)
    return jax.random.normal(key, shape, dtype) * np.asarray(config.init_std, dtype)
