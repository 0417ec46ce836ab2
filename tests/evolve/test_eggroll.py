"""The strategy: it learns, it follows its units, it resumes, and it refuses what cannot be."""

import dataclasses
import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.evolve.shaping import group_centred, z_score
from tests.evolve.dense_population import weighted_sum

X = jax.random.normal(jax.random.key(7), (32, 4))
Y = jnp.stack([X[:, 0] * X[:, 1], jnp.tanh(X[:, 2])], axis=1)
PARAMS = {"w": jnp.full((4, 2), 0.5), "b": jnp.zeros(2), "steps": jnp.int32(3)}


def loss(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2)


def score(params, x, y):
    return -loss(params, x, y)


def strategy(**options):
    return sr.eggroll(**{"pop_size": 32, "sigma": 0.1, "optimizer": optax.sgd(1.0)} | options)


def one_step(es, params=PARAMS, fitness=None):
    state = es.init(jax.random.key(0), params)
    members = es.ask(state)
    if fitness is None:
        fitness = sr.evaluate(score, state, members, X, Y)
    new, metrics = es.tell(state, members, fitness)
    return state, members, fitness, new, metrics


def run(es, state, generations):
    metrics = {}
    for _ in range(generations):
        members = es.ask(state)
        state, metrics = es.tell(state, members, sr.evaluate(score, state, members, X, Y))
    return state, metrics


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(16)(x))
        return nn.Dense(2)(nn.LayerNorm()(x))


@pytest.mark.parametrize("make", ["eggroll", "open_es"])
def test_a_flax_model_learns(make):
    model = Mlp()
    params = model.init(jax.random.key(0), X)
    fn = lambda params, x, y: -jnp.mean((model.apply(params, x) - y) ** 2)
    options = {"pop_size": 128, "sigma": 0.05, "optimizer": optax.adam(0.03)}
    if make == "eggroll":
        roles = sr.discover(fn, params, X, Y)
        assert roles["params/Dense_0/kernel"].kind == "low-rank"
        es = sr.eggroll(roles=roles, shaping="centred_ranks", **options)
    else:
        es = sr.open_es(**options)
    state = es.init(jax.random.key(1), params)

    @jax.jit
    def step(state):
        members = es.ask(state)
        return es.tell(state, members, sr.evaluate(fn, state, members, X, Y))

    before, metrics = float(fn(params, X, Y)), {}
    for _ in range(60):
        state, metrics = step(state)
    after = float(fn(state.params, X, Y))
    assert after > 0.25 * before, (before, after)
    assert metrics["fitness_max"] >= metrics["fitness_mean"] > 0.5 * before


@pytest.mark.parametrize("units", ["sigma", "paper"])
def test_the_step_is_the_formula(units):
    es = strategy(lr_units=units, sigma=0.2, optimizer=optax.sgd(0.3))
    _, members, fitness, new, metrics = one_step(es)
    total = weighted_sum(members, np.asarray(z_score(fitness)))
    scale = 0.3 * 0.2 / np.sqrt(32) if units == "sigma" else 0.3 / (32 * 0.2)
    for path in ("w", "b"):
        want = np.asarray(PARAMS[path]) + scale * total[path]
        np.testing.assert_allclose(new.params[path], want, rtol=1e-4, atol=1e-6)
    assert new.params["steps"] == 3
    np.testing.assert_allclose(metrics["fitness_mean"], np.mean(fitness), rtol=1e-5)
    np.testing.assert_allclose(metrics["fitness_std"], np.std(fitness), rtol=1e-4)
    np.testing.assert_allclose(metrics["fitness_max"], np.max(fitness))
    np.testing.assert_allclose(metrics["sigma"], 0.2)
    moved = [np.asarray(new.params[k] - PARAMS[k], np.float64) for k in ("w", "b")]
    size = np.sqrt(sum((np.asarray(PARAMS[k], np.float64) ** 2).sum() for k in ("w", "b")))
    want = np.sqrt(sum((m**2).sum() for m in moved)) / size
    np.testing.assert_allclose(metrics["step_ratio"], want, rtol=1e-4)


def test_learning_rate_is_the_root_mean_square_step_in_units_of_sigma():
    """Under the null: fitness that has nothing to do with the noise."""
    params = {"w": jnp.zeros((40, 50))}
    es = strategy(pop_size=256, sigma=0.01, optimizer=optax.sgd(0.5))
    fitness = jax.random.normal(jax.random.key(3), (256,))
    *_, new, _ = one_step(es, params, fitness)
    step = float(jnp.sqrt(jnp.mean(new.params["w"] ** 2)))
    assert 0.8 < step / (0.5 * 0.01) < 1.2


