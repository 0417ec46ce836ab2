"""A state that is told in place is the state that `tell` makes, in the memory of its weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.evolve.in_place import programs_in_place, tell_in_place
from springroll.evolve.momentum import Momentum
from springroll.quant.int8_weights import quantize_weights
from springroll.trees import named_leaves

POP, SLICE = 8, 4 * 100  # bytes: a layer, and a few rows of the embedding with a rest


def params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) * 0.3, dtype)
    return {"emb": draw(37, 8), "norm": draw(8), "layers": {"up": draw(3, 12, 8)}}


def strategy(**options):
    usual = {"pop_size": POP, "sigma": 0.05, "roles": {"norm": "frozen"}, "master": "stochastic"}
    return sr.eggroll(**{**usual, "optimizer": optax.sgd(0.3), **options})


def fitness(generation):
    values = np.random.default_rng(generation).standard_normal(POP)
    return jnp.asarray(values if generation != 1 else np.full(POP, np.nan), jnp.float32)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"optimizer": optax.adam(1e-2)}, jnp.float32),
        ({"max_step_ratio": 1e-3, "momentum": Momentum(0.9, 3)}, jnp.bfloat16),
        pytest.param({"noise_budget_bytes": 1, "roles": None}, jnp.float32, marks=pytest.mark.slow),
        pytest.param({"master": "float32"}, jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_the_state_is_that_of_tell(options, dtype):
    es = strategy(**options)
    tell = tell_in_place(es, SLICE)
    state = es.init(jax.random.key(0), params(dtype))
    other = jax.tree.map(jnp.copy, state)
    for generation in range(3):
        state, metrics = es.tell(state, es.ask(state), fitness(generation))
        given = other.params
        other, same = tell(other, es.ask(other), fitness(generation))
        assert given["emb"].is_deleted() and not given["norm"].is_deleted()
        np.testing.assert_allclose(same["step_ratio"], metrics["step_ratio"], rtol=1e-5)
    for path, x in named_leaves(state).items():
        y = named_leaves(other)[path]
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path
        tolerance = 2e-7 if x.dtype != jnp.bfloat16 else 4e-3
        np.testing.assert_allclose(
            np.asarray(y, np.float32), np.asarray(x, np.float32), atol=tolerance, err_msg=path
        )


def test_a_model_no_larger_than_a_slice_is_updated_whole():
    es = strategy()
    state = es.init(jax.random.key(0), params())
    expected, _ = es.tell(state, es.ask(state), fitness(0))
    given = state.params
    new, _ = tell_in_place(es)(state, es.ask(state), fitness(0))
    jax.tree.map(np.testing.assert_array_equal, new, expected)
    assert given["emb"].is_deleted()


@pytest.mark.parametrize(
    "master", ["error_feedback_4bit", pytest.param("error_feedback", marks=pytest.mark.slow)]
)
def test_int8_weights_and_their_residuals(master):
    es = strategy(master=master, roles=None)
    held = quantize_weights({"up": params()["layers"]["up"]}, lambda path, x: True)
    tell = tell_in_place(es, SLICE)
    state = es.init(jax.random.key(0), held)
    other = jax.tree.map(jnp.copy, state)
    for generation in (0, 2):
        state, _ = es.tell(state, es.ask(state), fitness(generation))
        other, _ = tell(other, es.ask(other), fitness(generation))
    for path, x in named_leaves(state).items():
        wrong = np.mean(np.asarray(x) != np.asarray(named_leaves(other)[path]))
        assert wrong <= 0.02, path  # a tie of rounding may fall either way; two share a byte


def test_an_update_takes_the_memory_of_a_slice():
    """Compiled and not run: 1 MiB of weights, in slices of 64 KiB."""
    es = strategy(roles=None, max_step_ratio=0.1)
    shapes = jax.eval_shape(lambda: {"layers": {"up": jnp.zeros((32, 64, 256), jnp.bfloat16)}})
    state = jax.eval_shape(es.init, jax.random.key(0), shapes)
    members = jax.eval_shape(es.ask, state)
    programs = list(programs_in_place(es, state, members, 1 << 16))
    assert len(programs) == 2
    for program in programs:
        used = program.lower().compile().memory_analysis()
        assert used is not None
        assert used.temp_size_in_bytes + used.output_size_in_bytes < 4 * (1 << 16)


def test_what_cannot_be_told_in_place():
    with pytest.raises(InputError, match="does not follow a sum of members; use its tell"):
        tell_in_place(sr.lattice(pop_size=POP))
    mesh = jax.make_mesh((2,), ("population",), devices=jax.devices()[:2])
    with pytest.raises(InputError, match="with a mesh cannot be told in place"):
        tell_in_place(strategy(mesh=mesh))
    es = strategy(optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)))
    state = es.init(jax.random.key(0), params())
    with pytest.raises(InputError, match="the optimizer takes a reduce_"):
        tell_in_place(es, SLICE)(state, es.ask(state), fitness(0))


@functools.cache
def after_five(generations):
    """Parameters after five generations: of SGD that keeps its momentum, or makes it of as many."""
    again = {"momentum": Momentum(0.8, generations)} if generations else {}
    es = strategy(noise_reuse=2, **(again or {"optimizer": optax.sgd(0.3, momentum=0.8)}))
    state = es.init(jax.random.key(0), params())
    for generation in range(5):
        state, _ = es.tell(state, es.ask(state), fitness(generation))
    return state.params


def test_momentum_made_again_is_that_which_is_kept():
    kept, again = after_five(None), after_five(5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), kept, again)
    cut = after_five(2)
    assert float(jnp.abs(kept["emb"] - cut["emb"]).max()) > 1e-3


def test_momentum_that_cannot_be():
    with pytest.raises(InputError, match=r"decay of momentum is 1.0; it must be from 0 to below 1"):
        strategy(momentum=Momentum(1.0, 3))
    with pytest.raises(InputError, match="generations of momentum is 0; it must be at least 1"):
        strategy(momentum=Momentum(0.5, 0))
