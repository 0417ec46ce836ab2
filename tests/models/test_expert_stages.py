"""Some experts at a time are all experts: outputs, gradients, uneven loads, numbers of passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named, shapes
from springroll.models.expert_stages import (
    expert_stages,
    only_experts,
    pass_picks,
    some_experts,
    without_experts,
)
from springroll.models.moe import dense_weights, moe, route
from tests.compiling import quick_jit

CONFIG = dataclasses.replace(named("moe-tiny"), expert_bias=True, experts=4, top_k=2)
TOKENS = 24


@functools.cache
def layer():
    rng = np.random.default_rng(0)
    shape = lambda s: (0.1 * rng.standard_normal(s[1:])).astype(np.float32)
    return jax.tree.map(shape, shapes(CONFIG)["layers"]["mlp"], is_leaf=lambda s: type(s) is tuple)


def entering(seed=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((TOKENS, CONFIG.hidden)), jnp.float32)


@quick_jit
def routed(params, y):
    return dense_weights(route(CONFIG, params, y), 4)


def slow(params, y, weight):
    """Every expert for every token."""

    def net(gate, up, down, gate_bias, up_bias, down_bias):
        hidden = jax.nn.silu(y @ gate.T + gate_bias[None]) * (y @ up.T + up_bias[None])
        return hidden @ down.T + down_bias[None]

    kinds = ("proj", "bias")
    leaves = [params[f"{name}_{kind}"] for kind in kinds for name in ("gate", "up", "down")]
    return jnp.einsum("STD,TS->TD", jax.vmap(net)(*leaves), weight)


@functools.cache
def pulled(picks=None):
    """arguments -> (output, gradients of all arguments against one direction)."""
    fn = functools.partial(some_experts, CONFIG, picks) if picks else slow

    def both(args):
        out, pull = jax.vjp(fn, *args)
        return out, pull(entering(9))

    return quick_jit(both)


def weights(kind):
    if kind == "routed":
        return routed(layer(), entering())[0]
    found = np.zeros((TOKENS, 4), np.float32)
    if kind == "one":  # all tokens choose the same two experts
        found[:, 1:3] = 0.5
    return jnp.asarray(found)


@pytest.mark.parametrize("kind", ["routed", "one", "none"])
def test_passes_are_the_sum_over_all_experts(kind):
    given = layer()["experts"], entering(), weights(kind)
    out, grads = pulled(7)(given)  # picks of a pass
    expected, (params, dy, dweight) = pulled()(given)
    dweight = jnp.where(given[2] != 0, dweight, 0)
    for got, want in zip(
        jax.tree.leaves((out, grads)),
        jax.tree.leaves((expected, (params, dy, dweight))),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_groups_of_experts_add_up_to_the_mixture():
    y, params = entering(), layer()
    weight, load = routed(params, y)
    expected, stats = quick_jit(functools.partial(moe, CONFIG))(params, y[None])
    some, total = quick_jit(functools.partial(some_experts, CONFIG, 20)), 0
    for begin in (0, 2):
        few = jax.tree.map(lambda x, b=begin: x[b : b + 2], params["experts"])
        total = total + np.asarray(some(few, y, np.asarray(weight)[:, begin : begin + 2]))
    np.testing.assert_allclose(total, expected[0], atol=1e-5)
    np.testing.assert_array_equal(load, stats["load"])


def test_a_pass_has_room_for_an_even_share_and_a_quarter():
    large = dataclasses.replace(CONFIG, experts=128, top_k=4)
    assert pass_picks(large, 4096, 16) == 4096 * 4 // 8 * 5 // 4
    assert pass_picks(large, 4096, 128) == 4096 * 4  # all picks are there
    assert pass_picks(large, 1, 1) == 1


def test_a_kept_input_serves_all_experts_of_a_layer():
    parts = expert_stages(decoder(CONFIG), 2)
    assert parts.of_layer == 3
    assert [parts.source(bundle) for bundle in range(6)] == [0, 1, 1, 3, 4, 4]
    carry = parts.embed({"embed_tokens": jnp.ones((9, CONFIG.hidden))}, jnp.zeros((2, 3), int))
    assert carry.weight.shape == (6, 4)
    assert parts.kept(3, carry)[1:3] == (None, None)
    for bundle in (3, 4, 5):
        again = parts.restored(bundle, parts.kept(bundle, carry))
        assert again.x.shape == carry.x.shape


def test_the_two_trees_are_the_whole_layer():
    whole = {"self_attn": 1, "mlp": {"gate": 2, "experts": {"gate_proj": 3}}}
    assert without_experts(whole) == {"self_attn": 1, "mlp": {"gate": 2}}
    assert only_experts(whole) == {"mlp": {"experts": {"gate_proj": 3}}}
    assert whole["mlp"]["experts"] == {"gate_proj": 3}


def test_what_cannot_be_cut_is_said():
    with pytest.raises(InputError, match="for mixtures of experts; the model has none"):
        expert_stages(decoder(named("llama-tiny")), 2)
    with pytest.raises(InputError, match="is 3; it must divide the 4 experts; take 2"):
        expert_stages(decoder(CONFIG), 3)
    with pytest.raises(InputError, match="is 0; it must divide"):
        expert_stages(decoder(CONFIG), 0)
