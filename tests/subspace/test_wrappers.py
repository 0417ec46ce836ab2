"""Our transformations inside of optax's, flax's and orbax's wrappers: the table of docs/lowgrad.md.

Every pair is the plain use again, or refused in one line.
"""

import functools
import itertools
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import springroll as sr
from springroll.errors import InputError
from springroll.quant.root_companding import Quantized
from springroll.subspace.hf_adam import hf_adamw
from springroll.subspace.inner_state import find_moments
from tests.compiling import quick_jit

LR, STEPS = 0.05, 3
OURS = {
    "galore": lambda lr: sr.galore(optax.adam(lr), 4, refresh_interval=2),
    "fira": lambda lr: sr.fira(lr, 4, refresh_interval=2),
    "apollo": lambda lr: sr.apollo(lr, 4, refresh_interval=2),
    "apollo_mini": lambda lr: sr.apollo_mini(lr),
    "hf_adamw": lambda lr: hf_adamw(lr, weight_decay=0.1),
    "quantize_state": lambda lr: sr.quantize_state(optax.adam(lr), 4, block=16, min_size=16),
    "with_split_master": lambda lr: sr.with_split_master(optax.adam(lr)),
    "with_stochastic_rounding": lambda lr: sr.with_stochastic_rounding(optax.adam(lr)),
}
NARROW = ("with_split_master", "with_stochastic_rounding")


def draw(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {"w": jax.random.normal(keys[0], (8, 6)), "b": jax.random.normal(keys[1], (6,))}


def params_of(name):
    return sr.high_half(draw(0)) if name in NARROW else draw(0)


GRADS = [draw(seed) for seed in range(1, STEPS + 1)]


def run(tx, params, grads) -> tuple[Any, Any]:
    """(params, state) after a step with each gradient."""
    state = tx.init(params)

    @quick_jit
    def step(params, state, grads):
        with jax.numpy_dtype_promotion("standard"):  # optax adds float32 to bfloat16
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

    for gradient in grads:
        params, state = step(params, state, gradient)
    return params, state


@functools.cache
def plain(name):
    return run(OURS[name](LR), params_of(name), GRADS)


def in_nnx(make, params):
    class Model(nnx.Module):
        def __init__(self):
            self.w, self.b = nnx.Param(params["w"]), nnx.Param(params["b"])

    model = Model()
    optimizer = nnx.Optimizer(model, make(LR), wrt=nnx.Param)

    @nnx.jit
    def step(optimizer, model, grads):
        with jax.numpy_dtype_promotion("standard"):
            optimizer.update(model, grads)

    for gradient in GRADS:
        boxes = {name: nnx.Param(leaf) for name, leaf in gradient.items()}
        step(optimizer, model, nnx.State(boxes))
    return {"w": model.w.get_value(), "b": model.b.get_value()}


def in_train_state(make, params):
    state = TrainState.create(apply_fn=None, params=params, tx=make(LR))

    @quick_jit
    def step(state, grads):
        with jax.numpy_dtype_promotion("standard"):
            return state.apply_gradients(grads=grads)

    for gradient in GRADS:
        state = step(state, gradient)
    return state.params


def in_injected(make, params):
    # float32, else optax rounds the learning rate to the bfloat16 of the parameters.
    inject = optax.inject_hyperparams(lambda lr: make(lr), hyperparam_dtype=jnp.float32)
    tx = inject(lr=LR)
    return run(tx, params, GRADS)[0]


def in_apply_if_finite(make, params):
    bad = jax.tree.map(lambda x: x * jnp.nan, GRADS[0])
    return run(optax.apply_if_finite(make(LR), 2), params, [GRADS[0], bad, *GRADS[1:]])[0]


def in_multi_steps(make, params):
    tx = optax.MultiSteps(make(LR), 2)
    return run(tx, params, [gradient for gradient in GRADS for _ in range(2)])[0]


def in_multi_transform(make, params):
    tx = optax.multi_transform({"a": make(LR), "b": optax.sgd(1.0)}, {"w": "a", "b": "a"})
    return run(tx, params, GRADS)[0]


def in_masked(make, params):
    masked = optax.masked(make(LR), {"w": True, "b": False})
    return {"w": run(masked, params, GRADS)[0]["w"]}


def in_chain(make, params):
    return run(optax.chain(optax.identity(), make(LR)), params, GRADS)[0]


WRAPPERS = {
    "nnx.Optimizer": in_nnx,
    "TrainState": in_train_state,
    "inject_hyperparams": in_injected,
    "apply_if_finite": in_apply_if_finite,
    "MultiSteps": in_multi_steps,
    "multi_transform": in_multi_transform,
    "masked": in_masked,
    "chain": in_chain,
}


# Each wrapper and each transformation; all pairs run under `make test-slow`.
QUICK = {
    *(("galore", wrapper) for wrapper in ("nnx.Optimizer", "inject_hyperparams", "MultiSteps")),
    *(("galore", "apply_if_finite"), ("quantize_state", "nnx.Optimizer")),
    *(("with_split_master", "MultiSteps"), ("with_stochastic_rounding", "TrainState")),
    *(("fira", "chain"), ("apollo_mini", "masked"), ("hf_adamw", "multi_transform")),
    ("apollo", "masked"),
}
PAIRS = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(OURS, WRAPPERS)
]


