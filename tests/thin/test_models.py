"""Whole models from four libraries, unmodified: a population of thin weights equals dense ones.

Every model is analysed by `discover`, perturbed by its roles, vmapped over members, and compared
with the plain model on weights formed in full. None of the models knows of springroll.
"""

import dataclasses

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from springroll.thin.discovery import discover
from springroll.thin.transform import factored
from tests.thin.against_dense import (
    check,
    close,
    dense_numpy,
    equations,
    is_factored,
    over_population,
    weight,
    weights,
)

IDS = jnp.array([[1, 5, 3, 0, 7], [2, 2, 9, 10, 4]])
D = 12


@pytest.fixture(autouse=True)
def lenient_promotion():
    """The libraries themselves promote ranks and types."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def filled(shapes):
    """Random numbers for a tree of shapes, so that no library compiles its initialisers."""
    rng = np.random.default_rng(0)

    def one(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype)

    return jax.tree.map(one, shapes)


def perturbed(fn, params, *args):
    """(params with thin weights where the roles say low-rank, the roles)."""
    roles = discover(fn, params, *args)

    def one(path, leaf):
        entry = roles.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if entry is None or entry.kind != "low-rank":
            return leaf
        w = weight(len(entry.path), entry.shape, entry.roles, rank=1, gain=0.1)
        return dataclasses.replace(w, base=leaf)

    return jax.tree_util.tree_map_with_path(one, params), roles


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3)(h, h)
        h = nn.gelu(nn.Dense(2 * D)(nn.LayerNorm()(x)))
        return x + nn.Dense(D)(h), None


class LinenLM(nn.Module):
    """Tied embedding, learned positions, scanned and rematerialised attention blocks."""

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(11, D)
        x = embed(ids) + self.param("pos", nn.initializers.normal(), (8, D))[: ids.shape[-1]]
        blocks = nn.scan(
            nn.remat(LinenBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = blocks()(x, None)
        return embed.attend(nn.LayerNorm()(x))


def linen_lm():
    model = LinenLM()
    params = filled(jax.eval_shape(model.init, jax.random.key(0), IDS))
    return model.apply, params, (IDS,)


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(5, (3, 3), strides=(2, 2), padding="VALID")(x))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


def linen_cnn():
    model, x = LinenCNN(), jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    return model.apply, filled(jax.eval_shape(model.init, jax.random.key(0), x)), (x,)


def linen_gru():
    model = nn.RNN(nn.GRUCell(D))
    x = jnp.linspace(-1, 1, 2 * 5 * 4).reshape(2, 5, 4)
    return model.apply, filled(jax.eval_shape(model.init, jax.random.key(0), x)), (x,)


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, D, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, D, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        self.head = nnx.Linear(D, 11, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        return self.head(x + self.attention(self.norm(x)))


def nnx_transformer():
    graph, shapes = nnx.split(nnx.eval_shape(lambda: NNXTransformer(nnx.Rngs(0))), nnx.Param)
    params = filled(shapes)
    fn = lambda params, ids: nnx.merge(graph, params)(ids)
    return fn, params, (IDS,)


def built(make):
    return filled(eqx.filter_eval_shape(make, jax.random.key(0)))


def equinox_mlp():
    model = built(lambda key: eqx.nn.MLP(6, 3, 10, 2, activation=jnp.tanh, key=key))
    params, static = eqx.partition(model, eqx.is_array)
    x = jnp.linspace(-1, 1, 12).reshape(2, 6)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, (x,)


def equinox_attention():
    model = built(lambda key: eqx.nn.MultiheadAttention(3, D, key=key))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x = jnp.linspace(-1, 1, 5 * D).reshape(5, D)
    return lambda params, x: eqx.combine(params, static)(x, x, x), params, (x,)


def haiku_network():
    def forward(ids):
        x = hk.Embed(11, D)(ids)
        x = hk.LayerNorm(-1, True, True)(x)
        core = hk.GRU(D)
        x, _ = hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)
        return hk.nets.MLP([10, 4])(x)

    net = hk.without_apply_rng(hk.transform(forward))
    return net.apply, filled(jax.eval_shape(net.init, jax.random.key(0), IDS)), (IDS,)


def plain_decoder():
    """Fused qkv, rotary positions, a gated MLP, int8-free plain code over stacked blocks."""
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.normal(size=s) / np.sqrt(s[-2]), jnp.float32)
    params = {
        "embed": draw(11, D),
        "qkv": draw(2, D, 3 * D),
        "out": draw(2, D, D),
        "gate_up": draw(2, D, 2, 15),
        "down": draw(2, 15, D),
        "scale": jnp.ones((2, D)),
    }

    def rms(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def block(x, p):
        q, k, v = jnp.split(rms(x, p["scale"]) @ p["qkv"], 3, -1)
        heads = lambda a: a.reshape(*a.shape[:-1], 3, 4)
        x = (
            x
            + jax.nn.dot_product_attention(*map(heads, (q, k, v)), is_causal=True).reshape(x.shape)
            @ p["out"]
        )
        gate, up = jnp.moveaxis(jnp.einsum("btd,dcf->btcf", x, p["gate_up"]), -2, 0)
        return x + (jax.nn.silu(gate) * up) @ p["down"], None

    def fn(params, ids):
        blocks = {k: v for k, v in params.items() if k != "embed"}
        x, _ = jax.lax.scan(block, params["embed"][ids], blocks)
        return x @ params["embed"].T

    return fn, params, (IDS,)


MODELS = {
    # model: number of low-rank parameters
    linen_lm: 7,
    linen_cnn: 3,
    linen_gru: 6,
    nnx_transformer: 6,
    equinox_mlp: 3,
    equinox_attention: 4,
    haiku_network: 5,
    plain_decoder: 5,
}


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_model(model):
    fn, params, args = model()
    thin, roles = perturbed(fn, params, *args)
    kinds = [leaf.kind for leaf in roles.values()]
    assert kinds.count("low-rank") == MODELS[model] == len(weights(thin))
    assert set(kinds) <= {"low-rank", "dense"}
    assert not any("consumed by" in leaf.reason for leaf in roles.values())
    check(fn, thin, *args, tol=1e-4)


def test_a_module_with_functions_among_its_leaves():
    """An Equinox module as the argument: its activation stays a Python function."""
    model = built(lambda key: eqx.nn.MLP(6, 3, 10, 1, activation=jax.nn.relu, key=key))
    x = jnp.linspace(-1, 1, 6)
    fn = lambda model, x: model(x)
    thin, roles = perturbed(fn, model, x)
    assert [leaf.kind for leaf in roles.values()].count("low-rank") == 2
    whole = lambda w: dense_numpy(w) if is_factored(w) else w
    dense = jax.tree.map(whole, thin, is_leaf=is_factored)
    close(factored(fn, densify_limit=0)(thin, x), fn(dense, x), 1e-5)


def test_every_base_is_multiplied_without_a_population_axis():
    """In the whole language model, no product of a base has a batch axis for members."""
    fn, params, args = linen_lm()
    thin, _ = perturbed(fn, params, *args)
    whole, stacked, _ = over_population(fn, thin, densify_limit=0)
    seen = 0
    bases = {w.shape for w in weights(thin)} | {w.shape[1:] for w in weights(thin)} | {(D, 11)}
    for eqn in equations(jax.make_jaxpr(whole)(stacked, *args)):
        if eqn.primitive.name != "dot_general":
            continue
        _, (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
        for var, batch in zip(eqn.invars, (lhs_batch, rhs_batch), strict=True):
            if var.aval.shape in bases and var.aval.ndim > 1 and not batch:
                seen += 1
    assert seen == 7  # q, k, v, out, two dense layers, and the tied head
