"""galore: equal to a slow NumPy version, invariant under signs, faithful to what is inside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.run import checkpoint
from springroll.subspace import projector_refresh
from springroll.subspace.basis import overlap, svd_basis
from springroll.subspace.galore import galore
from springroll.subspace.projection import ProjectionOptions
from tests.reference.galore_numpy import galore as slow

L, M, N, R = 3, 8, 12, 4


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def tree(seed):
    """A stack of matrices and a vector."""
    return {"w": normal(seed, (L, M, N)), "scale": normal(seed + 2000, (M,))}


PARAMS = tree(0)


def run(tx, steps, params=PARAMS, grads=lambda step: tree(step + 1), state=None, first=0):
    """(params, state) after so many steps."""
    state = jax.jit(tx.init)(params) if state is None else state

    @jax.jit
    def advance(params, state, grads):
        with jax.numpy_dtype_promotion("standard"):  # for optax alone
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

    for step in range(first, first + steps):
        params, state = advance(params, state, grads(step))
    return params, state


def close(one, other, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def far(one, other, atol):
    gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), one, other)
    return max(jax.tree.leaves(gaps)) > atol


@pytest.mark.parametrize(
    "refresh, moments",
    [("power", "rotate"), ("power", "fill"), ("svd", "keep"), ("power", "reset")],
)
def test_equals_the_slow_version(refresh, moments):
    tx = galore(
        optax.adamw(0.05, weight_decay=0.1),
        R,
        refresh_interval=3,
        stagger=False,
        refresh=refresh,
        moments=moments,
    )
    start: Any = jax.jit(tx.init)(PARAMS)
    bases = np.asarray(start.projectors["w"].left)
    ours, _ = run(tx, 8, state=start)
    how = dict(lr=0.05, decay=0.1, gap=3, scale=0.25, refresh=refresh, moments=moments)
    history = [np.asarray(tree(step + 1)["w"]) for step in range(8)]
    for i in range(L):
        weight = np.asarray(PARAMS["w"][i])
        *_, w = slow(weight, [g[i] for g in history], bases[i], **how)
        np.testing.assert_allclose(ours["w"][i], w, atol=2e-5)


@pytest.mark.parametrize("side", [pytest.param("in", marks=pytest.mark.slow), "full"])
def test_the_layout_does_not_matter(side):
    """(out, in) with rows="out" is (in, out) transposed."""
    turned = lambda tree: jax.tree.map(jnp.matrix_transpose, tree)
    params = {"w": PARAMS["w"]}
    options: ProjectionOptions = {"refresh_interval": 3, "side": side, "moments": "fill"}
    transposed: ProjectionOptions = {**options, "rows": "out"}
    here, _ = run(
        galore(optax.adam(0.1), R, **options),
        5,
        params,
        lambda step: {"w": normal(step, (L, M, N))},
    )
    there, _ = run(
        galore(optax.adam(0.1), R, **transposed),
        5,
        turned(params),
        lambda step: {"w": jnp.matrix_transpose(normal(step, (L, M, N)))},
    )
    close(here, turned(there), 1e-5)


def test_other_signs_of_singular_vectors(monkeypatch):
    """Rotated moments do not feel them; kept ones, as published, do."""

    def trajectory(moments):
        tx = galore(
            optax.adamw(0.05), R, refresh_interval=3, refresh="svd", moments=moments, stagger=False
        )
        return run(tx, 8)[0]

    plain = {moments: trajectory(moments) for moments in ("rotate", "keep")}

    def flipped(gradient, rank):
        basis = svd_basis(gradient, rank)
        return basis * jnp.where(gradient[0, :rank] < 0, -1.0, 1.0)[None]

    monkeypatch.setattr(projector_refresh, "svd_basis", flipped)
    close(trajectory("rotate"), plain["rotate"], 1e-6)
    assert far(trajectory("keep"), plain["keep"], 1e-2)


def test_decay_is_of_the_whole_weight_and_not_scaled():
    """With zero gradients all that is left is the decay, of any optimizer and schedule."""
    nothing = lambda step: jax.tree.map(jnp.zeros_like, PARAMS)
    rate = optax.linear_schedule(0.1, 0.2, 1)
    for inner in (optax.adamw(rate, weight_decay=0.5), optax.lion(rate, weight_decay=0.5)):
        params, _ = run(galore(inner, R), 2, grads=nothing)
        close(params, jax.tree.map(lambda x: x * 0.95 * 0.9, PARAMS), 1e-6)


def test_decay_masks_reach_their_parameters():
    mask = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    tx = galore(optax.adamw(0.1, weight_decay=0.5, mask=mask), R)
    params, _ = run(tx, 1, grads=lambda step: jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(params["w"], PARAMS["w"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(params["scale"], PARAMS["scale"])


def test_what_is_not_selected_is_left_to_the_inner_optimizer():
    inner = optax.adamw(0.05)
    params = PARAMS | {"other": PARAMS["w"]}
    grads = lambda step: tree(step + 1) | {"other": tree(step + 1)["w"]}
    ours, state = run(galore(inner, R, select=lambda path: path == "w"), 3, params, grads)
    plain, _ = run(inner, 3, params, grads)
    close(ours["other"], plain["other"], 1e-6)
    close(ours["scale"], plain["scale"], 1e-6)
    assert far(ours["w"], plain["w"], 1e-2)
    assert state.projectors["other"] is None and state.inner[0].mu["w"].shape == (L, R, N)


def test_full_rank_and_a_linear_optimizer_change_nothing():
    """At r = m the subspace is everything."""
    params, grads = {"w": PARAMS["w"][0]}, lambda step: {"w": normal(step, (M, N))}
    inner = optax.sgd(0.1, momentum=0.9)
    ours, _ = run(galore(inner, M, scale=1.0, refresh_interval=2), 5, params, grads)
    close(ours, run(inner, 5, params, grads)[0], 1e-5)


def test_a_rank_above_a_matrix_is_its_smaller_side():
    both = lambda w: {"wide": w[0], "narrow": w[0, :, :3]}
    params, grads = both(PARAMS["w"]), lambda step: both(tree(step + 1)["w"])
    every: list[ProjectionOptions] = [{}, {"refresh": "svd"}, {"side": "out"}, {"side": "full"}]
    for options in every:
        tx = galore(optax.adam(0.05), {"*": 100}, **options)
        with pytest.warns(UserWarning, match="is above the smaller side of"):
            start: Any = jax.eval_shape(tx.init, params)
        assert {x.shape[-1] for x in jax.tree.leaves(start.projectors["narrow"])} == {3}
    exact, _ = run(galore(optax.adam(0.05), 3, refresh="svd"), 1, params, grads)
    capped = galore(optax.adam(0.05), {"*": 100, "wide": 3}, refresh="svd")
    with pytest.warns(UserWarning, match=r"rank 100 is above the smaller side of narrow"):
        capped, _ = run(capped, 1, params, grads)
    np.testing.assert_array_equal(capped["narrow"], exact["narrow"])


def test_each_parameter_may_have_a_rank_and_an_interval():
    """Later patterns win; a matrix of its own pace is renewed at its own steps."""
    both = lambda w: {"a": w[0], "b": w[1]}
    params, grads = both(PARAMS["w"]), lambda step: both(tree(step + 1)["w"])
    tx = galore(
        *(optax.adam(0.05), {"*": 4, "b": 2}),
        refresh_interval={"*": 100, "b": 1},
        stagger=False,
    )
    update = jax.jit(tx.update)
    _, one = update(grads(0), jax.jit(tx.init)(params))
    _, two = update(grads(1), one)
    assert one.projectors["a"].left.shape == (M, 4)
    assert one.inner[0].mu["b"].shape == (2, N)
    np.testing.assert_array_equal(one.projectors["a"].left, two.projectors["a"].left)
    assert far(one.projectors["b"].left, two.projectors["b"].left, 1e-2)
    with pytest.raises(InputError, match=r"no pattern of rank matches w: scale; give '\*'"):
        galore(optax.adam(0.1), {"scale": 4}).init(PARAMS)


def test_without_parameters():
    tx = galore(optax.adam(0.1), R)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    close(update(tree(1), state)[0], update(tree(1), state, PARAMS)[0], 1e-6)


def test_bfloat16_weights():
    """Updates have the gradient's type; what is kept is float32."""
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    tx = galore(optax.adamw(0.05), R, refresh_interval=3)
    params, state = run(tx, 4, half(PARAMS), lambda step: half(tree(step + 1)))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert state.inner[0].nu["w"].dtype == state.projectors["w"].left.dtype == jnp.float32
    exact, _ = run(tx, 4, half(PARAMS), lambda step: tree(step + 1))
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    close(single(params), single(exact), 0.05)


