"""Plans: what stays and what streams, the arithmetic of both tiers, and refusals."""

import dataclasses
import json
import random
import re
from typing import Any

import jax
import pytest
from rich.console import Console

from springroll.errors import InputError
from springroll.models.config_checks import MOST_STACKED
from springroll.models.decoder_config import CONFIGS
from springroll.planner import alternatives as compared
from springroll.planner import methods, search
from springroll.planner.alternatives import (
    alternatives,
    alternatives_table,
    capacity,
    capacity_table,
    deepest,
    largest_named,
)
from springroll.planner.devices import assumed_rates, named_card
from springroll.planner.footprint import (
    Placement,
    StepSpec,
    device_bytes,
    disk_bytes,
    host_bytes,
    rest_stored,
    stored,
    total,
)
from springroll.planner.methods import method_bytes
from springroll.planner.placement import (
    Budgets,
    choose,
    fits,
    least_device,
    least_host,
    placements,
    shortages,
)
from springroll.planner.plan import options_of, plan
from springroll.planner.refusal import changes, refusal
from springroll.planner.search import fastest_plan, larger_step, step_spec
from springroll.planner.step_time import disk_traffic, step_seconds
from springroll.planner.working_set import WorkingSet, working_set

GIB = 1 << 30
SEVEN = CONFIGS["llama-7b"]
H200 = assumed_rates(named_card("H200"))
WORKING = WorkingSet(3 * GIB, GIB)
# One shape of programs for all tests: it is compiled once.
SMALL: Any = {"tokens_per_step": 512, "sequence": 128, "micro_batch": 1}


def spec(method="adamw", config=SEVEN, tokens=16384, **options):
    parts = method_bytes(config, method, **options)
    return StepSpec(config, parts, tokens, 1, 1024, WORKING)


def chosen(device, host, method="adamw", **options):
    found = choose(spec(method, **options), H200, Budgets(device, host))
    assert found is not None
    return found.place


def test_a_7b_model_stays_on_an_h200():
    assert chosen(139 * GIB, 110 * GIB) == Placement("resident", 32, 32)
    assert (
        total(device_bytes(spec(), Placement("resident", 32, 32))) < 100 * GIB
    )  # 91 GB and inputs


def test_what_does_not_fit_streams_and_as_much_as_helps_stays():
    place = chosen(24 * GIB, 110 * GIB)
    assert place.mode == "host" and place.layers < 32
    eight = chosen(24 * GIB, 110 * GIB, "adamw-8bit")
    assert eight.mode == "device" and 0 < eight.layers < 32
    assert fits(spec("adamw-8bit"), eight, Budgets(24 * GIB, 110 * GIB))
    more = dataclasses.replace(eight, layers=eight.layers + 8)
    assert not fits(spec("adamw-8bit"), more, Budgets(24 * GIB, 110 * GIB))


def test_saved_inputs_go_to_the_host_when_they_must():
    wide = spec(tokens=1 << 19)
    found = choose(wide, H200, Budgets(40 * GIB, 1 << 40))
    assert found is not None and found.place.inputs < 32
    assert host_bytes(wide, found.place)["layer inputs"] > 0


def test_nothing_else_is_faster_than_the_choice():
    budgets = Budgets(24 * GIB, 110 * GIB)
    best = choose(spec("adamw-8bit"), H200, budgets)
    assert best is not None
    for place in placements(spec("adamw-8bit"), budgets):
        assert step_seconds(spec("adamw-8bit"), place, H200).step >= best.seconds.step


@pytest.mark.parametrize(("method", "per"), [("adamw", 12), ("adamw-8bit", 6.04)])
def test_everything_is_stored_once(method, per):
    one = spec(method)
    for layers in (0, 8, 31):
        place = Placement("device", layers, 32)
        there, here = host_bytes(one, place), device_bytes(one, place)
        held = there["weights"] + there["low halves"] + there["state"] + here["layers that stay"]
        assert held == 32 * stored(one) + rest_stored(one)
        assert held == pytest.approx(per * SEVEN.parameters, rel=0.01)


def test_host_bytes_per_parameter_keep_the_promise():
    place = Placement("host", 0, 32)
    for method, most in (("adamw", 12.3), ("adamw-8bit", 6.3)):
        mode = dataclasses.replace(place, mode=spec(method).method.updates[0])
        found = host_bytes(spec(method), mode)
        kept = sum(found.get(kind, 0) for kind in ("weights", "low halves", "state"))
        assert kept <= most * SEVEN.parameters


