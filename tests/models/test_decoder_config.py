"""Configurations: counts are the tree's, published sizes are right, mistakes are named."""

import jax
import pytest

from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig, llama, named

PUBLISHED = {  # billions: all, and active without the embedding lookup where so published
    "llama2-7b": 6.738,
    "llama3-8b": 8.030,
    "llama3.1-70b": 70.55,
    "llama3.2-1b": 1.236,
    "qwen2.5-0.5b": 0.494,
    "qwen2.5-7b": 7.616,
    "qwen3-0.6b": 0.596,
    "qwen3-8b": 8.191,
    "qwen3-30b-a3b": 30.53,
    "qwen3-235b-a22b": 235.1,
    "olmoe-1b-7b": 6.919,
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.8,
}
ACTIVE = {"qwen3-30b-a3b": 3.35, "olmoe-1b-7b": 1.28, "qwen3-235b-a22b": 22.2}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_count_is_that_of_the_tree(name):
    config = CONFIGS[name]
    tree = jax.eval_shape(decoder(config).init, jax.random.key(0))
    assert config.parameters == sum(leaf.size for leaf in jax.tree.leaves(tree))
    experts = tree["layers"]["mlp"].get("experts", {})
    idle = sum(leaf.size for leaf in jax.tree.leaves(experts))
    idle = idle * (config.experts - config.top_k) // max(config.experts, 1)
    assert config.active_parameters == config.parameters - idle


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name):
    assert CONFIGS[name].parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=5e-4)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_of_published_models(name):
    assert CONFIGS[name].active_parameters / 1e9 == pytest.approx(ACTIVE[name], rel=3e-3)


@pytest.mark.parametrize("name", ["llama-1m", "moe-1m", "llama-4m", "moe-4m"])
def test_models_of_bytes_have_the_size_they_are_named_after(name):
    config = named(name)
    assert config.vocab == 256
    assert config.parameters / 1e6 == pytest.approx(float(name[-2]), rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"kv_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"experts": 4, "top_k": 5}, "top_k is 5 of 4 experts"),
        ({"experts": 4}, "top_k is 0 of 4 experts"),
        ({"expert_bias": True}, "expert_bias is set but experts is 0"),
        ({"selection_bias": True}, "selection_bias is set but experts is 0"),
        ({"router": "softmin"}, "router is 'softmin'"),
        ({"qk_norm": "both"}, "qk_norm is 'both'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change, message):
    fields = {"vocab": 8, "hidden": 8, "layers": 1, "heads": 4, "kv_heads": 4, "head_dim": 2}
    with pytest.raises(InputError, match=message):
        DecoderConfig(**(fields | {"ffn": 8} | change))


def test_an_unknown_name_suggests_the_nearest_or_lists_the_known_ones():
    with pytest.raises(InputError, match=r"no model named 'llama-60'; did you mean llama-60m"):
        named("llama-60")
    with pytest.raises(InputError, match=r"no model named 'xyz'; known are .*llama-1m, "):
        named("xyz")


def test_fields_of_llama_can_be_replaced():
    assert llama(8, 16, 2, 1, vocab=5, kv_heads=1).kv_heads == 1
