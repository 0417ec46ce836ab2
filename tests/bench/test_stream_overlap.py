"""The bench of overlap: what it needs is what it says, and time passes as it is told."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.bench import stream_overlap
from springroll.bench.paced import Event, Log, PacedAdamW, PacedModel
from springroll.bench.stream_overlap import CASES, FIELD, NUMBERS, ROWS, Case, alone, draw, run

UNIT, LAYERS = 1e-4, 4


@pytest.fixture(scope="module")
def result():
    return run("CPU-bound", unit=UNIT, layers=LAYERS, repeats=1)


def test_a_case_is_bound_by_what_its_name_says():
    busiest = {}
    for name, case in CASES.items():
        needs = {"GPU": 4 * case.compute, "link": 2 * case.copy, "CPU": case.update}
        busiest[name] = max(needs, key=lambda resource: needs[resource])
    assert all(busiest[f"{kind}-bound"] == kind for kind in ("GPU", "link", "CPU"))
    assert busiest[FIELD] == "GPU"


def test_the_field_case_has_the_proportions_of_a_7b_model():
    numbers, tokens, flops, link, updates = 6.7e9, 32768, 450e12, 50e9, 3.5e9
    forward = 2 * numbers * tokens / flops
    assert CASES[FIELD].copy == pytest.approx(2 * numbers / link / forward, rel=0.05)
    assert CASES[FIELD].update == pytest.approx(numbers / updates / forward, rel=0.05)


def test_what_each_resource_needs_alone(result):
    """Two passages of every layer, but one of the last; one gradient back; the embedding too."""
    case, needs = CASES["CPU-bound"], result["alone"]
    assert needs["send"] == pytest.approx((2 * LAYERS + 1) * case.copy * UNIT)
    assert needs["fetch"] == pytest.approx((LAYERS + 1) * case.copy * UNIT)
    assert needs["update"] == pytest.approx((LAYERS + 1) * case.update * UNIT)
    assert needs["compute"] > 4 * (LAYERS + 1) * case.compute * UNIT
    assert result["baseline"] == max(needs.values())
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)
    faster = result["checkpointed"] / result["ours"]
    assert result["faster_than_checkpointed"] == pytest.approx(faster, rel=1e-2)
    json.dumps(result, allow_nan=False)


def test_bytes_of_a_step_are_those_of_the_formula():
    made = stream_overlap.paced(Case(0, 0, 0), UNIT, LAYERS)
    stream_overlap.steps(made, LAYERS, repeats=1, settle=True)
    traffic, steps = made.trainer.link.traffic, 3
    assert traffic.sent == steps * (2 * LAYERS + 1) * NUMBERS * 4
    assert traffic.fetches == steps * (LAYERS + 2)  # the embedding's gradient, and its factor
    assert traffic.fetched == steps * (LAYERS + 1) * (NUMBERS * 4 + 5)
    made.close()


def test_nothing_is_faster_than_it_is_told():
    log = Log()
    adamw = PacedAdamW(1e-3, numbers_per_second=1e5, log=log)
    ones = lambda: np.ones(100, np.float32)
    state = {"m": ones(), "v": ones()}
    for job in adamw.jobs(ones(), state, ones(), step=0):
        job()
    (event,) = log.between(0.0, float("inf"))
    assert event.resource == "update" and event.stop - event.start >= 1e-3


def test_events_are_cut_to_the_step():
    log = Log()
    log.add("send", 1.0)
    (event,) = log.between(2.0, 3.0)
    assert event == Event("send", 2.0, 3.0)
    assert log.between(0.0, 1.0) == []


def test_the_way_back_takes_three_times_as_long_as_the_way_there():
    model = PacedModel(2e-3, Log())
    layer = {"w": jnp.ones(8)}

    @jax.jit
    def back(layer, x):
        return jax.grad(lambda p: model.block(p, x, jnp.int32(0))[0].sum())(layer)

    jax.block_until_ready(back(layer, jnp.ones(8)))
    times = [e.stop - e.start for e in model.log.between(0.0, float("inf"))]
    assert len(times) == 1 and times[0] >= 6e-3


def test_a_timeline_is_drawn(tmp_path):
    events = [Event(resource, 0.1 * i, 0.1 * i + 0.2) for i, resource in enumerate(ROWS)]
    draw({"one": events, "other": events[:2]}, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_alone_is_a_dictionary_of_all_resources(monkeypatch):
    monkeypatch.setattr(stream_overlap, "timed", lambda *_, **__: (1.0, []))
    assert set(alone(Case(1, 1, 1), UNIT, LAYERS, 1)) == set(ROWS)
