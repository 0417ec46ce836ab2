"""Inner optimizers that read weights see those of the subspace; copies of weights are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.models import decoder, named
from springroll.subspace.inner_reads import check_each_by_itself, reads_weights
from springroll.subspace.inner_turns import check_reads_no_coordinates
from tests.compiling import normal, quick_jit

X, TARGET = normal(0, 32, 8), normal(1, 8, 12)
PARAMS = {"w": normal(2, 8, 12), "b": jnp.zeros(12)}


def loss(params, x):
    return jnp.mean(
        jnp.square(jnp.tanh(x @ params["w"] + params["b"][None]) - jnp.tanh(x @ TARGET))
    )


START = float(loss(PARAMS, X))


def trained(tx, steps=40):
    """The parameters and the loss after some steps."""
    step = lambda carry, _: (advanced(tx, *carry), None)
    run = quick_jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=steps)[0][0])
    params = run(PARAMS)
    return params, float(loss(params, X))


def advanced(tx, params, state):
    with jax.numpy_dtype_promotion("standard"):  # for optax's own arithmetic
        updates, state = tx.update(jax.grad(loss)(params, X), state, params)
        return optax.apply_updates(params, updates), state


READERS = {
    "adafactor": lambda: optax.adafactor(1e-1),
    "adaptive_grad_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.adam(1e-1)),
    "lamb": lambda: optax.lamb(1e-1, weight_decay=0.01),
}


def mostly_slow(names, quick):
    """All of them under `make test-slow`, some always."""
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", mostly_slow(READERS, ["adafactor", "adaptive_grad_clip"]))
def test_it_trains_in_a_subspace(name):
    """To most of what it learns without one; before, weights of zero kept it where it began."""
    make = READERS[name]
    _, alone = trained(make())
    _, inside = trained(sr.galore(make(), 6, scale=1.0, refresh_interval=10))
    assert inside < START - 0.6 * (START - alone)


ROTATED = {
    "trust ratio": lambda: optax.chain(optax.scale_by_trust_ratio(), optax.sgd(0.1)),
    "lars": lambda: optax.lars(0.3, weight_decay=0.1),
    "norm of a block": lambda: optax.chain(optax.scale_by_param_block_norm(), optax.sgd(0.1)),
    "decay before momentum": lambda: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    "adaptive clipping": lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)),
    "decoupled decay": lambda: optax.chain(
        optax.sgd(0.1, momentum=0.9), optax.add_decayed_weights(-0.01)
    ),
}


@pytest.mark.parametrize("name", mostly_slow(ROTATED, ["lars", "adaptive clipping"]))
def test_in_a_subspace_that_is_everything_it_is_as_without(name):
    """Norms do not feel a rotation, so at full rank nothing must change."""
    make = ROTATED[name]
    inside, _ = trained(sr.galore(make(), 8, scale=1.0, refresh_interval=3), steps=7)
    alone, _ = trained(make(), steps=7)
    for leaf in PARAMS:
        np.testing.assert_allclose(inside[leaf], alone[leaf], atol=2e-4)
    assert float(jnp.max(jnp.abs(alone["w"] - PARAMS["w"]))) > 1e-2


COPIES = {
    "ProdigyState keeps a copy of the weights in its state": optax.contrib.prodigy,
    "ScheduleFreeState keeps": lambda: optax.contrib.schedule_free_adamw(1e-1),
    "DoGState keeps": optax.contrib.dog,
    "ScaleByRpropState 0/step_sizes/w is shaped like the low-rank": lambda: optax.rprop(1e-2),
    "ScaleByRStdDevState 0/nu/w is shaped": lambda: optax.rmsprop(1e-2, centered=True),
    "ScaleByAdamState 0/mu is shaped like no parameter": lambda: optax.flatten(optax.adam(1e-2)),
}


@pytest.mark.parametrize("message", COPIES)
def test_copies_of_weights_and_unknown_state_are_refused_by_name(message):
    inner = COPIES[message]()
    for tx in (sr.galore(inner, 4), sr.fira(0.1, 4, direction=inner)):
        with pytest.raises(InputError, match=message) as error:
            jax.eval_shape(tx.init, PARAMS)
        assert "\n" not in str(error.value)
    trainer = sr.lowgrad(loss, PARAMS, inner, X, rank=4)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(trainer.init, PARAMS)


def why_refused(tx, params=PARAMS):
    state = jax.eval_shape(tx.init, params)
    with pytest.raises(InputError) as error:
        jax.eval_shape(lambda p, s: tx.update(p, s, p), params, state)
    return str(error.value)


def test_what_reads_weights_number_by_number_is_refused_by_name():
    """A coordinate in a subspace has no sign of its own; behind the subspace weights are real."""
    bound = optax.keep_params_nonnegative()
    message = why_refused(sr.galore(optax.chain(optax.adam(0.1), bound), 4))
    assert message.startswith("optax.keep_params_nonnegative reads the weights number by number")
    assert "optax.chain(sr.galore(" in message and "\n" not in message
    tx, params = optax.chain(sr.galore(optax.sgd(100.0), 4), bound), jax.tree.map(jnp.abs, PARAMS)
    steps: Any = tx.update(params, tx.init(params), params)[0]
    assert float(jnp.min(params["w"] + steps["w"])) == 0.0


def toward_zero(u, p):
    return jax.tree.map(lambda u, p: u - 0.01 * jnp.sign(p), u, p)


def test_signs_have_no_slope_and_are_read_all_the_same():
    """The derivative of an L1 penalty is the same everywhere but at zero: so is that of decay."""
    message = why_refused(sr.galore(optax.chain(optax.sgd(0.1), optax.stateless(toward_zero)), 4))
    assert "number by number" in message


def test_decay_before_a_sign_is_that_of_the_penalized_gradient():
    """An L2 penalty is a part of the gradient, and is projected with it."""
    signs = optax.chain(optax.add_decayed_weights(1.0), optax.sign_sgd(0.1))
    tx, plain = sr.galore(signs, 4), sr.galore(optax.sign_sgd(0.1), 4)
    grads = jax.grad(loss)(PARAMS, X)
    penalized = jax.tree.map(jnp.add, grads, PARAMS)
    first: Any = plain.update(grads, plain.init(PARAMS))[1]
    begun: Any = [tx.init(PARAMS), plain.init(PARAMS)]
    state, other = (x._replace(projectors=first.projectors, step=jnp.int32(1)) for x in begun)
    given: Any = tx.update(grads, state, PARAMS)[0]
    expected: Any = plain.update(penalized, other)[0]
    np.testing.assert_allclose(given["w"], expected["w"], atol=1e-6)
    twice = optax.chain(optax.add_decayed_weights(1.0), optax.lion(0.1, weight_decay=0.1))
    message = why_refused(sr.galore(twice, 4))
    assert message.startswith("optax.add_decayed_weights adds the weights to steps that were made")


def within(u, p):
    return jax.tree.map(lambda u, p: jnp.clip(p + u, -1, 1) - p, u, p)


def one_by_one(fn):
    return optax.stateless(lambda updates, params: jax.tree.map(fn, updates, params))


NONNEGATIVE = optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())
NUMBERS = {
    "multi steps": optax.MultiSteps(NONNEGATIVE, 3),
    "apply if finite": optax.apply_if_finite(NONNEGATIVE, 3),
    "masked": optax.masked(NONNEGATIVE, {"w": True, "b": False}),
    "cautious decay": one_by_one(lambda u, p: u - 0.1 * p * (u * p < 0)),
    "far bound": one_by_one(lambda u, p: jnp.clip(p + u, -1e3, 1e3) - p),
    "bound in a loop": one_by_one(
        lambda u, p: jax.lax.fori_loop(0, 3, lambda _, x: jnp.clip(x + u, -5, 5), p) - p
    ),
    "one shape": one_by_one(
        lambda u, p: jnp.clip((p + u).reshape(-1, 4), -5, 5).reshape(p.shape) - p
    ),
    "soft threshold": one_by_one(
        lambda u, p: jnp.sign(p + u) * jnp.maximum(jnp.abs(p + u) - 0.1, 0) - p
    ),
    "products": one_by_one(lambda u, p: u * (1 + 0.1 * p)),
    "largest": one_by_one(lambda u, p: u * jnp.max(jnp.abs(p))),
    "mean": one_by_one(lambda u, p: u - jnp.mean(p)),
    "norm of a shifted weight": one_by_one(lambda u, p: u * jnp.linalg.norm(p + 1)),
    "norms of rows": one_by_one(lambda u, p: u * jnp.linalg.norm(p, axis=-1, keepdims=True)),
    "square": one_by_one(lambda u, p: u - p * p),
    "branch": one_by_one(lambda u, p: jax.lax.cond(p.sum() > 0, lambda: u, lambda: 2 * u)),
    "decay of some": one_by_one(lambda u, p: u - p * jnp.arange(p.size).reshape(p.shape)),
}
L2 = optax.add_decayed_weights(0.1)
INVARIANT = {
    **{name: make() for name, make in ROTATED.items()},
    "l2 and lion": optax.chain(L2, optax.lion(0.1, weight_decay=0.0)),
    "l2 and adafactor": optax.chain(L2, optax.adafactor(0.1)),
    "l2 and muon": optax.chain(L2, optax.contrib.muon(0.1)),
    "l2 and lamb": optax.chain(L2, optax.lamb(0.1)),
    "clip, l2 and a global norm": optax.chain(
        optax.clip(1.0), L2, optax.adam(0.1), optax.clip_by_global_norm(1.0)
    ),
    "inject": optax.inject_hyperparams(optax.lamb)(learning_rate=0.1, weight_decay=0.1),
    "multi steps": optax.MultiSteps(optax.chain(L2, optax.adam(0.1)), 3),
    "multi transform": optax.multi_transform(
        {"a": optax.lamb(0.1), "b": optax.adamw(0.1)}, {"w": "a", "b": "b"}
    ),
    "apply if finite": optax.apply_if_finite(optax.lamb(0.1, weight_decay=0.1), 3),
}


def test_programs_tell_numbers_from_norms():
    """However many steps it takes, and however large a weight must be, until it shows."""
    for name, inner in NUMBERS.items():
        with pytest.raises(InputError, match="number by number"):
            check_reads_no_coordinates(inner, PARAMS, [(), (-2,)], "it")
            pytest.fail(f"{name} passed")
    for inner in INVARIANT.values():
        check_reads_no_coordinates(inner, PARAMS, [(), (-2,)], "it")
    norms_of_columns = ROTATED["adaptive clipping"]()
    with pytest.raises(InputError, match="number by number"):  # in a basis on both sides
        check_reads_no_coordinates(norms_of_columns, PARAMS, [(), (-2, -1)], "it")


STACKED = {"v": normal(3, 3, 8, 12), "w": normal(4, 3, 8, 12)}  # three matrices, a basis each


def across(fn):
    """The step of "w" from the steps and both weights."""

    def step(u: Any, p: Any):
        return u | {"w": fn(u["w"], p["w"], p["v"])}

    return optax.stateless(step)


def summed(w):
    return jax.lax.scan(lambda total, x: (total + x, None), jnp.zeros_like(w[0]), w)[0]


def remembering(fn):
    """Steps from the weights of the step before."""

    def update(updates: Any, state: Any, params: Any = None):
        return jax.tree.map(fn, updates, state.trace, params), optax.TraceState(params)

    return optax.GradientTransformation(optax.trace(0.9).init, update)


MIXED = {
    "mean of matrices": across(lambda u, w, v: u - 0.1 * w.mean(0, keepdims=True)),
    "their sum in a loop": across(lambda u, w, v: u - 0.1 * summed(w)[None]),
    "as a product": across(lambda u, w, v: u - jnp.einsum("lmn,l->mn", w, jnp.ones(3))[None]),
    "products of two matrices": across(lambda u, w, v: u * jnp.einsum("lmn,kmn->lk", w, w).max()),
    "the same by numbers": across(lambda u, w, v: u * (w[:, None] * w[None]).sum((2, 3)).max()),
    "another parameter": across(lambda u, w, v: u - 0.1 * v),
    "product with another": across(lambda u, w, v: u * jnp.vdot(w, v)),
    "distance from another": across(lambda u, w, v: u * jnp.linalg.norm(w - v)),
    "sign of weights before": remembering(lambda u, old, w: u - 0.1 * jnp.sign(old)),
    "largest weight before": remembering(lambda u, old, w: u * jnp.max(jnp.abs(old))),
}
APART = {
    "decay per matrix": across(lambda u, w, v: u - w * jnp.arange(3.0)[:, None, None]),
    "matrix by matrix": across(
        lambda u, w, v: jax.lax.map(lambda x: x[0] * jnp.linalg.norm(x[1]) - x[1], (u, w))
    ),
    "norm of all": across(lambda u, w, v: u * (jnp.linalg.norm(w) + jnp.linalg.norm(v))),
    "step of the weights": remembering(lambda u, old, w: u * jnp.linalg.norm(old - w) + old - w),
    "signs of a momentum with decay": optax.chain(L2, optax.trace(0.9), optax.sign_sgd(0.1)),
    "mean with decay": optax.chain(L2, optax.ema(0.9), optax.adam(0.1)),
}


def test_coordinates_in_different_bases_do_not_mix_nor_hide_in_the_state():
    axes = [(-2,), (-2,)]
    for name, inner in MIXED.items():
        assert "number by number" in why_refused(sr.galore(inner, 4), STACKED), name
    for inner in APART.values():
        check_reads_no_coordinates(inner, STACKED, axes, "it")


@pytest.mark.slow
def test_bounds_on_weights_are_refused_and_decay_before_moments_is_not():
    nonnegative = optax.keep_params_nonnegative()
    inner: Any
    for inner in (optax.stateless(within), nonnegative, optax.MultiSteps(nonnegative, 2)):
        for tx in (sr.galore(inner, 4), sr.fira(0.1, 4, side="right", direction=inner)):
            assert "number by number" in why_refused(tx)
        trainer = sr.lowgrad(loss, PARAMS, inner, X, rank=4)
        with pytest.raises(InputError, match="number by number"):
            trainer.update(trainer.init(PARAMS), X)
    decay = optax.add_decayed_weights(0.1)
    trust = optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio())
    for after in (optax.adam(0.1), optax.adafactor(0.1), trust, optax.contrib.muon(0.1)):
        check_reads_no_coordinates(optax.chain(decay, after), PARAMS, [(), (-1,)], "it")


def test_adafactor_trains_in_lowgrad():
    trainer = sr.lowgrad(
        loss, PARAMS, optax.adafactor(1e-1), X, rank=6, refresh_interval=10, turns=1
    )
    state, metrics = trainer.init(PARAMS), {}
    for _ in range(30):
        state, metrics = trainer.update(state, X)
    assert float(metrics["loss"]) < 0.3 * START


def test_lowgrad_shows_the_weights_own_coordinates():
    trainer = sr.lowgrad(loss, PARAMS, optax.adam(1e-1), X, rank=4)
    state = trainer.init(PARAMS)
    state, _ = trainer.update(state, X)
    layout = trainer.layout
    seen = layout.projected(
        layout.trainable(state.base, state.low), layout.frozen(state.base), state.projectors
    )
    expected = np.asarray(state.projectors["w"]).T @ np.asarray(state.params["w"])
    np.testing.assert_allclose(seen["w"], expected.T, atol=1e-5)
    assert seen["b"] is state.base["b"]


def test_where_weights_are_elsewhere_a_reader_is_refused():
    for inner, name in {
        optax.adafactor(1e-1): "scale_by_param_block_rms",
        optax.lamb(1e-1, weight_decay=0.1): r"optax\.scale_by_trust_ratio",
    }.items():
        trainer = sr.lowgrad(loss, PARAMS, inner, X, rank=4)
        state = jax.eval_shape(trainer.init, PARAMS)
        grads = trainer.layout.trainable(state.base, state.low)
        with pytest.raises(InputError, match=f"{name} reads the weights, and not only"):
            jax.eval_shape(trainer.apply, state, jnp.float32(1.0), grads)


@pytest.mark.parametrize("name", mostly_slow(READERS, ["adafactor"]))
def test_coded_moments_leave_weights_as_they_are(name):
    """`quantize_state` hands on the real weights, so near to all is as without it."""
    coded, _ = trained(
        sr.quantize_state(READERS[name](), min_size=8, block=8, second=["nu", "v"]), 4
    )
    alone, _ = trained(READERS[name](), 4)
    gap, moved = (float(jnp.linalg.norm(alone["w"] - x["w"])) for x in (coded, PARAMS))
    assert gap < 0.1 * moved


def test_what_reads_weights():
    weights = [jnp.ones((3, 4))]

    def of(tx):
        state = tx.init({"w": weights[0]})

        def run(weights):
            with jax.numpy_dtype_promotion("standard"):
                steps, after = tx.update({"w": jnp.ones((3, 4))}, state, {"w": weights[0]})
            return jax.tree.leaves(steps), after

        return reads_weights(run, weights)

    decays = optax.adamw(optax.linear_schedule(0.1, 0.2, 3), weight_decay=0.1)
    for tx in (optax.adam(0.1), decays, optax.MultiSteps(decays, 2), optax.lion(0.1)):
        assert not of(tx)
    for make in (*READERS.values(), ROTATED["lars"], ROTATED["decay before momentum"]):
        assert of(make())


def by_the_norm_before() -> optax.GradientTransformation:
    """Steps over the norm of all gradients of the step before, which is all of its state."""
    divided = lambda grads, norm: jax.tree.map(lambda g: -g / norm, grads)
    return optax.GradientTransformation(
        lambda params: jnp.ones(()),
        lambda updates, state, params=None: (divided(updates, state), optax.tree.norm(updates)),
    )


MIXERS = {
    r"optax\.clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "prodigy": optax.contrib.prodigy(),
    "the optimizer": by_the_norm_before(),
}


@pytest.mark.parametrize("name", MIXERS)
def test_what_looks_at_all_gradients_together_is_named(name):
    with pytest.raises(InputError, match=f"{name} looks at all gradients together.*; do that"):
        check_each_by_itself(MIXERS[name], PARAMS, "do that")


def test_what_looks_at_each_gradient_by_itself_passes():
    each: Any = (
        *(sr.galore(optax.adam(0.1), 4), sr.apollo_mini(0.1), sr.quantize_state(optax.adam(0.1))),
        *(optax.contrib.muon(0.1), optax.lamb(0.1), optax.adafactor(0.1)),
        *(optax.MultiSteps(optax.adamw(0.1), 2), sr.with_split_master(optax.adam(0.1))),
        optax.chain(optax.clip(1.0), optax.clip_by_block_rms(1.0), optax.adam(0.1)),
    )
    for tx in each:
        check_each_by_itself(tx, PARAMS, "")


def test_layerwise_refuses_a_global_norm():
    model = decoder(named("llama-1m"))  # of the parameters only shapes are read
    trainer = sr.layerwise(model, MIXERS[r"optax\.clip_by_global_norm"])
    params = {"layers": {"w": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 4))}, "head": jnp.ones(3)}
    with pytest.raises(
        InputError, match=r"clip_by_global_norm.*clip by clip=\.\.\. of sr\.layerwise"
    ):
        jax.eval_shape(trainer.init, params)