@pytest.mark.slow
def test_chunked_noise_and_devices_give_the_same_run():
    es = strategy()
    want, _ = run(es, es.init(jax.random.key(0), PARAMS), 2)
    mesh = jax.make_mesh((4,), ("population",))
    for options in ({"mesh": mesh}, {"mesh": mesh, "noise_budget_bytes": 60}):
        es = strategy(**options)
        state = es.init(jax.random.key(0), PARAMS)
        stored = es.ask(state).factors is not None
        assert stored == ("noise_budget_bytes" not in options)
        got, _ = run(es, state, 2)
        np.testing.assert_allclose(got.params["w"], want.params["w"], rtol=1e-5, atol=1e-6)


def test_a_run_resumes_from_bytes_with_the_same_bits():
    es = strategy(optimizer=optax.adam(0.02), noise="int8")
    start = es.init(jax.random.key(5), PARAMS)
    want, _ = run(es, start, 4)
    half, _ = run(es, start, 2)
    leaves, treedef = jax.tree.flatten(half)
    file = io.BytesIO()
    np.savez(file, *[np.asarray(x) for x in leaves])
    file.seek(0)
    loaded = [jnp.asarray(x) for x in np.load(file, allow_pickle=False).values()]
    got, _ = run(es, jax.tree.unflatten(treedef, loaded), 2)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert int(got.generation) == 4


def test_state_is_arrays_only():
    state = strategy(optimizer=optax.adam(0.1)).init(jax.random.key(0), PARAMS)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert state.seed.dtype == jnp.uint32 and state.seed.shape == (2,)
    other = strategy().init(jax.random.key(1), PARAMS)
    assert (state.seed != other.seed).any()


@pytest.mark.parametrize(("reuse", "groups"), [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 1])])
def test_noise_reuse(reuse, groups):
    es = strategy(noise_reuse=reuse)
    state = es.init(jax.random.key(0), PARAMS)
    drawn = [es.ask(state._replace(generation=jnp.int32(g))).drawn()["w"][0] for g in range(4)]
    for a in range(4):
        for b in range(a):
            assert bool((drawn[a] == drawn[b]).all()) == (groups[a] == groups[b])


def test_sigma_may_be_a_schedule():
    es = strategy(sigma=optax.exponential_decay(0.2, 1, 0.5))
    state = es.init(jax.random.key(0), PARAMS)
    for generation, want in ((0, 0.2), (2, 0.05)):
        members = es.ask(state._replace(generation=jnp.int32(generation)))
        np.testing.assert_allclose(members.sigma, want, rtol=1e-6)


def test_failed_members_are_dropped_and_counted():
    es = strategy()
    state = es.init(jax.random.key(0), PARAMS)
    members = es.ask(state)
    fitness = sr.evaluate(score, state, members, X, Y)
    broken = fitness.at[3].set(jnp.nan).at[8].set(-jnp.inf)
    new, metrics = es.tell(state, members, broken)
    assert int(metrics["dropped"]) == 2
    keep = np.isfinite(broken)
    np.testing.assert_allclose(metrics["fitness_mean"], np.asarray(fitness)[keep].mean(), rtol=1e-5)
    weights = np.zeros(32)
    kept = np.asarray(fitness, np.float64)[keep]
    weights[keep] = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-5)
    want = np.asarray(PARAMS["w"]) + 0.1 / np.sqrt(30) * weighted_sum(members, weights)["w"]
    np.testing.assert_allclose(new.params["w"], want, rtol=1e-4, atol=1e-5)


def test_nothing_moves_if_all_members_fail():
    """Not even by momentum; the run can go on from the same state."""
    es = strategy(optimizer=optax.sgd(0.1, momentum=0.9))
    _, members, _, state, _ = one_step(es)
    new, metrics = es.tell(state, members, jnp.full(32, jnp.nan))
    assert int(metrics["dropped"]) == 32 and int(new.generation) == 2
    jax.tree.map(np.testing.assert_array_equal, new[:4], state[:4])