@pytest.mark.parametrize("name, wrapper", PAIRS)
def test_a_wrapper_changes_nothing(name, wrapper):
    found = WRAPPERS[wrapper](OURS[name], params_of(name))
    for leaf, value in found.items():
        expected = np.asarray(plain(name)[0][leaf], np.float32)
        np.testing.assert_allclose(np.asarray(value, np.float32), expected, rtol=1e-5, atol=1e-6)


OPTAX = {
    "inject_hyperparams": lambda make: optax.inject_hyperparams(lambda lr: make(lr))(lr=LR),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(LR), 2),
    "MultiSteps": lambda make: optax.MultiSteps(make(LR), 2),
    "multi_transform": lambda make: optax.multi_transform({"a": make(LR)}, {"w": "a", "b": "a"}),
    "masked": lambda make: optax.masked(make(LR), {"w": True, "b": False}),
    "chain": lambda make: optax.chain(optax.clip_by_global_norm(1.0), make(LR)),
}


@pytest.mark.parametrize("wrapper", OPTAX)
@pytest.mark.parametrize("name", OURS)
def test_a_state_keeps_its_structure_and_types(name, wrapper):
    tx, params = OPTAX[wrapper](OURS[name]), params_of(name)
    state = jax.eval_shape(tx.init, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, after = jax.eval_shape(tx.update, draw(1), state, params)
    kind = lambda x: (x.shape, x.dtype)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(kind, after) == jax.tree.map(kind, state)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


@functools.cache
def some_state(name):
    """A state whose arrays are not all zero."""
    state = jax.jit(OURS[name](LR).init)(params_of(name))
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", OURS)
def test_flax_bytes_come_back(name):
    state = some_state(name)
    stored = flax.serialization.to_bytes(state)
    empty = OURS[name](LR).init(params_of(name))
    same(flax.serialization.from_bytes(empty, stored), state)


def test_other_flax_bytes_are_refused():
    coded = some_state("quantize_state")[0].mu["w"]
    with pytest.raises(InputError, match="a stored Quantized has codes, x; expected codes, draws"):
        flax.serialization.from_state_dict(coded, {"codes": 0, "x": 0})


@pytest.mark.parametrize("name", OURS)
def test_orbax_checkpoints_come_back(name, tmp_path):
    state = some_state(name)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        same(checkpointer.restore(tmp_path / "state", state), state)


@pytest.mark.parametrize("name", OURS)
def test_tree_map_params_maps_what_is_like_the_parameters(name):
    """Moments of every parameter with what belongs to it; projectors and counts stay."""
    tx, state = OURS[name](LR), some_state(name)
    coded = lambda x: isinstance(x, Quantized)
    labels = {"w": "weight", "b": "bias"}
    found = optax.tree_map_params(tx, lambda _, label: label, state, labels, is_leaf=coded)
    names = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, str)]
    trees = 3 if name == "with_split_master" else 2  # mu, nu and low halves
    assert sorted(names) == ["bias"] * trees + ["weight"] * trees
    same(optax.tree_map_params(tx, lambda x: x, state), state)


