"""An objective: any Python function of weights that returns a number.

    def score(weights: dict[str, np.ndarray], seed: int) -> float: ...
    def initial_weights(seed: int) -> dict[str, np.ndarray]: ...

It runs in processes of its own, one call per member and seed, so it may print, hang, crash, use
global variables or start other programs.

The weights of every member, formed one by one: what code that is no JAX needs.
"""

import functools
import queue
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.objective_weights import Layout, shapes, unpacked
from springroll.errors import InputError
from springroll.evolve.members import Members, chunks_of
from springroll.ranges import PROCESSES, TIMEOUT, check_number
from springroll.tasks.failures import Failures, reason
from springroll.tasks.records import file_digest
from springroll.thin.factored_array import formed
from springroll.trees import PyTree, tree_bytes
from springroll.typed_call import typed_call
from springroll.worker import Worker, WorkerLost, end_all

_CHUNK_BYTES = 1 << 23  # larger chunks take twice as long per member, outside the cache


def member_weights(
    params: PyTree, members: Members, fewest: int = 1, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """`params + sigma E_i` of all members on the host, some at a time: `fewest` or more.

    Yields the number of the first member of a chunk, and for every leaf of `params`, in JAX's
    order, an array (members of the chunk, *shape). While one chunk is used the next is computed.
    """
    pairs, signs = members.pairs.shape[0], len(members.perturbation.signs)
    size = tree_bytes(params)
    count, chunk = chunks_of(pairs, max(-(-fewest // signs), chunk_bytes // (size * signs)))
    starts = [min(index * chunk, pairs - chunk) for index in range(count)]
    ahead = _formed(chunk, params, members, jnp.int32(starts[0]))
    for index, start in enumerate(starts):
        formed = ahead
        if index + 1 < count:
            ahead = _formed(chunk, params, members, jnp.int32(starts[index + 1]))
        skip = (index * chunk - start) * signs  # a last chunk that starts earlier to be full
        yield start * signs + skip, [np.asarray(x)[skip:] for x in jax.tree.leaves(formed)]


@functools.partial(jax.jit, static_argnums=0)
def _formed(count: int, params: PyTree, members: Members, start: Array) -> PyTree:
    signs = jnp.asarray(members.perturbation.signs, jnp.float32)
    weights = members.chunk(start, count).groups().each_row(formed, params, signs)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), weights)


class Objective:
    """A function in worker processes. Made by `open_objective`.

    A call that fails costs its member its score, which is NaN, and is counted; the next call gets
    a new process. Results do not depend on how many processes there are.
    """

    def __init__(self, name: str, workers: Sequence[Worker], file: str) -> None:
        self.name = name
        self.identity = {"objective": name, "source": file_digest(Path(file)) if file else ""}
        """What must be the same when a run goes on."""
        self._workers = workers
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)
        self.failures = Failures("calls")
        """Those that could not be scored so far."""
        self._layout: Layout = None
        self._scored = False
        self._end = weakref.finalize(self, end_all, workers)

    def initial(self, seed: int) -> PyTree:
        """The first weights, a pytree of float32 arrays.

        Raises:
            InputError: the function of the user's fails or returns something else.
        """
        worker = self._workers[0]
        try:
            answer, payload = worker.ask({"initial": seed})
        except WorkerLost as lost:
            raise InputError(
                f"the initial weights of {self.name}: {reason(lost.kind, lost.line)}"
            ) from None
        if "failed" in answer:
            raise InputError(
                f"the initial weights of {self.name}: {reason(answer['failed'], answer['line'])}"
            )
        self._layout = answer["layout"]
        return jax.tree.map(jnp.array, unpacked(self._layout, payload))

    def evaluate(
        self, params: PyTree, members: Members, seeds: np.ndarray
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Score every member.

        Args:
            params: what `members` perturb.
            seeds: (N, calls) integers; the two members of a pair should have the same.

        Returns the mean over the calls (N,) float32, NaN where one failed, and the figures
        `calls` and `unscored`.

        Raises:
            InputError: not a single member could be scored, and none ever was.
        """
        fitness = np.full(members.size, np.nan, np.float32)
        failed = Failures("calls")
        with ThreadPoolExecutor(len(self._workers)) as threads:
            for start, leaves in member_weights(params, members, 4 * len(self._workers)):
                count = len(leaves[0])
                rows = [[x[i : i + 1] for x in leaves] for i in range(count)]
                results = threads.map(self._mean, rows, list(seeds[start : start + count]))
                for member, result in enumerate(results, start):
                    if isinstance(result, tuple):
                        failed.add(*result)
                    else:
                        fitness[member] = result
        self.failures.merge(failed)
        if failed.total == members.size and not self._scored:
            raise InputError(f"{self.name} could not score a single member: {failed.kinds}")
        self._scored = True
        return fitness, {"calls": seeds.size, "unscored": failed.total}

    def unperturbed(self, params: PyTree, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """What the weights themselves score, one float32 per seed.

        A call that fails is made once more, and gives NaN if it fails again.
        """
        payload = self._payload(params)

        def call(seed: int) -> float | tuple[str, str]:
            result = self._mean(payload, [seed])
            if isinstance(result, tuple):
                self.failures.add(*result)
                result = self._mean(payload, [seed])
            return result

        with ThreadPoolExecutor(len(self._workers)) as threads:
            results = [*threads.map(call, seeds)]
        return np.array([np.nan if isinstance(x, tuple) else x for x in results], np.float32)

    def probe(self, params: PyTree, seed: int) -> float:
        """What the weights score, before anything is built on it.

        Raises:
            InputError: they cannot be scored.
        """
        result = self._mean(self._payload(params), [seed])
        if isinstance(result, tuple):
            raise InputError(f"{self.name} cannot score its first weights: {reason(*result)}")
        return result

    def close(self) -> None:
        """End the processes."""
        end_all(self._workers)

    def _payload(self, params: PyTree) -> list[np.ndarray]:
        leaves = [np.asarray(x) for x in jax.tree.leaves(params)]
        assert [x.shape for x in leaves] == [*shapes(self._layout)], "other weights"
        return leaves

    def _mean(
        self, payload: list[np.ndarray], seeds: Sequence[int] | np.ndarray
    ) -> float | tuple[str, str]:
        """The mean over calls, or what the first failure was."""
        worker, values = self._idle.get(), []
        try:
            for seed in seeds:
                answer, _ = worker.ask({"seed": int(seed), "layout": self._layout}, *payload)
                if "failed" in answer:
                    return answer["failed"], answer["line"]
                values.append(answer["value"])
        except WorkerLost as lost:
            return lost.kind, lost.line
        finally:
            self._idle.put(worker)
        return float(np.mean(values))


@typed_call
def open_objective(
    name: str, *, initial: str | None = None, workers: int = 2, timeout: float = 60.0, seed: int = 0
) -> Objective:
    """Start an objective's processes and score its initial weights once.

    Args:
        name: `module:function` or `file.py:function`.
        initial: of the function that makes the first weights; None: `initial_weights` beside it.
        workers: processes.
        timeout: seconds that one call may take.
        seed: of the weights that are tried.

    Raises:
        InputError: something cannot be found, or the initial weights cannot be made or scored.
    """
    check_number("workers", workers, int, PROCESSES)
    check_number("timeout", timeout, float, TIMEOUT)
    arguments = (name, initial or "", str(timeout))
    module, what = "springroll.envs.objective_worker", f"the objective {name}"
    pool = [Worker(module, *arguments, limit=timeout, what=what) for _ in range(workers)]
    try:
        answer, _ = pool[0].ask({"describe": True})
        objective = Objective(name, pool, answer["file"])
        objective.probe(objective.initial(seed), seed)
    except BaseException:
        end_all(pool)
        raise
    return objective
