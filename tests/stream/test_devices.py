"""Several devices train as one does, and what crosses their links is what a formula says."""

import re

import jax
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.planner.working_set import INDEX, arguments
from springroll.stream.clipping import Clip
from springroll.stream.link import Link
from springroll.stream.replicas import replicas
from springroll.stream.step_programs import StepPrograms
from springroll.stream.streamed_population import stream_population
from springroll.trees import tree_bytes
from tests.stream.streaming import distance, model, started, streamed, tokens
from tests.stream.test_expert_bundles import moe
from tests.stream.test_expert_bundles import streamed as mixture
from tests.stream.test_streamed_low_rank import filled, trainer

STEPS, LAYERS, DEVICES = 2, 3, 2
ROWS, TIME, HIDDEN = 4, 8, 32  # of `tokens()` and of the model
LAYER_INPUT = 4 * ROWS * TIME * HIDDEN  # bytes
COLLECTIVE = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def link():
    return Link(jax.devices()[:DEVICES])


def run(made, state):
    seen = []
    for i in range(STEPS):
        state, metrics = made.step(state, tokens(i))
        seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    made.store.settle()
    return state, seen


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("host", {"parts": 2, "kept_inputs": 1}),
        pytest.param(
            "device",
            {"clip": Clip(0.5), "on_device": (0, 3), "kept_inputs": 0},
            marks=pytest.mark.slow,
        ),
        pytest.param("host", {"clip": Clip(0.5)}, marks=pytest.mark.slow),
        pytest.param("device", {"clip": Clip(0.5, "previous")}, marks=pytest.mark.slow),
        pytest.param("device", {"order": "checkpointed", "depth": 1}, marks=pytest.mark.slow),
    ],
)
def test_two_devices_train_as_one_and_their_links_carry_what_the_formula_says(where, options):
    alone, together = (
        streamed(model(), where, **options),
        streamed(model(), where, link=link(), **options),
    )
    (one, seen), (two, found) = run(*alone), run(*together)
    np.testing.assert_allclose(found, seen, rtol=1e-5)
    moved = distance(one.params, started(model()))
    assert distance(two.params, one.params) < 1e-5 * moved
    # Weights (and state, and gradients that waited on the host) come to every device; inputs of
    # layers and all that returns cross once.
    inputs = STEPS * (LAYERS - options.get("kept_inputs", LAYERS)) * LAYER_INPUT
    before, now = alone[0].link.traffic, together[0].link.traffic
    assert now.sent == DEVICES * (before.sent - inputs) + inputs
    assert now._replace(sent=0) == before._replace(sent=0)
    ledgers = [t.engine.conveyor.ledger.peak_bytes for t, _ in (alone, together)]
    assert ledgers[0] == ledgers[1]  # on each device


@pytest.mark.slow
def test_experts_that_come_a_few_at_a_time_learn_the_same_on_two_devices():
    (one, seen), (two, found) = (
        run(*mixture("host", **options)) for options in ({}, {"link": link(), "kept_inputs": 1})
    )
    np.testing.assert_allclose(found, seen, rtol=1e-5)
    assert distance(two.params, one.params) < 1e-5 * distance(one.params, started(moe()))


@pytest.mark.slow
def test_low_rank_steps_of_two_devices_are_those_of_one():
    (one, first), (two, second) = (
        filled(model(), trainer(model(), refresh_interval=1), **options)
        for options in ({}, {"link": link()})
    )
    (first, seen), (second, found) = run(one, first), run(two, second)
    np.testing.assert_allclose(found, seen, rtol=1e-5)
    moved = distance(first.params, started(model()))
    assert distance(second.params, first.params) < 1e-5 * moved
    assert two.link.traffic.fetched == one.link.traffic.fetched


def test_devices_compute_their_rows_alone_and_sum_gradients_once():
    two, given = replicas(jax.devices()[:DEVICES]), arguments(model().config, ROWS, TIME, "float32")
    programs = StepPrograms(decoder(model().config), replicas=two)
    on = lambda tree, layouts: jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, layouts
    )
    layer, stats = (on(t, jax.tree.map(lambda _: two.everywhere, t)) for t in given[::3][:2])
    x = on(given.x, two.rows(given.x))
    text = lambda program, *given: str(jax.jit(program).lower(*given).compile().as_text())
    assert not re.search(COLLECTIVE, text(programs._forward, layer, None, x, INDEX))
    backward = text(programs._backward, layer, None, x, INDEX, x, stats, None)
    summed = re.findall(rf"= (.*?) (?:{COLLECTIVE})\(", backward)
    shapes = re.findall(r"f32\[([\d,]+)\]", " ".join(summed))
    numbers = sum(int(np.prod(list(map(int, shape.split(","))))) for shape in shapes)
    assert 4 * numbers == tree_bytes(given.layer)


def test_what_several_devices_cannot_do_is_said():
    made, state = streamed(model(), link=link(), parts=2)
    with pytest.raises(InputError, match="a micro-batch of 1 sequences cannot be divided over 2"):
        made.step(state, tokens(rows=2))
    with pytest.raises(InputError, match="a population streams through one device; the link goes"):
        stream_population(None, None, None, key=None, link=link())  # type: ignore[arg-type]