def test_a_global_norm_costs_the_gradients_on_the_host():
    place = Placement("host", 0, 32)
    held = host_bytes(dataclasses.replace(spec(), clip="global"), place)
    free = host_bytes(spec(), place)
    more = held["gradients"] - free["gradients"]
    assert more == pytest.approx(2 * SEVEN.parameters, rel=0.1)


def test_budgets_of_one_memory_are_kept_together():
    apart, together = Budgets(64 * GIB, 64 * GIB), Budgets(64 * GIB, 64 * GIB, 64 * GIB)
    assert choose(spec(), H200, apart) is not None
    assert choose(spec(), H200, together) is None


def test_what_a_step_needs_at_least():
    one, budgets = spec(), Budgets(24 * GIB, 0)
    device, host = least_device(one), least_host(one, budgets)
    assert choose(one, H200, Budgets(device, 1 << 50)) is not None
    assert choose(one, H200, Budgets(device - 1, 1 << 50)) is None
    assert choose(one, H200, Budgets(24 * GIB, host)) is not None
    assert choose(one, H200, Budgets(24 * GIB, host - 1)) is None


def test_what_is_missing_suffices_whatever_there_is():
    """Of random machines on which nothing fits: something is said to be missing, and with all of it
    the step fits."""
    draw = random.Random(0)
    some = lambda: int(12 * SEVEN.parameters * 2 ** draw.uniform(-9, 1))
    methods = [spec(name) for name in ("adamw", "muon-8bit", "lowgrad", "evolve", "lora")]
    refused = 0
    while refused < 100:
        devices, clip = draw.choice((1, 2)), draw.choice(("global", "previous"))
        one = dataclasses.replace(draw.choice(methods), rows=2, devices=devices, clip=clip)
        together, disk = draw.choice((None, some())), draw.choice((0, some()))
        budgets = Budgets(some(), some(), together, disk)
        if choose(one, H200, budgets) is not None:
            continue
        short = {lack.tier.split()[0]: lack.needed for lack in shortages(one, budgets)}
        assert short and ("disk" not in short or disk)
        assert all(lack.missing > 0 for lack in shortages(one, budgets))
        if together is not None:
            short["together"] = short.pop("memory", together)
            if budgets.host >= together:  # the host was given nothing apart
                short["host"] = 1 << 62
        assert choose(one, H200, budgets._replace(**short)) is not None, (budgets, short)
        refused += 1


def test_the_deepest_model_uses_what_there_is():
    budgets = Budgets(24 * GIB, 116 * GIB)
    found = deepest(spec(), budgets)
    assert found == pytest.approx((116 + 10) * GIB / 12, rel=0.1)
    assert deepest(spec("adamw-8bit"), budgets) > 1.8 * found
    assert deepest(spec(), Budgets(GIB, GIB)) == 0
    endless = Budgets(10**18, 10**18)
    layers = dataclasses.replace(spec().config, layers=MOST_STACKED)
    assert deepest(spec(), endless) == layers.parameters


# From here on the compiler is asked.


def test_a_plan_is_all_numbers():
    found = plan("llama-60m", device="2GiB", host="4GiB", **SMALL)
    assert found.parameters == CONFIGS["llama-60m"].parameters
    assert not found.streams and found.place.mode == "resident"
    assert found.device_peak == sum(found.device_bytes.values()) <= 2 * GIB
    assert found.tokens_per_second == pytest.approx(512 / found.seconds.step)
    assert found.days_per_billion == pytest.approx(1e9 / found.tokens_per_second / 86400)
    assert json.loads(json.dumps(found.record()))["device_peak"] == found.device_peak
    with pytest.warns(DeprecationWarning, match=r"Plan\.job is now Plan\.spec"):
        assert found.job is found.spec
    assert shown(*found.tables()).count("nothing streams") == 1


