"""What must hold for any low-rank gradient: identities, invariances, restarts."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.subspace import gradients
from springroll.subspace.lowgrad import lowgrad
from springroll.thin.transform import factored
from springroll.trees import named_leaves
from tests.subspace.stacked_model import LAYERS, RANK, TOKENS, close, init, loss, remat_loss
from tests.thin.against_dense import equations

PERIOD = 4


def trainer(optimizer=None, fn=loss, **options):
    options = {"rank": RANK, "refresh_interval": PERIOD, "turns": 1, **options}
    return lowgrad(fn, init(), optimizer or optax.adam(3e-2), TOKENS, **options)


@pytest.fixture(scope="module")
def adam():
    return trainer()


@pytest.fixture(scope="module")
def warm(adam):
    """(trainer, host copy of a state in mid-period): refreshed at 0, two steps later."""
    state = adam.init(init())
    for _ in range(3):
        state, _ = adam.update(state, TOKENS)
    return adam, jax.tree.map(np.asarray, state)


class Full(NamedTuple):
    """Loss and gradient of every weight at the model that the warm state stands for."""

    loss: jax.Array
    gradients: dict


@pytest.fixture(scope="module")
def full(warm):
    _, state = warm
    return Full(*jax.jit(jax.value_and_grad(loss))(state.params, TOKENS))


run_gradients = jax.jit(gradients.gradients, static_argnums=(0, 1, 2))


def on_device(state):
    """A copy of a host state that a step may use up; the schedule stays on the host."""
    return dataclasses.replace(jax.tree.map(jnp.array, state), schedule=state.schedule)


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_one_projector_per_activation(adam):
    users = [[user.path for user in s.users] for s in adam.layout.streams]
    assert users == [
        ["layers/down"],
        ["layers/gate", "layers/up"],
        ["layers/k", "layers/q"],
    ]
    state = adam.init(init())
    assert {k: p.shape for k, p in state.projectors.items()} == {
        "layers/down": (LAYERS, 40, RANK),
        "layers/gate": (LAYERS, 24, RANK),
        "layers/k": (LAYERS, 24, RANK),
    }
    for p in state.projectors.values():
        gram = np.einsum("lmr,lms->lrs", p, p)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(RANK), gram.shape), atol=1e-5)


def test_the_gradient_of_S_is_P_transposed_G_and_others_are_exact(warm, full):
    adam, state = warm
    trainable = adam.layout.trainable(state.base, state.low)
    frozen = adam.layout.frozen(state.base)
    value, _, grads = run_gradients(
        adam.run, adam.layout, 1, trainable, frozen, state.projectors, (TOKENS,)
    )
    close(value, full.loss, 1e-6)
    for path, user in adam.layout.thin.items():
        expected = np.einsum(
            "lmr,lnm->lnr", state.projectors[user.stream], leaf(full.gradients, path)
        )
        close(leaf(grads, path), expected, 1e-5)
    close(grads["embed"], full.gradients["embed"], 1e-5)
    close(grads["layers"]["bias"], full.gradients["layers"]["bias"], 1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_power_step_is_G_times_G_transposed_P_summed_over_the_stream(warm, full, parts):
    adam, state = warm
    low = {
        path: np.einsum("lmr,lnm->lnr", state.projectors[user.stream], leaf(full.gradients, path))
        for path, user in adam.layout.thin.items()
    }
    run = jax.jit(gradients.power, static_argnums=(0, 1, 2))
    z = run(adam.run, adam.layout, parts, state.base, state.projectors, state.low, low, (TOKENS,))
    for stream in adam.layout.streams:
        top = max(np.abs(low[user.path]).max() for user in stream.users)
        expected = sum(
            np.einsum("lnm,lnr->lmr", leaf(full.gradients, user.path), low[user.path] / top)
            for user in stream.users
        )
        close(z[stream.name], expected, 2e-5)


def test_within_a_period_it_is_projected_adam_on_the_weights(adam):
    """GaLore on W with P fixed equals training S alone: W - lr scale P Adam(PᵀG)."""
    lr, steps = 3e-2, PERIOD
    state = adam.init(init())
    state, _ = adam.update(state, TOKENS)  # the refresh at step 0
    projectors = jax.tree.map(np.asarray, state.projectors)
    start = adam.params(state)
    thin = adam.layout.thin
    inner = optax.adam(lr)
    # The reference goes on from the same averages.
    moments = state.opt

    def project(path, g):
        if path not in thin:
            return g
        return jnp.einsum("lmr,lnm->lnr", projectors[thin[path].stream], g)

    def back(path, u):
        if path not in thin:
            return u
        scale = np.float32(np.sqrt(thin[path].inputs / RANK))
        return scale * jnp.einsum("lmr,lnr->lnm", projectors[thin[path].stream], u)

    @jax.jit
    def galore(params, moments):
        grads = adam.layout.map(project, jax.grad(loss)(params, TOKENS))
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = inner.update(grads, moments)
        return optax.apply_updates(params, adam.layout.map(back, updates)), moments

    params, moments = start, jax.tree.map(jnp.array, moments)
    for _ in range(steps - 1):
        assert not adam.due(state)
        state, _ = adam.update(state, TOKENS)
        params, moments = galore(params, moments)
    moved = jax.tree.map(lambda a, b: a - b, params, start)
    ours = jax.tree.map(lambda a, b: a - b, adam.params(state), start)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), ours, moved)


def test_signs_of_the_basis_do_not_matter(warm):
    adam, state = warm
    flips = {name: np.array([1, -1] * (RANK // 2), np.float32) for name in state.projectors}
    flip = lambda path, a: a * flips[adam.layout.thin[path].stream] if path in state.low else a
    mu, rest = state.opt[0], state.opt[1:]
    flipped = dataclasses.replace(
        state,
        projectors={name: p * flips[name] for name, p in state.projectors.items()},
        low={path: flip(path, s) for path, s in state.low.items()},
        opt=(mu._replace(mu=adam.layout.map(flip, mu.mu)), *rest),
    )
    ends = []
    for start in (state, flipped):
        at = on_device(start)
        for _ in range(PERIOD):  # over the next refresh
            at, _ = adam.update(at, TOKENS)
        ends.append(adam.params(at))
    jax.tree.map(lambda a, b: close(a, b, 1e-6), *ends)


def test_a_state_that_was_saved_in_mid_period_goes_on_bit_for_bit(warm):
    adam, saved = warm
    state = adam.init(init())
    for _ in range(3 + PERIOD):
        state, _ = adam.update(state, TOKENS)
    again = jax.tree.map(lambda a: np.array(a), saved)
    for _ in range(PERIOD):
        again, _ = adam.update(again, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert all(isinstance(x, (np.ndarray, np.generic, jax.Array)) for x in jax.tree.leaves(state))


def test_micro_batches_equal_one_batch(warm):
    """The gradient of k parts of b is that of k * b; the power step's is tested above."""
    adam, state = warm
    trainable = adam.layout.trainable(state.base, state.low)
    args = (trainable, adam.layout.frozen(state.base), state.projectors, (TOKENS,))
    one, four = (run_gradients(adam.run, adam.layout, parts, *args) for parts in (1, 4))
    jax.tree.map(lambda a, b: close(a, b, 1e-5), four, one)


