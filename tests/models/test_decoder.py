"""The decoder: its parts make the whole, causal, one compiled block, low-rank all through."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.models.attention import attend
from springroll.models.attention_scores import Sight
from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama, shape_leaves, shapes
from tests.compiling import normal, quick_jit, temporary_bytes

DENSE = llama(16, 24, 4, 2, vocab=20, kv_heads=2, qk_norm="head", init_std=0.3)
MOE = llama(16, 8, 4, 2, vocab=20, experts=4, top_k=2, selection_bias=True, init_std=0.3)
KINDS = pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "experts"])


@functools.cache
def case(config, time=7):
    """(model, parameters as `init` spreads them, tokens)."""
    fresh = {}
    for seed, (path, shape) in enumerate(shape_leaves(shapes(config)).items()):
        matrix = not path.endswith("bias") and "norm" not in path
        fresh[path] = (
            0.3 * normal(seed, *shape) if matrix else jnp.full(shape, "norm" in path, float)
        )
    tree = jax.tree.structure(shapes(config), is_leaf=lambda node: isinstance(node, tuple))
    tokens = np.random.default_rng(100).integers(0, config.vocab, (4, time))
    return decoder(config), tree.unflatten(fresh.values()), jnp.asarray(tokens, jnp.int32)


@functools.partial(quick_jit, static_argnums=0)
def apply(model, params, tokens):
    return model.apply(params, tokens)


@functools.partial(quick_jit, static_argnums=0)
def learn(model, params, tokens):
    return jax.value_and_grad(model.loss, has_aux=True)(params, tokens)


def close(a, b, atol=1e-5):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@KINDS
def test_embed_blocks_and_head_walked_one_by_one_are_apply(config):
    model, params, tokens = case(config)

    @quick_jit
    def walk(params, tokens):
        x = model.embed(params, tokens)
        for i in range(config.layers):
            x, _ = model.block(
                jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]), x, jnp.int32(i)
            )
        return model.head(params, x)

    close(walk(params, tokens), apply(model, params, tokens))


@KINDS
def test_a_position_sees_nothing_after_it(config):
    model, params, tokens = case(config)
    other = tokens.at[:, 4].set((tokens[:, 4] + 1) % config.vocab)
    before, after = apply(model, params, tokens), apply(model, params, other)
    close(before[:, :4], after[:, :4])
    assert np.all(np.max(np.abs(before - after)[:, 4:], axis=(1, 2)) > 1e-3)


def test_a_window_hides_what_is_further_back():
    q, k, v = normal(0, 3, 1, 9, 2, 4)
    see = quick_jit(functools.partial(attend, llama(8, 8, 2, 1, vocab=5, head_dim=4)))
    near = see(q, k, v, sight=Sight(jnp.int32(3)))
    moved = see(q, k.at[:, 2].add(1.0), v.at[:, 2].add(1.0), sight=Sight(jnp.int32(3)))
    same = np.all(near == moved, axis=(0, 2, 3))
    np.testing.assert_array_equal(same, [True] * 2 + [False] * 3 + [True] * 4)
    close(see(q, k, v, sight=Sight(jnp.int32(9))), see(q, k, v))


def test_shared_key_value_heads_are_repeated_ones():
    q, k, v = normal(0, 3, 2, 5, 6, 4)
    k, v = k[:, :, :2], v[:, :, :2]
    repeat = lambda x: np.repeat(x, 3, axis=2)
    see = quick_jit(functools.partial(attend, llama(8, 8, 2, 1, vocab=5, head_dim=4)))
    close(see(q, k, v), see(q, repeat(k), repeat(v)))


@KINDS
def test_loss_is_the_mean_code_length_and_counts_the_picks(config):
    model, params, tokens = case(config)
    (loss, metrics), _ = learn(model, params, tokens)
    logits = np.asarray(apply(model, params, tokens), np.float64)[:, :-1]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(probabilities, np.asarray(tokens)[:, 1:, None], axis=-1)
    np.testing.assert_allclose(loss, -np.mean(np.log(picked)), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["nats"])
    if config.experts:
        assert metrics["load"].shape == (config.layers, config.experts)
        np.testing.assert_array_equal(np.sum(metrics["load"], axis=1), config.top_k * 4 * 6)


def test_routing_losses_are_added_with_their_weights():
    model, params, tokens = case(MOE)
    (_, plain), _ = learn(model, params, tokens)
    weighted = decoder(dataclasses.replace(MOE, switch_loss=0.5, z_loss=0.25))
    loss, metrics = quick_jit(weighted.loss)(params, tokens)
    expected = plain["nats"] + 0.5 * plain["switch"] + 0.25 * plain["z"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["nats"], plain["nats"], rtol=1e-6)


def test_remat_changes_no_number():
    model, params, tokens = case(MOE)
    close(learn(model, params, tokens), learn(decoder(MOE, remat=True), params, tokens))


def test_remat_holds_less():
    deep = dataclasses.replace(DENSE, layers=8)
    shape = jax.eval_shape(decoder(deep).init, jax.random.key(0))
    long = jax.ShapeDtypeStruct((8, 65), jnp.int32)
    temp = lambda model: temporary_bytes(learn.lower(model, shape, long).compile())
    assert temp(decoder(deep, remat=True)) < 0.6 * temp(decoder(deep))


@pytest.mark.parametrize(
    "config", [DENSE, pytest.param(MOE, marks=pytest.mark.slow)], ids=["dense", "experts"]
)
def test_the_program_does_not_grow_with_depth(config):
    def lines(layers):
        deep = dataclasses.replace(config, layers=layers)
        shape = jax.eval_shape(decoder(deep).init, jax.random.key(0))
        text = learn.lower(decoder(deep), shape, jax.ShapeDtypeStruct((4, 7), jnp.int32)).as_text()
        return len(text.splitlines())

    assert lines(3) == lines(30)


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same():
    model, params, tokens = case(MOE)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    close(learn(model, params, jax.device_put(tokens, split)), learn(model, params, tokens))


@KINDS
def test_every_matrix_is_found_to_be_low_rank(config):
    model, params, tokens = case(config)
    roles = sr.discover(lambda p, t: model.loss(p, t)[0], params, tokens)
    for path, leaf in roles.items():
        matrix = "proj" in path or path.endswith(("embed_tokens", "lm_head", "mlp/gate"))
        assert (leaf.kind == "low-rank") == matrix, (path, leaf)
    assert roles["layers/self_attn/q_proj"].roles == "snm"
    if config.experts:
        assert roles["layers/mlp/experts/down_proj"].roles == "ssnm"


def test_bfloat16_parameters_give_float32_logits_near_those_of_float32():
    model, params, tokens = case(DENSE)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    logits = apply(model, narrow, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, apply(model, wide, tokens), atol=0.15)


@KINDS
def test_bfloat16_parameters_have_bfloat16_gradients_and_a_float32_loss(config):
    model, params, tokens = case(config)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    (loss, metrics), gradient = jax.eval_shape(
        jax.value_and_grad(model.loss, has_aux=True), narrow, tokens
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in (loss, *metrics.values())} == {jnp.dtype(jnp.float32)}


def test_fresh_parameters_have_their_spread_and_a_key_decides_them():
    config = dataclasses.replace(MOE, qkv_bias=True, sinks=True)
    init = quick_jit(decoder(config).init, static_argnums=1)
    params = init(jax.random.key(0), jnp.float32)
    layers = params["layers"]
    assert np.std(layers["mlp"]["experts"]["up_proj"]) == pytest.approx(0.3, rel=0.05)
    assert not np.array_equal(layers["self_attn"]["q_proj"], layers["self_attn"]["o_proj"])
    assert np.all(params["norm"] == 1) and np.all(layers["input_layernorm"] == 1)
    assert not np.any(layers["self_attn"]["k_bias"]) and not np.any(layers["self_attn"]["sinks"])
    short = jax.eval_shape(lambda key: decoder(config).init(key, jnp.bfloat16), jax.random.key(0))
    other = init(jax.random.key(1), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(short)} == {jnp.dtype(jnp.bfloat16)}
    assert not np.array_equal(other["embed_tokens"], params["embed_tokens"])
