"""Evolution layer by layer is evolution of the whole model; bytes that move follow a formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.evolve.lattice_published import published
from springroll.stream.layered_strategy import by_layers, named_leaves
from springroll.stream.link import ThrottledLink
from springroll.stream.population_programs import MemberSeed, chunks
from springroll.stream.store import MappedStore
from springroll.stream.streamed_population import resident_bytes, stream_population
from springroll.trees import tree_bytes
from tests.stream.layered_toy import (
    KEY,
    LAYERS,
    TOY,
    N,
    inputs_of,
    params_of,
    resident,
    run,
    strategy,
    whole,
)

PARAMS = params_of()
LAYER = jax.tree.map(lambda x: x[0], PARAMS["blocks"])


def assert_near(got, want, tolerance=1e-5):
    for (path, a), (other, b) in zip(
        named_leaves(got).items(), named_leaves(want).items(), strict=True
    ):
        assert path == other and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=path)


def assert_equal(got, want):
    for (path, a), (other, b) in zip(
        named_leaves(got).items(), named_leaves(want).items(), strict=True
    ):
        assert path == other and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=path)


@pytest.fixture(scope="module")
def engine():
    """Two members' pairs at once, the third chunk of pairs smaller."""
    return stream_population(strategy(pairs_per_chunk=3), TOY, PARAMS, key=KEY)


@pytest.fixture(scope="module")
def first(engine):
    return engine.state()


@pytest.fixture(scope="module")
def reference():
    """Three generations on the whole model."""
    return resident(strategy(), PARAMS, range(3))


def test_generations_are_those_of_the_whole_model(engine, first, reference):
    state, memory, history = reference
    assert_near(first, strategy().init(KEY, PARAMS))
    engine.load(first)
    streamed_memory, streamed_history = run(engine, range(3))
    assert_near(streamed_history, history)
    assert_near(streamed_memory, memory)
    assert_near(engine.state(), state, 3e-5)


def test_what_crosses_the_link(engine, first):
    """Adam's two moments go with the weights: three numbers in, three out, once they have a step
    to take; the first generation sends the weights alone."""
    engine.load(first)
    weights = tree_bytes(PARAMS["blocks"])
    before = engine.link.traffic
    memory, _ = run(engine, [0])
    sent = engine.link.traffic
    assert sent.sends - before.sends == LAYERS and sent.sent - before.sent == weights
    assert sent.fetched == before.fetched
    run(engine, [1], memory)
    then = engine.link.traffic
    assert then.sends - sent.sends == then.fetches - sent.fetches == LAYERS
    assert then.sent - sent.sent == then.fetched - sent.fetched == 3 * weights
    assert engine.conveyor.ledger.peak <= 3


def test_going_on_from_either_kind_of_state(engine, first, reference):
    state, memory, _ = resident(strategy(), PARAMS, range(2))
    engine.load(jax.tree.map(np.asarray, state))
    run(engine, [2], memory)
    assert_near(engine.state(), reference[0], 3e-5)


def test_the_way_there_does_not_change_the_state(engine, first):
    """A step taken by a passage of its own, as before a checkpoint, or after a resume."""
    engine.load(first)
    run(engine, range(3))
    want = engine.state()
    engine.load(first)
    memory, _ = run(engine, [0])
    engine.settle()
    saved = engine.state()
    engine.load(first)
    engine.load(saved)
    run(engine, [1, 2], memory)
    assert_equal(engine.state(), want)


def test_telling_alone_replays_a_run(engine, first):
    engine.load(first)
    _, history = run(engine, range(3))
    want = engine.state()
    engine.load(first)
    metrics = [engine.tell(fitness) for fitness in history][-1]
    assert_equal(engine.state(), want)
    assert {"fitness_mean", "sigma", "dropped"} <= set(metrics) and "step_ratio" not in metrics


def test_a_refused_fitness_leaves_nothing_due(engine, first):
    engine.load(first)
    with pytest.raises(InputError, match=r"fitness has shape \[3\]; expected \[8\]"):
        engine.tell(np.zeros(3, np.float32))
    assert_equal(engine.state(), first)


def test_arrays_are_read_when_looked_at_and_only_while_they_hold(engine, first):
    engine.load(first)
    memory, _ = run(engine, [0])
    lazy = engine.lazy_state()
    assert lazy.params["blocks"]["up"].shape == PARAMS["blocks"]["up"].shape
    moved = np.asarray(lazy.params["blocks"]["up"])
    assert np.abs(moved - np.asarray(first.params["blocks"]["up"])).max() > 0
    assert int(np.asarray(lazy.generation)) == 1
    run(engine, [1], memory)
    with pytest.raises(RuntimeError, match="params/blocks/up is of a state that has since moved"):
        np.asarray(lazy.params["blocks"]["up"])


def test_weights_themselves_are_run_layer_by_layer(engine, first):
    """With the step that is due taken first."""
    engine.load(first)
    run(engine, [0])
    block = lambda layer, x, index: TOY.block(layer, x, index)[0]
    score = engine.apply(TOY.embed, block, TOY.score)(inputs_of(5))
    params = jax.tree.map(jnp.asarray, engine.state().params)
    no_memory = jnp.zeros((LAYERS, 2))
    np.testing.assert_allclose(score, whole(params, inputs_of(5), no_memory)[0], rtol=1e-5)


