"""Generation with static shapes: rows are taken in from a queue, written in segments, moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError, expect
from springroll.evolve.members import Members
from springroll.generate import programs
from springroll.generate.beginning import Beginnings, read_once
from springroll.generate.prompts import Prompts, Reading, check_prompts, readings, room
from springroll.generate.queue import Jobs, Slots, Waiting
from springroll.generate.sampling import Sampling
from springroll.generate.spread import Part, devices_of, parts_of, side_by_side
from springroll.generate.stopping import StopStrings
from springroll.generate.transcript import Generated, Transcript, joined
from springroll.memory import all_memory, check_fits
from springroll.models.protocols import Generative
from springroll.ranges import COUNT, NOT_NEGATIVE, SEED, Range, check_number
from springroll.trees import PyTree, tree_bytes

PREFILL_TOKENS = 1 << 16  # of prompts that are read at once
LEAST = dict.fromkeys(
    ("max_tokens", "rows", "memory_bytes", "segment", "per_group", "prefill_tokens"), 1
) | {"shared_prompt_tokens": 0}
GIVEN = ("max_tokens", "segment", "prefill_tokens")
STOP_SEGMENT = 8  # steps after which the host looks for stop strings


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
        mesh: With an axis "population": its devices write side by side, each a part of the rows,
            with the weights on every one. `rows`, `memory_bytes` and `prefill_tokens` are of each
            device. By default the strategy's; without one, rows are where the weights are.

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
    prefill_tokens: int = PREFILL_TOKENS
    log_probabilities: bool = False
    shared_prompt_tokens: int | None = None
    mesh: jax.sharding.Mesh | None = None

    def __post_init__(self) -> None:
        written = all(callable(getattr(self.model, name, None)) for name in ("memory", "step"))
        expect(written, "model", self.model, "one that writes text, such as a Decoder")
        for name, lowest in LEAST.items():
            if getattr(self, name) is not None or name in GIVEN:
                check_number(name, getattr(self, name), int, Range(at_least=lowest, below=2**63))
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
            InputError: No prompt, one without tokens, or with something else than tokens of the
                model; a budget below the memory of one row.
        """
        check_prompts(prompts, getattr(getattr(self.model, "config", None), "vocab", None))
        check_number("seed", seed, int, SEED)
        check_number("unperturbed", unperturbed, int, NOT_NEGATIVE)
        check_number("copies", copies, int, COUNT)
        others = copies if members is None else unperturbed
        devices = devices_of(self.mesh, members, params)
        parts = parts_of(members, len(prompts), others, devices)
        write = lambda part: _Run(self, params, members, prompts, seed, part).finish()
        return joined(side_by_side(write, parts)).generated()


class Layout(NamedTuple):
    """How the part of a device is laid out: whose rows there are, and in which groups."""

    prompts: Prompts
    program: programs.Program
    jobs: Jobs
    groups: int  # of rows that share a copy of a pair's factors
    height: int  # rows of each
    prefill_tokens: int

    @classmethod
    def of(
        cls,
        options: Generator,
        params: PyTree,
        members: Members | None,
        prompts: Sequence[Sequence[int]],
        jobs: Jobs,
    ) -> Layout:
        """The arguments are those of `Generator.run`, but for `members`, which are those of the
        pairs of `jobs`; arrays may be `jax.ShapeDtypeStruct`s."""
        found = Prompts.of(prompts, read_once(options.model, prompts, options.shared_prompt_tokens))
        program = programs.Program(
            model=options.model,
            dtype=float_type(params),
            end=tuple(sorted(options.end)),
            max_tokens=options.max_tokens,
            length=room(found.room, options.max_tokens),
            sampled=options.temperature > 0,
            log_probabilities=options.log_probabilities,
        )
        source = programs.Source(params, members, options.sampling.draw(0))
        groups, height = _groups(options, program, found, jobs, source)
        return cls(found, program, jobs, groups, height, options.prefill_tokens)

    @property
    def clock(self) -> int:
        """At which writing begins."""
        return self.prompts.room % self.program.length

    def readings(self, slots: Slots, new: list[int]) -> list[Reading]:
        """What is read for the slots that have a new job."""
        rows = np.asarray(new, np.int32)
        job, height = slots.job.reshape(-1)[rows], slots.job.shape[1]
        # Where few rows of few groups are new, each prompt has a copy of the factors.
        shared = height > 1 and len(new) * 2 > slots.job.size
        return readings(self.prompts, self.jobs, rows, job, shared, self.prefill_tokens)

    def arguments(self, slots: Slots, reading: Reading) -> tuple[programs.Prompts, programs.Begun]:
        """What `programs.take_in` takes of it."""
        valid = reading.row >= 0
        job = np.where(valid, slots.job.reshape(-1)[reading.row], 0)
        beyond = slots.job.size + np.arange(reading.row.size, dtype=np.int32)
        prompts = programs.Prompts.of(self.prompts, reading)
        begun = programs.Begun(
            row=np.where(valid, reading.row, beyond),
            source=reading.source,
            member=self.jobs.member[job],
            prompt=self.jobs.prompt[job],
            sign=self.jobs.sign[job],
        )
        return prompts, begun


