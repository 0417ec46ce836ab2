"""Programs inside programs: calls, loops, branches and their bodies see thin weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from springroll.errors import InputError
from springroll.thin.transform import factored
from tests.thin.against_dense import check, close, equations, over_population, weight


def rows(*shape, seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


W = weight(0, (6, 6), "mn", gain=0.1)
STACK = weight(1, (3, 6, 6), "smn", gain=0.1)
X = rows(4, 6)


def step(x, w):
    return jnp.tanh(x @ w)


def layers(x, stack):
    return lax.scan(lambda c, w: (step(c, w), None), x, stack)[0]


@jax.custom_vjp
def linear(w, x):
    return x @ w


linear.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))


@jax.custom_jvp
def squashed(w, x):
    return jnp.tanh(x @ w)


squashed.defjvp(lambda primals, tangents: (squashed(*primals), tangents[1] @ primals[0]))


@jax.custom_batching.custom_vmap
def batched_by_hand(w, x):
    return x @ w


@batched_by_hand.def_vmap
def _(axis_size, batched, w, x):
    return x @ w, True


def double(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2.0


def doubled(x):
    return pl.pallas_call(double, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def while_with_weights_in_the_state(w, x):
    """The weights ride along in the carry, as in many hand-written rollouts."""
    more = lambda state: state[0] < 3
    body = lambda state: (state[0] + 1, step(state[1], state[2]), state[2])
    return lax.while_loop(more, body, (0, x, w))[1]


def while_with_weights_in_the_condition(w, x):
    more = lambda x: jnp.sum(jnp.abs(x @ w)) > 5.0
    return lax.while_loop(more, lambda x: x * 0.5, x)


PROGRAMS = {
    "jit": (lambda w, x: jax.jit(step)(x, w), W),
    "jit inside jit": (lambda w, x: jax.jit(lambda w: jax.jit(step)(x, w) + 1)(w), W),
    "custom_jvp": (squashed, W),
    "custom_vjp": (linear, W),
    "custom_vmap": (batched_by_hand, W),
    "relu and softmax": (lambda w, x: jax.nn.softmax(jax.nn.relu(x @ w)), W),
    "remat": (lambda w, x: jax.checkpoint(step)(x, w), W),
    "remat with a policy": (
        lambda w, x: jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable)(x, w),
        W,
    ),
    "scan, weight as a constant": (
        lambda w, x: lax.scan(lambda c, _: (step(c, w), c.sum()), x, None, length=3),
        W,
    ),
    "scan over layers": (lambda w, x: lax.scan(lambda c, l: (step(c, l), c.sum()), x, w), STACK),
    "scan over layers, remat": (
        lambda w, x: lax.scan(jax.checkpoint(lambda c, l: (step(c, l), None)), x, w)[0],
        STACK,
    ),
    "scan backwards, unrolled": (
        lambda w, x: lax.scan(lambda c, l: (step(c, l), None), x, w, reverse=True, unroll=2)[0],
        STACK,
    ),
    "scan over rows of a matrix": (
        lambda w, x: lax.scan(lambda c, row: (c + jnp.sin(row * x[0]), row.sum()), x[1], w),
        W,
    ),
    "scan with the weight in an unchanged carry": (
        lambda w, x: lax.scan(lambda c, _: ((step(c[0], c[1]), c[1]), None), (x, w), None, 2)[0][0],
        W,
    ),
    "layers inside time": (
        lambda w, x: lax.scan(
            lambda c, t: (lax.scan(lambda h, l: (step(h, l), None), c + t[None], w)[0], c.sum()),
            x,
            x,
        ),
        STACK,
    ),
    "fori_loop": (lambda w, x: lax.fori_loop(0, 3, lambda i, c: step(c, w), x), W),
    "fori_loop over layers": (
        lambda w, x: lax.fori_loop(0, 3, lambda i, c: step(c, w[i]), x),
        STACK,
    ),
    "while, weight in the state": (while_with_weights_in_the_state, W),
    "while, weight in the condition": (while_with_weights_in_the_condition, W),
    "cond": (lambda w, x: lax.cond(x[0, 0] > 0, lambda: step(x, w), lambda: x @ w.T), W),
    "cond, weight as an operand": (
        lambda w, x: lax.cond(x[0, 0] < 0, lambda w: x @ w, lambda w: x @ w.T, w),
        W,
    ),
    "switch": (
        lambda w, x: lax.switch(2, [lambda w: x, lambda w: x @ w, lambda w: step(x, w)], w),
        W,
    ),
    "map": (lambda w, x: lax.map(lambda row: row @ w, x), W),
    "associative_scan": (lambda w, x: lax.associative_scan(jnp.add, x @ w), W),
    "vmap inside": (lambda w, x: jax.vmap(lambda row: step(row, w))(x), W),
    "vmap inside over layers": (lambda w, x: jax.vmap(lambda l: step(x, l))(w), STACK),
    "pallas on activations": (lambda w, x: doubled(x @ w), W),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name):
    fn, w = PROGRAMS[name]
    check(fn, w, X)


def test_autoregressive_tokens_are_the_same():
    """Argmax decoding in a while_loop: every member writes exactly the tokens of its dense twin."""
    params = {"embed": weight(2, (11, 6), "mn"), "mix": weight(3, (6, 6), "mn")}

    def decode(params, first):
        def write(state):
            i, tokens = state
            hidden = jnp.tanh(params["embed"][tokens[i]] @ params["mix"])
            best = jnp.argmax(params["embed"] @ hidden).astype(jnp.int32)
            return i + 1, tokens.at[i + 1].set(best)

        start = jnp.zeros(8, jnp.int32).at[0].set(first)
        return lax.while_loop(lambda s: s[0] < 7, write, (0, start))[1]

    check(decode, params, jnp.int32(4), tol=0)


def test_a_function_that_takes_gradients_itself():
    """Gradients inside the function (an inner loop of training) see thin weights too."""

    def adapted(w, x):
        loss = lambda v: jnp.mean((jnp.tanh(v @ w) - 1.0) ** 2)
        return x - jax.grad(loss)(x)

    check(adapted, W, X)


def test_gradient_through_scan_and_remat():
    def loss(w, x):
        return jnp.sum(lax.scan(jax.checkpoint(lambda c, l: (step(c, l), None)), x, w)[0] ** 2)

    thin = jax.jit(jax.grad(factored(loss)))(STACK, X)
    whole = jax.jit(jax.grad(lambda w, x: loss(w.dense(), x)))(STACK, X)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), thin, whole)


def test_remat_survives_the_rewriting():
    whole, stacked, _ = over_population(lambda w, x: jax.checkpoint(step)(x, w), W)
    names = {e.primitive.name for e in equations(jax.make_jaxpr(whole)(stacked, X))}
    assert names & {"remat2", "checkpoint", "remat"}


def test_a_scanned_population_reads_each_layer_once():
    """The base of the scan body is one layer, without a population axis; so are its products."""
    fn = lambda w, x: lax.scan(lambda c, l: (step(c, l), None), x, w)[0]
    whole, stacked, _ = over_population(fn, STACK)
    (loop,) = [
        e for e in equations(jax.make_jaxpr(whole)(stacked, X)) if e.primitive.name == "scan"
    ]
    shapes = [v.aval.shape for v in loop.params["jaxpr"].jaxpr.invars]
    assert (6, 6) in shapes and (2, 6, 6) not in shapes and (2, 2, 6, 6) not in shapes


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda w: lax.scan(lambda c, _: (c * 0.5, None), w, None, length=2)[0], "scan"),
        (lambda w: lax.while_loop(lambda c: c[0, 0] > 9, lambda c: c * 0.5, w), "while"),
        (lambda w: lax.cond(True, lambda w: w * 2, lambda w: w, w), "cond"),
        (doubled, "pallas_call"),
    ],
)
def test_weights_that_a_loop_or_kernel_needs_whole_are_reported(fn, says):
    with pytest.raises(InputError, match=says):
        factored(fn, densify_limit=0)(weight(0, (9, 8), "mn"))


def test_weights_that_share_a_factor_meet_an_activation_once_in_a_scanned_checkpoint():
    rank, layers, d = 9, 3, 5
    q, k = (weight(i, (layers, d, d), "smn", rank=rank, gain=None) for i in (1, 2))
    x = jnp.ones((4, d))

    def fn(q, k, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w[0]) * (x @ w[1]), None))
        return lax.scan(body, x, (q, k))[0]

    def loss(right, x):
        shared = [
            dataclasses.replace(w, left=q.left, right=r) for w, r in zip((q, k), right, strict=True)
        ]
        return factored(fn)(*shared, x).sum()

    def met(fn, *args):  # products of an activation with a factor
        return [
            e
            for e in equations(jax.make_jaxpr(fn)(*args))
            if e.primitive.name == "dot_general"
            and e.invars[0].aval.shape == x.shape
            and e.invars[1].aval.shape == (d, rank)
            and e.params["dimension_numbers"][0] == ((1,), (0,))
        ]

    assert len(met(loss, (q.right, k.right), x)) == 1
    # Forward once, recomputed once; dy of each weight meets its own right factor.
    assert len(met(jax.grad(loss), (q.right, k.right), x)) == 4
    dense = [dataclasses.replace(w, left=q.left).dense() for w in (q, k)]
    expected = fn(dense[0], dense[1], x).sum()
    np.testing.assert_allclose(loss((q.right, k.right), x), expected, rtol=1e-5)
