"""The table of optimizers: one for `train`, streaming and the planner."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
import pytest

from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.planner.methods import METHODS
from springroll.subspace.optimizers import (
    OPTIMIZERS,
    OptimizerSettings,
    block_matrices,
    subspaces,
)
from springroll.train.config import Optimizer
from springroll.trees import named_leaves

GROUPED = DecoderConfig(  # keys and values are narrower than a quarter of the hidden size
    vocab=64, hidden=64, layers=2, heads=8, kv_heads=1, head_dim=8, ffn=128
)


def test_train_and_the_planner_know_the_optimizers_of_the_table():
    assert set(get_args(Optimizer)) == set(OPTIMIZERS)
    assert set(OPTIMIZERS) < set(METHODS)


def test_matrices_of_blocks():
    shapes = jax.eval_shape(decoder(CONFIGS["moe-tiny"]).init, jax.random.key(0))
    chosen = {path for path, is_matrix in named_leaves(block_matrices(shapes)).items() if is_matrix}
    attention = {f"layers/self_attn/{name}_proj" for name in "qkvo"}
    experts = {f"layers/mlp/experts/{name}_proj" for name in ("gate", "up", "down")}
    assert chosen == attention | experts


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_transformation_is_built_for_a_model_and_for_one_layer(name):
    """Also with a default rank that is above some matrices: those are left to Adam."""
    entry, model = OPTIMIZERS[name], decoder(GROUPED)
    settings = OptimizerSettings(learning_rate=entry.learning_rate, **subspaces(entry, model))
    params = jax.eval_shape(model.init, jax.random.key(0))
    layer = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype), params["layers"])
    for tree in (params, {"layers": layer} if entry.layerwise else params):
        state = jax.eval_shape(entry.build(settings).init, tree)
        assert jax.tree.leaves(state)


def test_with_the_default_rank_narrow_matrices_are_left_to_adam():
    entry, model = OPTIMIZERS["galore"], decoder(GROUPED)
    default: Any = subspaces(entry, model)
    asked: Any = subspaces(entry, model, 8)
    mini: Any = subspaces(OPTIMIZERS["apollo-mini"], model)
    assert default["rank"] == 16
    assert not default["select"]("layers/self_attn/k_proj")
    assert default["select"]("layers/self_attn/q_proj")
    assert not default["select"]("embed_tokens")
    assert asked["rank"] == 8 and asked["select"]("layers/self_attn/k_proj")
    assert mini["rank"] == 1
    assert subspaces(OPTIMIZERS["muon"], model) == {}


def test_only_exact_adamw_is_updated_on_the_host():
    host = lambda *given: "host" in OPTIMIZERS["adamw"].streamed_updates(*given)
    assert host(32, True)
    assert not host(8, True) and not host(32, False)
    others = [entry for name, entry in OPTIMIZERS.items() if name != "adamw"]
    assert not any("host" in entry.updates for entry in others)


def test_moments_have_the_bits_of_the_settings():
    settings = OptimizerSettings(learning_rate=1e-3, state_bits=8)
    params = {"w": jnp.zeros((64, 64))}
    exact = OPTIMIZERS["adamw"].build(OptimizerSettings(learning_rate=1e-3)).init(params)
    coded = OPTIMIZERS["adamw"].build(settings).init(params)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(state)) for state in (coded, exact)]
    assert sizes[0] < 0.3 * sizes[1]
    assert jax.tree.structure(exact) == jax.tree.structure(optax.adam(1e-3).init(params))
