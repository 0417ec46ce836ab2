"""One member's weights are what it was scored with, whatever strategy asked for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.quant.int8_weights import int8_of

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 8))
WEIGHTS = {
    "w": jax.random.normal(jax.random.key(1), (2, 8, 8)),
    "b": jnp.zeros(8),
    "steps": jnp.int32(3),
}


def score(params, x):
    for i in range(2):
        x = jnp.tanh(x @ params["w"][i] + params["b"][None])
    return jnp.sum(x) * params["steps"].astype(jnp.float32)


def integer_score(params, x):
    x = jnp.round(x * 16).astype(jnp.int8)
    return jnp.sum(jax.lax.dot(x, params["w"][0], preferred_element_type=jnp.int32))


def coded_score(params, x):
    w = params["w"]
    return jnp.sum(jnp.tanh((x @ w.values.astype(jnp.float32).T) * w.scale[None]))


INT8 = {"w": (WEIGHTS["w"] * 16).astype(jnp.int8)}
CASES = {
    "eggroll": (sr.eggroll(pop_size=6, sigma=0.1), WEIGHTS, score),
    "redrawn": (sr.eggroll(pop_size=6, sigma=0.1, noise_budget_bytes=1), WEIGHTS, score),
    "single": (sr.eggroll(pop_size=5, sigma=0.1, antithetic=False), WEIGHTS, score),
    "open_es": (sr.open_es(pop_size=6, sigma=0.1), WEIGHTS, score),
    "lattice": (sr.lattice(pop_size=6, sigma=0.5), INT8, integer_score),
    "int8": (sr.eggroll(pop_size=6, sigma=0.1), {"w": int8_of(WEIGHTS["w"][0])}, coded_score),
}


QUICK = ("eggroll", "open_es", "lattice", "int8")
RARE = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *RARE])
def test_a_member_is_what_was_scored(name):
    es, params, fn = CASES[name]
    state = es.init(KEY, params)
    members = es.ask(state)
    fitness = sr.evaluate(fn, state, members, X)
    formed = [sr.member(state, members, i) for i in range(members.size)]
    np.testing.assert_allclose(
        np.asarray(fitness, np.float64),
        [float(fn(one, X)) for one in formed],
        rtol=0.15 if name == "lattice" else 1e-5,  # where the thin term is rounded differs
    )
    assert jax.tree.structure(formed[0]) == jax.tree.structure(state.params)
    best = sr.best_member(state, members, fitness)
    jax.tree.map(np.testing.assert_array_equal, best, formed[int(fitness.argmax())])


def test_failed_members_are_not_the_best():
    es, params, _ = CASES["eggroll"]
    state = es.init(KEY, params)
    members = es.ask(state)
    fitness = [np.nan, -3.0, np.inf, -1.0, -np.inf, -1.0]
    best, third = sr.best_member(state, members, fitness), sr.member(state, members, 3)
    np.testing.assert_array_equal(best["w"], third["w"])
    with pytest.raises(InputError, match="none of 6 members has a finite fitness"):
        sr.best_member(state, members, [np.nan] * 6)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (6, "index is 6; expected one of 6 members, from 0 on"),
        (-1, "index is -1; expected at least 0"),
        (1.5, "index is 1.5; expected a whole number"),
    ],
)
def test_there_must_be_such_a_member(index, says):
    es, params, _ = CASES["eggroll"]
    state = es.init(KEY, params)
    with pytest.raises(InputError, match=says):
        sr.member(state, es.ask(state), index)
    with pytest.raises(InputError, match="state and members are swapped"):
        sr.member(es.ask(state), state, 0)
