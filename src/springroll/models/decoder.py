"""A decoder-only transformer: Llama, Mistral, Qwen, Phi-3, SmolLM3, Gemma and gpt-oss in one.

`springroll.models.decoder_config` describes the tree of parameters: Hugging Face layout, blocks
stacked on a leading layer axis, so that one compiled block serves any depth.

Computation is in the type of the parameters; softmaxes, norms and logits are float32. For writing
text the model reads whole prompts at once, then one token of every row after the other.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.errors import InputError, expect
from springroll.models import kv_cache
from springroll.models.attention import attend, attention, from_heads, queries_keys_values
from springroll.models.attention_scores import Sight
from springroll.models.cross_entropy import cross_entropy, token_nats
from springroll.models.decoder_config import DecoderConfig
from springroll.models.decoder_weights import init
from springroll.models.decoder_weights import leaves as leaves
from springroll.models.kv_cache import Cache, Layers, Memory
from springroll.models.layers import (
    float32_product,
    is_short,
    rms_norm,
    scan_layers,
    soft_cap,
    swiglu,
)
from springroll.models.moe import chosen_are_less, every_expert, moe
from springroll.models.packed import Batch, Stream, closed, learnt, opened, places, read_tokens
from springroll.models.protocols import LanguageModel, Metrics, read_part
from springroll.models.rope import Rotation, rotate, rotations, varies
from springroll.trees import Params

Where: TypeAlias = tuple[Rotation, Sight]


class PerLayer(NamedTuple):
    """What a layer has of its own beside weights: of all layers (L,) int32, or of one () int32.

    `window` is how many tokens a position sees, None where all layers see all; `rope` the number of
    the layer's rotation (`Rotation.of_layer`), None where all have the same.
    """

    window: Array | None
    rope: Array | None


@dataclass(frozen=True)
class Decoder:
    """The model as functions of (params, arrays); see `decoder`."""

    config: DecoderConfig
    remat: bool = False
    apart: ClassVar[bool] = True  # see `Generative` in `springroll.models.protocols`
    table: ClassVar[str] = "embed_tokens"  # see `Stages` there

    @property
    def stack(self) -> str:
        """The name under which the parameters hold the layers (see `protocols.Stages`)."""
        return "layers"

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
        """Matrices init_std * N(0, 1), biases 0, norm weights 1 (0 with norm_plus_one)."""
        return init(self.config, key, dtype)

    def embed(self, params: Params, tokens: Batch) -> Stream:
        """tokens (batch, time) integers, or packed rows -> x (batch, time, D)."""
        tokens, segments = read_tokens(tokens)
        x = jnp.take(params["embed_tokens"], tokens, axis=0)
        x = x * np.asarray(self.config.hidden**0.5, x.dtype) if self.config.embed_scale else x
        return closed(x, segments)

    def block(self, layer: Params, x: Stream, index: Array) -> tuple[Stream, Params]:
        """One layer (a slice of params["layers"]): x (batch, time, D) -> x, and its statistics.

        `index` () int32 is the layer's number. Statistics of a layer with experts are `load` (E,),
        `switch` and `z` (see `moe`); of a dense layer there are none.
        """
        x_BTD, segments = opened(x)
        x_BTD, stats = self._block(layer, x_BTD, self.of_layer(x_BTD.shape[1], index, segments))
        return closed(x_BTD, segments), stats

    def _block(self, layer: Params, x_BTD: Array, where: Where) -> tuple[Array, Params]:
        """The same with arguments as those of `attend`."""
        x_BTD, y = self.attend(layer, x_BTD, where)
        if self.config.experts:
            y, stats = moe(self.config, layer["mlp"], y)
        else:
            y, stats = swiglu(layer["mlp"], y, self.config.activation), {}
        return self.fed(layer, x_BTD, y), stats

    def attend(self, layer: Params, x_BTD: Array, where: Where) -> tuple[Array, Array]:
        """The first half of a layer: (x after attention, input of the feed-forward half).

        `where` are the rotary angles of the layer, and what a position sees (see `of_layer`).
        """
        y = self.norm(x_BTD, layer["input_layernorm"])
        y = attention(self.config, layer["self_attn"], y, *where)
        return self.attended(layer, x_BTD, y)

    def attended(self, layer: Params, x_BTD: Array, y_BTD: Array) -> tuple[Array, Array]:
        """(x after attention that gave y, input of the feed-forward half)."""
        after = "post_attention_layernorm"
        if not self.config.norms_after:
            x_BTD = x_BTD + y_BTD
            return x_BTD, self.norm(x_BTD, layer[after])
        x_BTD = x_BTD + self.norm(y_BTD, layer[after])
        return x_BTD, self.norm(x_BTD, layer["pre_feedforward_layernorm"])

    def fed(self, layer: Params, x_BTD: Array, y_BTD: Array) -> Array:
        """x after a feed-forward half that gave y."""
        if self.config.norms_after:
            y_BTD = self.norm(y_BTD, layer["post_feedforward_layernorm"])
        return x_BTD + y_BTD

    def norm(self, x: Array, weight: Array) -> Array:
        """The norm of this model, over the last axis."""
        return rms_norm(x, weight, self.config.norm_eps, self.config.norm_plus_one)

    def head(self, params: Params, x_BTD: Array) -> Array:
        """Final norm and logits: (batch, time, D) -> (batch, time, V) float32."""
        x, head = self.norm(x_BTD, params["norm"]), self.head_weight(params)
        return soft_cap(float32_product(x, head), self.config.logit_cap)

    def apply(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) integers -> logits (batch, time, V) float32."""
        return self.head(params, self.hidden(params, tokens)[0])

    def loss(self, params: Params, tokens: Batch) -> tuple[Array, Metrics]:
        """tokens (batch, time + 1) -> mean nats per predicted token () float32, and metrics.

        Metrics: `nats`; with experts also `load` (L, E), picks per expert, and `switch` and `z`,
        means over the layers of the routing losses, which are added to the returned value with the
        weights of the configuration. Differentiate with `jax.value_and_grad(..., has_aux=True)`.
        """
        return self.finish(params, *self.hidden(params, read_part(tokens)), tokens)

    def finish(
        self, params: Params, x: Stream, stats: Params, tokens: Batch
    ) -> tuple[Array, Metrics]:
        """`loss` from the residual stream after the last block and statistics per layer."""
        x_BTD, cap = self.norm(opened(x)[0], params["norm"]), self.config.logit_cap
        targets, count = learnt(tokens)
        nats = cross_entropy(x_BTD, self.head_weight(params), targets, cap=cap, count=count)
        if not stats:
            return nats, {"nats": nats}
        switch, z = jnp.mean(stats["switch"]), jnp.mean(stats["z"])
        total = nats + self.config.switch_loss * switch + self.config.z_loss * z
        return total, {"nats": nats, "load": stats["load"], "switch": switch, "z": z}

    def token_nats(
        self, params: Params, tokens: Array, targets: Array, temperature: float = 1.0
    ) -> tuple[Array, Metrics]:
        """Nats of each of the targets (batch, time) that follow the tokens (batch, time).

        0 where a target is negative; logits are divided by the temperature. The metrics are those
        of `loss` that are needed between steps: `load` where there are experts.
        """
        x_BTD, stats = self.hidden(params, tokens)
        x, cap = self.norm(x_BTD, params["norm"]), self.config.logit_cap
        nats = token_nats(x, self.head_weight(params), targets, temperature, cap=cap)
        return nats, {"load": stats["load"]} if stats else {}

    def hidden(self, params: Params, tokens: Batch) -> tuple[Array, Params]:
        """The residual stream after the last block (batch, time, D), and statistics per layer."""
        x, segments = opened(self.embed(params, tokens))
        turn, own = self.rotation(x.shape[1], segments), self.per_layer(x.shape[1])

        def step(x: Array, scanned: tuple[Params, PerLayer]) -> tuple[Array, Params]:
            layer, own = scanned
            return self._block(layer, x, (turn.of_layer(own.rope), Sight(own.window, segments)))

        if self.remat:
            step = jax.checkpoint(step, prevent_cse=False)
        return lax.scan(step, x, (params["layers"], own))

    def memory(self, rows: int, length: int, dtype: DTypeLike = jnp.float32) -> Memory:
        """See `Generative` in `springroll.models.protocols`; so for the next five."""
        c = self.config
        return kv_cache.empty(c.layers, rows, c.kv_heads, length, c.head_dim, dtype)

    def read(
        self, params: Params, tokens: Array, lengths: Array, before: Cache | None = None
    ) -> tuple[Array, Cache]:
        return read(self, params, tokens, lengths, before)

    def reads_on(self, length: int) -> bool:
        """Not where rotations of a beginning depend on the length of the whole text."""
        scalings = [rope.scaling for rope in self.config.ropes if rope is not None]
        return not any(varies(scaling, length) for scaling in scalings)

    def admit(self, memory: Memory, entries: Cache, rows: Array, clock: Array) -> Memory:
        return kv_cache.admit(memory, entries, rows, clock)

    def step(
        self, params: Params, tokens: Array, memory: Memory, seen: Array, clock: Array
    ) -> tuple[Array, Layers]:
        return step(self, params, tokens, memory, seen, clock)

    def keep(self, memory: Memory, entries: Layers, clock: Array) -> Memory:
        return kv_cache.keep(memory, entries, clock)

    def feed_forward(self, params: Params, x_BTD: Array) -> Array:
        """The second half of a layer when nothing is learnt from it: (B, T, D) -> (B, T, D)."""
        if not self.config.experts:
            return swiglu(params, x_BTD, self.config.activation)
        if chosen_are_less(self.config, x_BTD.shape[0] * x_BTD.shape[1]):
            return moe(self.config, params, x_BTD, smallest=1)[0]
        return every_expert(self.config, params, x_BTD)

    @property
    def sliced_head(self) -> str | None:
        """See `protocols.Stages`."""
        return None if self.config.tied or self.config.logit_cap else "lm_head"

    def head_weight(self, params: Params) -> Array:
        return params["embed_tokens"] if self.config.tied else params["lm_head"]

    def rotation(self, time: int, segments: Array | None = None) -> Rotation:
        """The rotary angles of the first `time` positions, or of those within segments (B, T)."""
        if segments is None:
            return self.rotation_at(jnp.arange(time, dtype=jnp.float32), jnp.int32(time))
        turn = self.rotation_at(*(x.reshape(-1) for x in places(segments)))
        return Rotation(*(y.reshape(*y.shape[:-2], *segments.shape, y.shape[-1]) for y in turn))

    def rotation_at(self, place: Array, length: Array) -> Rotation:
        """The same of any positions (time,) in texts of so many tokens, () or (time,) int32."""
        return rotations(tuple(dict.fromkeys(self.config.ropes)), place, length)

    def per_layer(self, time: int) -> PerLayer:
        """What the layers have of their own, in a text of `time` tokens."""
        windows, ropes = self.config.windows, self.config.ropes
        kinds = list(dict.fromkeys(ropes))
        stack = lambda numbers: jnp.asarray(np.array(numbers, np.int32))
        return PerLayer(
            window=stack([window or time for window in windows]) if any(windows) else None,
            rope=stack([kinds.index(rope) for rope in ropes]) if len(kinds) > 1 else None,
        )

    def of_layer(self, time: int, index: Array, segments: Array | None = None) -> Where:
        """Of the layer with that number () int32, what `attend` takes."""
        own = jax.tree.map(lambda x: x[index], self.per_layer(time))
        return self.rotation(time, segments).of_layer(own.rope), Sight(own.window, segments)


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
    expect(isinstance(config, DecoderConfig), "config", config, "one such as named('llama-60m')")
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
            f"an {type(model).__name__} cannot be walked layer by layer; leave out --layerwise, "
            "--fsdp and --engine stream, or take a smaller model"
        )
    return model