def test_hyperparameters_of_ours_are_injected_whole():
    """Numbers may be arrays; what shapes depend on is static, or refused under jit in one line."""
    inject = optax.inject_hyperparams(sr.fira, static_args="rank")
    injected = inject(learning_rate=LR, rank=4, weight_decay=0.0, refresh_interval=2)
    ours, state = run(injected, draw(0), GRADS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, plain("fira")[0])
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(LR)
    tx = optax.inject_hyperparams(sr.apollo)(learning_rate=LR, rank=4)
    state = tx.init(draw(0))
    with pytest.raises(InputError, match=r"rank is an array under jit.*static_args=\('rank',\)"):
        jax.eval_shape(tx.update, draw(1), state, draw(0))


@pytest.mark.parametrize("name", NARROW)
def test_apply_if_finite_with_narrow_gradients_is_refused(name):
    tx, params = optax.apply_if_finite(OURS[name](LR), 2), params_of(name)
    state = jax.eval_shape(tx.init, params)
    with pytest.raises(InputError, match=f"put it inside, {name}\\(optax.apply_if_finite"):
        jax.eval_shape(tx.update, sr.high_half(draw(1)), state, params)
    if name == "with_split_master":
        inside = sr.with_split_master(optax.apply_if_finite(optax.adam(LR), 2))
        found, _ = run(inside, params, sr.high_half(GRADS))
        expected, _ = run(OURS[name](LR), params, sr.high_half(GRADS))
        same(found, expected)


def test_a_part_without_a_matrix_is_refused_and_an_empty_one_has_nothing_to_do():
    parts = lambda labels: optax.multi_transform(
        {"a": OURS["galore"](LR), "b": optax.sgd(1.0)}, labels
    )
    with pytest.raises(InputError, match="no parameter is projected"):
        parts({"w": "b", "b": "a"}).init(draw(0))
    assert parts({"w": "b", "b": "b"}).init(draw(0))


def test_roles_of_an_nnx_state_fit_the_optimizer():
    class Model(nnx.Module):
        def __init__(self):
            self.w, self.b = (nnx.Param(leaf) for leaf in draw(0).values())

    model = Model()
    params = nnx.state(model, nnx.Param)
    fn = lambda p, x: x @ p["w"].get_value() + p["b"].get_value()[None]
    roles = sr.discover(fn, params, jnp.ones((2, 8)))
    assert "w/value" in roles
    optimizer = nnx.Optimizer(model, sr.galore(optax.adam(LR), 4, roles=roles), wrt=nnx.Param)
    assert optimizer.opt_state.projectors["w"].left.shape == (8, 4)


def test_moments_of_an_nnx_state_follow_the_basis_in_lowgrad():
    """`quantize_state` keeps them by paths without the variables' boxes."""
    params = nnx.State({name: nnx.Param(leaf) for name, leaf in draw(0).items()})
    fn = lambda p, x: jnp.mean(jnp.square(x @ p["w"].get_value() + p["b"].get_value()[None]))
    inner = sr.quantize_state(optax.adam(LR), block=16, min_size=16)
    trainer = sr.lowgrad(fn, params, inner, jnp.ones((2, 8)), rank=4)
    state = jax.jit(trainer.init)(params)
    shapes = {"w/value": (6, 4)}
    found = [(moment.path, moment.order) for moment in find_moments(state.opt, shapes)]
    assert found == [("w/value", "first"), ("w/value", "second")]
