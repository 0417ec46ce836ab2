"""The modelled step: executed work, the tables of the design, and what makes it longer."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.planner.devices import Rates, assumed_rates, named_card
from springroll.planner.footprint import (
    Placement,
    StepSpec,
    device_bytes,
    host_bytes,
    together,
    total,
)
from springroll.planner.methods import method_bytes
from springroll.planner.search import options_of, step_spec
from springroll.planner.step_time import active_layer, step_seconds, tokens_to_hide, work
from springroll.planner.working_set import INDEX, WorkingSet, arguments
from springroll.stream.step_programs import StepPrograms

H200 = Rates(
    flops=450e12,
    head_flops=450e12,
    to_device=50e9,
    to_host=50e9,
    host_update=3.5e9,
    device_update=4.8e12 / 26,
)
SEVEN = CONFIGS["llama-7b"]
NOTHING = WorkingSet(0, 0)
STREAMED = Placement("host", 0, 32)


def spec(tokens=16384, method="adamw", config=SEVEN, sequence=4096, **rest):
    return StepSpec(config, method_bytes(config, method), tokens, 1, sequence, NOTHING, **rest)


def speed(mode, tokens, rates=H200, **options):
    one = spec(tokens, **options)
    return tokens / step_seconds(one, Placement(mode, 0, 32), rates).step


# Event simulation of the design: F = 450 TFLOP/s, 50 GB/s each way, R = 3.5e9, sequences of 4,096.
TABLE = {
    ("host", "adamw"): (2100, 7100, 7400),
    ("device", "adamw-8bit"): (3700, 7300, 7400),
}


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(("mode", "method"), TABLE)
def test_tokens_per_second_of_a_7b_model_as_simulated(mode, method, at):
    found = speed(mode, (4096, 16384, 32768)[at], method=method)
    assert found == pytest.approx(TABLE[mode, method][at], rel=0.1)


@pytest.mark.parametrize(
    ("rate", "simulated"), [(1e9, 2412), (2e9, 4641), (3e9, 6610), (6e9, 7325)]
)
def test_a_slow_host_as_simulated(rate, simulated):
    rates = dataclasses.replace(H200, host_update=rate)
    assert speed("host", 16384, rates) == pytest.approx(simulated, rel=0.1)


def test_resident_is_the_ceiling_of_the_simulation():
    seconds = step_seconds(spec(), Placement("resident", 32, 32), H200)
    assert 16384 / seconds.step == pytest.approx(7519, rel=0.1)
    assert seconds.bottleneck == "computing"
    assert seconds.to_device == seconds.to_host == seconds.fill == 0
    assert tokens_to_hide(spec(), Placement("resident", 32, 32), H200) == 0


def test_tokens_that_hide_the_link_as_derived():
    # N = F h / (8 B): 4,500 for the link of updates on the host, 16,000 for the host itself.
    fast = dataclasses.replace(H200, host_update=1e12)
    assert tokens_to_hide(spec(), STREAMED, fast) == pytest.approx(4500, rel=0.2)
    assert tokens_to_hide(spec(), STREAMED, H200) == pytest.approx(16000, rel=0.2)
    eight = tokens_to_hide(spec(method="adamw-8bit"), Placement("device", 0, 32), H200)
    assert eight == pytest.approx(9000, rel=0.3)


def test_the_bottleneck_is_named():
    name = lambda tokens, rates: step_seconds(spec(tokens), STREAMED, rates).bottleneck
    assert name(32768, H200) == "computing"
    assert name(4096, H200) == "updating on the host"
    narrow = dataclasses.replace(H200, host_update=1e12, to_device=25e9)
    assert name(4096, narrow) == "copying to the device"
    slow = dataclasses.replace(H200, host_update=1e12, to_host=1e9)
    assert name(4096, slow) == "copying to the host"


def test_the_step_is_never_shorter_than_its_busiest_resource():
    for tokens in (4096, 65536):
        for place in (STREAMED, Placement("host", 8, 0), Placement("device", 20, 16)):
            found = step_seconds(spec(tokens), place, H200)
            busiest = max(found.compute, found.to_device, found.to_host, found.host_update)
            assert busiest <= found.step <= 2.5 * busiest


def test_resources_that_are_the_same_cores_add_up():
    found = step_seconds(spec(), STREAMED, dataclasses.replace(H200, shared=True))
    parts = found.compute + found.to_device + found.to_host + found.host_update
    assert found.step == pytest.approx(parts) and found.fill == 0


def test_clipping_by_this_steps_norm_holds_updates_back():
    step = lambda clip: step_seconds(spec(clip=clip), STREAMED, H200).step
    assert step("global") > 1.3 * step("previous")


def test_inputs_on_the_host_travel_both_ways():
    here, away = (step_seconds(spec(), Placement("host", 0, n), H200) for n in (32, 0))
    moved = 32 * spec().layer_input
    assert away.to_device - here.to_device == pytest.approx(moved / 50e9)
    assert away.to_host - here.to_host == pytest.approx(moved / 50e9)


def test_evolution_is_one_pass_forward():
    generation, training = spec(method="evolve"), spec()
    done = work(generation)
    assert done.backward == 0
    assert sum(work(training)) / sum(done) == pytest.approx(4, rel=0.1)
    found = step_seconds(generation, Placement("evolve", 0, 1), H200)
    assert found.to_device == pytest.approx(32 * generation.layer * 2 / 50e9)


def test_low_rank_gradients_send_nothing_back():
    found = step_seconds(spec(method="lowgrad"), Placement("lowgrad", 0, 32), H200)
    assert found.to_host == 0 and found.to_device > 0
    assert work(spec(method="lowgrad")).backward < work(spec()).backward


CONFIG = DecoderConfig(
    vocab=64, hidden=256, layers=2, heads=4, kv_heads=2, head_dim=64, ffn=768, tied=True
)


def test_executed_work_is_what_the_compiler_counts():
    """Of the program before XLA rewrites it; what is not a product is a few percent."""
    rows, sequence = 1, 512
    one = StepSpec(CONFIG, method_bytes(CONFIG, "adamw"), sequence, rows, sequence, NOTHING)
    programs = StepPrograms(decoder(CONFIG))
    has = arguments(CONFIG, rows, sequence, "float32")
    forward = programs.forward.lower(has.layer, None, has.x, INDEX)
    backward = programs.backward.lower(has.layer, None, has.x, INDEX, has.x, has.stats, None)
    done = work(one)
    assert flops(forward) == pytest.approx(done.forward / CONFIG.layers, rel=0.1)
    assert flops(backward) == pytest.approx(done.backward / CONFIG.layers, rel=0.1)


def flops(lowered):
    return lowered.cost_analysis()["flops"]


def test_parameters_that_a_token_meets():
    assert active_layer(SEVEN, 4096) == pytest.approx(SEVEN.parameters / 32, rel=0.05)
    moe = CONFIGS["gpt-oss-120b"]
    rest = 2 * moe.vocab * moe.hidden
    met = moe.layers * active_layer(moe, 65536) + rest
    assert moe.active_parameters <= met <= 1.3 * moe.active_parameters  # blocks are padded
    assert active_layer(moe, 64) > 2 * active_layer(moe, 65536)  # few tokens pad many blocks


def test_cards_of_a_host_divide_the_work_and_keep_one_copy_on_it():
    asked = {"tokens": 32768, "sequence": 1024}
    one, four = (
        step_spec(SEVEN, options_of(device, "256GiB", None, None, **asked), rows, NOTHING)
        for device, rows in (("H100", 4), ("4x H100", 16))
    )
    assert four.devices == 4 and four.parts == 2 and one.parts == 8
    assert 4 * four.layer_input == one.layer_input
    rates = assumed_rates(named_card("H100"))
    slow, fast = (step_seconds(each, STREAMED, rates) for each in (one, four))
    assert fast.compute < slow.compute / 2 and fast.host_update == slow.host_update
    kept = lambda each: host_bytes(each, STREAMED)["state"]
    assert kept(one) == kept(four)


def test_shapes_of_arguments_cost_nothing():
    has = arguments(CONFIG, 2, 128, "bfloat16")
    assert has.x.shape == (2, 128, 256) and has.tokens.shape == (2, 129)
    assert {x.dtype for x in jax.tree.leaves(has.layer)} == {jnp.dtype("bfloat16")}
    assert "layers" not in has.rest and "embed_tokens" in has.rest


@pytest.mark.parametrize("mode", ["host", "device"])
def test_devices_share_tokens_and_each_gets_all_layers(mode):
    place = Placement(mode, 0, 8)
    one, two = spec(65536), spec(65536, devices=2)
    first, second = (step_seconds(x, place, H200) for x in (one, two))
    saved = 24 * one.layer_input  # of the other layers, to the host and back
    assert second.to_device == pytest.approx(first.to_device - saved / 2 / H200.to_device)
    assert second.to_host == pytest.approx(first.to_host - saved / 2 / H200.to_host)
    assert second.host_update == first.host_update
    gradients = 2 * SEVEN.parameters  # bytes; a ring of two passes on half of them, twice
    wait = one.parts * gradients / H200.to_device
    update = 0 if mode == "host" else SEVEN.parameters / H200.device_update
    assert second.compute - update - wait == pytest.approx((first.compute - update) / 2, rel=1e-3)
    fast = dataclasses.replace(H200, between=450e9)
    assert step_seconds(two, place, fast).compute < second.compute
    # Bytes: inputs of layers are divided, weights are not; the host has what it had.
    inputs = lambda x: device_bytes(x, place)["layer inputs"]
    assert inputs(two) == inputs(one) // 2
    rest = lambda x: total(device_bytes(x, place)) - inputs(x)
    assert rest(two) == rest(one) and host_bytes(two, place) == host_bytes(one, place)
    assert together(two, place) == 2 * total(device_bytes(two, place)) + total(
        host_bytes(two, place)
    )
