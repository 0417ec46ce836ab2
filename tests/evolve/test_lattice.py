"""Laws of evolution on the lattice: equal bits however it is run, no move without votes."""

import functools
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from springroll.errors import InputError
from springroll.evolve.lattice import lattice
from springroll.evolve.lattice_rules import Rule, residual, threshold
from springroll.evolve.members import evaluate
from springroll.models.egg import EggConfig, egg
from springroll.quant import fixed_point as fp
from springroll.quant.registers import fastest_registers

POP, D, H, LAYERS, T = 32, 12, 20, 2, 3
KEY = jax.random.key(3)


def params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.integers(-40, 41, shape), jnp.int8)
    return {
        "emb": draw(7, D),
        "blocks": {"up": draw(LAYERS, H, D), "down": draw(LAYERS, D, H)},
        "bias": draw(D),
        "frozen": draw(D, D),
        "real": jnp.ones(3),
    }


ROLES = {"frozen": "frozen"}


def score(p, tokens, carry):
    """A scanned little integer network with a carried state: (fitness, new carry)."""

    def block(x, w):
        up = fp.store(fp.shift_right(fp.dot(x, w["up"]), 6))
        return fp.store(fp.wide(x) + fp.shift_right(fp.dot(up, w["down"]), 6)), None

    x = fp.store(fp.wide(p["emb"][tokens]) + fp.wide(p["bias"])[None] + fp.wide(carry)[None])
    x = lax.scan(block, x, p["blocks"])[0]
    x = fp.store(fp.shift_right(fp.dot(x, p["frozen"]), 6))
    return -jnp.sum(jnp.abs(fp.wide(x) - 16)), x[-1]


def strategy(**options):
    rule = residual(lr=0.5)
    return lattice(**({"pop_size": POP, "sigma": 0.1, "roles": ROLES, "rule": rule} | options))


@functools.cache
def default():
    """One strategy for many tests, compiled once."""
    return strategy()


def batch(generation):
    rng = np.random.default_rng(generation)
    return jnp.asarray(rng.integers(0, 7, (POP, T)), jnp.int32)


def generation(es, state, carry, number):
    members = es.ask(state)
    fitness, carry = evaluate(score, state, members, batch(number), carry, in_axes=0, has_aux=True)
    return members, fitness, carry


def run(es, start=None, first=0, last=4):
    state, carry = start or (es.init(KEY, params()), jnp.zeros((POP, D), jnp.int8))
    fitness, metrics = None, {}
    for number in range(first, last):
        members, fitness, carry = generation(es, state, carry, number)
        state, metrics = es.tell(state, members, fitness)
    metrics["fitness_mean"] = round(float(metrics["fitness_mean"]), 2)  # a mean of floats
    metrics["fitness_std"] = round(float(metrics["fitness_std"]), 2)
    return jax.device_get((state, carry)), jax.device_get((fitness, metrics))


@functools.cache
def undisturbed():
    return run(default())


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def mesh_of(devices):
    return jax.make_mesh((devices,), ("population",), devices=jax.devices()[:devices])


def test_the_run_is_worth_comparing():
    (state, carry), (fitness, metrics) = undisturbed()
    start = params()
    assert np.any(state.params["emb"] != start["emb"]) and state.opt_state["bias"][0].any()
    assert len(set(fitness.tolist())) > 4 and fitness.dtype == np.int32 and carry.any()
    assert 0 < metrics["moved"] < 1 and metrics["dropped"] == 0
    assert metrics["fitness_max"] == fitness.max()
    np.testing.assert_allclose(metrics["fitness_mean"], fitness.mean(), atol=0.01)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"pairs_per_chunk": 3}, marks=pytest.mark.slow),
        pytest.param({"noise_budget_bytes": 1 << 11, "pairs_per_chunk": 7}, marks=pytest.mark.slow),
        pytest.param({"mesh": 2}, marks=pytest.mark.slow),
        {"mesh": 4, "noise_budget_bytes": 64},
        {"registers": "the other"},
    ],
    ids=str,
)
def test_equal_bits_however_it_is_split(options):
    if "mesh" in options:
        options = options | {"mesh": mesh_of(options["mesh"])}
    if "registers" in options:
        (other,) = {"int8", "float32"} - {fastest_registers()}
        options = {"registers": other}
    got = run(strategy(**options), last=2)
    assert_same(got, run_to_two())


@functools.cache
def run_to_two():
    return run(default(), last=2)


