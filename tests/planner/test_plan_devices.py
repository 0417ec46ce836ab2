"""Cards by the names people use, budgets, and what is assumed of bytes alone."""

import dataclasses

import jax
import pytest

from springroll.errors import InputError
from springroll.planner import devices
from springroll.planner.devices import (
    CARDS,
    CONTEXT,
    FRACTION,
    GIB,
    UPDATE_BYTES,
    assumed_rates,
    card_with,
    detected,
    device_of,
    named_card,
)
from springroll.planner.measured_rates import quick_rates, seconds
from springroll.planner.plan import options_of, plan


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("RTX 3080", "RTX 3080"),
        ("rtx3080", "RTX 3080"),
        ("3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H200", "H200"),
        ("a100", "A100 80GB"),
        ("A100-40GB", "A100 40GB"),
        ("DGX Spark", "GB10"),
        ("AMD Instinct MI300X", "MI300X"),
        ("RTX A6000", "A6000"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("Apple M2 Ultra", "M2 Ultra"),
        ("M4 Max 64GB", "M4 Max 64GB"),
        ("RTX 3080 12GB", "RTX 3080 12GB"),
    ],
)
def test_cards_by_the_names_people_use(given, name):
    found = device_of(given)
    assert found.name == name
    assert found.card is not None and found.memory == found.card.usable
    assert found.card.usable <= found.card.memory - CONTEXT
    assert not found.local and found.count == 1


def test_several_cards_of_a_host():
    found = device_of("8x H200")
    assert (found.name, found.count) == ("8x H200", 8)
    assert dataclasses.replace(found, name="H200", count=1) == device_of("H200")
    assert device_of("2 x 24GiB").count == 2 and device_of("1x H100").name == "H100"


def test_a_mac_has_one_memory_of_which_programs_have_three_quarters():
    found = device_of("M4 Max 64GiB")
    assert found.unified and found.memory == 48 * GIB
    options = options_of("M4 Max 64GiB", None, None, None)
    assert options.budgets.together == options.budgets.host == 48 * GIB


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("RTX 3808", "did you mean RTX 3080"),
        ("H20O", "did you mean H200"),
        ("toaster", "give its memory, such as 24GiB"),
        ("24", "give its memory, such as 24GiB"),
        ("24 gibibytes", "expected a number and a unit"),
        ("0GiB", "expected memory above zero"),
        (0, "expected memory above zero"),
        ("0x H200", "expected 1 to 1024 cards, such as '8x H200'"),
        ("9" * 5000 + "x H200", "expected 1 to 1024 cards"),
        ("8x 8x H200", "expected 1 to 1024 cards"),
        ("8x toaster", "no card named 'toaster'"),
        ("2x M4 Max", "shares the host's memory"),
        ("8x auto", "expected 1 to 1024 cards"),
        ("H200 0GB", "expected memory above zero"),
        ("\x1b[31m H200\n", "no card named"),
        ("", "give its memory"),
    ],
)
def test_what_is_no_device_is_refused_in_one_line(given, said):
    with pytest.raises(InputError, match=said) as refused:
        device_of(given)
    assert "\n" not in str(refused.value)


def test_every_card_is_found_by_its_own_name_and_is_plausible():
    for card in CARDS:
        assert named_card(card.name) is card
        assert 8 * GIB <= card.memory < 1 << 40 and 0 < card.usable < card.memory
        assert 8e12 < card.peak32 <= card.peak < 1e16 and card.link < card.bandwidth
        assert card.source and set(card.estimated) <= {"peak", "peak32"}
    assert len(CARDS) >= 40


def test_bytes_alone_take_the_speed_of_the_slowest_card_of_that_size():
    found = device_of("24GiB")
    assert found.memory == 24 * GIB
    assert found.card == named_card("RTX 3090")
    assert device_of(24 * GIB).memory == found.memory
    assert card_with(1 << 50).memory == named_card("MI355X").memory
    assert card_with(8 * GIB).name == "RTX 3070"  # the smallest there is
    assert card_with(16 * GIB).peak > card_with(16 * GIB).peak32  # none without bfloat16


def test_rates_of_a_card():
    card = named_card("H200")
    rates = assumed_rates(card)
    assert rates.flops == pytest.approx(450e12, rel=1e-3)  # what the design assumes
    assert rates.to_device == rates.to_host == 50e9
    assert rates.device_update == card.bandwidth / UPDATE_BYTES
    assert f"{FRACTION:.0%}" in rates.source and "H200" in rates.source
    assert assumed_rates(card, 25 * 10**9).to_host == 25e9
    assert assumed_rates(card, dtype="float32").flops == FRACTION * card.peak32


def test_the_machine_at_hand():
    found = detected()
    assert found.local and found.unified and found.card is None  # tests run on a CPU
    assert found.memory > 1 << 28
    rates = quick_rates()
    assert rates.shared  # its times add up
    assert all(x > 0 for x in dataclasses.astuple(rates) if isinstance(x, float))


def test_a_card_at_hand_is_known_by_its_kind(monkeypatch):
    class Found:
        platform, device_kind = "gpu", "NVIDIA H100"

    monkeypatch.setattr(jax, "devices", lambda: [Found()])
    monkeypatch.setattr(devices, "available_bytes", lambda: 70 * GIB)
    found = detected()
    assert found.card is named_card("H100") and found.memory == 70 * GIB and not found.unified
    Found.device_kind = "something new"
    assert detected().card == card_with(70 * GIB)
    monkeypatch.setattr(devices, "available_bytes", lambda: None)
    with pytest.raises(InputError, match="give device, as 24GiB"):
        detected()


def test_a_median_leaves_the_first_call_out():
    calls = []
    assert seconds(lambda: calls.append(0), repeats=3) >= 0
    assert len(calls) == 4


@pytest.mark.parametrize("model", ["qwen3-8b", "llama3.1-8b"])
def test_eight_billion_parameters_train_on_a_card_of_ten_gigabytes(model):
    found = plan(model, device="RTX 3080", host="128GB")
    assert found.streams and found.device_peak < 9.32 * GIB