def test_params_of_a_state_are_the_model_at_every_step(warm, full):
    """`state.params` is W + P S, not the base W that the next refresh starts from."""
    adam, state = warm
    jax.tree.map(np.testing.assert_array_equal, state.params, adam.params(state))
    close(full.loss, jax.jit(factored(loss, densify_limit=0))(state.weights, TOKENS), 1e-6)
    assert np.any(state.params["layers"]["q"] != state.base["layers"]["q"])
    for path, user in adam.layout.thin.items():
        step = np.einsum("lmr,lnr->lnm", state.projectors[user.stream], state.low[path])
        close(leaf(state.params, path), leaf(state.base, path) + step, 1e-6)


def test_checkpoints_name_the_leaves_as_they_always_did(adam):
    names = {path.split("/")[0] for path in named_leaves(jax.eval_shape(adam.init, init()))}
    assert names == {"params", "projectors", "low", "opt", "skipped", "schedule"}
    state = jax.eval_shape(adam.init, init())
    assert {path.split("/")[0] for path in named_leaves(state.schedule)} == {"step", "next", "gap"}
    assert jax.tree.structure(state) == jax.tree.structure(jax.tree.map(lambda x: x, state))


def test_merging_changes_what_the_state_stands_for_by_rounding_alone(warm):
    adam, state = warm
    before = state.params
    merged = adam.merge(on_device(state))
    assert not any(np.any(s) for s in merged.low.values())
    jax.tree.map(lambda a, b: close(a, b, 1e-6), merged.base, before)
    jax.tree.map(np.testing.assert_array_equal, merged.params, merged.base)
    inside = jax.jit(factored(loss, densify_limit=0))(adam.weights(state), TOKENS)
    close(inside, jax.jit(loss)(merged.params, TOKENS), 1e-6)


def test_no_array_of_a_weights_shape_but_the_weights_themselves():
    """Matrices of all layers, or of one, are only ever inputs of the hot step or slices of them."""
    t = trainer(fn=remat_loss)
    state = jax.eval_shape(t.init, init())
    moving, frozen = t._apart(state)
    jaxpr = jax.make_jaxpr(t._step)(moving, frozen, state.projectors, (TOKENS,))
    shapes = {(LAYERS, *s) for s in ((24, 24), (40, 24), (24, 40))}
    shapes |= {s[1:] for s in shapes} | {(s[0], s[2], s[1]) for s in shapes}
    made = [
        eqn.primitive.name
        for eqn in equations(jaxpr)
        for out in eqn.outvars
        if tuple(out.aval.shape) in shapes
    ]
    assert set(made) <= {"transpose", "stop_gradient", "copy", "pjit", "jit"}, made


def test_the_program_is_as_long_for_more_layers():
    lengths = []
    for layers in (3, 7):
        params = init(layers=layers)
        t = lowgrad(loss, params, optax.adam(1e-2), TOKENS, rank=RANK)
        state = jax.eval_shape(t.init, params)
        lengths.append(
            [len(t.lower(n, state, TOKENS).as_text().splitlines()) for n in ("step", "probe")]
        )
    assert lengths[0] == lengths[1]