def test_donated_saved_and_restored():
    """Through a file and back after two generations, with every state donated."""
    es = default()
    state, carry = run_to_two()[0]
    leaves, tree = jax.tree.flatten((state, carry))
    file = io.BytesIO()
    np.savez(file, **{str(i): leaf for i, leaf in enumerate(leaves)})
    file.seek(0)
    saved = np.load(file, allow_pickle=False)
    restored = jax.tree.unflatten(tree, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])
    donating = es._replace(tell=jax.jit(es.tell, donate_argnums=0))
    assert_same(run(donating, restored, first=2), undisturbed())


def test_the_state_is_integers_only():
    state = strategy().init(KEY, {k: v for k, v in params().items() if k != "real"})
    assert all(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(state))


def test_frozen_and_real_parameters_stay():
    state = undisturbed()[0][0]
    for name in ("frozen", "real"):
        np.testing.assert_array_equal(state.params[name], params()[name])
        assert name not in state.opt_state


def test_a_matrix_may_be_dense():
    """Full-rank noise of one step's deviation at sigma 1/16: the weights of a member are formed."""
    es = strategy(roles=ROLES | {"emb": "dense"}, sigma=2.0**-4)
    state = es.init(KEY, params())
    members = es.ask(state)
    noise = np.asarray(members.drawn()["emb"][0], np.float64)
    assert noise.shape == (POP // 2, 7, D)
    table = lambda p, row: jnp.sum(fp.wide(p["emb"][row]))
    rows = jnp.arange(POP, dtype=jnp.int32) % 7
    got = evaluate(table, state, members, rows, in_axes=0)
    signs = np.where(np.arange(POP) % 2, -1, 1)
    moved = np.asarray(params()["emb"], np.float64)[rows]
    moved += np.rint(signs[:, None] * noise[np.arange(POP) // 2, rows] / 16)
    np.testing.assert_array_equal(got, moved.sum(axis=1))


def all_votes(es, fitness, generations=1):
    state, metrics = es.init(KEY, params()), {}
    for _ in range(generations):
        state, metrics = es.tell(state, es.ask(state), fitness)
    return state, metrics


def test_invalid_pairs_are_as_good_as_ties():
    rng = np.random.default_rng(0)
    fitness = rng.normal(size=POP).astype(np.float32)
    tied, invalid = fitness.copy(), fitness.copy()
    tied[4:6] = tied[10:12] = 0
    invalid[4], invalid[11] = np.nan, np.inf
    es = default()
    a, metrics_a = all_votes(es, jnp.asarray(tied), 2)
    b, metrics_b = all_votes(es, jnp.asarray(invalid), 2)
    assert_same(jax.device_get(a), jax.device_get(b))
    assert int(metrics_a["dropped"]) == 0 and int(metrics_b["dropped"]) == 2
    assert float(metrics_a["ties"]) == float(metrics_b["ties"]) == 4 / POP
    assert np.isfinite(float(metrics_b["fitness_mean"]))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_moves_without_votes(value):
    """Momentum included: a generation of ties, or of NaN, leaves all but the count as it was."""
    es = default()
    state, _ = all_votes(es, jnp.arange(POP, dtype=jnp.float32) % 2)
    still, metrics = es.tell(state, es.ask(state), jnp.full(POP, value))
    assert int(still.generation) == int(state.generation) + 1
    assert_same(jax.device_get(still._replace(generation=state.generation)), jax.device_get(state))
    assert float(metrics["moved"]) == 0 and float(metrics["ties"]) == 1


def test_votes_are_the_exact_sum_over_pairs():
    """A rule that moves by Z itself shows it: sum over the pairs of sign * left @ right.T."""
    shown = Rule(
        lambda w: jnp.zeros(w.shape, jnp.int32), lambda votes, *_: (votes.total, votes.total)
    )
    es = strategy(rule=shown, rank=2)
    state = es.init(KEY, params())
    members, rng = es.ask(state), np.random.default_rng(1)
    fitness = rng.integers(-3, 4, POP)
    votes = np.sign(fitness[::2] - fitness[1::2])
    after, _ = es.tell(state, members, jnp.asarray(fitness))
    left, right = (np.asarray(x, np.int64) for x in members.drawn()["blocks/up"])
    want = np.einsum("p,lpmr,lpnr->lmn", votes, left, right)
    np.testing.assert_array_equal(after.opt_state["blocks/up"], want)
    bias = np.asarray(members.drawn()["bias"][0], np.int64)
    np.testing.assert_array_equal(after.opt_state["bias"], votes @ bias)


def test_random_votes_move_alpha_of_the_weights():
    """At alpha_t = 1/2, about half of the weights are beyond the threshold by chance."""
    es = lattice(pop_size=1152, sigma=0.1, rule=threshold(alpha=1.0, decay=100.0))
    state = es.init(KEY, {"w": jnp.zeros((3, 64, 64), jnp.int8), "b": jnp.zeros(2000, jnp.int8)})
    state = state._replace(generation=jnp.int32(100))
    fitness = jnp.asarray(np.random.default_rng(2).normal(size=1152))
    after, metrics = es.tell(state, es.ask(state), fitness)
    # The level is cut to 10 sixteenths of 10.8, which is passed by 0.53.
    for weight in after.params.values():
        assert abs(float(jnp.mean(weight != 0)) - 0.532) < 0.03
        assert abs(float(jnp.mean(weight.astype(jnp.float32)))) < 0.03
    np.testing.assert_allclose(metrics["moved"], 0.532, atol=0.02)


def test_a_step_that_would_leave_the_range_stops_at_its_edge():
    far = Rule(lambda w: (), lambda votes, *_: (jnp.full_like(votes.total, 300), ()))
    es = strategy(rule=far)
    state, metrics = all_votes(es, jnp.arange(POP) % 2)
    assert int(state.params["emb"].min()) == int(state.params["bias"].max()) == 127
    assert float(metrics["moved"]) > 0


# --- structure: what the compiler makes of a population of the real model -------------------------


def compiled(registers):
    model = egg(EggConfig(n_layers=LAYERS, hidden=24, registers=registers))
    es = lattice(pop_size=POP, sigma=0.1)
    state = jax.eval_shape(es.init, KEY, jax.eval_shape(model.init, KEY))
    members = jax.eval_shape(es.ask, state)
    tokens = jax.ShapeDtypeStruct((POP, 6), jnp.int32)
    carry = jax.ShapeDtypeStruct((POP, LAYERS, 24), jnp.int8)

    def call(state, members, tokens, carry):
        return evaluate(model.score, state, members, tokens, carry, in_axes=0, has_aux=True)

    return jax.jit(call).lower(state, members, tokens, carry).compile().as_text() or ""


def test_structure_of_the_forward():
    """No weight per member, and every weight meets the whole population in one plain product."""
    text = compiled("float32")
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"[a-z]\d+\[([\d,]+)\]", text)]
    for shape in shapes:
        population = {POP, POP // 2} & set(shape)
        weights = ({24, 96}, {256, 24})
        square = shape.count(24) > 1
        assert not (population and (square or any(w <= set(shape) for w in weights))), shape
    dots = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
    whole = [s for s in dots if s in (f"{POP},24", f"{POP},96", f"{POP},256")]
    # w_f, u_f, w_h, u_h, w_down; w_up; head. Everything else is thin.
    assert sorted(whole) == sorted([f"{POP},24"] * 5 + [f"{POP},96", f"{POP},256"])


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pop_size": 9}, "pop_size is 9; antithetic pairs need an even number, such as 10"),
        ({"sigma": -1.0}, "sigma is -1.0; expected a positive number"),
        (
            {"rule": "adam"},
            "rule 'adam' is unknown; expected one of published, residual, threshold",
        ),
        ({"noise": "gauss"}, "noise 'gauss' is unknown"),
        ({"rank": 8}, r"emb: rank 8 is above min\(m, n\) = 7 of shape \[7, 12\]"),
        (
            {"roles": {"embed": "frozen"}},
            "pattern 'embed' matches no parameter; the nearest is 'emb'",
        ),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        strategy(**options).init(KEY, params())


def test_real_noise_has_no_votes():
    es = strategy(noise="gaussian")
    state = es.init(KEY, params())
    with pytest.raises(InputError, match="'gaussian' noise; expected an integer kind"):
        es.tell(state, es.ask(state), jnp.zeros(POP))


def test_fitness_of_another_population():
    es = default()
    state = es.init(KEY, params())
    with pytest.raises(InputError, match=r"fitness has shape \[30\]; expected \[32\]"):
        es.tell(state, es.ask(state), jnp.zeros(30))


def test_nothing_to_evolve():
    with pytest.raises(InputError, match="no parameter is left to evolve"):
        lattice(pop_size=4).init(KEY, {"w": jnp.zeros((4, 4), jnp.int32)})