def test_the_guard_bounds_the_step():
    free = one_step(strategy(optimizer=optax.sgd(50.0)))
    held = one_step(strategy(optimizer=optax.sgd(50.0), max_step_ratio=0.25))
    assert free[-1]["step_ratio"] > 1
    np.testing.assert_allclose(held[-1]["step_ratio"], 0.25, rtol=1e-5)
    moves = [s[3].params["w"] - PARAMS["w"] for s in (free, held)]
    ratio = moves[0] / moves[1]
    np.testing.assert_allclose(ratio, float(free[-1]["step_ratio"]) / 0.25, rtol=1e-3)
    gentle = one_step(strategy(max_step_ratio=10.0))
    np.testing.assert_allclose(
        gentle[3].params["w"], one_step(strategy())[3].params["w"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("master", ["float32", "stochastic", None])
def test_small_steps_of_bfloat16_weights(master):
    """Steps a fiftieth of a unit in the last place: plain rounding loses all of them."""
    params = {"w": jnp.ones((32, 32), jnp.bfloat16)}
    es = strategy(
        pop_size=2, sigma=1e-3, optimizer=optax.sgd(0.08), master=master, noise_reuse=1000
    )
    state = es.init(jax.random.key(0), params)
    fitness, steps = jnp.array([1.0, -1.0]), 60
    total = weighted_sum(es.ask(state), np.asarray(z_score(fitness)))["w"]
    wanted = steps * 0.08 * 1e-3 / np.sqrt(2) * total
    for _ in range(steps):
        state, _ = es.tell(state, es.ask(state), fitness)
    got = np.asarray(state.params["w"], np.float64) - 1
    assert state.params["w"].dtype == jnp.bfloat16
    if master is None:
        np.testing.assert_array_equal(got, 0)
        return
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.8
    assert abs((got * wanted).sum() / (wanted**2).sum() - 1) < 0.1
    if master == "float32":
        np.testing.assert_allclose(state.master["w"] - 1, wanted, atol=1e-5)
        assert np.abs(got - wanted).max() <= 2.0**-8


def test_frozen_parameters_cost_no_optimizer_state():
    es = strategy(optimizer=optax.adam(0.1), roles={"w": "frozen"})
    state, *_, new, _ = one_step(es)
    shapes = [x.shape for x in jax.tree.leaves(state.opt_state)]
    assert (4, 2) not in shapes and (2,) in shapes
    np.testing.assert_array_equal(new.params["w"], PARAMS["w"])
    assert (new.params["b"] != 0).any()


def test_shaping_may_be_a_function():
    _, members, fitness, new, _ = one_step(strategy(shaping=group_centred(4)))
    total = weighted_sum(members, np.asarray(group_centred(4)(fitness)))["w"]
    want = np.asarray(PARAMS["w"]) + 0.1 / np.sqrt(32) * total
    np.testing.assert_allclose(new.params["w"], want, rtol=1e-4, atol=1e-6)


def test_open_es_is_full_rank():
    es = sr.open_es(pop_size=32, sigma=0.1, optimizer=optax.sgd(1.0), roles={"b": "frozen"})
    _, members, fitness, new, _ = one_step(
        es, {"w": jnp.zeros((6, 5)), "b": jnp.ones(2)}, jnp.arange(32.0)
    )
    assert members.drawn()["w"][0].shape == (16, 6, 5) and "b" not in members.drawn()
    step = np.asarray(new.params["w"])
    values = np.linalg.svd(step, compute_uv=False)
    assert values[-1] > 1e-2 * values[0]
    np.testing.assert_allclose(
        step,
        0.1 / np.sqrt(32) * weighted_sum(members, np.asarray(z_score(fitness)))["w"],
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pop_size": 1}, "pop_size is 1; expected at least 2"),
        ({"pop_size": 7}, "pop_size is 7; antithetic pairs need an even number, such as 8"),
        ({"sigma": 0.0}, "sigma is 0.0; expected a positive number"),
        ({"sigma": -1}, "sigma is -1; expected a positive number"),
        ({"sigma": float("nan")}, "sigma is nan; expected a positive number"),
        ({"noise_reuse": 0}, "noise_reuse is 0; expected how many generations"),
        ({"lr_units": "adam"}, "lr_units is 'adam'; expected 'sigma' or 'paper'"),
        ({"master": "bf16"}, "master is 'bf16'; expected 'float32', 'stochastic' or None"),
        ({"shaping": "ranks"}, "shaping 'ranks' is unknown"),
        ({"noise_budget_bytes": 0}, "noise_budget_bytes is 0"),
        ({"max_step_ratio": 0.0}, "max_step_ratio is 0.0; expected a positive number or None"),
        ({"shaping": "pair_sign", "antithetic": False}, "it needs antithetic=True"),
        ({"pairs_per_chunk": 0}, "pairs_per_chunk is 0; expected at least 1 or None"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message) as caught:
        strategy(**options)
    assert "\n" not in str(caught.value)


def test_bad_input_that_needs_the_parameters_or_the_mesh():
    with pytest.raises(InputError, match=r"w: rank 3 is above min\(m, n\) = 2"):
        strategy(rank=3).init(jax.random.key(0), PARAMS)
    with pytest.raises(InputError, match="matches no parameter; the nearest is 'w'"):
        strategy(roles={"ww": "dense"}).init(jax.random.key(0), PARAMS)
    with pytest.raises(InputError, match="pop_size 6 makes 3 pairs, which do not divide over 4"):
        strategy(pop_size=6, mesh=jax.make_mesh((4,), ("population",)))
    with pytest.raises(
        InputError, match=r"mesh has axes \['data'\]; expected one named 'population'"
    ):
        strategy(mesh=jax.make_mesh((4,), ("data",)))
    with pytest.raises(InputError, match=r"act/0 is a \w+; expected arrays only"):
        strategy().init(jax.random.key(0), {"act": [jnp.tanh], "w": jnp.ones((2, 2))})
    es = strategy()
    state = es.init(jax.random.key(0), PARAMS)
    with pytest.raises(InputError, match=r"fitness has shape \[31\]; expected \[32\]"):
        es.tell(state, es.ask(state), jnp.zeros(31))
    assert dataclasses.is_dataclass(es.ask(state))
