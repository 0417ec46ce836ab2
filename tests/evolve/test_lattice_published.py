"""The published integers, bit for bit against the slow model, over several generations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.evolve.lattice_published import noise_table, pair_hash, published
from springroll.evolve.members import evaluate
from springroll.models.egg import VECTORS_IN_STACKS, EggConfig, egg
from tests.reference import egg_numpy as slow

POP, TOKENS, BITS, KEY = 16, 6, 14, jax.random.key(5)
PATHS = [
    *(f"blocks/{n}" for n in ("bias_f", "bias_h", "norm_ffn", "norm_gru", "u_f", "u_h")),
    *(f"blocks/{n}" for n in ("w_down", "w_f", "w_h", "w_up")),
    *("embed", "head", "norm_out"),  # the order of the tree
]


def strategy(**options):
    options = {"pop_size": POP, "roles": VECTORS_IN_STACKS, "table_bits": BITS} | options
    return published(**options)


def extreme_params(model, rng):
    """Weights over the whole range, so that everything saturates, and some embeddings of zero."""
    shapes = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda x: rng.integers(-127, 128, x.shape).astype(np.int8), shapes)
    params["embed"][:64] = 0
    return params


def texts(rng, members=POP):
    """Bytes of which some begin documents and many have an embedding of zero."""
    shape = (members, TOKENS + 1)
    return np.where(rng.random(shape) < 0.2, 0, rng.integers(0, 256, shape))


def words(model, epoch):
    """First words of the keys: split over the parameters, then over the layers, then the epoch."""
    layers = model.config.n_layers
    for path, key in zip(PATHS, jax.random.split(KEY, len(PATHS)), strict=True):
        keys = jax.random.split(key, layers) if path.startswith("blocks/") else key[None]
        yield path, [int(jax.random.key_data(jax.random.fold_in(k, epoch))[0]) for k in keys]


@pytest.mark.parametrize(
    ("n_layers", "hidden", "registers", "sigma_shift", "decay"),
    [
        (2, 16, "int8", 4, 1000.0),
        pytest.param(1, 64, "float32", 3, 3.0, marks=pytest.mark.slow),
    ],
)
def test_generations_equal_the_slow_model(n_layers, hidden, registers, sigma_shift, decay):
    config = {"precision": "compat", "registers": registers}
    model = egg(EggConfig(n_layers=n_layers, hidden=hidden, **config))
    rng = np.random.default_rng(hidden)
    params = extreme_params(model, rng)
    es = strategy(sigma_shift=sigma_shift, decay=decay, noise_reuse=2)
    state, carry = es.init(KEY, params), model.state((POP,))
    reference, table = slow.Published(sigma_shift), noise_table(0, BITS)
    want, states = slow.as_integers(params), np.zeros((POP, n_layers, hidden), np.int64)

    fitness = jnp.zeros(POP)
    for generation in range(4):
        tokens = texts(rng)
        members = es.ask(state)
        fitness, carry = evaluate(
            model.score, state, members, jnp.asarray(tokens), carry, in_axes=0, has_aux=True
        )
        state, metrics = es.tell(state, members, fitness)

        by_path = dict(words(model, generation // 2))
        noises = [slow.published_noise(table, by_path, pair, want) for pair in range(POP // 2)]
        scores, states = slow.evaluate(reference, want, noises, tokens, states)
        level = slow.threshold_level(generation, 4.0, decay)
        rule = lambda path, layer, z, level=level: slow.threshold_move(
            z, 256, POP // 2, level, move_ties=True
        )
        want = slow.moved(want, scores, noises, rule)
        np.testing.assert_array_equal(fitness, scores)
        np.testing.assert_array_equal(carry, states)
        jax.tree.map(np.testing.assert_array_equal, state.params, want)
        assert 0 < float(metrics["moved"]) <= 1
    assert np.abs(carry).max() == 127 and len(set(fitness.tolist())) > POP // 2


def test_a_generation_of_ties_still_moves_everything_down():
    """While the threshold is 0, Z = 0 counts as negative; so the published code behaves."""
    es = strategy(pop_size=2, roles=None)
    state = es.init(KEY, {"w": jnp.zeros((3, 4), jnp.int8), "b": jnp.full(5, -127, jnp.int8)})
    state, metrics = jax.jit(es.tell)(state, es.ask(state), jnp.array([7, 7]))
    np.testing.assert_array_equal(state.params["w"], np.full((3, 4), -1))
    np.testing.assert_array_equal(state.params["b"], np.full(5, -127))
    assert float(metrics["ties"]) == 1


def test_the_table_is_cut_towards_zero():
    table = noise_table(0, 20)
    assert table.dtype == np.int8 and table.size == 1 << 20
    normal = np.asarray(jax.random.normal(jax.random.key(0), (1 << 20,)), np.float64)
    np.testing.assert_array_equal(table, np.trunc(16 * normal))
    assert abs(table.std() - 15.6) < 0.05 and abs((table == 0).mean() - 0.05) < 0.002


def test_pairs_are_hashed_modulo_two_to_the_32():
    pairs = [0, 1, 2, 65535, 65536, 123456789, 2**32 - 1]
    got = pair_hash(jnp.asarray(pairs, jnp.uint32))
    assert got.tolist() == [slow.pair_hash(p) for p in pairs]


def test_slices_at_the_end_of_the_table_are_moved_back():
    """A table of 256 and slices of 200: most of them would run over."""
    es = strategy(pop_size=64, table_bits=8, roles=None)
    w = jnp.zeros((120, 80), jnp.int8)
    left, right = es.ask(es.init(KEY, {"w": w})).drawn()["w"]
    word = int(jax.random.key_data(jax.random.fold_in(jax.random.split(KEY, 1)[0], 0))[0])
    table = noise_table(0, 8)
    starts = [(word ^ slow.pair_hash(p)) & 255 for p in range(32)]
    assert sum(s > 56 for s in starts) > 10
    for pair in range(32):
        numbers = slow.table_slice(table, word, pair, 200)
        np.testing.assert_array_equal(right[pair, :, 0], numbers[:80])
        np.testing.assert_array_equal(left[pair, :, 0], numbers[80:])


def test_noise_does_not_depend_on_being_stored():
    params = {"w": jnp.zeros((2, 6, 5), jnp.int8), "b": jnp.zeros((2, 5), jnp.int8)}
    roles, fitness = {"b": "sd"}, jnp.asarray(np.random.default_rng(0).normal(size=POP))
    states = []
    for budget in (1 << 20, 64):
        es = strategy(roles=roles, noise_budget_bytes=budget)
        state = es.init(KEY, params)
        members = es.ask(state)
        assert (members.factors is None) == (budget == 64)
        states.append(es.tell(state, members, fitness)[0].params)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_shift": -1}, "sigma_shift is -1; expected 0 or more"),
        ({"table_bits": 31}, "table_bits is 31; expected 8 to 30"),
        ({"pop_size": 7}, "pop_size is 7"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        strategy(**options)


def test_a_matrix_that_the_table_cannot_hold():
    es = strategy(table_bits=8, roles=None)
    state = es.init(KEY, {"w": jnp.zeros((200, 100), jnp.int8)})
    with pytest.raises(InputError, match=r"w takes 300 numbers of noise per member, the table has"):
        es.ask(state)


def test_another_kind_of_key():
    with pytest.raises(InputError, match="has 4 words; the published noise needs a threefry key"):
        strategy(roles=None).init(jax.random.key(0, impl="rbg"), {"w": jnp.zeros((4, 4), jnp.int8)})