def test_a_plan_that_streams():
    found = plan("llama-60m", device="600MiB", host="4GiB", link="25GB", **SMALL)
    assert found.streams and found.place.layers < 8
    assert found.host_peak == sum(found.host_bytes.values()) > 0
    assert found.rates.to_device == 25e9
    text = shown(*found.tables())
    for word in ("layers passing", "waits for", "days per billion"):
        assert word in text
    # AdamW's peak is in the backward pass; Muon's where the embedding is updated on the device.
    other = plan("llama-60m", method="muon", device="600MiB", host="4GiB", link="25GB", **SMALL)
    assert other.streams and "embedding and head" in shown(*other.tables())


def test_what_fits_nowhere_is_known_before_anything_is_traced(monkeypatch):
    def traced(*_, **__):
        raise AssertionError

    monkeypatch.setattr(methods, "_optimizer_state", traced)
    monkeypatch.setattr(search, "working_set", traced)
    options = options_of("RTX 3060", "32GB", None, None)
    for method in compared.COMPARED:
        assert fastest_plan("x", CONFIGS["llama3.1-70b"], options.by(method)) is None


def test_the_compiler_tells_the_working_set():
    config = CONFIGS["llama-1m"]
    small, large = (working_set(config, 1, time, "float32") for time in (64, 128))
    scores = config.heads * 128 * 128 * 4
    assert 0 < small.layer < large.layer and large.layer > scores
    forward = working_set(config, 1, 128, "float32", trains=False)
    assert forward.layer < large.layer and forward.head <= large.head


def test_every_method_of_one_model_beside_each_other():
    options = options_of("600MiB", "1GiB", None, None, tokens=512, sequence=128, micro_batch=1)
    ways = alternatives("llama-60m", CONFIGS["llama-60m"], options)
    by_name = {way.method: way for way in ways}
    assert next(iter(by_name)) == "adamw" and "evolve" in by_name
    assert by_name["adamw"].parameters < by_name["adamw-8bit"].parameters
    text = shown(alternatives_table(ways))
    assert all(name in text for name in by_name)
    assert json.dumps([way.record() for way in ways])


def test_the_largest_named_model(monkeypatch):
    few = {name: CONFIGS[name] for name in ("llama-60m", "llama-130m", "llama-7b", "llama-1m")}
    monkeypatch.setattr(compared, "CONFIGS", few)
    monkeypatch.setattr(compared, "SHAPE", "llama-60m")
    options = options_of("1GiB", "2GiB", None, None, tokens=512, sequence=128, micro_batch=1)
    found = largest_named(options)
    assert found is not None and found.model == "llama-130m"
    tiny = options_of("1MiB", "1MiB", None, None, tokens=512, sequence=128, micro_batch=1)
    assert largest_named(tiny) is None
    assert "llama-130m" in shown(capacity_table(capacity(options)))


