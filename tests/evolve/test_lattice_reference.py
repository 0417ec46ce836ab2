"""Our integers, bit for bit against the slow model: forward, state, fitness and both rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.evolve.lattice import lattice
from springroll.evolve.lattice_rules import residual, threshold
from springroll.evolve.members import evaluate
from springroll.models.egg import EggConfig, egg
from springroll.thin.discovery import discover
from tests.reference import egg_numpy as slow

POP, TOKENS, SIGMA = 16, 6, 2.0**-3


def layers_of(members):
    """[{path: one (A, B) or vector per layer}] for every pair, A on the produced side."""
    drawn = jax.device_get(members.drawn())
    result = []
    for pair in range(POP // 2):
        noise = {}
        for leaf in members.perturbation.evolved:
            stacked = leaf.path.startswith("blocks/")
            mine = [np.take(x, pair, axis=leaf.stacked).astype(np.int64) for x in drawn[leaf.path]]
            mine = mine if stacked else [x[None] for x in mine]
            if leaf.kind == "dense":
                noise[leaf.path] = list(mine[0])
                continue
            produced_first = mine if leaf.roles[-2] == "m" else mine[::-1]
            noise[leaf.path] = list(zip(*produced_first, strict=True))
        result.append(noise)
    return result


def spread(path, rank):
    """The standard deviation of one pair's term in Z."""
    vector = path.split("/")[-1].startswith(("norm", "bias"))
    return 16 if vector else 256 if rank == 1 else (256 + 1 / 12) * rank**0.5


def slow_rule(name, rank, params):
    if name == "threshold":
        return lambda t: (
            lambda path, layer, z: slow.threshold_move(
                *(z, spread(path, rank), POP // 2, slow.threshold_level(t, 4.0, 5.0)),
                move_ties=False,
            )
        )
    memory = {}

    def move(t, path, layer, z):
        zero = np.zeros_like(z)
        mine = memory.setdefault((path, layer), slow.Residual(0.4, 0.9, 10.0, zero, zero))
        return mine.move(z, spread(path, rank), POP // 2, t)

    return lambda t: lambda path, layer, z: move(t, path, layer, z)


@pytest.mark.parametrize(
    ("n_layers", "hidden", "registers", "rank", "name"),
    [
        (2, 16, "float32", 2, "residual"),
        pytest.param(1, 48, "int8", 1, "threshold", marks=pytest.mark.slow),
    ],
)
def test_generations_equal_the_slow_model(n_layers, hidden, registers, rank, name):
    model = egg(EggConfig(n_layers=n_layers, hidden=hidden, registers=registers))
    rng = np.random.default_rng(hidden)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.integers(-127, 128, x.shape).astype(np.int8), shapes)
    params["embed"][:64] = 0
    roles = discover(model.score, params, jnp.zeros(TOKENS + 1, jnp.int32), model.state())
    rule = threshold(decay=5.0) if name == "threshold" else residual(lr=0.4, decay=10.0)
    es = lattice(pop_size=POP, sigma=SIGMA, rank=rank, rule=rule, roles=roles)
    state, carry = es.init(jax.random.key(1), params), model.state((POP,))
    reference = slow.Ours(SIGMA, rank)
    want, states = slow.as_integers(params), np.zeros((POP, n_layers, hidden), np.int64)
    rule_at = slow_rule(name, rank, want)
    moves = False
    for generation in range(4):
        shape = (POP, TOKENS + 1)
        tokens = np.where(rng.random(shape) < 0.2, 0, rng.integers(0, 256, shape))
        members = es.ask(state)
        fitness, carry = evaluate(
            model.score, state, members, jnp.asarray(tokens), carry, in_axes=0, has_aux=True
        )
        fitness = fitness.at[:2].set(5)  # a pair that does not vote
        state, metrics = es.tell(state, members, fitness)

        noises = layers_of(members)
        scores, states = slow.evaluate(reference, want, noises, tokens, states)
        scores[:2] = 5
        want = slow.moved(want, scores, noises, rule_at(generation))
        np.testing.assert_array_equal(fitness, scores)
        np.testing.assert_array_equal(carry, states)
        jax.tree.map(np.testing.assert_array_equal, state.params, want)
        assert float(metrics["ties"]) >= 2 / POP
        moves = moves or float(metrics["moved"]) > 0
    assert moves and np.abs(carry).max() == 127
