"""A strategy's state in two parts is the whole state, cut; arrays that wait or are read late."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.evolve.lattice import lattice
from springroll.evolve.strategy import EvolutionState
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named as model_named
from springroll.models.hf.save import save_hf
from springroll.stream.layered_strategy import by_layers, named_leaves, tree_of, with_leaves
from springroll.stream.link import Link
from springroll.stream.saved_activations import Activations
from springroll.stream.store import MappedStore, mapped_model
from springroll.stream.streamed_population import LazyArray, initial_parts, parts_of_state
from tests.stream.layered_toy import KEY, LAYERS, TOY, N, inputs_of, params_of, strategy, whole

PARAMS = params_of()
INTEGERS = jax.tree.map(lambda x: jnp.rint(x * 16).astype(jnp.int8), PARAMS)

STRATEGIES = {
    "adam": (strategy(), PARAMS),
    "sgd": (strategy(optimizer=optax.sgd(lambda step: 0.1 / (1 + step))), PARAMS),
    "masters": (strategy(), params_of(jnp.bfloat16)),
    "frozen": (strategy(roles={"emb": "frozen", "blocks/up": "frozen"}), PARAMS),
    "lattice": (lattice(pop_size=N), INTEGERS),
    "threshold": (lattice(pop_size=N, rule="threshold"), INTEGERS),
}


@pytest.fixture(scope="module")
def link():
    link = Link()
    yield link
    link.close()


@pytest.mark.parametrize("name", STRATEGIES)
def test_parts_join_to_the_state_of_the_whole(name, link):
    """Made layer by layer, or cut out of the whole and joined again."""
    es, params = STRATEGIES[name]
    want = named_leaves(es.init(KEY, params))
    parts = by_layers(es, tree_of(params), "blocks")
    made = (
        initial_parts(parts, link, KEY, params),
        parts_of_state(parts, link, es.init(KEY, params)),
    )
    for store, rest in made:
        assert store.bundles == parts.layers == LAYERS
        there, found = named_leaves(rest), set(named_leaves(rest))
        for index in range(LAYERS):
            fields = store.arrays(index, ("weights", "state"))
            layer = named_leaves(parts.layer_state(fields, parts.shared(rest)))
            for path, x in layer.items():
                of_whole = want[path] if path in there else want[path][index : index + 1]
                assert x.dtype == of_whole.dtype
                np.testing.assert_array_equal(x, of_whole, err_msg=path)
            again = parts.fields(parts.layer_state(fields, parts.shared(rest)))
            jax.tree.map(np.testing.assert_array_equal, again, fields)
            found |= set(layer)
        assert found == set(want)


def test_what_goes_with_a_layer():
    paths = {
        name: by_layers(es, tree_of(p), "blocks").stacked for name, (es, p) in STRATEGIES.items()
    }
    assert paths["sgd"] == paths["threshold"] == ()
    assert "opt_state/0/mu/blocks/up" in paths["adam"]
    assert "opt_state/0/mu/blocks/up" not in paths["frozen"]
    assert "master/blocks/up" in paths["masters"]
    assert {p for p in paths["lattice"] if "bias" in p} == {
        "opt_state/blocks/bias/0",
        "opt_state/blocks/bias/1",
    }


def test_shared_arrays_are_those_of_the_rest():
    es, params = STRATEGIES["adam"]
    parts = by_layers(es, tree_of(params), "blocks")
    rest = parts.for_rest.init(KEY, {name: x for name, x in params.items() if name != "blocks"})
    assert set(parts.shared(rest)) == {"opt_state/0/count", "seed", "generation"}


def test_state_of_no_single_layer_is_refused():
    """An optimizer that keeps one vector for all that it moves."""

    def update(updates, state, params=None):
        return updates, state

    def init(params):
        return {"sizes": jnp.zeros(sum(x.size for x in jax.tree.leaves(params)))}

    es = strategy(optimizer=optax.GradientTransformation(init, update))
    with pytest.raises(InputError, match=r"opt_state/sizes \[\d+\] belongs to no single layer"):
        by_layers(es, tree_of(PARAMS), "blocks")


def test_names_are_paths_and_back():
    tree = {"a": [1, 2], "b": EvolutionState(3, (), {"x/y": 4}, cast(Any, 5), cast(Any, 6))}
    flat = named_leaves(tree)
    assert flat["a/1"] == 2 and flat["b/opt_state/x/y"] == 4
    assert with_leaves(tree, {path: 10 * x for path, x in flat.items()})["b"].seed == 50


@pytest.mark.parametrize("on_device", [True, False])
def test_activations_come_back(on_device, link):
    kept, before = Activations(link), link.traffic
    for number in range(3):
        kept.put(number, {"x": jnp.full(4, number)}, on_device)
    for number in range(3):
        kept.prefetch(number + 1)
        x = kept.pop(number)["x"]
        assert x.sharding.memory_kind == "device" and number not in kept
        np.testing.assert_array_equal(x, np.full(4, number))
    moved = 0 if on_device else 3
    assert link.traffic.fetches - before.fetches == link.traffic.sends - before.sends == moved
    with pytest.raises(KeyError):
        kept.pop(0)


def test_a_lazy_array_is_read_when_numpy_asks():
    reads = []
    like = jax.ShapeDtypeStruct((2,), jnp.float32)
    lazy = LazyArray(like, lambda: reads.append(1) or np.ones(2, np.float32))
    assert lazy.shape == (2,) and lazy.dtype == np.float32 and reads == []
    jax.block_until_ready({"tree": lazy})
    assert reads == []
    np.testing.assert_array_equal(np.asarray(lazy), [1, 1])
    assert np.asarray(lazy, np.float64).dtype == np.float64 and len(reads) == 2


def test_the_toy_is_the_same_in_parts_and_whole():
    x = TOY.embed(PARAMS, inputs_of(0))
    for index in range(LAYERS):
        layer = jax.tree.map(lambda w, i=index: w[i], PARAMS["blocks"])
        x, _ = TOY.block(layer, x, index, jnp.zeros(2))
    want, _ = whole(PARAMS, inputs_of(0), jnp.zeros((LAYERS, 2)))
    np.testing.assert_allclose(TOY.score(PARAMS, x, inputs_of(0)), want, rtol=1e-5)


def test_a_folder_is_mapped_and_not_copied(tmp_path):
    model = decoder(model_named("llama-tiny"))
    params = model.init(KEY, jnp.bfloat16)
    save_hf(tmp_path / "model", model, params)
    found, store = mapped_model(tmp_path / "model")
    assert found.config.layers == store.bundles == 2 and not store.resident(0)
    for index in range(2):
        fields = store.arrays(index, ("weights", "state"))
        assert fields["state"] == {}
        want = jax.tree.map(lambda x, i=index: x[i], params["layers"])
        jax.tree.map(np.testing.assert_array_equal, fields["weights"], want)
        assert not any(x.flags.owndata for x in jax.tree.leaves(fields["weights"]))
    shapes = tree_of(store.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree_of(params)
    )
    shard = next((tmp_path / "model").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="its header says"):
        mapped_model(tmp_path / "model")


def test_only_what_is_asked_for_is_sent():
    store = MappedStore({}, lambda index: {"w": np.full(2, index)}, 3)
    assert set(store.arrays(1, ("weights",))) == {"weights"}
    assert store.params["layers"]["w"].shape == (3, 2)
