"""Bytes per method: those that the optimizers really keep, and those of the design's table."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig, shapes
from springroll.planner.methods import (
    METHODS,
    TRAINED,
    _axis_roles,
    layer_numbers,
    least_state,
    method_bytes,
    optimizer_state,
    rest_numbers,
)
from springroll.planner.search import options_of
from springroll.subspace.lowgrad import lowgrad

DENSE = DecoderConfig(
    vocab=512, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=320, qkv_bias=True
)
MOE = CONFIGS["moe-1m"]


def structs(tree):
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.tree.map(struct, tree, is_leaf=lambda node: isinstance(node, tuple))


def layer_of(config):
    stacked = structs(shapes(config)["layers"])
    return {"layers": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)}


def kept(tree):
    """Bytes of all leaves with more than a counter."""
    leaves = jax.tree.leaves(tree)
    return sum(x.size * x.dtype.itemsize for x in leaves if x.size > 1)


def is_projected(path):
    return path.endswith("_proj")


def muon():
    dims = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)

    def numbers(params):
        spelt = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
        pick = lambda path, _: dims if is_projected(spelt(path)) else None
        return jax.tree_util.tree_map_with_path(pick, params)

    return optax.contrib.muon(0.02, muon_weight_dimension_numbers=numbers)


def galore(inner, rank):
    return sr.galore(inner, rank, select=is_projected, rows="out")


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-3),
    "adamw-8bit": lambda: sr.quantize_state(optax.adamw(1e-3)),
    "adamw-4bit": lambda: sr.quantize_state(optax.adamw(1e-3), bits=4),
    "muon": muon,
    "muon-8bit": lambda: sr.quantize_state(muon()),
    "galore": lambda: galore(optax.adam(1e-3), 32),
    "galore-8bit": lambda: galore(sr.quantize_state(optax.adam(1e-3)), 32),
    "fira": lambda: sr.fira(1e-2, 32, select=is_projected, rows="out"),
    "apollo": lambda: sr.apollo(1e-2, 32, select=is_projected, rows="out"),
    "apollo-mini": lambda: sr.apollo_mini(1e-2, 32, select=is_projected, rows="out"),
    "sgd": lambda: optax.sgd(1e-2),
}


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_state_of_a_layer_is_what_the_optimizer_keeps(method, config):
    state = jax.eval_shape(OPTIMIZERS[method]().init, layer_of(config))
    found = method_bytes(config, method, rank=32)
    assert found.name == method
    assert found.layer_state == pytest.approx(kept(state), rel=0.02)


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_what_stays_of_low_rank_gradients_is_what_the_trainer_keeps(config):
    model = decoder(config)
    params = structs(shapes(config))
    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    trainer = lowgrad(model.loss, params, optax.adam(1e-3), tokens, rank=16, select=is_projected)
    state = jax.eval_shape(trainer.init, params)
    found = method_bytes(config, "lowgrad", rank=16)
    held = config.layers * found.layer_held + found.rest_held
    assert held == pytest.approx(kept((state.projectors, state.low, state.opt)), rel=0.02)
    assert found.layer_state == found.low == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_and_rest_are_all_parameters(name):
    config = CONFIGS[name]
    assert config.layers * layer_numbers(config) + rest_numbers(config) == config.parameters


def per_parameter(method, **how):
    """Bytes per parameter that a method keeps, of a model so large that only matrices count."""
    wide = DecoderConfig(
        vocab=1, hidden=8192, layers=1, heads=64, kv_heads=64, head_dim=128, ffn=24576
    )
    state = method_bytes(wide, method, **how)
    return state.weights + state.low + (state.layer_state + state.layer_held) / layer_numbers(wide)


@pytest.mark.parametrize(
    ("method", "rounding", "published"),
    [
        ("adamw", "split", 12),
        ("adamw-8bit", "split", 6.03),
        ("adamw-4bit", "split", 5.06),
        ("adamw-8bit", "stochastic", 4.03),
        ("adamw-4bit", "stochastic", 3.06),
        ("muon-8bit", "split", 5.02),
        ("galore", "split", 6.35),
        ("sgd", "stochastic", 2),
        ("evolve", "split", 2),
    ],
)
def test_bytes_per_parameter_of_the_design(method, rounding, published):
    assert per_parameter(method, rounding=rounding) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("method", "billions", "with_device"),
    [("adamw", 10.4, 21.7), ("adamw-8bit", 20.7, 43.3), ("adamw-4bit", 24.6, 51.5)],
)
def test_how_many_parameters_fit(method, billions, with_device):
    host, both = (128 - 12) * 2**30, (128 + 139 - 24) * 2**30
    assert host / per_parameter(method) / 1e9 == pytest.approx(billions, rel=0.01)
    assert both / per_parameter(method) / 1e9 == pytest.approx(with_device, rel=0.01)


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize(("name", "rank", "bits"), [("llama-tiny", None, 32), ("moe-tiny", 8, 4)])
def test_the_least_state_is_no_more_than_there_is(method, name, rank, bits):
    asked = (method, CONFIGS[name], bits if method != "sgd" else 32, rank, 32)
    least, found = least_state(*asked), optimizer_state(*asked)
    assert all(a <= b for a, b in zip(least, found, strict=True))
    # A gradient in a subspace is counted in place of a whole one.
    assert bool(least.layer_gradient) == bool(found.layer_gradient) or method == "lora"


def test_roles_are_found_once_for_all_methods_and_for_layers_that_differ_in_no_shape():
    config = dataclasses.replace(CONFIGS["llama-tiny"], vocab=300)
    before = _axis_roles.cache_info().misses
    for method in ("galore", "apollo-mini", "lowgrad"):
        for change in ({}, {"layers": 7}, {"norm_eps": 1e-5}, {"rope_theta": 5e5}):
            method_bytes(dataclasses.replace(config, **change), method)
    assert _axis_roles.cache_info().misses == before + 1


def test_float32_weights_need_no_low_halves():
    found = method_bytes(DENSE, "adamw", dtype="float32")
    assert (found.weights, found.low) == (4, 0)
    assert found.updates == ("host", "device")
    # Coded moments are updated on the device alone, and so are weights rounded at random.
    assert method_bytes(DENSE, "adamw-8bit").updates == ("device",)
    assert method_bytes(DENSE, "adamw", rounding="stochastic").updates == ("device",)


def test_bases_in_codes_are_counted():
    state = lambda bits: method_bytes(DENSE, "galore", basis_bits=bits).layer_state
    numbers = (6 * 128 + 320) * (128 // 4)  # six read 128 inputs, down reads 320
    assert state(32) - state(8) == numbers * (4 - 1 - 4 / 256)
    assert state(32) - state(16) == 2 * numbers


def test_other_methods_are_planned_with_the_bases_that_they_store():
    asked = options_of("H100", "64GiB", None, None, method="galore-8bit", basis_bits=8)
    assert (asked.by("fira").basis_bits, asked.by("lowgrad").basis_bits) == (8, 8)
    assert asked.by("adamw-8bit").basis_bits == asked.by("evolve").basis_bits == 32


def test_the_order_of_methods_is_one_of_memory():
    small = [method_bytes(DENSE, m).layer_state for m in ("adamw", "muon", "adamw-8bit", "sgd")]
    assert small == sorted(small, reverse=True)
    assert math.prod(small[:3]) > 0 and small[3] == 0
    assert all(method_bytes(DENSE, name).trains == (name != "evolve") for name in METHODS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "adam"}, "did you mean adamw"),
        ({"method": "xyz"}, "known are adamw, muon"),
        ({"method": "adamw", "state_bits": 16}, "expected 32, 8 or 4"),
        ({"method": "adamw", "basis_bits": 8}, "adamw stores no bases of subspaces"),
        ({"method": "evolve", "basis_bits": 8}, "evolve stores no bases of subspaces"),
        ({"method": "galore", "basis_bits": 12}, "basis_bits is 12; expected 32"),
        ({"method": "sgd-8bit"}, "sgd has no state"),
        ({"method": "galore", "rank": 1000}, "at most the hidden size, 128"),
        ({"method": "adamw", "dtype": "float16"}, "expected one of bfloat16, float32"),
        ({"method": "adamw", "rounding": "up"}, "expected one of split, stochastic"),
    ],
)
def test_methods_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        method_bytes(DENSE, **options)


@pytest.mark.parametrize(("bits", "per_number"), [(None, 2), (8, 1), (4, 4.25 / 8)])
def test_adapters_and_their_moments_are_held_beside_a_model_that_is_never_updated(bits, per_number):
    config = CONFIGS["llama-7b"]
    found = method_bytes(config, "lora", rank=8, base_bits=bits)
    assert found.layer_state == found.rest_state == found.low == 0 and not found.updates
    width, wide = config.hidden, config.ffn
    adapters = 8 * (4 * 2 * width + 3 * (width + wide))
    assert found.layer_thin == 4 * adapters
    assert found.layer_held == pytest.approx(3 * 4 * adapters, abs=8)  # and a counter
    assert found.layer_frozen == pytest.approx(per_number * layer_numbers(config), rel=2e-3)
    with pytest.raises(InputError, match="of the method lora"):
        method_bytes(config, "adamw", base_bits=8)


def test_a_smaller_base_is_what_lets_adapters_fit():
    budget = {"device": "6GiB", "host": "8GiB", "tokens_per_step": 1024, "sequence": 1024}
    with pytest.raises(InputError, match=r"for the whole model.*--base-bits 4 fits"):
        sr.plan("llama-7b", method="lora", **budget)
    found = sr.plan("llama-7b", method="lora", base_bits=4, **budget)
    assert not found.streams and found.spec.method.name == "lora on 4 bits"
    assert found.device_bytes["layers that stay"] < 3.5 * 2**30
