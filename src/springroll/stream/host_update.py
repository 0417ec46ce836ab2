"""Updates on the host: gradients come back, the processor runs AdamW where weights and state live.

The link then carries the least: weights to the device twice, gradients back once. Updates begin as
soon as a gradient is there, so they overlap the backward pass, and the bundle that the next forward
pass needs first is updated first, so they overlap that pass too.
"""

import functools
import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from springroll.cpu import cores
from springroll.errors import InputError
from springroll.ranges import COUNT, PROCESSES
from springroll.stream.clipping import without_clips
from springroll.stream.conveyor import Conveyor, Passing
from springroll.stream.device_update import Adjust, init_bundle
from springroll.stream.homes import on_processor, writable
from springroll.stream.host_adamw import AdamW
from springroll.stream.priority_pool import PriorityPool
from springroll.stream.step_programs import narrow
from springroll.stream.store import HostStore
from springroll.stream.update import Gradient, Held, or_fail
from springroll.trees import PyTree, path_of
from springroll.typed_call import typed_call

# What `check_steps` tries. Gradients: as large as a square can be in float32, so that every clip
# shows, and so small that epsilon does; weights that show decay and bounds; and counts of steps, as
# a schedule may begin or end with 0 and hide what it is a factor of.
GRADIENTS = np.asarray([1e18, 1024.0, 1e-7, 1e-12], np.float32)
WEIGHTS = np.asarray([1024.0, 0.0, -1024.0, 3.0], np.float32)
COUNTS = (0, 3, 10, 40, 200, 1000, 7000, 60_000, 10**6)
MOMENTS = {"low": "low", "mu": "m", "nu": "v"}  # fields of optax's states -> names of `AdamW`