def test_little_memory_and_a_slow_link_change_nothing(engine, first):
    """Activations wait on the host, one layer at a time is on the device."""
    engine.load(first)
    memory, history = run(engine, range(2))
    parts = by_layers(strategy(), PARAMS, "blocks")
    least = resident_bytes(parts, 1, written=True)
    link = ThrottledLink(1e7)
    tight = stream_population(
        strategy(pairs_per_chunk=3), TOY, PARAMS, key=KEY, device_budget=least, link=link
    )
    tight.programs = engine.programs  # the same, compiled already
    tight_memory, tight_history = run(tight, range(2))
    assert tight.conveyor.ledger.peak == 1
    assert link.traffic.fetches > LAYERS
    assert_equal([tight_memory, tight_history], [memory, history])
    assert_equal(tight.state(), engine.state())
    link.close()


def test_a_pass_that_broke_off_is_gone_on_with(engine, first, monkeypatch):
    """Layers that took the step do not take it twice."""
    engine.load(first)
    memory, history = run(engine, range(2))
    want = engine.state()
    engine.load(first)
    memory, _ = run(engine, [0])
    kept = jnp.array(memory)
    forward, seen = engine.programs.forward, []

    def breaking(*args):
        seen.append(int(args[5]))
        if seen[-1] == 2:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(engine.programs, "forward", breaking)
    with pytest.raises(KeyboardInterrupt):
        engine.evaluate(inputs_of(1), memory)
    monkeypatch.undo()
    _, again = run(engine, [1], kept)
    np.testing.assert_array_equal(again[0], history[1])
    assert_equal(engine.state(), want)


def mapped(params):
    rest = {name: x for name, x in params.items() if name != "blocks"}
    host = jax.tree.map(np.asarray, params["blocks"])
    return MappedStore(rest, lambda index: jax.tree.map(lambda x: x[index], host), LAYERS, "blocks")


@pytest.mark.slow
def test_files_that_are_only_read():
    """bfloat16 with stochastic rounding: the steps since are taken anew in every passage."""
    params = params_of(jnp.bfloat16)
    options = {"optimizer": optax.sgd(lambda step: 0.3 / (1 + step)), "master": "stochastic"}
    written = stream_population(strategy(**options), TOY, params, key=KEY)
    read = stream_population(strategy(**options), TOY, mapped(params), key=KEY)
    read.programs = written.programs  # the same, compiled once
    memory, history = run(written, range(3))
    assert_equal(run(read, range(3)), (memory, history))
    assert written.link.traffic.sent == 3 * tree_bytes(params["blocks"])  # two bytes per weight
    assert written.link.traffic.fetched == 2 * tree_bytes(params["blocks"])
    assert read.link.traffic.fetches == 0 and not read.writable
    assert read.link.traffic.sent == 3 * tree_bytes(params["blocks"])
    assert_equal(read.state(), written.state())
    with pytest.raises(InputError, match="only read cannot be given another state"):
        read.load(written.state())


def refused(message, es=None, stages: Any = TOY, params=PARAMS, **options):
    with pytest.raises(InputError, match=message) as caught:
        stream_population(strategy() if es is None else es, stages, params, key=KEY, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_streamed():
    mixing = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    refused("the optimizer takes a reduce_", strategy(optimizer=mixing))
    refused("layer by layer: max_step_ratio bounds", strategy(max_step_ratio=0.1))
    refused("addressed by the order", published(pop_size=N, table_bits=8))
    mesh = jax.make_mesh((2,), ("population",), devices=jax.devices()[:2])
    refused("for one device", strategy(mesh=mesh))
    refused("roles pattern 'nope' matches no", strategy(roles={"nope": "frozen"}))
    refused(r"opt_state/0/mu/blocks/bias for every weight, which a file", params=mapped(PARAMS))


def test_models_without_parts_and_budgets_without_room():
    refused("object has no stack, embed, block, finish", stages=object())
    refused("expected a dictionary with stacked layers in 'blocks'", params={"emb": jnp.ones(3)})
    uneven = PARAMS | {"blocks": PARAMS["blocks"] | {"bias": jnp.ones((2, 4))}}
    refused("expected the same number of layers", params=uneven)
    refused(
        "device_budget is 100 B; a layer of .* and the rest of .* give at least", device_budget=100
    )
    refused("depth is 0", depth=0)


def test_a_rest_that_is_frozen():
    es = strategy(roles={"emb": "frozen", "out": "frozen"}, optimizer=optax.sgd(0.1))
    engine = stream_population(es, TOY, PARAMS, key=KEY, per_member=True)
    tokens = engine.programs.embed(PARAMS, *embedded(engine, inputs_of(0, N)))
    np.testing.assert_array_equal(tokens, PARAMS["emb"][inputs_of(0, N)["tokens"]])
    assert int(engine.tell(np.arange(N, dtype=np.float32))["dropped"]) == 0
    np.testing.assert_array_equal(engine.array("params/emb"), PARAMS["emb"])
    assert int(engine.array("generation")) == 1


def embedded(engine, inputs):
    state = engine.layered.for_rest.init(KEY, {"emb": PARAMS["emb"], "out": PARAMS["out"]})
    return MemberSeed(state.seed, state.generation), inputs, np.int32(0), N // 2


def test_pairs_run_in_chunks():
    assert chunks(7, 3) == [(0, 3), (3, 3), (6, 1)]
    assert chunks(4, None) == chunks(4, 9) == [(0, 4)]