@pytest.mark.parametrize(
    ("device", "host", "said"),
    [
        ("900MiB", "800MiB", r"adamw needs .* of host memory, 800 MiB are given .*state.* fits"),
        (
            "20MiB",
            "64GiB",
            r"needs .* of device memory for a layer at a time, 20 MiB .*more memory",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(device, host, said, monkeypatch):
    few = {name: CONFIGS[name] for name in ("llama-60m", "llama-130m")}
    monkeypatch.setattr(compared, "CONFIGS", few)
    with pytest.raises(InputError, match=said) as refused:
        plan("llama-130m", device=device, host=host, **SMALL)
    assert "\n" not in str(refused.value)


def test_a_refusal_names_both_tiers_their_largest_parts_and_the_smallest_change(monkeypatch):
    monkeypatch.setattr(compared, "CONFIGS", {})
    with pytest.raises(InputError, match="give more memory") as refused:
        plan("llama-60m", device="60MiB", host="200MiB", **SMALL)
    both = r"device memory for a layer at a time, 60 MiB are given \(the largest part is .*\) and "
    assert re.search(both + ".* of host memory, 200 MiB are given", str(refused.value))
    deep = lambda size, depth: options_of(
        size, "4GiB", None, None, tokens=512, sequence=128, depth=depth
    )
    least = least_device(step_spec(CONFIGS["llama-60m"], deep("1GiB", 4), 1))
    one = deep(least, 9)
    assert fastest_plan("x", CONFIGS["llama-60m"], one) is None
    said = refusal("llama-60m", CONFIGS["llama-60m"], one)
    assert re.search(r"--depth 4 fits, and so would .* MiB more device memory$", said)
    mac = options_of("M4 Max 1GiB", None, None, None, tokens=512, sequence=128)
    assert "for device and host together" in refusal("x", CONFIGS["llama-350m"], mac)


def test_changes_that_are_proposed_can_be_asked_for():
    options = options_of(
        "1GiB", "1GiB", None, None, tokens=4096, sequence=512, micro_batch=4, clip="global"
    )
    found = dict(changes(CONFIGS["moe-4m"], options))
    assert list(found)[:3] == ["--clip-by previous", "--depth 2", "--depth 1"]
    for name in ("--batch 1", "--experts-per-bundle 8", "--tokens-per-step 2048"):
        assert name in found
    assert "--sequence 256" in found and "--method evolve" in found


def test_a_larger_step_is_proposed_where_the_link_is_waited_for():
    config, asked = CONFIGS["llama-350m"], {"tokens": 512, "sequence": 128, "micro_batch": 1}
    slow = options_of("1200MiB", "16GiB", "500MB", None, **asked)
    found = fastest_plan("x", config, slow)
    assert found is not None and found.hidden_from > 512
    larger = larger_step("x", config, slow, found)
    assert larger is not None and larger.hidden_from <= larger.spec.tokens
    assert larger.tokens_per_second > 2 * found.tokens_per_second
    assert f"--tokens-per-step {larger.spec.tokens}: " in shown(*found.tables(larger))
    assert larger_step("x", config, slow, larger) is None or larger.spec.tokens > 512
    roomy = options_of("24GiB", "16GiB", None, None, **asked)
    resident = fastest_plan("x", config, roomy)
    assert resident is not None and larger_step("x", config, roomy, resident) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens_per_step": 1000}, "take 1024, or another --sequence"),
        ({"micro_batch": 5}, "take a divisor of 16"),
        ({"device": "3x H200"}, r"16 sequences per step do not divide over 3 .*-step 18432\)"),
        ({"device": "4x H200", "micro_batch": 2}, "2 sequences in a micro-batch do not divide"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"clip": "hard"}, "expected one of none, global, previous, layer"),
        ({"device": "H300"}, "did you mean H200"),
        ({"host": "lots"}, "host is 'lots'; expected a number and a unit"),
        ({"link": "fast"}, "link is 'fast'"),
        ({"method": "adam"}, "did you mean adamw"),
    ],
)
def test_bad_options_are_refused_before_anything_is_compiled(options, said, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    with pytest.raises(InputError, match=said):
        asked: dict[str, Any] = {"device": "H200", "host": "1GiB"} | options
        plan("llama-60m", **asked)


def shown(*tables):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for table in tables:
            console.print(table)
    return console.export_text()


def test_a_disk_takes_the_layers_that_host_memory_does_not_hold():
    one = spec()
    roomy, tight = Budgets(24 * GIB, 110 * GIB, disk=1 << 40), Budgets(24 * GIB, 32 * GIB)
    choice = choose(one, H200, roomy)
    assert choice is not None and choice.place.disk == 0
    assert choose(one, H200, tight) is None
    choice = choose(one, H200, tight._replace(disk=1 << 40))
    assert choice is not None
    place = choice.place
    on_host = SEVEN.layers - place.layers - place.disk
    assert place.disk > 0 and total(host_bytes(one, place)) <= tight.host
    assert total(disk_bytes(one, place)) == place.disk * stored(one)
    fewer = dataclasses.replace(place, disk=place.disk - 1)
    assert total(host_bytes(one, fewer)) > tight.host  # no layer is there without need
    assert host_bytes(one, place)["weights"] == 2 * (on_host * one.layer + one.rest)
    assert choice.seconds.disk > 0 and choice.seconds.step >= choice.seconds.disk
    assert choose(one, H200, tight._replace(disk=place.disk * stored(one) - 1)) is None
    exact = Placement("host", 0, 0, disk=1)
    assert 0 <= disk_traffic(one, exact) - 26 * one.layer < 100  # counts of steps


def test_layers_on_a_disk_are_in_the_tables(capsys):
    made = plan("llama-7b", device="24GiB", host="32GiB", rates=H200, disk="1TB", **SMALL)
    assert made.place.disk and made.record()["layers_on_disk"] == made.place.disk
    Console(width=120).print(*made.tables())
    assert "layers on the disk" in capsys.readouterr().out
