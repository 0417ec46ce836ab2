"""The gradient of embedding, last norm and head, whose parts leave the device as they are whole."""

from collections import deque
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.stream.conveyor import Passing
from springroll.stream.homes import writable
from springroll.stream.link import Link
from springroll.stream.step_programs import narrow
from springroll.stream.step_sums import square
from springroll.stream.table_rows import TakenRows
from springroll.stream.update import merged, or_fail
from springroll.trees import PyTree

GOING = 2  # parts of a table on their way to the host, beside that which is computed


class RestGradient:
    """A dictionary of gradients that comes to the host in parts.

    Args:
        narrowed: whether they come in the types of the weights.
    """

    def __init__(self, link: Link, narrowed: bool):
        self._link, self._narrowed = link, narrowed
        self._values: dict[str, PyTree] = {}
        self._squares: list[dict[str, Array]] = []
        self._whole: Future[tuple[PyTree, None]] = Future()
        self._latest: Future[Any] | None = None
        self._going: deque[Future[Any]] = deque()  # rows on their way

    def take(
        self,
        grads: dict[str, PyTree],
        passing: Passing,
        rows: TakenRows | None = None,
        goes: bool = True,
    ) -> None:
        """Gradients of the weights of a passing bundle, or None; the bundle `goes` with them.

        Args:
            rows: what there is of one of them.
        """
        there = {name: tree for name, tree in grads.items() if jax.tree.leaves(tree)}
        if not there:
            return
        self._squares.append({name: square(tree) for name, tree in there.items()})
        if self._narrowed:
            there = narrow(there, {name: passing.arrays["weights"][name] for name in there})
        came = self._latest = self._link.fetch(there)

        def put(done: Future[dict[str, PyTree]]) -> None:
            if self._whole.done():
                return  # something failed before
            if goes:
                passing.leave()
            for name, tree in done.result().items():
                if rows is not None and name == rows.table:
                    self._put(rows, writable(tree))
                elif name in self._values:
                    self._values[name] = merged(self._values[name], tree)
                else:
                    self._values[name] = tree

        came.add_done_callback(or_fail(put, self._whole))
        if rows is not None:
            self._going.append(came)
            if len(self._going) > GOING:
                self._going.popleft().result()

    def square(self) -> Array:
        """The squared norm of all that was taken, () float32."""
        if self._narrowed:  # in the order in which it was always summed: what comes last is first
            return _sum([_sum([x[name] for name in sorted(x)]) for x in reversed(self._squares)])
        names = sorted(set[str]().union(*self._squares))
        return _sum([x[name] for name in names for x in self._squares if name in x])

    def whole(self) -> Future[tuple[PyTree, None]]:
        """(gradient, no statistics) when all that was taken is on the host.

        Futures then name this object no more, nor it them: their circle would hold the gradient
        until the garbage is collected.
        """
        latest, self._latest = self._latest, None
        assert latest is not None, "a rest has weights"
        self._going.clear()

        def end(_: Future[Any]) -> None:
            if not self._whole.done():  # it may have failed
                self._whole.set_result((self._values, None))

        latest.add_done_callback(end)
        return self._whole

    def _put(self, rows: TakenRows, values: np.ndarray) -> None:
        """Into a table of zeros."""
        if rows.table not in self._values:
            self._values[rows.table] = np.zeros(rows.shape, values.dtype)
        self._values[rows.table][rows.numbers] = values[rows.start : rows.start + len(rows.numbers)]


def _sum(numbers: list[Array]) -> Array:
    return sum(numbers, jnp.zeros((), jnp.float32))