def read(
    model: Decoder, params: Params, tokens: Array, lengths: Array, before: Cache | None = None
) -> tuple[Array, Cache]:
    """`Generative.read` of a decoder; its entries are a cache of T slots, after those of `before`.

    What a row has read before stands right before its own tokens, and padding before both.
    """
    config = model.config
    rows, time = tokens.shape
    known = 0 if before is None else before.k.shape[3]
    place = jnp.arange(time, dtype=jnp.int32)[None, :] - (time - lengths)[:, None]
    place, whole = jnp.maximum(place, 0) + known, lengths + known
    turn = model.rotation_at(place.reshape(-1), jnp.repeat(whole, time))
    flat = lambda y: y.reshape(1, rows * time, *y.shape[2:])
    there = lax.iota(jnp.int32, known + time)[None, :] >= known + time - whole[:, None]

    def block(x: Array, scanned: tuple[Params, PerLayer, Cache | None]) -> tuple[Array, Cache]:
        layer, own, old = scanned
        turned = lambda y: rotate(flat(y), turn.of_layer(own.rope)).reshape(y.shape)
        y = model.norm(x, layer["input_layernorm"])
        q, k, v = queries_keys_values(config, layer["self_attn"], y)
        k = turned(k)
        if old is not None:
            k, v = kv_cache.after(old.k, k, lengths), kv_cache.after(old.v, v, lengths)
        sinks = layer["self_attn"].get("sinks")
        y = attend(config, turned(q), k, v, sinks, Sight(own.window, there))
        x = _rest_of_layer(model, layer, x, from_heads(layer["self_attn"], y))
        return x, Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))

    layers = (params["layers"], model.per_layer(known + time), before)
    x, cache = scan_layers(block, model.embed(params, tokens), layers)
    return model.head(params, x[:, -1:])[:, 0], cache


