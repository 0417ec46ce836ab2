"""What overlaps in a streamed step, as laws of order: an event log of engine, link and updates."""

import functools
import gc
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.bench.paced import Log, PacedModel, shapes
from springroll.stream.clipping import Clip
from springroll.stream.conveyor import BrokenRule, Conveyor, Ledger, Stop
from springroll.stream.host_adamw import AdamW
from springroll.stream.host_update import HostUpdate
from springroll.stream.link import Link, ThrottledLink
from springroll.stream.priority_pool import PriorityPool
from springroll.stream.store import HostStore
from springroll.stream.streamed import Streamed

LAYERS, NUMBERS = 5, 64
TOKENS = jnp.zeros((1, 2), jnp.int32)


@functools.cache
def paced_model():
    return PacedModel(0.0, Log())


def tensors():
    ones = lambda *shape: np.ones(shape, np.float32)
    return iter([("embed", (), ones(NUMBERS)), ("layers/w", (), ones(LAYERS, NUMBERS))])


class Gated(HostUpdate):
    """Updates that begin when the gate opens, and a log of their bundles in order."""

    def __init__(self, events, gate):
        super().__init__(AdamW(1e-2, weight_decay=0.0), optax.adam(1e-2), threads=1)
        self._pool.close()
        self._pool = LoggedPool(events)
        if gate is not None:
            PriorityPool.submit(self._pool, -2, [gate.wait])


class LoggedPool(PriorityPool):
    """One thread that logs the bundles it works on; -1 is the rest."""

    def __init__(self, events):
        super().__init__(1)
        self._events = events
        self.came = threading.Semaphore(0)  # submissions

    def submit(self, index, jobs):
        done = super().submit(index, [lambda: self._events.append(("update", index)), *jobs])
        self.came.release()
        return done


class LoggedLink(ThrottledLink):
    """A link, infinitely fast unless told otherwise, that logs what it is asked to send."""

    def __init__(self, events, rate=float("inf")):
        super().__init__(rate)
        self._events = events

    def send(self, tree, to=None):
        self._events.append(("send", tree["weights"]["w"].shape if "w" in tree["weights"] else ()))
        return super().send(tree, to)


def trainer(events, gate=None, **options):
    made: Any = Streamed(
        paced_model(),
        shapes(LAYERS, NUMBERS),
        Gated(events, gate),
        link=LoggedLink(events),
        **options,
    )
    programs = made.engine.programs
    for name in ("forward", "backward", "embed"):
        setattr(programs, name, logged(events, name, getattr(programs, name)))
    return made, made.fill(tensors())


def logged(events, name, program):
    def call(*arguments):
        events.append((name, int(arguments[3]) if name != "embed" else -1))
        return program(*arguments)

    return call


def of(events, *names):
    return [event for event in events if event[0] in names]


@pytest.fixture(scope="module")
def first_step():
    """Events of a step whose updates all wait until it is over, and the step after."""
    events, gate = [], threading.Event()
    made, state = trainer(events, gate)
    state, _ = made.step(state, TOKENS)
    for _ in range(LAYERS + 1):
        assert made.engine.update._pool.came.acquire(timeout=60)
    before = list(events)
    gate.set()
    state, _ = made.step(state, TOKENS)
    made.store.settle()
    yield before, events[len(before) :], made
    made.engine.update.close()
    made.link.close()


def test_a_bundle_is_sent_before_the_one_in_front_of_it_is_computed(first_step):
    before, _, _ = first_step
    order = of(before, "send", "forward", "backward")
    assert order[0][0] == "send"  # the rest
    sends = computed = 0
    layers = []
    for kind, what in order[1:]:
        if kind == "send":
            sends += 1
            continue
        if not layers or layers[-1] != what:  # the last layer stays for its gradient
            layers.append(what)
            computed += 1
            assert sends == min(computed + 1, 2 * LAYERS - 1)
    assert layers == [*range(LAYERS), *reversed(range(LAYERS - 1))]


def test_the_window_is_filled_and_never_more(first_step):
    assert first_step[2].engine.conveyor.ledger.peak == 3


def test_updates_are_made_in_the_order_of_their_next_use(first_step):
    """The backward pass hands them in from last to first, and the rest, needed first, last."""
    before, after, _ = first_step
    assert not of(before, "update")
    updates = [bundle for _, bundle in of(after, "update")]
    assert updates[: LAYERS + 1] == [-1, *range(LAYERS)]


