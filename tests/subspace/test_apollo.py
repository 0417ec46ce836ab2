"""apollo: random projections that take no memory, scales by channel or matrix, layers alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.bench.measure import temp_bytes
from springroll.errors import InputError
from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.matrix_view import MatrixView
from springroll.subspace.projection import Projection

L, M, N, R = 3, 8, 12, 4


def tree(seed):
    key = jax.random.key(seed)
    return {"layers": {"w": jax.random.normal(key, (L, M, N))}, "b": jax.random.normal(key, (M,))}


PARAMS = tree(0)
Make = Callable[..., optax.GradientTransformationExtraArgs]
RANKED: Make = functools.partial(apollo, rank=R)


@functools.cache
def compiled(make, **options):
    tx = make(1e-2, **options)
    return tx, jax.jit(tx.init), jax.jit(tx.update)


def steps(count, grads=lambda step: tree(step + 1), make: Make = RANKED, **options):
    """The updates of so many steps, and the last state."""
    _, init, update = compiled(make, **options)
    state, found = init(PARAMS), []
    for step in range(count):
        updates, state = update(grads(step), state, PARAMS)
        found.append(updates)
    return found, state


def test_state_is_two_small_moments_and_a_number():
    state = jax.eval_shape(apollo(1e-2, R).init, PARAMS)
    floats = sum(x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32)
    assert floats == 2 * L * R * N + L + 2 * M
    mini = jax.eval_shape(apollo_mini(1e-2).init, PARAMS)
    floats = sum(x.size for x in jax.tree.leaves(mini) if x.dtype == jnp.float32)
    assert floats == 2 * L * N + L + 2 * M


def test_drawn_projectors_keep_lengths_on_average_and_last_a_gap():
    projection = Projection(R, refresh_interval=5, stored=False)
    view = MatrixView("w", (200, M, N), "smn", 0)
    left = [np.asarray(projection.drawn(view, jnp.int32(t)).left) for t in (0, 4, 5)]
    np.testing.assert_array_equal(left[0], left[1])
    assert np.abs(left[0] - left[2]).max() > 1
    mean = np.einsum("smr,snr->mn", left[0], left[0]) / 200
    np.testing.assert_allclose(mean, np.eye(M), atol=0.25)
    assert abs(np.mean(left[0][0] * left[0][1])) < 0.1


def test_one_step_is_the_scaled_gradient():
    """At t = 1 Adam's N is sign-like: ‖N_j‖ = sqrt(r) / sqrt(0.1) in units of k_t."""
    (updates,), _ = steps(1)
    grad = tree(1)["layers"]["w"]
    ratio = np.asarray(updates["layers"]["w"] / grad)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)
    (updates,), _ = steps(1, make=apollo_mini)
    ratio = np.asarray(updates["layers"]["w"] / grad)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4)


def test_scale_and_rate_are_lengths():
    """sqrt(scale) multiplies, whether before or after the limiter."""

    def tripled(lr: float, **_):
        return apollo(3 * lr, R, scale=4.0)

    one, _ = steps(4)
    other, _ = steps(4, make=tripled)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(6 * a["layers"]["w"], b["layers"]["w"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(3 * a["b"], b["b"], rtol=1e-4, atol=1e-7)


def test_the_size_of_gradients_does_not_matter():
    one, _ = steps(4, eps=0.0)
    small = lambda step: jax.tree.map(lambda x: 1e-12 * x, tree(step + 1))
    other, _ = steps(4, small, eps=0.0)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a["layers"]["w"], b["layers"]["w"], rtol=1e-3, atol=1e-7)


def test_growth_is_limited():
    wave = lambda step: jax.tree.map(lambda x: x * (1.0, -0.9, 1.0)[step], tree(1))
    norms = lambda **options: [
        np.linalg.norm(u["layers"]["w"][0]) for u in steps(3, wave, **options)[0]
    ]
    limited, free = norms(), norms(gamma=None)
    correction = [np.sqrt(1 - 0.999**t) / (1 - 0.9**t) for t in (2, 3)]
    np.testing.assert_allclose(
        limited[2] / correction[1], 1.01 * limited[1] / correction[0], rtol=1e-4
    )
    assert free[2] > 10 * limited[2]


def test_a_dead_expert_gets_nothing():
    silent = lambda step: jax.tree.map(lambda x: x.at[1].set(0), tree(step + 1))
    updates, state = steps(3, silent)
    for update in updates:
        np.testing.assert_array_equal(update["layers"]["w"][1], 0)
    later, _ = compiled(RANKED)[2](tree(9), state, PARAMS)
    assert 1e-3 < float(jnp.max(jnp.abs(later["layers"]["w"][1]))) < 1.0


def test_layer_by_layer_is_the_whole_stack():
    tx = apollo(1e-2, R, refresh_interval=2)
    params = {"layers": PARAMS["layers"]}
    whole = jax.jit(tx.init)(params)
    alone = jax.vmap(lambda layer: tx.init({"layers": layer}))(params["layers"])
    update = jax.jit(tx.update)
    for step in range(3):
        grads = {"layers": tree(step + 1)["layers"]}
        updates, whole = update(grads, whole, params)
        slices = []
        for i in range(L):
            here = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
            args = here(grads), here(alone), here(params)
            one, state = update(*args, layer=jnp.int32(i))
            slices.append((one, state))
        together, alone = jax.tree.map(lambda *x: jnp.stack(x), *slices)
        np.testing.assert_allclose(
            together["layers"]["w"], updates["layers"]["w"], rtol=1e-5, atol=1e-8
        )


def test_decay_and_what_is_not_selected():
    nothing = lambda step: jax.tree.map(jnp.zeros_like, PARAMS)
    (updates,), _ = steps(1, nothing, weight_decay=0.5)
    jax.tree.map(lambda u, w: np.testing.assert_allclose(u, -5e-3 * w, rtol=1e-5), updates, PARAMS)
    plain = optax.adam(1e-2, eps=0.0)
    ours, _ = steps(1, eps=0.0)
    with jax.numpy_dtype_promotion("standard"):
        theirs: Any = plain.update(tree(1), plain.init(PARAMS))[0]
    np.testing.assert_allclose(ours[0]["b"], theirs["b"], rtol=1e-4)


@pytest.mark.usefixtures("optimized")
def test_the_scaled_gradient_is_not_formed_beside_the_gradient():
    """Bytes from the compiler: what a step needs besides weights, gradients and state."""
    params = {"w": jax.ShapeDtypeStruct((4, 128, 128), jnp.float32)}
    tx = apollo_mini(1e-2)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    assert temp_bytes(jitted, params, state, params) < 0.25 * params["w"].size * 4


def test_one_line_for_wrong_input():
    with pytest.raises(InputError, match="side is 'full'; apollo scales channels"):
        apollo(1e-2, R, side="full")
    misspelt: Any = "chanel"
    with pytest.raises(InputError, match=r"per is 'chanel'; .*did you mean 'channel'"):
        apollo(1e-2, R, per=misspelt)
    misspelt = "apollo"
    with pytest.raises(InputError, match=r"compat is 'apollo'; .*did you mean 'apollo-torch'"):
        apollo_mini(1e-2, compat=misspelt)