class HostUpdate:
    """AdamW in place, exact: float32 weights, or bfloat16 halves of a split master.

    The state is that of `optimizer`, an optax Adam with or without `with_split_master`, so that a
    checkpoint does not tell where updates were made. One that steps otherwise is refused.

    Args:
        adamw: what is computed.
        optimizer, rest: as in `DeviceUpdate`; their `init` makes the state.
        decays: (weights of a bundle) -> which leaves have weight decay, a tree of booleans.
        threads: that update; default: all cores.
        waiting: bundles whose gradients may wait on the host for an update, 2 bytes per bfloat16
            parameter; more make the backward pass wait. With a global clip all have to.
        adjust: as in `DeviceUpdate`.
    """

    fields = ("weights",)
    on_host = True

    @typed_call
    def __init__(
        self,
        adamw: AdamW,
        optimizer: Any,
        rest: Any = None,
        *,
        decays: Callable[[PyTree], PyTree] = lambda weights: jax.tree.map(lambda _: True, weights),
        threads: Annotated[int | None, PROCESSES] = None,
        waiting: Annotated[int | None, COUNT] = None,
        adjust: Adjust | None = None,
    ):
        self._adamw, self._decays, self._adjust = adamw, decays, adjust
        apart = without_clips(optimizer, rest, "HostUpdate")
        self.clip_norm, self._optimizer, self._rest = apart
        self._checked: set[Hashable] = set()  # kinds of bundles; there are two in most models
        self._room = threading.Semaphore(waiting or sys.maxsize)
        self._pool = PriorityPool(threads or cores())

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        """The state of a bundle, from its float32 weights.

        Raises:
            InputError: the optimizer looks at all gradients together, or its moments or steps are
                not those of `adamw`: the kernels would compute something else.
        """
        state = init_bundle(self._optimizer, self._rest, weights, layer)
        optimizer = self._optimizer if layer else self._rest
        kind = layer, jax.tree.structure(weights), tuple(w.ndim for w in jax.tree.leaves(weights))
        if kind not in self._checked:
            check_steps(self._adamw, optimizer, weights, self._decaying(weights, layer), layer)
            self._checked.add(kind)
        return state

    def apply(self, conveyor: Conveyor[HostStore], passing: Passing, gradient: Gradient) -> None:
        self._room.acquire()
        small = narrow(gradient.values, passing.arrays["weights"])
        came = conveyor.link.fetch((small, gradient[1:]))
        written = self._promised(conveyor, passing.bundle)
        written.add_done_callback(lambda _: self._room.release())

        def begin(done: Future[PyTree]) -> None:
            passing.leave()
            values, rest = done.result()
            self._begin(conveyor, passing.bundle, Gradient(values, *rest), written)

        came.add_done_callback(or_fail(begin, written))

    def apply_all(self, conveyor: Conveyor[HostStore], held: Held, gradient: Gradient) -> None:
        common = conveyor.link.fetch((gradient.factor, gradient.good))
        for bundle in sorted(held):
            written = self._promised(conveyor, bundle)

            def begin(
                done: Future[PyTree],
                bundle: int = bundle,
                waited: Future[tuple[PyTree, PyTree]] = held[bundle],
                written: Future[None] = written,
            ) -> None:
                values, stats = waited.result()
                scale, good = done.result()
                self._begin(conveyor, bundle, Gradient(values, scale, good, stats), written)

            common.add_done_callback(or_fail(begin, written))
        held.clear()

    def close(self) -> None:
        """End the threads; what they have not begun is not done."""
        self._pool.close()

    def _decaying(self, weights: PyTree, layer: bool) -> PyTree:
        return self._decays({"layers": weights})["layers"] if layer else self._decays(weights)

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
        views = store.views(bundle, ("weights", "state"))
        weights = views["weights"]
        layer = bundle < store.bundles - 1
        try:
            moments, counts = adam_state(views["state"], weights)
            with on_processor():  # the rate may be a schedule of optax
                jobs = self._adamw.jobs(
                    weights,
                    moments,
                    jax.tree.map(writable, gradient.values),
                    step=int(counts[0]),
                    scale=float(writable(gradient.factor)),
                    decay=self._decaying(weights, layer),
                )
        except BaseException:
            store.changed(bundle)
            raise

        def end(done: Future[None]) -> None:
            try:
                done.result()
                for count in counts:
                    count += 1
                if self._adjust is not None and gradient.stats is not None:
                    with on_processor():
                        stats = jax.tree.map(writable, gradient.stats)
                        copy_changed(weights, self._adjust(weights, stats))
            finally:
                store.changed(bundle)
            written.set_result(None)

        # The rest comes first: the next step begins with its embedding.
        first_use = bundle if layer else -1
        self._pool.submit(first_use, jobs).add_done_callback(or_fail(end, written))


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
        elif "hyperparams" in names:
            raise InputError(
                f"updates on the host are AdamW's, whose settings are its own; the optimizer keeps"
                f" {path_of(path)}, and a change of it would not be followed: give HostUpdate an"
                " AdamW with a number or a schedule, and an optimizer like it without"
                " optax.inject_hyperparams, or update on the device instead"
            )
        else:
            raise InputError(
                f"updates on the host are AdamW's; the optimizer also keeps {path_of(path)}; "
                "update on the device instead"
            )
    whole = all(len(leaves) == tree.num_leaves for leaves in leaves_of.values())
    if not {"m", "v"} <= leaves_of.keys() or not counts or not whole:
        raise InputError("updates on the host are AdamW's; update on the device instead")
    return {name: tree.unflatten(leaves) for name, leaves in leaves_of.items()}, counts


