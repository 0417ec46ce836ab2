"""Generation with static shapes: rows are taken in from a queue, written in segments, moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.evolve.members import Members
from springroll.generate import programs
from springroll.generate.beginning import Beginnings, read_once
from springroll.generate.prompts import Prompts, Reading, readings, rounded
from springroll.generate.queue import Jobs, Slots, Waiting
from springroll.generate.sampling import Sampling
from springroll.generate.stopping import StopStrings
from springroll.models.protocols import Generative
from springroll.trees import PyTree, tree_bytes

STOP_SEGMENT = 8  # steps after which the host looks for stop strings


class Generated(NamedTuple):
    """What N members wrote after P prompts, and at what cost."""

    tokens: np.ndarray  # (N, P, max_tokens) int32; the end token is among them, then zeros
    lengths: np.ndarray  # (N, P) int32, tokens before the end token; those of a stop string count
    finished: np.ndarray  # (N, P) bool; False: max_tokens came before an end token or stop string
    stopped: np.ndarray  # (N, P) bool: finished by a stop string
    log_probabilities: np.ndarray | None  # (N, P, max_tokens) float32 of those tokens, then zeros
    steps: int  # forward passes of one token per row
    slot_steps: int  # rows times steps, idle rows too
    row_steps: int  # rows that wrote a token, summed over steps
    prompt_tokens: int = 0  # tokens of prompts that were read, padding too

    @property
    def written(self) -> np.ndarray:
        """Tokens written, the end token too: (N, P) int32."""
        return self.lengths + (self.finished & ~self.stopped)

    @property
    def occupancy(self) -> float:
        """The share of rows in all steps that wrote a token."""
        return self.row_steps / max(1, self.slot_steps)


@dataclass(frozen=True, kw_only=True)
class Generator:
    """How to write; see `run`. Compiled programs are kept by JAX, by these fields and by shapes.

    Args:
        model: What writes.
        end: Tokens that end a row.
        max_tokens: A row is cut after so many, the end token among them.
        temperature: 0 takes the likeliest token, else tokens are drawn at that temperature.
        top_k, top_p, min_p: Which tokens are kept before one is drawn; see `Sampling`.
        stop: Strings that end a row, whichever tokens they consist of. The host looks for them
            after every segment, of 8 steps at most; what was written after one is dropped.
        rows: How many rows run at once, at most. Where there are more, rows that end make room for
            others. With neither `rows` nor `memory_bytes` all run at once.
        memory_bytes: What the memory of rows may take, in place of `rows`.
        segment: Steps after which the host looks what has ended, at most.
        per_group: Rows that share a copy of a pair's factors; by default all of a pair if all rows
            run at once, else those of one prompt.
        prefill_tokens: Tokens of prompts that are read at once, at most, up to the rounding of
            numbers of rows, a quarter; one row at least.
        log_probabilities: Also return those of the tokens.
        shared_prompt_tokens: Tokens that all prompts begin with are read once per member if they
            are 8 or more, up to so many; by default a multiple of 8. 0: prompts are read whole, as
            they are by models that cannot read on (see `Generative`).

    Raises:
        InputError: A number is out of its range, or both `rows` and `memory_bytes` are given.
    """

    model: Generative
    end: frozenset[int]
    max_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: StopStrings | None = None
    rows: int | None = None
    memory_bytes: int | None = None
    segment: int = 32
    per_group: int | None = None
    prefill_tokens: int = 1 << 16
    log_probabilities: bool = False
    shared_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "rows", "memory_bytes", "segment", "per_group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.sampling.check()
        if self.rows is not None and self.memory_bytes is not None:
            raise InputError("both rows and memory_bytes are given; expected one of them")

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)

    def run(
        self,
        params: PyTree,
        members: Members | None,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int = 0,
        unperturbed: int = 0,
        copies: int = 1,
    ) -> Generated:
        """Every member answers every prompt.

        Args:
            params: The weights that `members` perturb.
            members: A generation's, as `es.ask` gives them; None: `copies` of the plain model.
            prompts: P lists of tokens.
            seed: Of drawing tokens; a row's draws follow from (seed, member, prompt) alone.
            unperturbed: Rows of the weights themselves, as members N - unperturbed and up.
            copies: Of the plain model, where there are no members.

        Returns:
            What was written, arrays (N, P, ...).

        Raises:
            InputError: No prompt, or one without tokens; a budget below the memory of one row.
        """
        return _Run(self, params, members, prompts, seed, unperturbed, copies).finish()


class _Transcript:
    """What N members have written after P prompts so far, and the steps it took."""

    def __init__(self, members: int, prompts: int, options: Generator) -> None:
        shape = (members, prompts, options.max_tokens)
        self.tokens = np.zeros(shape, np.int32)
        self.log_p = np.zeros(shape, np.float32) if options.log_probabilities else None
        self.count = np.zeros(shape[:2], np.int32)
        self.stopped = np.zeros(shape[:2], bool)
        self.steps = self.slot_steps = self.row_steps = self.prompt_tokens = 0
        self._end, self._stop, self._most = options.end, options.stop, options.max_tokens

    def append(
        self, member: int, prompt: int, tokens: np.ndarray, log_p: np.ndarray | None
    ) -> bool:
        """Add the next tokens (n,) of a row; whether the row ends with them."""
        start = int(self.count[member, prompt])
        stop = start + len(tokens)
        self.tokens[member, prompt, start:stop] = tokens
        if log_p is not None and self.log_p is not None:
            self.log_p[member, prompt, start:stop] = log_p
        ended = int(tokens[-1]) in self._end
        text = self.tokens[member, prompt, : stop - ended]
        cut = None if self._stop is None else self._stop.end(text, start)
        if cut is not None:
            self.tokens[member, prompt, cut:] = 0
            if self.log_p is not None:
                self.log_p[member, prompt, cut:] = 0
            self.stopped[member, prompt], stop = True, cut
        self.count[member, prompt] = stop
        return ended or cut is not None or stop == self._most

    def generated(self) -> Generated:
        last = np.take_along_axis(self.tokens, self.count[:, :, None] - 1, axis=2)[:, :, 0]
        ended = np.isin(last, list(self._end)) & ~self.stopped
        return Generated(
            tokens=self.tokens,
            lengths=self.count - ended,
            finished=ended | self.stopped,
            stopped=self.stopped,
            log_probabilities=self.log_p,
            steps=self.steps,
            slot_steps=self.slot_steps,
            row_steps=self.row_steps,
            prompt_tokens=self.prompt_tokens,
        )


class _Run:
    """One call of `Generator.run`: rows of the device, and whose they are."""

    def __init__(
        self,
        options: Generator,
        params: PyTree,
        members: Members | None,
        prompts: Sequence[Sequence[int]],
        seed: int,
        unperturbed: int,
        copies: int,
    ):
        self.options = options
        shared = read_once(options.model, prompts, options.shared_prompt_tokens)
        self.prompts = Prompts.of(prompts, shared)
        longest = self.prompts.room
        self.program = programs.Program(
            model=options.model,
            dtype=_floating(params),
            end=tuple(sorted(options.end)),
            max_tokens=options.max_tokens,
            length=-(-rounded(longest + options.max_tokens) // 16) * 16,
            sampled=options.temperature > 0,
            log_probabilities=options.log_probabilities,
        )
        if members is None:
            self.jobs = Jobs.of(0, (), copies, len(prompts))
        else:
            members = replace(members, factors=members.drawn())
            signs = members.perturbation.signs
            self.jobs = Jobs.of(members.pairs.shape[0], signs, unperturbed, len(prompts))
        self.waiting = Waiting(self.jobs)
        self.transcript = _Transcript(int(self.jobs.member.max()) + 1, len(prompts), options)
        draw = options.sampling.draw(seed)
        self.source = programs.Source(params, members, draw)
        self.slots = Slots.empty(*self._shape(members))
        self.beginnings = self._beginnings()
        self.writer = programs.Writer(programs.step_weights(self.program, params), None, draw)
        self.memory = programs.memory(self.program, self.slots.job.size)
        self.rows = programs.idle(self.slots.job.size)
        self.clock = jnp.int32(longest % self.program.length)

    def finish(self) -> Generated:
        """Everything, until no job is left."""
        while True:
            self._take_in()
            live = int((self.slots.job >= 0).sum())
            if not live:
                break
            if not self.waiting:
                self._compact(live)
            self._write_on(live)
        return self.transcript.generated()

    def _beginnings(self) -> Beginnings | None:
        """None where prompts are read whole."""
        tokens, groups = self.prompts.beginning, len(self.slots.pair)
        if not len(tokens):
            return None
        most = self.options.prefill_tokens
        return Beginnings(self.program, self.source, tokens, self.jobs, groups, most)

    def _shape(self, members: Members | None) -> tuple[int, int]:
        """Groups and rows of each."""
        options, jobs = self.options, self.jobs.member.size
        most = jobs
        if options.rows is not None:
            most = min(jobs, options.rows)
        elif options.memory_bytes is not None:
            length, dtype = self.program.length, self.program.dtype
            size = tree_bytes(jax.eval_shape(lambda: options.model.memory(1, length, dtype)))
            shared = len(self.prompts.beginning)
            if shared and members is not None:  # a member's own is kept while its rows wait
                entries = lambda: programs.unread(self.program, self.source, 1, shared)
                size += tree_bytes(jax.eval_shape(entries))
            most = min(jobs, options.memory_bytes // size)
            if not most:
                raise InputError(
                    f"memory_bytes is {options.memory_bytes} and one row of {length} tokens needs "
                    f"{size}; give more or write fewer tokens"
                )
        if members is None:
            return most, 1
        signs, prompts = len(members.perturbation.signs), len(self.prompts.lengths)
        height = options.per_group or signs * (
            prompts if most == jobs else self.prompts.most_copies
        )
        height = min(height, most)
        pairs = int(self.jobs.pair.max()) + 1
        if most == jobs and height == signs * prompts:
            free = jobs - pairs * height
            return pairs + -(-free // height), height
        return most // height, height

    def _take_in(self) -> None:
        """Fill idle slots; rows whose first token ends them make room again."""
        while self.waiting:
            new = self.slots.fill(self.waiting)
            if not new:
                return
            self._bind()
            rows = np.asarray(new, np.int32)
            job, height = self.slots.job.reshape(-1)[rows], self.slots.job.shape[1]
            if self.beginnings is not None:
                self.transcript.prompt_tokens += self.beginnings.read(job, self.slots.pair)
            # Where few rows of few groups are new, each prompt has a copy of the factors.
            shared = height > 1 and len(new) * 2 > self.slots.job.size
            for reading in readings(
                self.prompts, self.jobs, rows, job, shared, self.options.prefill_tokens
            ):
                self._read(reading)
        self.beginnings = None

    def _read(self, reading: Reading) -> None:
        """One call: its rows remember their prompts and have their first tokens."""
        valid = reading.row >= 0
        job = np.where(valid, self.slots.job.reshape(-1)[reading.row], 0)
        beyond = self.slots.job.size + np.arange(reading.row.size, dtype=np.int32)
        prompts = programs.Prompts.of(self.prompts, reading)
        begun = programs.Begun(
            row=np.where(valid, reading.row, beyond),
            source=reading.source,
            member=self.jobs.member[job],
            prompt=self.jobs.prompt[job],
            sign=self.jobs.sign[job],
        )
        self.memory, self.rows, token, log_p = programs.take_in(
            self.program,
            self.source,
            self.clock,
            prompts,
            begun,
            self.memory,
            self.rows,
            None if self.beginnings is None else self.beginnings.of(reading),
        )
        self.transcript.prompt_tokens += prompts.tokens.size
        token, log_p = jax.device_get((token, log_p))
        log_p = log_p[valid, None] if self.options.log_probabilities else None
        self._collect(reading.row[valid], token[valid, None], log_p, np.ones(valid.sum(), int))

    def _write_on(self, live: int) -> None:
        """One segment."""
        slots = self.slots.job.size
        segment = self.options.segment
        if self.options.stop is not None:
            segment = min(segment, STOP_SEGMENT)
            # The device does not know of rows that the host found to have ended.
            held = jnp.asarray(self.slots.job.reshape(-1) >= 0)
            self.rows = self.rows._replace(live=held)
        least = live - max(1, slots // 8 if self.waiting else slots // 16)
        if not self.waiting:
            least = min(least, slots // 2)
        self.memory, self.rows, self.clock, written = programs.write_on(
            self.program,
            segment,
            self.writer,
            jnp.int32(max(0, least)),
            self.clock,
            self.memory,
            self.rows,
        )
        count, written = jax.device_get((self.rows.written, written))
        rows = np.flatnonzero(self.slots.job.reshape(-1) >= 0)
        job = self.slots.job.reshape(-1)[rows]
        new = count[rows] - self.transcript.count[self.jobs.member[job], self.jobs.prompt[job]]
        log_p = written.log_probabilities[rows] if self.options.log_probabilities else None
        self._collect(rows, written.tokens[rows], log_p, new)
        self.transcript.steps += int(written.steps)
        self.transcript.slot_steps += int(written.steps) * slots
        self.transcript.row_steps += int(new.sum())

    def _collect(
        self, rows: np.ndarray, token: np.ndarray, log_p: np.ndarray | None, count: np.ndarray
    ) -> None:
        """Store the first count[i] tokens of rows[i], and let go of rows that have ended."""
        slots = self.slots.job.reshape(-1)
        for i, row in enumerate(rows):
            n, job = count[i], slots[row]
            member, prompt = int(self.jobs.member[job]), int(self.jobs.prompt[job])
            part = None if log_p is None else log_p[i, :n]
            if self.transcript.append(member, prompt, token[i, :n], part):
                slots[row] = -1

    def _compact(self, live: int) -> None:
        """Into a smaller bucket, if the live rows fit into half the slots."""
        size, height = self.slots.job.size, self.slots.job.shape[1]
        if 2 * live > size:
            return
        members = self.source.members
        signs = 1 if members is None else len(members.perturbation.signs)
        choices = [self.slots.packed(h, self.jobs.pair) for h in sorted({height, signs, 1})]
        slots, source = min(choices, key=lambda choice: (choice[0].job.size, len(choice[0].pair)))
        if 2 * slots.job.size > size:
            return
        self.slots = slots
        self.memory, self.rows = programs.move(self.memory, self.rows, jnp.asarray(source))
        self._bind()

    def _bind(self) -> None:
        """Give every group the factors of its pair."""
        if self.source.members is None:
            return
        pairs = jnp.asarray(np.maximum(self.slots.pair, 0))
        groups = programs.step_groups(self.program, self.source.members, pairs)
        self.writer = self.writer._replace(groups=groups)


def _floating(params: PyTree) -> np.dtype:
    """The type of the weights: of the largest floating one."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.dtype(max(leaves, key=lambda x: x.size).dtype)
