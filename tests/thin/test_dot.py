"""dot_general: every layout, every element type, one shared product with the base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.thin.thin_term import UNROLL
from springroll.thin.transform import factored
from tests.thin.against_dense import (
    PAIRS,
    check,
    close,
    compiled_text,
    dense_numpy,
    equations,
    over_population,
    weight,
)


def rows(*shape, seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


EINSUMS = [
    # equation, shape of x, shape of w, roles
    ("bi,ij->bj", (6, 5), (5, 7), "mn"),
    ("bi,ij->bj", (6, 5), (5, 7), "nm"),
    ("i,ij->j", (5,), (5, 7), "mn"),
    ("bi,ji->bj", (6, 5), (7, 5), "mn"),
    ("ij,bi->jb", (6, 5), (5, 7), "mn"),  # the weight first
    ("bti,ij->btj", (6, 4, 5), (5, 7), "mn"),
    ("btd,dhk->bthk", (6, 4, 5), (5, 3, 8), "mnn"),  # query, key, value kernels
    ("bthk,hkd->btd", (6, 4, 3, 8), (3, 8, 5), "mmn"),  # output kernel
    ("bthk,hkd->btd", (6, 4, 3, 8), (3, 8, 5), "nnm"),
    ("etd,edf->etf", (3, 6, 5), (3, 5, 7), "smn"),  # experts
    ("ed,edf->ef", (3, 5), (3, 5, 7), "smn"),
    ("bhd,hdk->bhk", (6, 3, 5), (3, 5, 7), "smn"),
    ("bhd,hdk->bhk", (6, 3, 5), (3, 5, 7), "mmn"),  # a batch axis that only left carries
    ("bd,edf->bef", (6, 5), (3, 5, 7), "smn"),  # a stacked axis that stays free
    ("bed,edf->bf", (6, 3, 5), (3, 5, 7), "smn"),  # a stacked axis that is summed
    ("ij,ij->", (5, 7), (5, 7), "mn"),
    ("b,ij->bij", (6,), (5, 7), "mn"),
    ("bj,ij->bi", (6, 7), (5, 7), "mn"),
]


@pytest.mark.parametrize(("equation", "x", "w", "roles"), EINSUMS)
def test_einsum(equation, x, w, roles):
    weight_first = equation == "ij,bi->jb"
    fn = lambda w, x: jnp.einsum(equation, *((w, x) if weight_first else (x, w)))
    check(fn, weight(0, w, roles), rows(*x), may_form=equation == "b,ij->bij")


@pytest.mark.parametrize("rank", [1, 3, UNROLL + 1])
@pytest.mark.parametrize("n_rows", [1, 4])
def test_ranks_and_row_counts(rank, n_rows):
    x = rows(5) if n_rows == 1 else rows(n_rows, 5)
    check(lambda w, x: jnp.tanh(x @ w), weight(0, (5, 7), "mn", rank=rank), x)


@pytest.mark.parametrize("gain", [None, (0.5, -0.2)])
def test_gain_may_be_absent_or_one_per_rank(gain):
    check(lambda w, x: x @ w, weight(0, (5, 7), "mn", gain=gain), rows(4, 5))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_round_once_after_the_sum(dtype):
    """The thin term is not lost beside a large base term: it is added in float32."""
    x = jnp.ones((4, 8), dtype)
    w = weight(0, (8, 3), "mn", dtype=dtype, gain=0.05)
    w = w.map(lambda a, axes: a if len(axes) < 2 else jnp.full_like(a, 0.5))
    got = factored(lambda w, x: x @ w)(w, x)
    base, left, right = (np.asarray(v, np.float64) for v in (w.base, w.left, w.right))
    exact = np.asarray(x, np.float64) @ (base + np.float64(w.gain) * left @ right.T)
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.float32).astype(dtype))


def test_wide_factors_beside_a_short_base():
    w = weight(0, (5, 7), "mn")
    short = w.map(lambda a, axes: a.astype(jnp.bfloat16) if a.shape == (5, 7) else a)
    check(lambda w, x: x @ w, short, rows(4, 5).astype(jnp.bfloat16), tol=2e-2)


def test_small_integer_factors_beside_a_float_base():
    w = weight(0, (5, 7), "mn")
    signs = w.map(lambda a, axes: a if a.shape == (5, 7) else jnp.sign(a).astype(jnp.int8))
    check(lambda w, x: x @ w, signs, rows(4, 5))


def test_plain_integer_products_are_exact():
    rng = np.random.default_rng(0)
    w = weight(0, (5, 7), "mn", gain=None)
    w = w.map(lambda a, axes: jnp.asarray(rng.integers(-3, 4, a.shape), jnp.int8))
    x = jnp.asarray(rng.integers(-100, 100, (4, 5)), jnp.int8)
    check(lambda w, x: jnp.matmul(x, w, preferred_element_type=jnp.int32), w, x, tol=0)


def test_tied_embedding_serves_lookup_and_logits():
    ids = jnp.array([[0, 3, 3], [8, 1, 2]])
    check(lambda e, ids: jnp.tanh(e[ids]) @ e.T, weight(0, (9, 5), "mn"), ids)


def test_two_layers_of_a_network_with_explicit_precision():
    params = [weight(0, (5, 7), "mn"), weight(1, (7, 4), "mn")]

    def net(params, x):
        h = jax.nn.gelu(jnp.matmul(x, params[0], precision="highest"))
        return jax.nn.softmax(h @ params[1])

    check(net, params, rows(3, 5))


def test_an_algorithm_of_the_users_choice_is_kept_for_the_base():
    chosen = jax.lax.DotAlgorithmPreset.F32_F32_F32
    check(lambda w, x: jnp.matmul(x, w, precision=chosen), weight(0, (5, 7), "mn"), rows(3, 5))


def test_one_unbatched_product_per_weight():
    """Each base is an operand of exactly one dot_general, and without a population axis."""
    params = [weight(0, (5, 7), "mn"), weight(1, (7, 4), "mn")]
    whole, stacked, _ = over_population(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], params)
    jaxpr = jax.make_jaxpr(whole)(stacked, rows(3, 5))
    dots = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    for w in params:
        users = [e for e in dots if any(v.aval.shape == w.shape for v in e.invars)]
        assert len(users) == 1
        (_, _), (batch, _) = users[0].params["dimension_numbers"]
        assert batch == ()


def test_the_compiled_program_multiplies_all_members_at_once():
    """XLA sees (members * rows, m) x (m, n) and holds no array of (members, m, n)."""
    n_rows, m, n = 6, 24, 40
    w = weight(0, (m, n), "mn", rank=1)
    whole, stacked, _ = over_population(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w.T), w)
    lowered = jax.jit(whole).lower(stacked, rows(n_rows, m))
    text = compiled_text(lowered)
    assert f"f32[{PAIRS},{m},{n}]" not in text and f"f32[{PAIRS},2,{m},{n}]" not in text
    assert f"f32[{PAIRS * 2 * n_rows},{m}]" in text
    dense_members = PAIRS * 2 * m * n * 4
    memory = lowered.compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < dense_members


def test_the_product_of_two_thin_weights_stays_thin():
    a, b = weight(0, (5, 7), "mn"), weight(1, (7, 6), "mn", rank=3, gain=(0.1, 0.2, -0.3))
    check(lambda p, x: x @ (p[0] @ p[1]), (a, b), rows(3, 5))
    check(lambda p, x: x @ (p[0] @ p[1].T), (a, weight(1, (6, 7), "mn")), rows(3, 5))


def test_an_evolved_lora_pair_stays_thin():
    frozen = rows(9, 8)
    a, b = weight(0, (9, 5), "mn"), weight(1, (5, 8), "mn")
    check(lambda p, x: x @ (frozen + 0.5 * (p["a"] @ p["b"])), {"a": a, "b": b}, rows(4, 9))


def test_products_of_experts_stay_thin():
    a, b = weight(0, (3, 5, 7), "smn"), weight(1, (3, 7, 6), "smn")
    fn = lambda p, x: jnp.einsum("bi,eik->ebk", x, jnp.einsum("eij,ejk->eik", *p))
    check(fn, (a, b), rows(4, 5))


def test_gradients_reach_every_part():
    w, x = weight(0, (5, 7), "mn"), rows(3, 5)
    thin = jax.jit(jax.grad(lambda w: jnp.sum(factored(lambda w: jnp.sin(x @ w))(w) ** 2)))(w)
    whole = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(x @ w.dense()) ** 2)))(w)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), thin, whole)
    assert np.any(np.asarray(thin.gain) != 0) and np.any(np.asarray(thin.base) != 0)
    np.testing.assert_allclose(w.dense(), dense_numpy(w), rtol=1e-5, atol=1e-5)