def step(
    model: Decoder, params: Params, tokens: Array, memory: Memory, seen: Array, clock: Array
) -> tuple[Array, Layers]:
    """`Generative.step` of a decoder; its entries have one slot.

    Layer after layer and not in a scan, which would copy each layer's weights and memory out of
    their stacks before it used them: as much traffic again as the step itself.
    """
    config = model.config
    age = kv_cache.ages(memory, clock)
    turn, all_layers = model.rotation_at(seen, seen + 1), model.per_layer(memory.slots + 1)
    layers = params["layers"]
    tables = {name: w for name, w in params.items() if name != "layers" and is_short(w)}
    if tables:
        # A loop of steps would convert the embedding before it starts, as there are no lookups in
        # bfloat16, and turn the head over.
        tokens, tables = lax.optimization_barrier((tokens, tables))
        params = params | tables
    x, entries = model.embed(params, tokens[:, None]), []
    for i in range(config.layers):
        layer = layers[i] if isinstance(layers, list) else jax.tree.map(lambda w: w[i], layers)  # noqa: B023
        own = jax.tree.map(lambda numbers: numbers[i], all_layers)  # noqa: B023
        rows = Rotation(*(y[:, None] for y in turn.of_layer(own.rope)))
        turned = functools.partial(rotate, turn=rows)
        y = model.norm(x, layer["input_layernorm"])
        q, k, v = queries_keys_values(config, layer["self_attn"], y)
        new = Cache(turned(k).swapaxes(1, 2), v.swapaxes(1, 2))
        see = kv_cache.visible(age, seen, own.window)
        sinks = layer["self_attn"].get("sinks")
        y = kv_cache.attend_cached(config, turned(q)[:, 0], new, memory.of_layer(i), see, sinks)
        x = _rest_of_layer(model, layer, x, from_heads(layer["self_attn"], y[:, None]))
        entries.append(Cache(new.k[None], new.v[None]))
    return model.head(params, x)[:, 0], tuple(entries)


def _rest_of_layer(model: Decoder, layer: Params, x: Array, y: Array) -> Array:
    """x after a layer whose attention gave y."""
    x, y = model.attended(layer, x, y)
    return model.fed(layer, x, model.feed_forward(layer["mlp"], y))
