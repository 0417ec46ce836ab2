"""The mixture of experts: equal to one token at a time, dropless, balanced by its bias."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama, shape_leaves, shapes
from springroll.models.moe import balance, chosen_are_less, moe, route
from springroll.trees import Params
from tests.compiling import normal, quick_jit
from tests.reference.moe_per_token import moe_per_token

CONFIG = llama(8, 6, 2, 1, vocab=16, experts=5, top_k=2, init_std=1.0)
SIGMOID = dataclasses.replace(CONFIG, router="sigmoid", selection_bias=True)


def layer(config) -> Params:
    """One layer of fresh parameters: matrices of standard normal numbers, biases zero."""
    params: Params = {"experts": {}}
    for seed, (path, shape) in enumerate(shape_leaves(shapes(config)["layers"]["mlp"]).items()):
        inside, _, name = path.rpartition("/")
        leaf = np.zeros(shape[1:], np.float32) if "bias" in path else normal(seed, *shape[1:])
        (params["experts"] if inside else params)[name] = leaf
    return params


def tokens(batch=2, time=9):
    return normal(100, batch, time, CONFIG.hidden)


routed = functools.partial(quick_jit, static_argnums=0)(route)


@functools.partial(quick_jit, static_argnums=0)
def ours(config, params, x):
    def score(params, x):
        y = moe(config, params, x)[0]
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))), y

    return jax.grad(score, (0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize(
    "config", [pytest.param(CONFIG, marks=pytest.mark.slow), SIGMOID], ids=["softmax", "sigmoid"]
)
def test_output_and_gradients_are_those_of_one_token_at_a_time(config):
    params, x = layer(config), tokens()
    if config.selection_bias:
        params["e_score_correction_bias"] = jnp.array([0.3, 0, -0.2, 0.1, 0])

    def score(params, x):
        y = moe_per_token(config, params, x.reshape(-1, config.hidden)).reshape(x.shape)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))), y

    slow = quick_jit(jax.grad(score, (0, 1), has_aux=True))(params, x)
    for a, b in zip(*map(jax.tree.leaves, (ours(config, params, x), slow)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_dead_expert_gets_exactly_no_gradient():
    params = layer(SIGMOID)
    params["e_score_correction_bias"] = jnp.array([0, 0, -9.0, 0, 0])
    (gradient, _), _ = ours(SIGMOID, params, tokens())
    for leaf in jax.tree.leaves(gradient["experts"]):
        assert not np.any(leaf[2])
        assert np.any(leaf[1])
    assert not np.any(gradient["e_score_correction_bias"])


def test_every_pick_is_computed_even_if_all_choose_the_same():
    params = layer(SIGMOID)
    params["e_score_correction_bias"] = jnp.array([9.0, 0, 0, 9.0, 0])
    y, stats = quick_jit(moe, static_argnums=0)(SIGMOID, params, tokens())
    np.testing.assert_array_equal(stats["load"], [18, 0, 0, 18, 0])
    slow = quick_jit(moe_per_token, static_argnums=0)(
        SIGMOID, params, tokens().reshape(-1, SIGMOID.hidden)
    )
    np.testing.assert_allclose(y.reshape(slow.shape), slow, atol=1e-4)


def test_the_selection_bias_chooses_and_has_no_part_in_the_weights():
    config = dataclasses.replace(CONFIG, selection_bias=True)
    params, x = layer(config), tokens().reshape(-1, config.hidden)
    params["e_score_correction_bias"] = jnp.array([0, 9.0, 0, 0, 9.0])
    routing = routed(config, params, x)
    np.testing.assert_array_equal(np.sort(routing.expert_TK), np.tile([1, 4], (len(x), 1)))
    score = jax.nn.softmax(x @ params["gate"].T)
    expected = jnp.take_along_axis(score, routing.expert_TK, axis=1)
    np.testing.assert_allclose(
        routing.weight_TK, expected / expected.sum(1, keepdims=True), rtol=1e-5
    )


def test_routing_losses_by_their_formulas():
    params, x = layer(CONFIG), tokens().reshape(-1, CONFIG.hidden)
    routing = routed(CONFIG, params, x)
    logits = x @ params["gate"].T
    f = np.bincount(np.asarray(routing.expert_TK).reshape(-1), minlength=5) / (2 * len(x))
    p = np.mean(jax.nn.softmax(logits), axis=0)
    np.testing.assert_allclose(routing.switch, 5 * np.sum(f * p), rtol=1e-5)
    np.testing.assert_allclose(
        routing.z, np.mean(np.log(np.sum(np.exp(logits), axis=1)) ** 2), rtol=1e-5
    )
    even = params | {"gate": jnp.zeros((5, CONFIG.hidden))}
    np.testing.assert_allclose(routed(CONFIG, even, x).switch, 1, rtol=1e-6)


def test_balance_moves_every_bias_towards_the_mean_load():
    bias, load = jnp.zeros((2, 4)), jnp.array([[4.0, 0, 2, 2], [1, 1, 1, 1]])
    moved = balance(bias, load, rate=0.01)
    np.testing.assert_allclose(moved, [[-0.01, 0.01, 0, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_balance_evens_out_a_router_with_favourites():
    config = dataclasses.replace(CONFIG, selection_bias=True)
    fresh = quick_jit(decoder(config).init)(jax.random.key(0))["layers"]["mlp"]
    params = jax.tree.map(lambda leaf: leaf[0], fresh)
    x = jnp.abs(jax.random.normal(jax.random.key(1), (4, 64, config.hidden)))
    params["gate"] = (params["gate"] / 5).at[0].set(0.5)  # all tokens like expert 0 best
    x = x.reshape(-1, config.hidden)

    def load(bias):
        routing = route(config, params | {"e_score_correction_bias": bias}, x)
        return jnp.sum(jax.nn.one_hot(routing.expert_TK, 5), axis=(0, 1))

    step = lambda _, bias: balance(bias, load(bias), rate=2e-3)
    both = lambda bias: (load(bias), load(jax.lax.fori_loop(0, 300, step, bias)))
    before, after = quick_jit(both)(jnp.zeros(5))
    assert before.max() > 1.8 * before.mean()
    assert after.max() < 1.1 * after.mean()


def test_chosen_experts_are_taken_where_they_are_less_work():
    config = dataclasses.replace(CONFIG, experts=64, top_k=8)
    assert chosen_are_less(config, 1)  # 8 experts to read, not 64
    assert chosen_are_less(config, 256)  # 2,496 rows, not 16,384
    assert not chosen_are_less(dataclasses.replace(config, experts=8), 256)  # all are chosen
    assert not chosen_are_less(llama(8, 6, 2, 1, vocab=16), 1)
