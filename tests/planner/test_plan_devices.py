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
from springroll.planner.plan import plan


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
    ],
)
def test_cards_by_the_names_people_use(given, name):
    found = device_of(given)
    assert found.name == name
    assert found.card is not None and found.memory == found.card.memory - CONTEXT
    assert not found.local


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
    ],
)
def test_what_is_no_device_is_refused_in_one_line(given, said):
    with pytest.raises(InputError, match=said) as refused:
        device_of(given)
    assert "\n" not in str(refused.value)


def test_every_card_is_found_by_its_own_name_and_is_plausible():
    for card in CARDS:
        assert named_card(card.name) is card
        assert 8 * GIB < card.memory < 1 << 40
        assert 1e13 < card.peak < 1e16 and card.link < card.bandwidth


def test_bytes_alone_take_the_speed_of_the_slowest_card_of_that_size():
    found = device_of("24GiB")
    assert found.memory == 24 * GIB
    assert found.card == named_card("RTX 3090")
    assert device_of(24 * GIB).memory == found.memory
    assert card_with(1 << 50).memory == max(card.memory for card in CARDS)
    assert card_with(8 * GIB).name == "RTX 3080"  # the smallest there is


def test_rates_of_a_card():
    card = named_card("H200")
    rates = assumed_rates(card)
    assert rates.flops == pytest.approx(450e12, rel=1e-3)  # what the design assumes
    assert rates.to_device == rates.to_host == 50e9
    assert rates.device_update == card.bandwidth / UPDATE_BYTES
    assert f"{FRACTION:.0%}" in rates.source and "H200" in rates.source
    assert assumed_rates(card, 25 * 10**9).to_host == 25e9


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


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen3-8b", "llama3.1-8b"])
def test_eight_billion_parameters_train_on_a_card_of_ten_gigabytes(model):
    found = plan(model, device="RTX 3080", host="128GB")
    assert found.streams and found.device_peak < 9.32 * GIB
