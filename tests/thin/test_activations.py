"""discover says which parameters meet the same activation."""

import jax
import jax.numpy as jnp
from jax import lax

from springroll.thin.discovery import discover

X = jnp.ones((2, 3, 6))


def meets(fn, *names, x=X, shape=(6, 8)):
    roles = discover(fn, {name: jnp.ones(shape) for name in names}, x)
    return [roles[name].meets for name in names]


def test_weights_of_one_activation_have_one_name():
    a, b, c = meets(lambda p, x: (x @ p["a"]) * (x @ p["b"]) + jnp.tanh(x) @ p["c"], *"abc")
    assert a == b != c


def test_casts_reshapes_and_transposes_keep_the_name():
    def fn(p, x):
        flat = x.reshape(6, 6).astype(jnp.bfloat16).astype(jnp.float32)
        turned = jnp.swapaxes(x, 0, 1)
        return (flat @ p["a"]).sum() + (turned @ p["b"]).sum() + (x @ p["c"]).sum()

    a, b, c = meets(fn, *"abc")
    assert a == b == c


def test_names_are_followed_into_calls_and_differ_between_calls():
    @jax.jit
    def layer(w, x):
        return jnp.tanh(x @ w)

    def fn(p, x):
        return layer(p["a"], x) + x @ p["b"] + layer(p["c"], jnp.sin(x))

    a, b, c = meets(fn, *"abc")
    assert a == b != c


def test_layers_of_a_scan():
    def fn(p, x):
        body = lambda x, w: (jnp.tanh(x @ w["q"]) + x @ w["k"] + jnp.sin(x) @ w["o"], None)
        return lax.scan(jax.checkpoint(body), x, p)[0]

    q, k, o = meets(fn, "q", "k", "o", shape=(4, 6, 6))
    assert q == k != o


def test_two_uses_and_a_lookup():
    ids = jnp.zeros((2, 3), jnp.int32)

    def fn(p, ids):
        x = p["embed"][ids]
        return (x @ p["w"]) @ p["w"] @ p["embed"].T

    roles = discover(fn, {"embed": jnp.ones((9, 6)), "w": jnp.ones((6, 6))}, ids)
    assert len(roles["w"].meets) == 2 and None in roles["embed"].meets
    assert roles["w"].dealt == roles["embed"].dealt == ()


def test_rows_dealt_out_to_experts():
    sizes = jnp.array([2, 3, 1])

    def fn(p, x):
        x = x.reshape(6, 6)
        hidden = jax.nn.relu(lax.ragged_dot(x, p["up"], sizes))
        mixed = lax.ragged_dot(hidden, p["down"], sizes)[::-1]
        return lax.ragged_dot(mixed, p["next"], sizes)

    roles = discover(fn, {k: jnp.ones((3, 6, 6)) for k in ("up", "down", "next")}, X)
    assert roles["up"].dealt == roles["next"].dealt == (0,) and roles["down"].dealt == ()