def _groups(
    options: Generator,
    program: programs.Program,
    prompts: Prompts,
    jobs: Jobs,
    source: programs.Source,
) -> tuple[int, int]:
    """Groups and rows of each."""
    most, members = jobs.member.size, source.members
    if options.rows is not None:
        most = min(most, options.rows)
    elif options.memory_bytes is not None:
        length, dtype = program.length, program.dtype
        size = tree_bytes(jax.eval_shape(lambda: options.model.memory(1, length, dtype)))
        shared = len(prompts.beginning)
        if shared and members is not None:  # a member's own is kept while its rows wait
            size += tree_bytes(programs.unread(program, source, 1, shared))
        most = min(most, options.memory_bytes // size)
        if not most:
            raise InputError(
                f"memory_bytes is {options.memory_bytes} and one row of {length} tokens needs "
                f"{size}; give more or write fewer tokens"
            )
    if members is None:
        return most, 1
    signs, count = len(members.perturbation.signs), len(prompts.lengths)
    everything = most == jobs.member.size
    height = min(most, options.per_group or signs * (count if everything else prompts.most_copies))
    pairs = int(jobs.pair.max()) + 1
    if everything and height == signs * count:
        free = max(0, most - pairs * height)
        return pairs + -(-free // height), height
    return most // height, height


class _Run:
    """A device's part of a call of `Generator.run`: its rows, and whose they are."""

    def __init__(
        self,
        options: Generator,
        params: PyTree,
        members: Members | None,
        prompts: Sequence[Sequence[int]],
        seed: int,
        part: Part,
    ):
        self.options, self.part = options, part
        members = part.cut(members)
        if members is not None:
            members = part.put(members)
            members = replace(members, factors=members.drawn())
        params, draw = part.put((params, options.sampling.draw(seed)))
        layout = self.layout = Layout.of(options, params, members, prompts, part.jobs)
        self.prompts, self.program, self.jobs = layout.prompts, layout.program, layout.jobs
        slots = layout.groups * layout.height
        memory = lambda: programs.memory(self.program, slots)
        what = f"what the model keeps of {slots:,} texts of {self.program.length:,} tokens"
        check_fits(tree_bytes(jax.eval_shape(memory)), what, all_memory())
        self.waiting = Waiting(self.jobs)
        self.transcript = Transcript(
            members=part.members,
            prompts=len(prompts),
            most=options.max_tokens,
            end=options.end,
            stop=options.stop,
            log_probabilities=options.log_probabilities,
        )
        self.slots = Slots.empty(layout.groups, layout.height)
        self.source = programs.Source(params, members, draw)
        self.beginnings = self._beginnings()
        self.writer = programs.Writer(programs.step_weights(self.program, params), None, draw)
        self.memory = part.made(memory)
        self.rows = part.made(lambda: programs.idle(slots))
        self.clock = part.made(lambda: jnp.int32(layout.clock))

    def finish(self) -> Transcript:
        """Everything, until no job is left."""
        while not self.part.halted.is_set():
            self._take_in()
            live = int((self.slots.job >= 0).sum())
            if not live:
                break
            if not self.waiting:
                self._compact(live)
            self._write_on(live)
        return self.transcript

    def _beginnings(self) -> Beginnings | None:
        """None where prompts are read whole."""
        tokens, groups = self.prompts.beginning, len(self.slots.pair)
        if not len(tokens):
            return None
        most = self.options.prefill_tokens
        return Beginnings(self.program, self.source, tokens, self.part, groups, most)

    def _take_in(self) -> None:
        """Fill idle slots; rows whose first token ends them make room again."""
        while self.waiting:
            new = self.slots.fill(self.waiting)
            if not new:
                return
            self._bind()
            if self.beginnings is not None:
                job = self.slots.job.reshape(-1)[np.asarray(new)]
                self.transcript.prompt_tokens += self.beginnings.read(job, self.slots.pair)
            for reading in self.layout.readings(self.slots, new):
                self._read(reading)
        self.beginnings = None

    def _read(self, reading: Reading) -> None:
        """One call: its rows remember their prompts and have their first tokens."""
        valid = reading.row >= 0
        prompts, begun = self.layout.arguments(self.slots, reading)
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
            held = self.part.put(self.slots.job.reshape(-1) >= 0)
            self.rows = self.rows._replace(live=held)
        least = live - max(1, slots // 8 if self.waiting else slots // 16)
        if not self.waiting:
            least = min(least, slots // 2)
        self.memory, self.rows, self.clock, written = programs.write_on(
            self.program,
            segment,
            self.writer,
            np.int32(max(0, least)),
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
        job = slots[rows]
        member, prompt = self.jobs.member[job], self.jobs.prompt[job]
        ended = self.transcript.append(member, prompt, token, log_p, count)
        slots[rows[ended]] = -1

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
        self.memory, self.rows = programs.move(self.memory, self.rows, source)
        self._bind()

    def _bind(self) -> None:
        """Give every group the factors of its pair."""
        if self.source.members is None:
            return
        self.writer = self.writer._replace(groups=None)  # those before make room for the new
        pairs = np.maximum(self.slots.pair, 0)
        groups = programs.step_groups(self.program, self.source.members, pairs)
        self.writer = self.writer._replace(groups=groups)


def float_type(params: PyTree) -> np.dtype:
    """The type of the weights: of the largest floating one."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.dtype(max(leaves, key=lambda x: x.size).dtype)
