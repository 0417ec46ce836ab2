"""Updates on the host: gradients come back, the processor runs AdamW where weights and state live.

The link then carries the least: weights to the device twice, gradients back once. Updates begin as
soon as a gradient is there, so they overlap the backward pass, and the bundle that the next forward
pass needs first is updated first, so they overlap that pass too.
"""

import contextlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
import optax

from springroll.cpu import cores
from springroll.errors import InputError
from springroll.stream.conveyor import Conveyor, Passing
from springroll.stream.device_update import Mend
from springroll.stream.host_adamw import AdamW
from springroll.stream.next_use import NextUseFirst
from springroll.stream.programs import narrow
from springroll.stream.store import writable
from springroll.stream.update import Gradient, or_fail

MOMENTS = {"low": "low", "mu": "m", "nu": "v"}  # fields of optax's states -> names of `AdamW`


class HostUpdate:
    """AdamW in place, exact: float32 weights, or bfloat16 halves of a split master.

    The state is that of `optimizer`, an optax Adam with or without `with_split_master`, so that a
    checkpoint does not tell where updates were made.

    Args:
        adamw: what is computed.
        optimizer, rest: as in `DeviceUpdate`; only their `init` is used.
        decays: (weights of a bundle) -> which leaves have weight decay, a tree of booleans.
        threads: that update; default: all cores.
        waiting: bundles whose gradients may wait on the host for an update, 2 bytes per bfloat16
            parameter; more make the backward pass wait. With a global clip all have to.
        mend: as in `DeviceUpdate`.
    """

    fields = ("weights",)

    def __init__(
        self,
        adamw: AdamW,
        optimizer: optax.GradientTransformation,
        rest: optax.GradientTransformation | None = None,
        *,
        decays: Callable[[Any], Any] = lambda weights: jax.tree.map(lambda _: True, weights),
        threads: int | None = None,
        waiting: int | None = None,
        mend: Mend | None = None,
    ):
        self._adamw, self._decays, self._mend = adamw, decays, mend
        self._optimizer, self._rest = optimizer, optimizer if rest is None else rest
        self._room = threading.Semaphore(waiting or sys.maxsize)
        self._pool = NextUseFirst(threads or cores())

    def init(self, weights: Any, layer: bool) -> Any:
        """The state of a bundle, from its float32 weights."""
        if layer:
            return self._optimizer.init({"layers": weights})
        return self._rest.init(weights)

    def apply(self, conveyor: Conveyor, passing: Passing, gradient: Gradient) -> None:
        self._room.acquire()
        small = narrow(gradient.values, passing.arrays["weights"])
        came = conveyor.link.fetch((small, *gradient[1:]))
        written = self._promised(conveyor, passing.bundle)
        written.add_done_callback(lambda _: self._room.release())

        def begin(fetched: "Future[Any]") -> None:
            passing.leave()
            self._begin(conveyor, passing.bundle, Gradient(*fetched.result()), written)

        came.add_done_callback(or_fail(begin, written))

    def apply_all(self, conveyor: Conveyor, held: dict[int, Any], gradient: Gradient) -> None:
        common = conveyor.link.fetch((gradient.factor, gradient.good))
        for bundle in sorted(held):
            written = self._promised(conveyor, bundle)

            def begin(
                fetched: "Future[Any]",
                bundle: int = bundle,
                waited: "Future[Any]" = held[bundle],
                written: "Future[Any]" = written,
            ) -> None:
                values, stats = waited.result()
                scale, good = fetched.result()
                self._begin(conveyor, bundle, Gradient(values, scale, good, stats), written)

            common.add_done_callback(or_fail(begin, written))
        held.clear()

    def close(self) -> None:
        """End the threads; what they have not begun is not done."""
        self._pool.close()

    def _promised(self, conveyor: Conveyor, bundle: int) -> "Future[Any]":
        written: Future[Any] = Future()
        store: Any = conveyor.store
        store.promise(bundle, written)
        return written

    def _begin(
        self, conveyor: Conveyor, bundle: int, gradient: Gradient, written: "Future[Any]"
    ) -> None:
        """Hand the update to the threads; runs when everything is on the host."""
        if not bool(writable(gradient.good)):
            written.set_result(None)
            return
        conveyor.ledger.writing(bundle)
        store: Any = conveyor.store
        weights = store.view(bundle, "weights")
        moments, counts = parted(store.view(bundle, "state"), weights)
        layer = bundle < store.bundles - 1
        with on_processor():  # the rate may be a schedule of optax
            jobs = self._adamw.jobs(
                weights,
                moments,
                jax.tree.map(writable, gradient.values),
                step=int(counts[0]),
                scale=float(writable(gradient.factor)),
                decay=self._decays({"layers": weights})["layers"]
                if layer
                else self._decays(weights),
            )

        def end(done: "Future[Any]") -> None:
            done.result()
            for count in counts:
                count += 1
            if self._mend is not None and gradient.stats is not None:
                with on_processor():
                    stats = jax.tree.map(writable, gradient.stats)
                    copied(weights, self._mend(weights, stats))
            written.set_result(None)

        # The rest comes first: the next step begins with its embedding.
        first_use = bundle if layer else -1
        self._pool.submit(first_use, jobs).add_done_callback(or_fail(end, written))


def on_processor() -> Any:
    """Compute with JAX beside the device, whose queue is long."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # this process was started without
        return contextlib.nullcontext()


def parted(state: Any, weights: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(trees of moments by their name in `AdamW`, the counters) of an optax state.

    Raises:
        InputError: the state is not one of Adam.
    """
    tree = jax.tree.structure(weights)
    found: dict[str, list[np.ndarray]] = {}
    counts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        known = next((MOMENTS[name] for name in names if name in MOMENTS), None)
        if known is not None:
            found.setdefault(known, []).append(leaf)
        elif names and names[-1] == "count":
            counts.append(leaf)
        else:
            spelt = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(
                f"updates on the host are AdamW's; the optimizer also keeps {spelt}; "
                "update on the device instead"
            )
    moments = {name: tree.unflatten(leaves) for name, leaves in found.items()}
    if not {"m", "v"} <= moments.keys() or not counts:
        raise InputError("updates on the host are AdamW's; update on the device instead")
    return moments, counts


def copied(there: Any, new: Any) -> None:
    """Write the leaves that are others into the memory of those that are there."""
    for old, leaf in zip(jax.tree.leaves(there), jax.tree.leaves(new), strict=True):
        if leaf is not old:
            np.copyto(old, np.asarray(leaf))