def check_steps(
    adamw: AdamW,
    optimizer: optax.GradientTransformation,
    weights: PyTree,
    decaying: PyTree,
    layer: bool,
) -> None:
    """Raise InputError where an optimizer makes other moments or other steps than `adamw`.

    Found by steps of both on small arrays, two for each of several counts of steps. The state alone
    tells neither nadam from Adam, nor that a clip or a decay stands before it.

    Args:
        weights: of a bundle; only their number of axes is read.
        decaying: one bool, or a tree of them.
        layer: whether it is the bundle of a layer.
    """
    leaves, tree = jax.tree.flatten(weights)
    decays = [decaying] * len(leaves) if isinstance(decaying, bool) else jax.tree.leaves(decaying)
    for turn, count in enumerate(COUNTS):  # every gradient meets every weight at some count
        values = [_spread(np.roll(WEIGHTS, turn // 4), w.ndim) for w in leaves]
        grads = [_spread((-1) ** turn * np.roll(GRADIENTS, turn), w.ndim) for w in leaves]
        made = _made(optimizer, tree.unflatten(values), tree.unflatten(grads), layer, count)
        averages = [(np.zeros_like(g), np.zeros_like(g)) for g in grads]
        for step, (m, v, steps) in enumerate(made, count):
            after = [
                _stepped(adamw, step, *leaf)
                for leaf in zip(values, grads, averages, decays, strict=True)
            ]
            averages = [(m, v) for m, v, _ in after]
            expected = zip(*after, strict=True)
            alike = [
                all(map(functools.partial(np.allclose, rtol=1e-3, atol=0.0), given, wanted))
                for given, wanted in zip((m, v, steps), expected, strict=True)
            ]
            if not all(alike[:2]):
                raise InputError(
                    "updates on the host are AdamW's on the gradients as they are; the optimizer's "
                    "averages are others: it changes gradients first, or has another b1 or b2; "
                    "clip by clip=Clip(...) of Streamed, or update on the device instead"
                )
            if not alike[2]:
                raise InputError(
                    "updates on the host are AdamW's; the optimizer's steps are others: it is none "
                    "(such as optax.nadam), or has another learning rate, eps, weight_decay or mask"
                    " of it; give HostUpdate an AdamW like it, or update on the device instead"
                )


def _spread(numbers: np.ndarray, dims: int) -> np.ndarray:
    """An array of so many axes, these numbers along the first; the first of them without axes."""
    if dims == 0:
        return numbers[0]
    shape = (len(numbers),) + (2,) * (dims - 1)
    return np.broadcast_to(numbers.reshape(-1, *(1,) * (dims - 1)), shape).copy()


def _made(
    optimizer: optax.GradientTransformation,
    weights: PyTree,
    grads: PyTree,
    layer: bool,
    count: int,
) -> list[tuple[list[np.ndarray], ...]]:
    """(m, v, steps) of two updates after so many others, leaf by leaf."""
    around = lambda tree: {"layers": tree} if layer else tree
    extra = {"layer": jnp.int32(0)} if layer else {}
    update = optax.with_extra_args_support(optimizer).update
    found = []
    with on_processor(), jax.ensure_compile_time_eval():
        weights, grads = jax.tree.map(jnp.asarray, (around(weights), around(grads)))
        state = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, count) if path_of(path).endswith("count") else x,
            optimizer.init(weights),
        )
        for _ in range(2):
            with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
                steps, state = update(grads, state, weights, **extra)
            moments, _ = adam_state(jax.device_get(state), weights)
            trees = (moments["m"], moments["v"], jax.device_get(steps))
            found.append(tuple(map(jax.tree.leaves, trees)))
    return found


def _stepped(
    adamw: AdamW,
    step: int,
    weight: np.ndarray,
    gradient: np.ndarray,
    averages: tuple[np.ndarray, np.ndarray],
    decays: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m, v, step) of `adamw` on one leaf."""
    b1, rest1, b2, rest2, c1, c2, eps, decay, minus_lr = adamw.constants(step, decays)
    m = rest1 * gradient + b1 * averages[0]
    v = rest2 * gradient**2 + b2 * averages[1]
    return m, v, minus_lr * ((m / c1) / (np.sqrt(v / c2) + eps) + decay * weight)


def copy_changed(old: PyTree, new: PyTree) -> None:
    """Write the leaves of `new` that differ from those of `old` into the memory of the old ones."""
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        if after is not before:
            np.copyto(before, np.asarray(after))
