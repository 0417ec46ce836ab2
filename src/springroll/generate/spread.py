"""Rows over several devices: each device writes its part of them, beside the others.

Every device has a queue of its own, programs of its own and a thread that feeds them, so that none
waits for the rows of another. Rows stand in the order of their pairs and are cut into parts of
about the same size: a pair is cut only where pairs do not divide. A row is written as it is on one
device, since its draws follow from (seed, member, prompt) alone.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.evolve.members import Members
from springroll.evolve.perturbation import auto_mesh
from springroll.generate.queue import ANY, Jobs
from springroll.trees import PyTree

Device: TypeAlias = Any  # a jax.Device, which type checkers know as a value alone
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """What one device writes.

    jobs: their pairs counted from `first`. pairs: how many they are of; 0: of the weights alone.
    members: of the whole run. device: None where weights lie on several, and stay there.
    """

    jobs: Jobs
    first: int
    pairs: int
    members: int
    device: Device | None = None
    halted: threading.Event = field(default_factory=threading.Event)

    def cut(self, members: Members | None) -> Members | None:
        """The members of the pairs that the jobs are of; None if these are of the weights alone."""
        if members is None or not self.pairs:
            return None
        if self.pairs == members.pairs.shape[0]:
            return members
        return members.chunk(jnp.asarray(self.first, jnp.int32), self.pairs)

    def put(self, tree: Result) -> Result:
        """Arrays on the device, bound to it: programs are compiled once for arrays that are bound,
        and once more for those that are not."""
        return tree if self.device is None else jax.device_put(tree, self.device)

    def made(self, make: Callable[[], Result]) -> Result:
        """New arrays, made on the device."""
        if self.device is None:
            return make()
        with jax.default_device(self.device):
            return self.put(make())


def parts_of(
    members: Members | None,
    prompts: int,
    others: int,
    devices: Sequence[Device | None] = (None,),
) -> list[Part]:
    """The parts of a run that have rows, one for each device.

    Args:
        members: Who answers; arrays may be `jax.ShapeDtypeStruct`s.
        prompts: How many each of them answers.
        others: Rows of the weights themselves to each prompt.
        devices: What writes.
    """
    signs = () if members is None else members.perturbation.signs
    pairs = 0 if members is None else members.pairs.shape[0]
    jobs, halted = Jobs.of(pairs, signs, others, prompts), threading.Event()
    parts = []
    for device, rows in zip(devices, _cut(jobs, len(devices)), strict=True):
        if not len(rows):
            continue
        own = Jobs(jobs.member[rows], jobs.prompt[rows], jobs.pair[rows], jobs.sign[rows])
        of_pairs = own.pair[own.pair != ANY]
        first = int(of_pairs.min(initial=pairs)) if len(of_pairs) else 0
        count = int(of_pairs.max()) + 1 - first if len(of_pairs) else 0
        own = replace(own, pair=np.where(own.pair == ANY, ANY, own.pair - np.int32(first)))
        parts.append(Part(own, first, count, pairs * len(signs) + others, device, halted))
    return parts


def _cut(jobs: Jobs, parts: int) -> list[np.ndarray]:
    """The jobs of each part; those of the weights themselves are cut apart from the others."""
    free = jobs.pair == ANY
    cut = [np.array_split(np.flatnonzero(rows), parts) for rows in (~free, free)]
    return [np.concatenate(part) for part in zip(*cut, strict=True)]


def devices_of(
    mesh: jax.sharding.Mesh | None, members: Members | None, params: PyTree
) -> list[Device | None]:
    """Those of a mesh, by default of the strategy's; without one, that of the weights.

    Raises:
        InputError: the mesh has no axis "population", or devices of other processes.
    """
    mesh = auto_mesh(mesh)
    if mesh is None and members is not None:
        mesh = members.perturbation.mesh
    if mesh is not None:
        found = list(mesh.devices.reshape(-1))
        away = [each for each in found if each.process_index != jax.process_index()]
        if away:
            raise InputError(
                f"the mesh has {len(away)} devices of other processes; a process generates on its "
                "own, jax.local_devices()"
            )
        return found
    arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
    held = set().union(*(x.devices() for x in arrays)) if arrays else jnp.zeros(()).devices()
    return [held.pop() if len(held) == 1 else None]


def side_by_side(write: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`write` of every part, at the same time. Where one fails the others are told to halt."""
    if len(parts) == 1:
        return [write(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        results = [pool.submit(write, part) for part in parts]
        try:
            done, _ = wait(results, return_when=FIRST_EXCEPTION)
            for each in done:
                each.result()
        except BaseException:
            parts[0].halted.set()
            raise
    gc.collect(0)  # jaxlib lets go of views, and so of copies of the weights, at a collection alone
    return [each.result() for each in results]
