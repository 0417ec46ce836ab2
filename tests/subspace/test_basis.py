"""Bases of gradient subspaces: orthonormal whatever comes in, near the best, free of signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.subspace import basis as subspace

# Compiled once per shape.
captured, change_of_basis, orthonormal, overlap, power_step = map(
    jax.jit,
    (
        subspace.captured,
        subspace.change_of_basis,
        subspace.orthonormal,
        subspace.overlap,
        subspace.power_step,
    ),
)
random_basis = jax.jit(subspace.random_basis, static_argnums=1)
svd_basis = jax.jit(subspace.svd_basis, static_argnums=1)
rotate_moment = jax.jit(subspace.rotate_moment, static_argnums=(2, 3))

STACK, M, N, R = 3, 24, 40, 6


def power_law(key, stack=STACK, m=M, n=N, decay=1.0):
    """Matrices with singular values 1, 2^-decay, 3^-decay, ..."""
    left = random_basis(jax.random.fold_in(key, 0), (stack, m, m))
    right = random_basis(jax.random.fold_in(key, 1), (stack, n, m))
    values = jnp.arange(1.0, m + 1) ** -decay
    return jnp.einsum("smk,k,snk->smn", left, values, right)


def gram_error(basis):
    gram = np.asarray(jnp.swapaxes(basis, -1, -2) @ basis)
    return np.abs(gram - np.eye(basis.shape[-1])).max()


@pytest.mark.parametrize(
    "case", ["full", "rank deficient", "zero", "tiny", "huge", "equal columns"]
)
def test_always_orthonormal(case):
    z = jax.random.normal(jax.random.key(0), (STACK, M, R))
    z = {
        "full": z,
        "rank deficient": z.at[..., 2:].set(0) @ jnp.ones((R, R)),
        "zero": jnp.zeros_like(z),
        "tiny": z * 1e-30,
        "huge": z * 1e30,
        "equal columns": jnp.repeat(z[..., :1], R, axis=-1),
    }[case]
    near = random_basis(jax.random.key(1), (STACK, M, R))
    assert gram_error(orthonormal(z)) < 2e-6
    assert gram_error(orthonormal(z, near)) < 2e-6


def test_orthonormal_input_comes_back():
    basis = random_basis(jax.random.key(0), (STACK, M, R))
    np.testing.assert_allclose(orthonormal(basis), basis, atol=1e-6)


def test_column_lengths_and_signs():
    z = jax.random.normal(jax.random.key(0), (M, R))
    lengths = jnp.array([1e-12, 1e3, 1.0, 1e-3, 1e12, 5.0])[None]
    np.testing.assert_allclose(orthonormal(z * lengths), orthonormal(z), atol=1e-5)
    flips = jnp.array([1.0, -1, -1, 1, -1, 1])[None]
    np.testing.assert_allclose(orthonormal(z * flips), orthonormal(z) * flips, atol=1e-6)


def test_a_dead_matrix_keeps_its_basis():
    basis = random_basis(jax.random.key(0), (STACK, M, R))
    gradient = power_law(jax.random.key(1)).at[1].set(0)
    new = power_step(gradient, basis)
    np.testing.assert_allclose(new[1], basis[1], atol=2e-6)
    assert float(overlap(new, basis)[0]) < 0.99


def test_few_tokens_keep_the_rest_of_the_basis():
    """A gradient of rank 2: two directions are learned, the others stay in the old subspace."""
    basis = random_basis(jax.random.key(0), (M, R))
    gradient = power_law(jax.random.key(1), 1)[0] @ random_basis(jax.random.key(2), (N, 2))
    new = power_step(gradient @ jnp.ones((2, 1)), basis)
    assert float(captured(gradient @ jnp.ones((2, 1)), new)) > 1 - 1e-5
    assert float(overlap(new, basis)) > (R - 1) / R - 1e-3


def test_power_step_nears_the_best():
    gradient = power_law(jax.random.key(0))
    best = captured(gradient, svd_basis(gradient, R))
    basis = random_basis(jax.random.key(1), (STACK, M, R))
    random = captured(gradient, basis)
    shares = []
    for _ in range(3):
        basis = power_step(gradient, basis)
        shares.append(float(jnp.min(captured(gradient, basis) / best)))
    assert float(jnp.max(random)) < 0.6
    assert shares[0] > 0.95 and shares[1] > 0.99 and shares == sorted(shares)


def test_power_step_of_one_matrix_is_that_of_the_stack():
    gradient = power_law(jax.random.key(0))
    basis = random_basis(jax.random.key(1), (STACK, M, R))
    each = jnp.stack([power_step(g, p) for g, p in zip(gradient, basis, strict=True)])
    np.testing.assert_allclose(power_step(gradient, basis), each, atol=1e-5)


def test_svd_basis_is_numpys_up_to_signs_and_has_its_largest_entries_positive():
    gradient = power_law(jax.random.key(0))
    ours = np.asarray(svd_basis(gradient, R))
    left = np.linalg.svd(np.asarray(gradient, np.float64))[0][..., :R]
    np.testing.assert_allclose(np.abs(np.einsum("smr,smr->sr", ours, left)), 1, atol=1e-4)
    flat = np.moveaxis(ours, -2, -1).reshape(-1, M)
    assert (flat[np.arange(len(flat)), np.abs(flat).argmax(-1)] > 0).all()
    np.testing.assert_allclose(svd_basis(-gradient, R), ours, atol=1e-4)


def test_random_basis_is_uniform():
    """E[P Pᵀ] = r/m on the diagonal and nothing elsewhere."""
    basis = np.asarray(random_basis(jax.random.key(0), (4000, 6, 2)))
    assert gram_error(jnp.asarray(basis[0])) < 1e-6
    mean = np.einsum("smr,snr->mn", basis, basis) / len(basis)
    np.testing.assert_allclose(mean, np.eye(6) / 3, atol=0.02)
    assert np.abs(basis.mean(0)).max() < 0.03


def test_overlap():
    basis = random_basis(jax.random.key(0), (STACK, M, M))
    one, other = basis[..., :R], basis[..., R : 2 * R]
    mixed = jnp.concatenate([basis[..., :3], basis[..., R : R + 3]], -1)
    np.testing.assert_allclose(overlap(one, one), 1, atol=1e-5)
    np.testing.assert_allclose(overlap(-one[..., ::-1], one), 1, atol=1e-5)
    np.testing.assert_allclose(overlap(one, other), 0, atol=1e-5)
    np.testing.assert_allclose(overlap(mixed, one), 0.5, atol=1e-5)


def test_first_moments_rotate_with_the_gradient():
    """Within the same subspace a rotated average is the average in the new coordinates."""
    old = random_basis(jax.random.key(0), (M, R))
    new = old @ random_basis(jax.random.key(1), (R, R))
    gradients = jax.random.normal(jax.random.key(2), (5, M, N))
    mean = lambda basis: jnp.mean(jnp.einsum("mr,tmn->trn", basis, gradients), axis=0)
    change = change_of_basis(new, old)
    np.testing.assert_allclose(rotate_moment(change, mean(old), "first"), mean(new), atol=1e-5)


def test_second_moments_rotate_as_independent_coordinates():
    """(C∘C) V is what samples with variances V show in the new coordinates."""
    turn = random_basis(jax.random.key(1), (R, R))
    spread = jnp.linspace(0.5, 2.0, R)[:, None]
    samples = jax.random.normal(jax.random.key(2), (R, 40000)) * spread
    variance = lambda x: jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    rotated = rotate_moment(turn, variance(samples), "second")
    np.testing.assert_allclose(rotated, variance(turn @ samples), rtol=0.1)


def test_flipped_signs_leave_second_moments_and_flip_first_ones():
    signs = jnp.array([1.0, -1, 1, -1, -1, 1])
    moment = jax.random.uniform(jax.random.key(0), (STACK, R, N))
    change = jnp.broadcast_to(jnp.diag(signs), (STACK, R, R))
    np.testing.assert_array_equal(rotate_moment(change, moment, "second"), moment)
    first = rotate_moment(change, moment, "first")
    np.testing.assert_array_equal(first, moment * signs[None, :, None])


def test_fill_keeps_the_mean_scale_and_rotate_shrinks():
    old = random_basis(jax.random.key(0), (M, R))
    new = random_basis(jax.random.key(1), (M, R))
    change, second = change_of_basis(new, old), jnp.ones((R, N))
    np.testing.assert_allclose(rotate_moment(change, second, "second", "fill"), 1, atol=1e-5)
    assert float(jnp.max(rotate_moment(change, second, "second"))) < 0.9
    first = jax.random.normal(jax.random.key(2), (R, N))
    filled = rotate_moment(change, first, "first", "fill")
    np.testing.assert_array_equal(filled, rotate_moment(change, first, "first"))


def test_keep_and_reset():
    moment = jax.random.normal(jax.random.key(0), (R, N))
    change = jnp.zeros((R, R))
    np.testing.assert_array_equal(rotate_moment(change, moment, "first", "keep"), moment)
    np.testing.assert_array_equal(rotate_moment(change, moment, "second", "reset"), 0)


def test_bfloat16_gradients_and_moments():
    gradient = power_law(jax.random.key(0))
    basis = random_basis(jax.random.key(1), (STACK, M, R))
    half = power_step(gradient.astype(jnp.bfloat16), basis)
    assert half.dtype == jnp.float32 and gram_error(half) < 2e-6
    assert float(jnp.min(overlap(half, power_step(gradient, basis)))) > 0.99
    moment = jnp.ones((STACK, R, N), jnp.bfloat16)
    assert rotate_moment(change_of_basis(half, basis), moment, "second").dtype == jnp.bfloat16
