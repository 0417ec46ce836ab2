"""Benches of whole streamed steps, at sizes of a toy: what they report is what was streamed."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from bench import largest_step, largest_streamed, streamed_throughput
from bench.streamed_throughput import MODES, config_of, fitting, placement, repeated
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named, shapes
from springroll.train.streamed import step_spec

pytestmark = pytest.mark.slow

TINY = named("llama-tiny")


def test_cheap_weights_are_all_there_and_every_layer_is_the_first():
    shape = dataclasses.replace(TINY, layers=3)
    found = {}
    for path, index, values in repeated(shape):
        assert values.dtype == ml_dtypes.bfloat16
        found.setdefault(path, []).append((index, values))
    is_shape = lambda node: isinstance(node, tuple)
    expected = jax.tree_util.tree_leaves_with_path(shapes(shape), is_leaf=is_shape)
    assert len(found) == len(expected)
    for path, size in expected:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layered = name.startswith("layers/")
        assert [index for index, _ in found[name]] == ([(0,), (1,), (2,)] if layered else [()])
        assert all(v.shape == (size[1:] if layered else size) for _, v in found[name])
        assert len({id(v) for _, v in found[name]}) == 1
    matrix = np.asarray(
        next(v for (_, v), *_ in found.values() if v.shape[0] == TINY.vocab), np.float32
    )
    assert matrix.std() == pytest.approx(TINY.init_std, rel=0.05)


def test_tokens_of_a_step_are_cut_into_micro_batches():
    config = config_of("host", 32768, 1024, 4)
    assert (config.accumulate, config.batch, config.sequence) == (8, 4, 1024)
    job = step_spec(config_of("host", 64, 8, 2), decoder(TINY))
    assert (job.tokens, job.parts) == (64, 4)


def test_a_model_that_the_host_cannot_hold_has_fewer_layers(monkeypatch):
    deep = dataclasses.replace(TINY, layers=20)
    whole = 12 * deep.parameters
    assert fitting(deep, 1024).layers == 20
    monkeypatch.setattr(streamed_throughput, "host_memory", lambda: whole // 2)
    assert 1 < fitting(deep, 1024).layers < 10


def test_everything_is_resident_where_it_says_so():
    place = placement("resident", 1, 2, TINY)
    assert (place.layers, place.inputs) == (TINY.layers, TINY.layers)
    place = placement("host", 1, 2, TINY)
    assert (place.mode, place.layers, place.inputs) == ("host", 1, 2)


def test_streamed_and_resident_steps_are_timed():
    (result,) = streamed_throughput.run(
        "llama-tiny", layers=8, budget="800KB", steps_of=(16,), sequence=8, rows=1, repeats=1
    )
    assert result["layers_on_device"] < result["layers"] == 8
    assert set(result["modes"]) == set(MODES)
    best = min(mode["seconds"] for mode in result["modes"].values())
    assert result["ours"] == pytest.approx(16 / best, rel=1e-2)
    for mode in result["modes"].values():
        busiest = max(mode[k] for k in ("compute", "to_device", "to_host", "host_update"))
        assert mode["over_busiest"] == pytest.approx(mode["seconds"] / busiest, rel=1e-2)


def test_the_largest_model_is_nearly_what_the_planner_says(monkeypatch):
    tried = []

    def step(shape, config):
        tried.append(shape.layers)
        if len(tried) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return 1.0, 2.0, placement("host", 0, 0, shape)

    monkeypatch.setattr(largest_streamed, "one_step", step)
    result = largest_streamed.largest("llama-tiny", tokens=8, device=500_000, host=20_000_000)
    assert tried[0] > tried[1] == result["layers"]
    assert result["ratio"] == pytest.approx(0.9, abs=0.02)
    assert "RESOURCE_EXHAUSTED" in result["failures"][0]
    tried.clear()
    none = largest_streamed.largest(
        "llama-tiny", tokens=8, tries=(1.0,), device=500_000, host=10**7
    )
    assert "failed" in none


def test_a_step_under_a_budget_reports_bytes_time_and_loss():
    result = largest_step.run("exact", "llama-tiny", layers=6, tokens=8, budget="700KB")
    assert 0 < result["bundle_bytes_counted"] <= result["device_bytes"] <= result["device_budget"]
    assert result["device_bytes"] == sum(result["device_kinds"].values())
    assert result["layers_on_device"] < result["layers"] == 6
    first, second = result["losses"]
    assert second < first
    assert len(result["seconds_per_step"]) == 2


def test_the_two_cases_differ_in_where_and_how_they_update():
    exact, coded = (largest_step.config_of(n, "llama-1b", 64, "2GiB") for n in ("exact", "8-bit"))
    assert (exact.update, exact.state_bits) == ("host", 32)
    assert (coded.update, coded.state_bits) == ("device", 8)
    assert exact.dtype == coded.dtype == "bfloat16" and exact.clip_by == coded.clip_by == "previous"
