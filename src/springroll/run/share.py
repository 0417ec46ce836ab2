"""A generation that several processes make together, as the loop sees it."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from springroll import __version__
from springroll.cluster.crew import ClusterError, Crew
from springroll.cluster.packed import pack, unpack
from springroll.cluster.spans import Span, spans_of
from springroll.errors import InputError
from springroll.run.task import Batch, Blocks, Carry, Fitness, Members, Metrics, State, Task
from springroll.trees import PyTree, path_of

GO, CARRY, DIGEST, LEAVES, STOP = b"go", b"carry", b"digest", b"leaves", b"stop"


class Share:
    """What this process does of a run.

    Without a crew it does everything; then no message is sent.

    Args:
        task: what is trained.
        crew: the processes; None: this one alone.

    Raises:
        InputError: the task cannot be shared, or its pairs cannot be shared so.
    """

    def __init__(self, task: Task, crew: Crew | None = None):
        self._task, self._crew = task, crew
        self._blocks = task.blocks
        self.spans: list[Span] | None = None  # None: everything in one call
        self._notes: list[list[np.ndarray]] = []
        self._generation, self._shared = 0, None  # the carry, where members keep none of their own
        if crew is not None:
            crew.news = self._news
        if isinstance(self._blocks, str):
            if crew is not None:
                raise InputError(f"this run is not shared by processes: {self._blocks}")
        elif crew is not None or self._blocks.block is not None:
            rank, size = (0, 1) if crew is None else (crew.rank, crew.size)
            if size > 1 and self._blocks.block is None and not self._blocks.exact:
                raise InputError(
                    "this run evaluates all pairs in one call, so that several processes would not "
                    "get its numbers; begin a run with --block PAIRS to go on with more processes"
                )
            self._all = spans_of(self._blocks.pairs, size, self._blocks.block, self._blocks.unit)
            self.spans = self._all[rank]

    @property
    def signal(self) -> int | None:
        """The signal that asked another process to stop."""
        return None if self._crew is None else self._crew.signal

    def meet(self) -> None:
        """Refuse processes that would not compute the same.

        Raises:
            InputError: they differ; with the first that does, and in what.
        """
        if self._crew is None or isinstance(self._blocks, str):
            return
        alike = {
            "version": __version__,
            "pop_size": str(self._task.pop_size),
            "seed": str(self._task.seed),
            "spans": str(self._all),
            **self._task.identity,
        }
        if not self._blocks.exact:
            device = jax.local_devices()[0]
            alike |= {
                "JAX": jax.__version__,
                "platform": f"{device.platform} ({device.device_kind})",
            }
        self._crew.agree(alike)

    def begin(self, generation: int, carry: Carry) -> Carry:
        """Of what the members keep, the part of this process's members.

        Args:
            generation: from which the run goes on, in all processes.
            carry: of all members.

        Raises:
            InputError: another process goes on from another generation.
        """
        crew, self._generation = self._crew, generation
        if crew is not None and crew.back is None:
            crew.agree({"generation": str(generation)})
        blocks = self._blocks
        if self.spans is None or isinstance(blocks, str) or not blocks.keeps:
            self._shared = carry
            return carry
        return [self._rows(carry, span) for span in self.spans]

    def go_on(self) -> None:
        """At the leader: let all begin a generation."""
        if self._crew is not None:
            self._crew.tell(GO)

    def end(self) -> None:
        """At the leader: let all others end."""
        if self._crew is not None:
            self._crew.tell(STOP)

    def evaluate(
        self, state: State, members: Members, carry: Carry, batch: Batch
    ) -> tuple[Fitness, Carry, Metrics]:
        """Fitness of all members at the leader, after all processes have scored theirs."""
        blocks = self._blocks
        if self.spans is None or isinstance(blocks, str):
            return self._task.evaluate(state, members, carry, batch)
        fitness, notes, carry = self._own(blocks, state, members, carry, batch)
        parts = [(fitness, notes)]
        if self._crew is not None:
            found = self._crew.gather(_packed(fitness, notes))
            parts += [_unpacked(data, len(self._all[rank])) for rank, data in enumerate(found)][1:]
        whole = np.concatenate([fitness for fitness, _ in parts])
        self._notes = [note for _, notes in parts for note in notes]
        carry, figures = self._joined(blocks, carry, whole)
        return whole, carry, figures

    def settled(self, fitness: np.ndarray) -> None:
        """Tell the others what counts: the fitness that goes to the journal."""
        if self._crew is not None:
            self._crew.tell(_packed(fitness, self._notes))
        self._generation += 1

    def follow(
        self, state: State, members: Members, carry: Carry, batch: Batch, signal: int | None
    ) -> tuple[np.ndarray, Carry]:
        """`evaluate` and `settled` of a process that does not lead.

        Args:
            signal: that this process was asked to stop by.
        """
        blocks, crew = self._blocks, self._crew
        assert crew is not None and isinstance(blocks, Blocks)
        fitness, notes, carry = self._own(blocks, state, members, carry, batch)
        crew.gather(_packed(fitness, notes), signal)
        count = sum(map(len, self._all))
        whole, self._notes = _unpacked(crew.tell(), count)
        carry, _ = self._joined(blocks, carry, whole)
        return whole, carry

    def missed(self, carry: Carry) -> tuple[int, Carry]:
        """At a process that came back: the generation under way, and what it starts with.

        Args:
            carry: as `begin` returned it; where members keep their own, it is still to be moved on
                by `again`.
        """
        assert self._crew is not None and self._crew.back is not None
        generation, *shared = unpack(self._crew.back)
        self._generation = int(generation)
        if shared:
            carry = jax.tree.unflatten(jax.tree.structure(carry), [x.copy() for x in shared])
        return self._generation, carry

    def again(self, state: State, members: Members, carry: Carry, batch: Batch) -> Carry:
        """What this process's members keep after a generation whose fitness is known."""
        blocks = self._blocks
        if isinstance(blocks, str) or not blocks.keeps:
            return carry
        return self._own(blocks, state, members, carry, batch)[2]

    def whole(self, carry: Carry) -> Carry:
        """At the leader: what all members keep, from all processes."""
        blocks = self._blocks
        if self.spans is None or isinstance(blocks, str) or not blocks.keeps:
            return carry
        parts = [jax.tree.leaves(jax.device_get(part)) for part in carry]
        if self._crew is not None:
            self._crew.tell(CARRY)
            found = self._crew.gather(b"")
            for rank, data in enumerate(found[1:], 1):
                leaves, count = unpack(data), len(self._all[rank])
                each = len(leaves) // count
                parts += [leaves[i * each : (i + 1) * each] for i in range(count)]
        joined = [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(carry[0]), joined)

    def hand_over(self, carry: Carry) -> None:
        """`whole` of a process that does not lead."""
        assert self._crew is not None
        self._crew.gather(pack(jax.tree.leaves(jax.device_get(carry))))

    def compare(self, state: State) -> None:
        """At the leader: hold the weights of all processes against its own.

        Raises:
            ClusterError: they differ; with the process and the first leaf.
        """
        if self._crew is None:
            return
        self._crew.tell(DIGEST)
        found = self._crew.gather(digest(state))
        if all(each == found[0] for each in found):
            return
        self._crew.tell(LEAVES)
        names, own = zip(*leaf_digests(state), strict=True)
        for rank, data in enumerate(self._crew.gather(b"".join(own))):
            for i, name in enumerate(names):
                if data[8 * i : 8 * i + 8] != own[i]:
                    raise ClusterError(
                        f"process {rank} holds another {name} than process 0: its memory or its "
                        "device is at fault; what was saved before is kept"
                    )

    def told(self) -> bytes:
        """What the leader wants next, at a process that follows."""
        assert self._crew is not None
        return self._crew.tell()

    def answer(self, state: State, word: bytes) -> None:
        """`compare` of a process that does not lead."""
        assert self._crew is not None
        found = digest(state) if word == DIGEST else b"".join(x for _, x in leaf_digests(state))
        self._crew.gather(found)

    def _own(
        self, blocks: Blocks, state: State, members: Members, carry: Carry, batch: Batch
    ) -> tuple[np.ndarray, list[list[np.ndarray]], Carry]:
        """The fitness of this process's members, notes of its spans, and what they keep."""
        assert self.spans is not None
        scored = []
        for i, span in enumerate(self.spans):
            kept = carry[i] if blocks.keeps else carry
            scored.append(blocks.score(state, members, kept, batch, span))
        carry = [kept for _, kept, _ in scored] if blocks.keeps else carry
        fitness = np.concatenate([np.asarray(each) for each, _, _ in scored])
        notes = [[np.asarray(x) for x in jax.tree.leaves(note)] for _, _, note in scored]
        self._structure = jax.tree.structure(scored[0][2])
        return fitness, notes, carry

    def _joined(self, blocks: Blocks, carry: Carry, whole: np.ndarray) -> tuple[Carry, Metrics]:
        notes = [jax.tree.unflatten(self._structure, leaves) for leaves in self._notes]
        carry, figures = blocks.join(carry, whole, notes)
        if not blocks.keeps:
            self._shared = carry
        return carry, figures

    def _news(self) -> bytes:
        shared = jax.tree.leaves(jax.device_get(self._shared))
        return pack([np.asarray(self._generation), *map(np.asarray, shared)])

    def _rows(self, carry: Carry, span: Span) -> Carry:
        assert isinstance(self._blocks, Blocks)
        rows = span.members(self._task.pop_size // self._blocks.pairs)
        return jax.tree.map(lambda x: x[rows], carry)


def digest(tree: PyTree) -> bytes:
    """8 bytes that follow from every bit of the leaves."""
    return hashlib.blake2b(b"".join(x for _, x in leaf_digests(tree)), digest_size=8).digest()


def leaf_digests(tree: PyTree) -> list[tuple[str, bytes]]:
    """The path of every leaf, and 8 bytes that follow from its bits."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        data = np.ascontiguousarray(jax.device_get(leaf))
        hashed = hashlib.blake2b(data.view(np.uint8).data if data.size else b"", digest_size=8)
        found.append((path_of(path), hashed.digest()))
    return found


def _packed(fitness: np.ndarray, notes: Sequence[Sequence[np.ndarray]]) -> bytes:
    return pack([fitness, *(leaf for note in notes for leaf in note)])


def _unpacked(data: bytes, spans: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    fitness, *leaves = unpack(data)
    each = len(leaves) // spans
    return fitness, [leaves[i * each : (i + 1) * each] for i in range(spans)]
