"""What theory says about low-rank evolution strategies, measured with the real machinery.

Numbers are those of research section 6: sampling error bounds are five standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.evolve.members import Members, evaluate
from springroll.evolve.roles import describe
from springroll.evolve.shaping import z_score
from springroll.evolve.strategy import EvolutionState
from springroll.evolve.update import direction

SEED = jnp.array([3, 4], jnp.uint32)
U = jnp.array([0.6, 0.0, -0.8, 0.0, 0, 0, 0, 0], jnp.float32)
V = jnp.array([0.0, 0.8, 0.0, 0.6, 0, 0, 0, 0], jnp.float32)


def population(params, pairs, *, rank=1, sigma=1.0, roles=None, epoch=0):
    perturbation = describe(params, rank=rank, roles=roles)
    numbers = jnp.arange(pairs, dtype=jnp.uint32)
    members = Members(numbers, None, SEED, jnp.int32(epoch), jnp.float32(sigma), perturbation)
    return EvolutionState(params, None, None, SEED, jnp.int32(0)), members.keep_factors()


@pytest.fixture(scope="module")
def sine():
    """f(W) = sin <u v^T, W>."""
    return lambda params: jnp.sin(U @ params["w"] @ V)


@pytest.mark.parametrize("rank", [1, 2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_distance_to_the_gaussian_gradient_is_of_order_one_over_rank(sine, rank):
    """E[<uv^T, E> f] = k (1 + k^2 / r)^(-r/2 - 1), against k exp(-k^2 / 2) for full rank; k = 1."""
    pairs = 1 << 16
    state, members = population({"w": jnp.zeros((8, 8))}, pairs, rank=rank)
    fitness = evaluate(sine, state, members)
    got = float(U @ direction(members, fitness)["w"] @ V) / (2 * pairs)
    left, right = (np.asarray(x) for x in members.drawn()["w"])
    z = np.einsum("pir,pjr,i,j->p", left, right, U, V) / np.sqrt(rank)
    error = np.std(z * np.sin(z)) / np.sqrt(pairs)
    closed = (1 + 1 / rank) ** (-rank / 2 - 1)
    assert abs(got - closed) < 5 * error
    gaussian = np.exp(-0.5)
    assert 0.2 < rank * (gaussian - closed) < 0.75 * gaussian + 1e-6
    if rank <= 2:
        assert abs(got - gaussian) > 10 * error  # the test can tell the ranks apart


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_linear_functions_have_unbiased_gradients(rank):
    """E[E <C, E>] = C at any rank, for low-rank and dense leaves alike."""
    rng = np.random.default_rng(0)
    c = {
        "w": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=4), jnp.float32),
    }
    pairs, sigma = 1 << 15, 0.1
    state, members = population(jax.tree.map(jnp.zeros_like, c), pairs, rank=rank, sigma=sigma)
    linear = lambda params: jnp.trace(c["w"].T @ params["w"]) + jnp.vdot(c["b"], params["b"])
    fitness = evaluate(linear, state, members)
    total = direction(members, fitness)
    per_pair = np.asarray(fitness[0::2] - fitness[1::2]) / (2 * sigma)
    left, right = (np.asarray(x) for x in members.drawn()["w"])
    noise = {
        "w": np.einsum("pir,pjr->pij", left, right) / np.sqrt(rank),
        "b": members.drawn()["b"][0],
    }
    for path, want in c.items():
        got = np.asarray(total[path]) / (2 * pairs * sigma)
        terms = np.asarray(noise[path]) * per_pair.reshape(-1, *(1,) * want.ndim)
        assert (np.abs(got - want) < 5 * terms.std(axis=0) / np.sqrt(pairs)).all()


def test_even_functions_give_antithetic_pairs_nothing():
    state, members = population({"w": jnp.zeros((6, 5))}, 64)
    fitness = evaluate(lambda params: jnp.sum((jnp.eye(6) @ params["w"]) ** 2), state, members)
    assert float(jnp.std(fitness)) > 1
    np.testing.assert_allclose(fitness[0::2], fitness[1::2], rtol=1e-6)
    assert np.abs(direction(members, fitness)["w"]).max() < 1e-3


@pytest.mark.parametrize(
    ("pairs", "rank", "want"),
    [pytest.param(2, 1, 2, marks=pytest.mark.slow), (3, 2, 6), (20, 1, 8)],
)
def test_rank_of_the_update(pairs, rank, want):
    """min(N r / 2, m, n): the members of a pair share their direction."""
    state, members = population({"w": jnp.zeros((8, 9))}, pairs, rank=rank)
    fitness = z_score(
        evaluate(lambda params: (jnp.ones((1, 8)) @ params["w"]).sum(), state, members)
    )
    values = np.linalg.svd(np.asarray(direction(members, fitness)["w"]), compute_uv=False)
    assert (values > 1e-4 * values[0]).sum() == want == min(pairs * rank, 8, 9)


@pytest.mark.parametrize("dim", [pytest.param(16, marks=pytest.mark.slow), 64])
def test_bias_on_cubics_is_sigma_squared_times_dimension(dim):
    """f = a.x + (u.x) |x|^2 / 6: its gradient is off by sigma^2 (d + 2) / 6 u."""
    pairs, sigma = 1 << 15, 0.3
    a, u = jnp.zeros(dim).at[1].set(1.0), jnp.zeros(dim).at[0].set(1.0)
    cubic = lambda params: a @ params["x"] + (u @ params["x"]) * jnp.sum(params["x"] ** 2) / 6
    state, members = population({"x": jnp.zeros(dim)}, pairs, sigma=sigma)
    fitness = evaluate(cubic, state, members)
    gradient = np.asarray(direction(members, fitness)["x"]) / (2 * pairs * sigma)
    bias = gradient - np.asarray(a)
    want = sigma**2 * (dim + 2) / 6
    per_pair = np.asarray(fitness[0::2] - fitness[1::2]) / (2 * sigma)
    error = np.std(per_pair) * 2 / np.sqrt(pairs)
    assert abs(bias[0] - want) < 5 * error and error < want / 5
    assert np.abs(bias[2:]).max() < 5 * error


def test_epochs_draw_other_directions():
    _, first = population({"w": jnp.zeros((6, 5))}, 4)
    _, second = population({"w": jnp.zeros((6, 5))}, 4, epoch=1)
    assert not np.allclose(first.drawn()["w"][0], second.drawn()["w"][0])
