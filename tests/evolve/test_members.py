"""Evaluation of a population equals running every member's formed weights one after another."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.evolve.members import Members, chunks_of, evaluate
from springroll.evolve.roles import describe
from springroll.evolve.strategy import EvolutionState
from tests.evolve.dense_population import all_params

N, D, H, LAYERS, T = 12, 11, 8, 2, 3
SEED = jnp.array([5, 6], jnp.uint32)


def init():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "emb": jax.random.normal(keys[0], (7, D)),
        "blocks": {
            "up": jax.random.normal(keys[1], (LAYERS, D, H)) / D,
            "down": jax.random.normal(keys[2], (LAYERS, H, D)) / H,
            "bias": jnp.zeros((LAYERS, H)),
        },
        "scale": jnp.ones(D),
    }


PARAMS = init()
TOKENS = jnp.arange(N * T, dtype=jnp.int32).reshape(N, T) * 5 % 7
CARRY = jnp.linspace(-1, 1, N * D, dtype=jnp.float32).reshape(N, D)


def score(params, tokens, carry, shift):
    """A scanned little network with a carried state: (fitness, new carry)."""

    def block(x, layer):
        return x + jnp.tanh(x @ layer["up"] + layer["bias"][None]) @ layer["down"], None

    x = params["emb"][tokens] * params["scale"][None] + carry[None]
    x = jax.lax.scan(block, x, params["blocks"])[0]
    return jnp.mean(x @ params["emb"].T) + shift, {"carry": x[-1], "last": tokens[-1]}


IN_AXES = (0, 0, None)


def members_of(*, rank=2, noise="gaussian", mesh=None, stored=True, chunk=None, antithetic=True):
    perturbation = describe(
        PARAMS, rank=rank, noise=noise, roles={"*bias": "dense"}, antithetic=antithetic, mesh=mesh
    )
    perturbation = dataclasses.replace(perturbation, stored=stored, pairs_per_chunk=chunk)
    pairs = jnp.arange(N // len(perturbation.signs), dtype=jnp.uint32)
    members = Members(pairs, None, SEED, jnp.int32(3), jnp.float32(0.3), perturbation)
    return members.keep_factors() if stored else members


def state_of(params):
    return EvolutionState(params, None, None, SEED, jnp.int32(0))


def run(members, **options):
    args = (TOKENS, CARRY, jnp.float32(0.5))
    return evaluate(
        score, state_of(PARAMS), members, *args, in_axes=IN_AXES, has_aux=True, **options
    )


def one_by_one(members):
    plain = jax.jit(score)
    results = [
        plain(params, TOKENS[i], CARRY[i], jnp.float32(0.5))
        for i, params in enumerate(all_params(PARAMS, members))
    ]
    return jax.tree.map(lambda *x: np.stack(x), *results)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.parametrize(
    "noise", ["gaussian", pytest.param("rademacher", marks=pytest.mark.slow), "int8"]
)
def test_equals_formed_weights(noise):
    members = members_of(noise=noise)
    fitness, aux = run(members)
    assert fitness.shape == (N,) and fitness.dtype == jnp.float32
    assert aux["carry"].shape == (N, D)
    assert_close((fitness, aux), one_by_one(members))


def test_equals_formed_weights_without_pairs():
    members = members_of(antithetic=False, rank=1)
    assert members.size == N and members.pairs.shape == (N,)
    assert_close(run(members), one_by_one(members))


def test_chunks_change_nothing():
    """4 pairs do not divide 6: the last chunk overlaps, and its overlap is thrown away."""
    assert_close(run(members_of(), pairs_per_chunk=4), run(members_of()))


@pytest.mark.slow  # devices do so too, below
def test_chunks_that_are_drawn_anew_change_nothing():
    assert_close(run(members_of(stored=False, chunk=2)), run(members_of()))


@pytest.mark.parametrize(
    ("devices", "how"),
    [pytest.param(2, {}, marks=pytest.mark.slow), (3, {"stored": False, "chunk": 1})],
)
def test_devices_change_nothing(devices, how):
    want = run(members_of())
    mesh = jax.make_mesh((devices,), ("population",), devices=jax.devices()[:devices])
    assert_close(run(members_of(mesh=mesh, **how)), want)


def test_chunk_sizes():
    assert chunks_of(12, None) == (1, 12)
    assert chunks_of(12, 5) == (3, 4)
    assert chunks_of(13, 5) == (3, 5)
    assert chunks_of(1 << 17, 1040) == (128, 1024)
    assert chunks_of(3, 100) == (1, 3)


def test_integer_fitness_stays_integer():
    members = members_of()
    count = lambda params, tokens: jnp.argmax(params["emb"][tokens] @ params["scale"])
    fitness = evaluate(count, state_of(PARAMS), members, TOKENS, in_axes=0)
    assert fitness.dtype == jnp.int32


def test_shared_keys_and_member_keys():
    """Random keys may be shared by all members or differ between them, in chunks too."""
    noisy = lambda params, key: jax.random.normal(key) + 0 * params["scale"].sum()
    state, members = state_of(PARAMS), members_of()
    keys = jax.random.split(jax.random.key(1), N)
    want = jax.vmap(jax.random.normal)(keys)
    for chunk in (None, 4):
        got = evaluate(noisy, state, members, keys, in_axes=0, pairs_per_chunk=chunk)
        np.testing.assert_allclose(got, want, rtol=1e-6)
    shared = evaluate(noisy, state, members, keys[0])
    np.testing.assert_allclose(shared, np.full(N, want[0]), rtol=1e-6)


def test_axes_may_be_a_tree():
    fn = lambda params, batch: params["scale"].sum() * 0 + batch["x"].sum() + batch["y"]
    batch = {"x": jnp.ones(4), "y": jnp.arange(N, dtype=jnp.float32)}
    got = evaluate(fn, state_of(PARAMS), members_of(), batch, in_axes=({"x": None, "y": 0},))
    np.testing.assert_allclose(got, 4 + np.arange(N))


def hlo(members, **options):
    call = lambda params, members: evaluate(
        score,
        state_of(params),
        members,
        TOKENS,
        CARRY,
        jnp.float32(0),
        in_axes=IN_AXES,
        has_aux=True,
        **options,
    )
    return jax.jit(call).lower(PARAMS, members).compile().as_text() or ""


def test_structure_no_weight_per_member():
    """No array with a population axis and both axes of a weight; the base GEMMs are un-batched."""
    text = hlo(members_of())
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)]
    assert (LAYERS, D, H) in shapes
    for shape in shapes:
        population = {N, N // 2} & set(shape)
        assert not (population and ({D, H} <= set(shape) or {D, 7} <= set(shape))), shape
    dots = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
    assert f"{N * T},{H}" in dots and f"{N * T},{D}" in dots


def test_structure_no_collective_in_the_forward():
    mesh = jax.make_mesh((2,), ("population",), devices=jax.devices()[:2])
    text = hlo(members_of(mesh=mesh))
    for collective in (
        "all-reduce",
        "all-gather",
        "all-to-all",
        "collective-permute",
        "reduce-scatter",
    ):
        assert collective not in text


def test_public_name():
    assert sr.evaluate is evaluate


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((jnp.zeros(5),), {"in_axes": 0}, r"shape \[5\]; expected 12 members"),
        ((jnp.zeros(5),), {"in_axes": 1}, "in_axes holds 1; expected 0"),
        ((jnp.zeros(5),), {"in_axes": (0, None)}, "in_axes has 2 entries for 1 arguments"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(lambda p, x: x.sum(), state_of(PARAMS), members_of(), *arguments, **options)


def test_fitness_must_be_a_scalar():
    with pytest.raises(InputError, match=r"fitness of shape \[11\]; expected a scalar"):
        evaluate(lambda p: p["scale"], state_of(PARAMS), members_of())


def test_pairs_must_divide_over_the_devices():
    mesh = jax.make_mesh((4,), ("population",))
    with pytest.raises(InputError, match="6 pairs do not divide over 4 devices"):
        run(members_of(), mesh=mesh)