def test_the_next_forward_pass_starts_layers_as_their_updates_begin_to_be_done(first_step):
    _, after, _ = first_step
    at = after.index
    assert at(("update", -1)) < at(("embed", -1))
    for layer in range(LAYERS):
        assert at(("update", layer)) < at(("forward", layer))


def test_a_layer_is_computed_while_later_ones_wait_for_their_updates():
    """Only layers 0 and 1 are updated: the forward pass gets as far as it can."""
    events, came = [], threading.Event()
    made, state = trainer(events)
    late: Future[None] = Future()
    made.store.promise(2, late)
    forward = made.engine.programs.forward

    def watched(*arguments):
        result = forward(*arguments)
        came.set()
        return result

    made.engine.programs.forward = watched
    stepping = threading.Thread(target=made.step, args=(state, TOKENS))
    stepping.start()
    assert came.wait(60)  # layer 0, which needs only that layer 1 is on its way
    assert ("forward", 2) not in events
    late.set_result(None)
    stepping.join(60)
    assert ("forward", LAYERS - 1) in events
    made.store.settle()
    made.engine.update.close()


def test_the_published_order_updates_nothing_before_the_backward_pass_is_over():
    events = []
    made, state = trainer(events, order="checkpointed", clip=Clip(1.0, "global"))
    made.step(state, TOKENS)
    made.store.settle()
    last = max(i for i, (kind, _) in enumerate(events) if kind == "backward")
    assert all(i > last for i, (kind, _) in enumerate(events) if kind == "update")
    replayed = [what for kind, what in events if kind == "forward"]
    assert replayed == [*range(LAYERS), 4, 0, 1, 2, 3]
    made.engine.update.close()


def test_writing_below_a_living_view_is_refused():
    ledger = Ledger(2)
    ledger.arrive(1, 8)
    with pytest.raises(BrokenRule, match="bundle 1 is written while it is on the device"):
        ledger.writing(1)
    ledger.leave(1)
    ledger.writing(1)


def test_an_update_that_begins_too_early_comes_out_as_an_error():
    """The gradient is there while the bundle still is: the next step says so and does not hang."""
    events = []
    made, state = trainer(events)
    begin = made.engine.update._begin

    def early(conveyor, bundle, gradient, written):
        if bundle == 1:
            conveyor.ledger.arrive(1, 8)
        begin(conveyor, bundle, gradient, written)

    made.engine.update._begin = early
    with pytest.raises(BrokenRule):
        made.step(state, TOKENS)
        made.store.settle()
    made.engine.update.close()


@pytest.mark.parametrize("way", ["_sent", "_fetched"])
def test_a_failing_copy_comes_out_as_an_error(monkeypatch, way):
    events = []
    made, state = trainer(events)

    def torn(*_):
        raise OSError("the cable is out")

    monkeypatch.setattr(made.link, way, torn)
    with pytest.raises(OSError, match="the cable is out"):
        made.step(state, TOKENS)
        made.store.settle()
    made.engine.update.close()
    made.link.close()


def test_a_failing_update_comes_out_at_the_latest_when_its_bundle_is_needed():
    events = []
    made, state = trainer(events)

    def broken(*_):
        raise MemoryError("half written")

    made.engine.update._adamw = Broken(broken)
    with pytest.raises(MemoryError, match="half written"):
        for _ in range(2):
            state, _ = made.step(state, TOKENS)
    made.engine.update.close()


class Broken:
    def __init__(self, job):
        self._job = job

    def jobs(self, *_, **__):
        return [self._job]


def test_an_idle_thread_holds_nothing_of_the_bundle_it_worked_on():
    class Gradient:
        pass

    with PriorityPool(1) as pool:
        gradient = Gradient()
        gone = weakref.ref(gradient)
        pool.submit(0, [lambda: None]).add_done_callback(lambda _, kept=gradient: None)
        del gradient
        pool.drain()
        ended = threading.Event()
        pool.submit(1, [ended.set])  # the thread is past what it did for bundle 0
        pool.drain()
        gc.collect()
        assert gone() is None


def test_a_throttled_link_counts_what_it_was_busy():
    link = ThrottledLink(1e9)
    store = HostStore(link)
    for _ in range(2):
        store.append({"weights": np.ones(1000, np.float32)})
    for passing in Conveyor(store, link, 2).walk([Stop(0, ("weights",)), Stop(1, ("weights",))]):
        assert passing.arrays["weights"].shape == (1000,)
    assert link.busy == {"send": pytest.approx(8e-6), "fetch": 0.0}
    link.close()
    assert Link().traffic.sends == 0
