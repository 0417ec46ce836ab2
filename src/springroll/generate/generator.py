"""Generation with static shapes: rows are taken in from a queue, written in segments, moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.evolve.members import Members
from springroll.generate import programs
from springroll.generate.queue import Jobs, Slots, Waiting
from springroll.generate.rows import Thin
from springroll.generate.sampling import Draw
from springroll.models.protocols import Generative


class Generated(NamedTuple):
    """What N members wrote after P prompts, and at what cost."""

    tokens: np.ndarray  # (N, P, max_tokens) int32; the end token is among them, then zeros
    lengths: np.ndarray  # (N, P) int32, tokens before the end token
    finished: np.ndarray  # (N, P) bool; False: max_tokens came before an end token
    log_probabilities: np.ndarray | None  # (N, P, max_tokens) float32 of those tokens, then zeros
    steps: int  # forward passes of one token per row
    slot_steps: int  # rows times steps, idle rows too
    row_steps: int  # rows that wrote a token, summed over steps

    @property
    def occupancy(self) -> float:
        """The share of rows in all steps that wrote a token."""
        return self.row_steps / max(1, self.slot_steps)


@dataclass(frozen=True, kw_only=True)
class Generator:
    """How to write; see `run`. Compiled programs are kept by JAX, by these fields and by shapes.

    - `end`: tokens that end a row.
    - `max_tokens`: a row is cut after so many, the end token among them.
    - `temperature`: 0 takes the likeliest token, else tokens are drawn at that temperature.
    - `rows`: how many rows run at once, at most; or `memory_bytes`: what their memory may take.
      Neither: all of them. Where there are more rows than that, rows that end make room for others.
    - `segment`: steps after which the host looks what has ended, at most.
    - `per_group`: rows that share a copy of a pair's factors; by default all of a pair if all rows
      run at once, else those of one prompt.
    - `prefill_tokens`: tokens of prompts that are read at once, at most (one row at least).
    - `log_probabilities`: also return those of the tokens.
    """

    model: Generative
    end: frozenset[int]
    max_tokens: int
    temperature: float = 0.0
    rows: int | None = None
    memory_bytes: int | None = None
    segment: int = 32
    per_group: int | None = None
    prefill_tokens: int = 1 << 16
    log_probabilities: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "rows", "memory_bytes", "segment", "per_group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; expected 0 or more")
        if self.rows is not None and self.memory_bytes is not None:
            raise InputError("both rows and memory_bytes are given; expected one of them")

    def run(
        self,
        params: Any,
        members: Members | None,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int = 0,
        unperturbed: int = 0,
        copies: int = 1,
    ) -> Generated:
        """Every member answers every prompt.

        Args:
            params: the weights that `members` perturb.
            members: a generation's, as `es.ask` gives them; None: `copies` of the plain model.
            prompts: P lists of tokens.
            seed: of drawing tokens; a row's draws follow from (seed, member, prompt) alone.
            unperturbed: rows of the weights themselves, as members N - unperturbed and up.

        Raises:
            InputError: no prompt, or one without tokens; a budget below the memory of one row.
        """
        return _Run(self, params, members, prompts, seed, unperturbed, copies).finish()


class _Run:
    """One call of `Generator.run`."""

    def __init__(
        self,
        options: Generator,
        params: Any,
        members: Members | None,
        prompts: Sequence[Sequence[int]],
        seed: int,
        unperturbed: int,
        copies: int,
    ):
        _check(prompts)
        self.options, self.params = options, params
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        self.time = _power_of_two(int(self.lengths.max()))
        self.prompts = np.zeros((len(prompts), self.time), np.int32)
        for i, prompt in enumerate(prompts):
            self.prompts[i, self.time - len(prompt) :] = prompt
        length = -(-(self.time + options.max_tokens) // 16) * 16
        self.dtype = jnp.dtype(_floating(params))

        perturbation = None if members is None else members.perturbation
        self.program = programs.Program(
            model=options.model,
            perturbation=perturbation,
            end=tuple(sorted(options.end)),
            max_tokens=options.max_tokens,
            length=length,
            sampled=options.temperature > 0,
            log_probabilities=options.log_probabilities,
        )
        temperature = jnp.float32(options.temperature)
        self.draw = Draw(jax.random.key(seed), temperature)
        if members is None:
            self.jobs = Jobs.of(0, (), copies, len(prompts))
            self.drawn, self.sigma, self.signs = None, jnp.float32(0), 1
        else:
            signs = members.perturbation.signs
            self.jobs = Jobs.of(members.pairs.shape[0], signs, unperturbed, len(prompts))
            self.drawn, self.sigma, self.signs = members.drawn(), members.sigma, len(signs)
        self.waiting = Waiting(self.jobs)
        total = int(self.jobs.member.max()) + 1
        shape = (total, len(prompts), options.max_tokens)
        self.tokens = np.zeros(shape, np.int32)
        self.log_p = np.zeros(shape, np.float32) if options.log_probabilities else None
        self.made = np.zeros(shape[:2], np.int32)

        self.slots = Slots.empty(*self._shape())
        self.apart = programs.weights(self.program, params)
        self.memory = programs.memory(self.program, self.slots.job.size, self.dtype)
        self.rows = programs.idle(self.slots.job.size)
        self.clock = jnp.int32(self.time % length)
        self.thin: Thin | None = None
        self.steps = self.slot_steps = self.row_steps = 0

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
        return self._generated()

    def _shape(self) -> tuple[int, int]:
        """Groups and rows of each."""
        options, jobs = self.options, self.jobs.member.size
        most = jobs
        if options.rows is not None:
            most = min(jobs, options.rows)
        elif options.memory_bytes is not None:
            row = jax.eval_shape(lambda: options.model.memory(1, self.program.length, self.dtype))
            size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(row))
            most = min(jobs, options.memory_bytes // size)
            if not most:
                raise InputError(
                    f"memory_bytes is {options.memory_bytes} and one row of "
                    f"{self.program.length} tokens needs {size}; give more or write fewer tokens"
                )
        if self.drawn is None:
            return most, 1
        prompts = len(self.lengths)
        each = options.per_group or self.signs * (prompts if most == jobs else 1)
        each = min(each, most)
        pairs = int(self.jobs.pair.max()) + 1
        if most == jobs and each == self.signs * prompts:
            free = jobs - pairs * each
            return pairs + -(-free // each), each
        return most // each, each

    def _take_in(self) -> None:
        """Fill idle slots; rows whose first token ends them make room again."""
        while self.waiting:
            new = self.slots.fill(self.waiting)
            if not new:
                return
            self._bind()
            for rows in self._batches(new):
                self._read(rows)

    def _batches(self, new: list[int]) -> list[np.ndarray]:
        """Rows to be read in one call, each (U, h); -1 where there is none.

        Whole groups share their factors. Where few rows of few groups are new, each has a copy.
        """
        total, each = self.slots.job.size, self.slots.job.shape[1]
        whole = len(new) * 2 > total
        h = each if whole else 1
        at_once = max(1, self.options.prefill_tokens // (self.time * h))
        if whole:
            grid = np.full((total // each, each), -1, np.int32)
            grid.reshape(-1)[new] = new
            at_once = min(at_once, len(grid))
        else:
            grid = np.asarray(new, np.int32)[:, None]
            at_once = min(at_once, _power_of_two(max(1, total // 8)))
        short = -len(grid) % at_once
        grid = np.concatenate([grid, np.full((short, h), -1, np.int32)])
        return list(grid.reshape(-1, at_once, h))

    def _read(self, rows: np.ndarray) -> None:
        there = rows >= 0
        job = np.where(there, self.slots.job.reshape(-1)[rows], 0)
        total, each = self.slots.job.size, self.slots.job.shape[1]
        beyond = total + np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
        pair = self.slots.pair[np.maximum(rows.max(axis=1), 0) // each]
        prompt = self.jobs.prompt[job]
        prompts = programs.Prompts(
            row=np.where(there, rows, beyond),
            tokens=self.prompts[prompt],
            length=self.lengths[prompt],
            member=self.jobs.member[job],
            prompt=prompt,
            sign=self.jobs.sign[job],
            pair=np.maximum(pair, 0),
        )
        self.memory, self.rows, token, log_p = programs.take_in(
            self.program,
            self.dtype,
            self.params,
            self.drawn,
            self.sigma,
            self.draw,
            self.clock,
            prompts,
            self.memory,
            self.rows,
        )
        token, log_p = jax.device_get((token, log_p))
        flat = there.reshape(-1)
        log_p = log_p[flat, None] if self.log_p is not None else None
        self._collect(rows.reshape(-1)[flat], token[flat, None], log_p, np.ones(flat.sum(), int))

    def _write_on(self, live: int) -> None:
        """One segment."""
        slots = self.slots.job.size
        least = live - max(1, slots // 8 if self.waiting else slots // 16)
        if not self.waiting:
            least = min(least, slots // 2)
        groups = len(self.slots.pair)
        self.memory, self.rows, self.clock, written = programs.write_on(
            self.program,
            groups,
            self.options.segment,
            self.apart,
            self.thin,
            self.draw,
            jnp.int32(max(0, least)),
            self.clock,
            self.memory,
            self.rows,
        )
        made, written = jax.device_get((self.rows.made, written))
        rows = np.flatnonzero(self.slots.job.reshape(-1) >= 0)
        job = self.slots.job.reshape(-1)[rows]
        count = made[rows] - self.made[self.jobs.member[job], self.jobs.prompt[job]]
        log_p = None if self.log_p is None else written.log_probabilities[rows]
        self._collect(rows, written.tokens[rows], log_p, count)
        self.steps += int(written.steps)
        self.slot_steps += int(written.steps) * slots
        self.row_steps += int(count.sum())

    def _collect(
        self, rows: np.ndarray, token: np.ndarray, log_p: np.ndarray | None, count: np.ndarray
    ) -> None:
        """Store the first count[i] tokens of rows[i], and let go of rows that have ended."""
        job = self.slots.job.reshape(-1)[rows]
        for i, (m, p) in enumerate(zip(self.jobs.member[job], self.jobs.prompt[job], strict=True)):
            start, n = self.made[m, p], count[i]
            self.tokens[m, p, start : start + n] = token[i, :n]
            if log_p is not None and self.log_p is not None:
                self.log_p[m, p, start : start + n] = log_p[i, :n]
            self.made[m, p] = start + n
            last = self.tokens[m, p, start + n - 1]
            if start + n == self.options.max_tokens or int(last) in self.options.end:
                self.slots.job.reshape(-1)[rows[i]] = -1

    def _compact(self, live: int) -> None:
        """Into a smaller bucket, if the live rows fit into half the slots."""
        size, each = self.slots.job.size, self.slots.job.shape[1]
        if 2 * live > size:
            return
        choices = [self.slots.packed(h, self.jobs.pair) for h in sorted({each, self.signs, 1})]
        slots, source = min(choices, key=lambda choice: (choice[0].job.size, len(choice[0].pair)))
        if 2 * slots.job.size > size:
            return
        self.slots = slots
        self.memory, self.rows = programs.move(self.memory, self.rows, jnp.asarray(source))
        self._bind()

    def _bind(self) -> None:
        """Give every group the factors of its pair."""
        if self.drawn is None:
            return
        pairs = jnp.asarray(np.maximum(self.slots.pair, 0))
        factors = programs.bind(self.program, self.drawn, pairs, self.dtype)
        self.thin = Thin(factors, self.sigma)

    def _generated(self) -> Generated:
        last = np.take_along_axis(self.tokens, self.made[:, :, None] - 1, axis=2)[:, :, 0]
        finished = np.isin(last, list(self.options.end))
        return Generated(
            tokens=self.tokens,
            lengths=self.made - finished,
            finished=finished,
            log_probabilities=self.log_p,
            steps=self.steps,
            slot_steps=self.slot_steps,
            row_steps=self.row_steps,
        )


def _check(prompts: Sequence[Sequence[int]]) -> None:
    if not len(prompts):
        raise InputError("no prompt is given; expected at least one list of tokens")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {i} has no token; begin it with the tokenizer's first token")


def _power_of_two(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _floating(params: Any) -> Any:
    """The type of the weights: of the largest floating one."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    return max(leaves, key=lambda x: x.size).dtype
