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
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
import optax

from springroll.cpu import cores
from springroll.errors import InputError
from springroll.stream.conveyor import Conveyor, Passing
from springroll.stream.device_update import Adjust, init_bundle
from springroll.stream.host_adamw import AdamW
from springroll.stream.priority_pool import PriorityPool
from springroll.stream.step_programs import narrow
from springroll.stream.store import HostStore, writable
from springroll.stream.update import Gradient, Held, or_fail
from springroll.trees import PyTree, path_of

PROBE = 1024.0  # above the limit of any clip; its square shows any decay beside it
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
        adjust: as in `DeviceUpdate`.
    """

    fields = ("weights",)

    def __init__(
        self,
        adamw: AdamW,
        optimizer: optax.GradientTransformation,
        rest: optax.GradientTransformation | None = None,
        *,
        decays: Callable[[PyTree], PyTree] = lambda weights: jax.tree.map(lambda _: True, weights),
        threads: int | None = None,
        waiting: int | None = None,
        adjust: Adjust | None = None,
    ):
        self._adamw, self._decays, self._adjust = adamw, decays, adjust
        self._optimizer, self._rest = optimizer, optimizer if rest is None else rest
        self._room = threading.Semaphore(waiting or sys.maxsize)
        self._pool = PriorityPool(threads or cores())

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        """The state of a bundle, from its float32 weights.

        Raises:
            InputError: the optimizer looks at all gradients together, or its moments are not those
                of `adamw`: the kernels would compute something else.
        """
        state = init_bundle(self._optimizer, self._rest, weights, layer)
        check_moments(self._adamw, self._optimizer if layer else self._rest, weights, layer)
        return state

    def apply(self, conveyor: Conveyor[HostStore], passing: Passing, gradient: Gradient) -> None:
        self._room.acquire()
        small = narrow(gradient.values, passing.arrays["weights"])
        came = conveyor.link.fetch((small, *gradient[1:]))
        written = self._promised(conveyor, passing.bundle)
        written.add_done_callback(lambda _: self._room.release())

        def begin(fetched: Future[PyTree]) -> None:
            passing.leave()
            self._begin(conveyor, passing.bundle, Gradient(*fetched.result()), written)

        came.add_done_callback(or_fail(begin, written))

    def apply_all(self, conveyor: Conveyor[HostStore], held: Held, gradient: Gradient) -> None:
        common = conveyor.link.fetch((gradient.factor, gradient.good))
        for bundle in sorted(held):
            written = self._promised(conveyor, bundle)

            def begin(
                fetched: Future[PyTree],
                bundle: int = bundle,
                waited: Future[tuple[PyTree, PyTree]] = held[bundle],
                written: Future[None] = written,
            ) -> None:
                values, stats = waited.result()
                scale, good = fetched.result()
                self._begin(conveyor, bundle, Gradient(values, scale, good, stats), written)

            common.add_done_callback(or_fail(begin, written))
        held.clear()

    def close(self) -> None:
        """End the threads; what they have not begun is not done."""
        self._pool.close()

    def _promised(self, conveyor: Conveyor[HostStore], bundle: int) -> Future[None]:
        written: Future[None] = Future()
        conveyor.store.promise(bundle, written)
        return written

    def _begin(
        self, conveyor: Conveyor[HostStore], bundle: int, gradient: Gradient, written: Future[None]
    ) -> None:
        """Hand the update to the threads; runs when everything is on the host."""
        if not bool(writable(gradient.good)):
            written.set_result(None)
            return
        conveyor.ledger.writing(bundle)
        store = conveyor.store
        weights = store.view(bundle, "weights")
        moments, counts = adam_state(store.view(bundle, "state"), weights)
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

        def end(done: Future[None]) -> None:
            done.result()
            for count in counts:
                count += 1
            if self._adjust is not None and gradient.stats is not None:
                with on_processor():
                    stats = jax.tree.map(writable, gradient.stats)
                    copy_changed(weights, self._adjust(weights, stats))
            written.set_result(None)

        # The rest comes first: the next step begins with its embedding.
        first_use = bundle if layer else -1
        self._pool.submit(first_use, jobs).add_done_callback(or_fail(end, written))


def on_processor() -> AbstractContextManager[object]:
    """Compute with JAX beside the device, whose queue is long."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # this process was started without
        return contextlib.nullcontext()


def adam_state(state: PyTree, weights: PyTree) -> tuple[dict[str, PyTree], list[np.ndarray]]:
    """(trees of moments by their name in `AdamW`, the counters) of an optax state.

    Raises:
        InputError: the state is not one of Adam.
    """
    tree = jax.tree.structure(weights)
    leaves_of: dict[str, list[np.ndarray]] = {}
    counts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        known = next((MOMENTS[name] for name in names if name in MOMENTS), None)
        if known is not None:
            leaves_of.setdefault(known, []).append(leaf)
        elif names and names[-1] == "count":
            counts.append(leaf)
        else:
            raise InputError(
                f"updates on the host are AdamW's; the optimizer also keeps {path_of(path)}; "
                "update on the device instead"
            )
    whole = all(len(leaves) == tree.num_leaves for leaves in leaves_of.values())
    if not {"m", "v"} <= leaves_of.keys() or not counts or not whole:
        raise InputError("updates on the host are AdamW's; update on the device instead")
    return {name: tree.unflatten(leaves) for name, leaves in leaves_of.items()}, counts


def check_moments(
    adamw: AdamW, optimizer: optax.GradientTransformation, weights: PyTree, layer: bool
) -> None:
    """Raise InputError where the moments of an optimizer are not those of `adamw`.

    Found by a step on small arrays with large gradients and larger weights. What stands before Adam
    and changes them (a clip, a decay) would be left out in silence, for it need not have a state.
    """
    with on_processor(), jax.ensure_compile_time_eval():
        small = jax.tree.map(lambda w: jnp.full((2,) * w.ndim, PROBE**2, jnp.float32), weights)
        small = {"layers": small} if layer else small
        grown = lambda w: np.arange(1, 1 + w.size, dtype=np.float32).reshape(w.shape)
        grads = jax.tree.map(lambda w: jnp.asarray(np.float32(PROBE) * grown(w)), small)
        extra = {"layer": jnp.int32(0)} if layer else {}
        update = optax.with_extra_args_support(optimizer).update
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            state = update(grads, optimizer.init(small), small, **extra)[1]
        moments, _ = adam_state(jax.device_get(state), small)
    values = jax.tree.leaves(jax.device_get(grads))
    expected = {"m": [(1 - adamw.b1) * g for g in values]}
    expected["v"] = [(1 - adamw.b2) * g**2 for g in values]
    for name, averages in expected.items():
        pairs = zip(jax.tree.leaves(moments[name]), averages, strict=True)
        if not all(np.allclose(a, b, rtol=1e-3) for a, b in pairs):
            raise InputError(
                "updates on the host are AdamW's on the gradients as they are; the optimizer's "
                "averages are others: it changes gradients first, or has another b1 or b2; clip by "
                "clip=Clip(...) of Streamed, or update on the device instead"
            )


def copy_changed(old: PyTree, new: PyTree) -> None:
    """Write the leaves of `new` that differ from those of `old` into the memory of the old ones."""
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        if after is not before:
            np.copyto(before, np.asarray(after))
