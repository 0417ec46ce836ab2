"""A beginning that all prompts of a run share, read once with each weights in use.

Prompts of a generation differ in few tokens: a chat template's first part, a system message and an
instruction are the same in all. What a member remembers of them is kept while rows wait that begin
with them, and copied into the memory of each row.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from springroll.generate import programs
from springroll.generate.prompts import Prompts, Reading, readings, shared_tokens
from springroll.generate.queue import ANY, Jobs
from springroll.generate.spread import Part
from springroll.models.protocols import Generative

SIGNS = 3  # +1, -1, and 0 of the weights themselves


def read_once(model: Generative, prompts: Sequence[Sequence[int]], most: int | None) -> int:
    """How many tokens of the prompts are read once for all of them, at most `most`.

    0 of a model that cannot read on from what it remembers of them.
    """
    reads_on = getattr(model, "reads_on", None)
    if reads_on is None or not reads_on(max(map(len, prompts), default=0)):
        return 0
    return shared_tokens(prompts, most)


class Beginnings:
    """What members remember of a beginning, of those whose rows are taken in."""

    def __init__(
        self,
        program: programs.Program,
        source: programs.Source,
        tokens: np.ndarray,
        part: Part,
        groups: int,
        most: int,
    ):
        """Nothing is read yet.

        Args:
            tokens: (S,) int32.
            part: All that the device writes; rows of at most `groups` pairs, and of the weights
                themselves, are taken in at a time.
            most: Tokens of one call, at most.
        """
        jobs = self._jobs = part.jobs
        self._program, self._source, self._most = program, source, most
        self._prompts = Prompts.of([tokens.tolist()])
        # By pair and sign, where it is kept; the last line is that of the weights themselves.
        self._place = np.full((int(jobs.pair.max()) + 2, SIGNS), -1, np.int32)
        signs = jobs.sign[jobs.pair != ANY]
        pairs = min(groups, int(jobs.pair.max()) + 1)
        self._count = pairs * len(np.unique(signs)) + int((jobs.pair == ANY).any())
        empty = lambda x: jnp.zeros(x.shape, x.dtype, device=part.device)
        self._entries = jax.tree.map(
            empty, programs.unread(program, source, self._count, len(tokens))
        )

    def read(self, job: np.ndarray, pair: np.ndarray) -> int:
        """Read what these jobs begin with, with their weights, if that is not there yet.

        What was read for pairs that no group holds, of those of the groups (G,), is forgotten.

        Returns:
            How many tokens were read, padding too.
        """
        self._place[np.setdiff1d(np.arange(len(self._place) - 1), pair)] = -1
        keys = np.column_stack([self._jobs.pair[job], self._jobs.sign[job]])
        keys = np.unique(keys.astype(np.int32), axis=0)
        pair, sign = keys[self._place[keys[:, 0], keys[:, 1]] < 0].T
        if not len(pair):
            return 0
        free = np.setdiff1d(np.arange(self._count), self._place)[: len(pair)].astype(np.int32)
        self._place[pair, sign] = free
        nobody = np.zeros(len(free), np.int32)
        jobs = Jobs(nobody, nobody, pair, sign.astype(np.float32))
        each = np.arange(len(free))
        calls = readings(self._prompts, jobs, free, each, shared=True, most=self._most)
        return sum(map(self._read, calls))

    def _read(self, reading: Reading) -> int:
        shape = reading.prompt.shape
        length = len(self._prompts.tokens[0])
        prompts = programs.Prompts(
            tokens=np.broadcast_to(self._prompts.tokens[0], (*shape, length)),
            length=np.full(shape, length, np.int32),
            sign=reading.sign,
            pair=reading.pair,
        )
        beyond = self._count + np.arange(reading.row.size, dtype=np.int32)
        self._entries = programs.begin(
            self._program,
            self._source,
            prompts,
            reading.source,
            np.where(reading.row >= 0, reading.row, beyond),
            self._entries,
        )
        return prompts.tokens.size

    def of(self, reading: Reading) -> programs.Beginning:
        """What the prompts of a reading go on from."""
        sign = reading.sign.astype(np.int32)
        pair = np.where(sign == 0, ANY, reading.pair[:, None])
        place = np.where(reading.prompt >= 0, self._place[pair, sign], 0)
        length = np.array(len(self._prompts.tokens[0]), np.int32)
        return programs.Beginning(self._entries, place.astype(np.int32), length)
