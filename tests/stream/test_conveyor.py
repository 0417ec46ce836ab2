"""A bundle has left only when its memory is free: what another thread may then rely on."""

import threading
from concurrent.futures import Future

import jax.numpy as jnp

from springroll.stream.conveyor import Ledger, Passing, Stop, merged


class Watched(Ledger):
    """Notes whether a bundle said that it had left before it did."""

    said: tuple[bool, bool] | None = None
    passing: Passing

    def leave(self, bundle: int) -> None:
        x = self.passing.arrays["weights"]
        self.said = self.passing.left, x.is_deleted()
        super().leave(bundle)


def on_its_way(ledger):
    sent: Future = Future()
    sent.set_result({"weights": jnp.ones(3)})
    ledger.arrive(0, 12)
    return Passing(0, sent, ledger)


def test_a_bundle_has_left_when_the_ledger_knows():
    ledger = Watched(1)
    ledger.passing = passing = on_its_way(ledger)
    passing.leave()
    assert ledger.said == (False, True) and passing.left
    ledger.arrive(1, 12)  # there is room


def test_it_leaves_once_whoever_asks():
    ledger = Ledger(1)
    passing = on_its_way(ledger)
    threads = [threading.Thread(target=passing.leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.arrive(0, 12)  # a second leaving would have said that it is not there


def test_repeated_stops_are_one_passage_with_all_fields():
    stops = [Stop(0, ("weights",)), Stop(1, ("weights",)), Stop(1, ("state",), False)]
    assert merged(stops) == [(stops[0], 1), (Stop(1, ("weights", "state"), False), 2)]
