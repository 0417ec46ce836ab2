"""A part of a population is that part of the whole population, number by number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.evolve.lattice import lattice
from springroll.evolve.lattice_published import published
from springroll.evolve.layer_population import check_elementwise, layer_of, rest_of
from springroll.evolve.roles import describe
from springroll.evolve.step import stored
from springroll.evolve.strategy import Parts

LAYERS, P = 3, 4
SEED = jnp.array([5, 6], jnp.uint32)
PAIRS = jnp.arange(P, dtype=jnp.uint32)
SHAPES = {
    "emb": (7, 5),
    "blocks": {"up": (LAYERS, 5, 4), "experts": (LAYERS, 2, 4, 5), "bias": (LAYERS, 4)},
}
PARAMS = jax.tree.map(
    lambda s: jnp.full(s, 0.5, jnp.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple)
)


def cut(leaf, factors, layer):
    """The factors of one layer out of those of the stack, by the roles of the leaf."""
    if leaf.stacked:
        return tuple(x[layer : layer + 1] for x in factors)
    if leaf.kind == "dense":
        return (factors[0][:, layer : layer + 1],)
    left, right = factors
    rows = lambda x: x[:, layer : layer + 1]
    return (rows(left), right) if leaf.roles[0] == "m" else (left, rows(right))


@pytest.mark.parametrize(
    ("noise", "bias"),
    [
        ("gaussian", "mn"),
        pytest.param("int8", "nm", marks=pytest.mark.slow),
        ("int8", "dense"),
        pytest.param("rademacher", "sd", marks=pytest.mark.slow),
    ],
)
def test_a_layer_is_drawn_as_in_the_stack(noise, bias):
    whole = describe(PARAMS, rank=2, noise=noise, roles={"*bias": bias})
    part = layer_of(whole, "blocks")
    want = whole.draw(SEED, jnp.int32(3), PAIRS)
    draw = jax.jit(lambda layer: part.draw(SEED, jnp.int32(3), PAIRS, first=layer))
    for layer in range(LAYERS):
        got = draw(jnp.int32(layer))
        assert set(got) == {"blocks/up", "blocks/experts", "blocks/bias"}
        for leaf in whole.evolved:
            if leaf.path in got:
                for a, b in zip(got[leaf.path], cut(leaf, want[leaf.path], layer), strict=True):
                    np.testing.assert_array_equal(a, b)


def test_the_rest_is_all_but_the_stack():
    whole = describe(PARAMS, rank=1)
    rest = rest_of(whole, "blocks")
    assert [leaf.path for leaf in rest.leaves] == ["emb"]
    got = rest.draw(SEED, jnp.int32(0), PAIRS)["emb"]
    for a, b in zip(got, whole.draw(SEED, jnp.int32(0), PAIRS)["emb"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_is_rounded_as_in_the_stack():
    old = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"blocks": PARAMS["blocks"]})
    steps = lambda x: jnp.linspace(0.5, 0.51, x.size, dtype=jnp.float32).reshape(x.shape)
    moved = jax.tree.map(steps, old)
    none = jax.tree.map(lambda _: optax.MaskedNode(), old)
    whole, _ = stored(old, moved, none, "stochastic", SEED, jnp.int32(2))
    rounded = jax.jit(
        lambda old, moved, first: stored(old, moved, none, "stochastic", SEED, jnp.int32(2), first)
    )
    for layer in range(LAYERS):
        one = lambda tree, i=layer: jax.tree.map(lambda x: x[i : i + 1], tree)
        part, _ = rounded(one(old), one(moved), jnp.int32(layer))
        jax.tree.map(np.testing.assert_array_equal, part, one(whole))


def population_of(es):
    assert isinstance(es.parts, Parts)
    return es.parts.population


def test_a_population_of_a_part_draws_within_its_budget():
    es = sr.eggroll(pop_size=2 * P, sigma=0.1, noise_budget_bytes=200)
    whole = population_of(es).perturbation(PARAMS)
    part = population_of(es).of_part(layer_of(whole, "blocks"))
    assert part.known and not part.known.stored and part.known.pairs_per_chunk == 1
    assert part.perturbation(None) is part.known
    roomy = population_of(sr.eggroll(pop_size=2 * P, sigma=0.1)).of_part(rest_of(whole, "blocks"))
    assert roomy.known and not roomy.known.stored and roomy.known.pairs_per_chunk is None


OPTIMIZERS = {
    "sgd": optax.sgd(lambda step: 0.1 / (1 + step), momentum=0.9),
    "adamw": optax.adamw(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "lamb": optax.lamb(1e-3),
    "if finite": optax.apply_if_finite(optax.sgd(0.1), 3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_mix_numbers_are_told(name):
    state = jax.eval_shape(OPTIMIZERS[name].init, PARAMS)
    if name in ("sgd", "adamw"):
        check_elementwise(OPTIMIZERS[name], PARAMS, state)
    else:
        with pytest.raises(InputError, match=r"the optimizer takes a reduce_\w+ over many"):
            check_elementwise(OPTIMIZERS[name], PARAMS, state)


def test_who_cannot_be_parted_says_why():
    assert "order of all parameters" in published(pop_size=2, table_bits=8).parts
    assert population_of(lattice(pop_size=4)).pop_size == 4
    other = dataclasses.replace(describe(PARAMS, rank=1), draw_leaf=lambda *_: ())
    with pytest.raises(InputError, match="cannot be drawn for one layer"):
        layer_of(other, "blocks")