def test_bases_in_bfloat16_are_half_the_bytes_and_nearly_as_good():
    make = lambda bits: galore(optax.adamw(0.05), R, refresh_interval=3, basis_bits=bits)
    exact, _ = run(make(32), 4)
    short, state = run(make(16), 4)
    assert state.projectors["w"].left.dtype == jnp.bfloat16
    moved = float(jnp.linalg.norm(exact["w"] - PARAMS["w"]))
    assert float(jnp.linalg.norm(short["w"] - exact["w"])) < 0.05 * moved


def test_a_dead_expert_stays_where_it_is():
    silent = lambda step: {"w": normal(step, (L, M, N)).at[1].set(0)}
    params = {"w": PARAMS["w"]}
    tx = galore(optax.adam(0.1), R, refresh_interval=2)
    ours, first = run(tx, 1, params, silent)
    ours, last = run(tx, 4, ours, silent, first, 1)
    np.testing.assert_array_equal(ours["w"][1], params["w"][1])
    kept = overlap(last.projectors["w"].left, first.projectors["w"].left)
    np.testing.assert_allclose(kept[1], 1, atol=1e-5)
    assert float(jnp.max(kept[::2])) < 0.99


def test_resume_in_mid_period_is_bit_exact(tmp_path):
    """The state is arrays only: it goes through a checkpoint file."""
    tx = galore(optax.adamw(0.05), R, refresh_interval=3, refresh="random")
    params, state = run(tx, 4)
    path = checkpoint.save(tmp_path, 4, (params, state), {})
    params, state = checkpoint.load(path, (params, state)).tree
    resumed = run(tx, 4, params, state=state, first=4)
    straight = run(tx, 8)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_one_line_for_wrong_input():
    wrong = {
        "side is 'inn'; expected one of in,": dict(side="inn"),
        "refresh is 'powr'; expected one of power, svd, random; did you mean 'power'?": dict(
            refresh="powr"
        ),
        "moments is 'rotat'; .*did you mean 'rotate'": dict(moments="rotat"),
        "refresh_interval is 0; expected an integer of at least 1": dict(refresh_interval=0),
        "refresh_interval is 2.5; expected an integer": dict(refresh_interval=2.5),
        "refresh_interval is -1; expected": dict(refresh_interval={"*": -1}),
        "compat is 'galore'; expected one of galore-torch": dict(compat="galore"),
    }
    for message, options in wrong.items():
        with pytest.raises(InputError, match=message):
            galore(optax.adam(0.1), R, **options)
    with pytest.raises(InputError, match=r"scale \[8\] is selected but has no matrix to project"):
        galore(optax.adam(0.1), R, select="scale").init(PARAMS)
    with pytest.raises(InputError, match="act is no array but 'tanh'; give arrays alone"):
        params: Any = {**PARAMS, "act": jnp.tanh}
        galore(optax.adam(0.1), R).init(params)
