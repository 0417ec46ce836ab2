"""What both methods of fine-tuning share: the model, its tokenizer, the problems, generation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from springroll.errors import InputError
from springroll.evolve.momentum import Momentum
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.judging import Judged, judged
from springroll.finetune.lengths import with_lengths
from springroll.finetune.seen import Seen, advice, some_answers
from springroll.generate.generator import PREFILL_TOKENS, Generated, Generator
from springroll.generate.prompts import common_tokens
from springroll.generate.stopping import StopStrings
from springroll.hub import hf_folder
from springroll.memory import available_bytes, check_fits
from springroll.models.decoder_config import size, structs
from springroll.models.hf.files import context_length, family_of, fingerprint, open_hf
from springroll.models.hf.load import load_hf, load_int8
from springroll.models.protocols import Generative, LanguageModel
from springroll.run.answers import SHOWN
from springroll.run.job import Explained
from springroll.tasks.problem import Problem, TextTask
from springroll.tasks.task_line import task_of_line
from springroll.tokens.tokenizer import Tokenizer, end_tokens, open_tokenizer, prompt_tokens
from springroll.trees import PyTree

PROBLEM = 500  # bytes of a problem, at least
ATTEMPTS = 1000  # problems in a row whose prompts are too long


class Asked(NamedTuple):
    """Problems, and their prompts as the model reads them."""

    problems: list[Problem]
    prompts: list[list[int]]
    dropped: int = 0  # others, whose prompts were too long


class WritingModel(Generative, LanguageModel, Protocol):
    """A language model that writes, and whose probabilities have gradients."""


LARGE = 1 << 24  # parameters from which on momentum is worth more memory than time
HALF_LIFE = 10.0  # generations, of a large model's learning rate


@dataclass(frozen=True)
class Setup:
    """A model that is to answer the problems of a task."""

    model: WritingModel
    folder: Path
    tokenizer: Tokenizer
    task: TextTask
    generator: Generator  # as configured
    greedy: Generator  # the same at temperature 0, for validation
    parameters: int
    held_out: Asked
    config: FinetuneConfig  # with the lengths that were left to task and model
    seen: Seen = field(default_factory=Seen)

    def params(self, weights: str = "float32", rest: str = "float32") -> PyTree:
        """The weights in the folder, on the device, in a type of `FinetuneConfig.weights`.

        They are read in that type, leaf by leaf; int8 layer by layer, and the `rest` in its own.
        """
        if weights == "int8":
            return load_int8(self.folder, rest)[1]
        return load_hf(self.folder, weights)[1]

    @property
    def shapes(self) -> PyTree:
        """What `params` returns, without values."""
        config = self.model.config
        return structs(family_of(config).shapes(config))

    def explained(self) -> Explained:
        """The logits of a row of tokens."""
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        return Explained(self.model.apply, self.shapes, (tokens,))

    def asked(self, problems: Sequence[Problem]) -> Asked:
        """Problems with their prompts."""
        return Asked(list(problems), [self.tokens_of(each) for each in problems])

    def tokens_of(self, problem: Problem) -> list[int]:
        """The prompt of a problem as the model reads it.

        Raises:
            InputError: the chat template refuses its messages, or makes nothing of them; the line
                says which record it is.
        """
        tools = {"tools": problem.tools} if problem.tools else {}
        chat = bool(tools) or (self.task.chat and self.tokenizer.chats)
        try:
            tokens = prompt_tokens(self.tokenizer, problem.prompt, chat, **tools)
            if not tokens:
                raise InputError("the model reads no token of it")
            return tokens
        except InputError as error:
            if not problem.where:
                raise
            raise InputError(f"{problem.where} is no prompt: {error}") from None

    def train(self, generation: int, count: int) -> Asked:
        """The problems of a generation, `count` of them.

        In place of one whose prompt is too long comes that of its place in the next generation.

        Raises:
            InputError: too many in a row are too long.
        """
        first, dropped = generation * count, 0
        asked = self.asked([self.task.train(first + i) for i in range(count)])
        limit = self.config.max_prompt_tokens or max(map(len, asked.prompts))
        for place in range(count):
            index = first + place
            while (length := len(asked.prompts[place])) > limit:
                index, dropped = index + count, dropped + 1
                if index >= first + ATTEMPTS * count:
                    raise InputError(
                        f"{ATTEMPTS} problems in a row have longer prompts than max_prompt_tokens "
                        f"{limit:,}, the last {length:,} tokens; give more, or shorter prompts"
                    )
                self.seen.warnings.setdefault(
                    "long_prompts",
                    f"prompts of more than {limit:,} tokens (max_prompt_tokens) are left out, the "
                    f"first has {length:,}; other problems take their place, and metrics count "
                    f"them as prompts_dropped",
                )
                [problem], [prompt], _ = self.asked([self.task.train(index)])
                asked.problems[place], asked.prompts[place] = problem, prompt
        return asked._replace(dropped=dropped)

    def judged(self, asked: Asked, generated: Generated) -> Judged:
        """What the answers are worth."""
        return judged(self.task, self.tokenizer, asked.problems, generated)

    def validated(self, params: PyTree, shown: int = SHOWN, seed: int = 0) -> dict[str, float]:
        """Figures of weights on the held-out problems, answered greedily.

        Some of the answers, and what is to be said of them, are in `seen`.

        Args:
            shown: how many answers.
            seed: of drawing them, where `greedy` was given a temperature.
        """
        generated = self.greedy.run(params, None, self.held_out.prompts, seed=seed)
        found = self.judged(self.held_out, generated)
        problems, chats = self.held_out.problems, self.tokenizer.chats
        self.seen.answers = some_answers(
            self.task, self.tokenizer, problems, generated, found, shown
        )
        limit, figures = self.greedy.max_tokens, found.figures()
        self.seen.warnings |= advice(figures, self.config.task, self.task, chats, limit)
        measure = self.task.measure
        values = found.reward if measure == "reward" else found.correct
        figures[f"{measure}_error"] = standard_error(values)
        return {f"valid_{name}": figure for name, figure in figures.items()}

    @property
    def held_out_line(self) -> str:
        """How many held-out problems there are. A small task repeats them: that is said."""
        count = len(self.held_out.prompts)
        different = len(set(map(tuple, self.held_out.prompts)))
        repeated = f", of which {different:,} are different" if different < count else ""
        return f"{count:,} held-out problem{'' if count == 1 else 's'}{repeated}"

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same when a run goes on."""
        return {"model": fingerprint(self.folder), **self.task.identity}


def resolved(config: FinetuneConfig, parameters: int) -> FinetuneConfig:
    """The config of a new run, with what its continuations must not decide anew.

    Runs from before momentum could be made again say nothing of it (None): they keep theirs, and
    are updated whole. A large model moves by a sigma per generation, less and less, and without
    momentum: to first order the move is the same, and no noise need be drawn again. So large steps
    need little to be kept of int8 weights: half a byte, and the rest in bfloat16. Runs from before
    that was a choice have a whole byte, and float32.
    """
    if config.method != "es":
        return config
    sgd, large = config.optimizer in (None, "sgd"), parameters > LARGE
    if config.weights == "int8":
        config = replace(
            config, unquantized=config.unquantized or ("bfloat16" if large else "float32")
        )
        if config.rounding == "stochastic":
            config = replace(config, residual_bits=config.residual_bits or (4 if large else 8))
    if config.momentum is None:
        config = replace(config, momentum=0.0 if sgd and large else config.decay)
    if config.lr is None and sgd and large:
        half_life = config.lr_half_life or HALF_LIFE
        config = replace(config, lr=float(f"{1 - config.decay:.4g}"), lr_half_life=half_life)
    if config.momentum_generations is not None:
        return config
    again = sgd and large and config.decay > 0 and config.state_bits == 32
    generations = Momentum.of(config.decay).generations if again else 0
    return replace(config, momentum_generations=generations)


def prepare(config: FinetuneConfig, *, new: bool = False) -> Setup:
    """Find the model, its tokenizer and the task; weights are read later.

    Args:
        config: of the run.
        new: the run begins, so that its lengths are to be decided (see `with_lengths`).

    Raises:
        InputError: one of them is missing or does not fit the others.
    """
    folder = hf_folder(require_model(config))
    usual = {"seed": config.seed} | ({"data": config.data} if config.data else {})
    task = task_of_line(config.task, **usual)
    config_of = open_hf(folder).config
    tokenizer = open_tokenizer(folder)
    family = family_of(config_of)
    config = with_lengths(config, task, context_length(folder) if new else None)
    assert config.max_tokens is not None
    model = family.model(config_of)
    stop = StopStrings(task.stop, tokenizer.decode) if task.stop else None
    generator = Generator(
        model=model,
        end=end_tokens(tokenizer, task.stop),
        max_tokens=config.max_tokens,
        temperature=config.sampling_temperature,
        **config.bounds,
        stop=stop,
        rows=config.rows,
        memory_bytes=None if config.rows else memory_of(config),
        prefill_tokens=config.prefill_tokens or PREFILL_TOKENS,
        log_probabilities=config.method == "grpo",
    )
    greedy = Generator(
        model=model,
        end=generator.end,
        stop=stop,
        max_tokens=config.max_tokens,
        rows=config.rows,
        memory_bytes=generator.memory_bytes,
        prefill_tokens=generator.prefill_tokens,
    )
    setup = Setup(
        model=model,
        folder=folder,
        tokenizer=tokenizer,
        task=task,
        generator=generator,
        greedy=greedy,
        parameters=size(family.shapes(config_of)),
        held_out=Asked([], []),
        config=config,
    )
    most = min(config.eval_problems, task.held_out_size or config.eval_problems)
    needed = most * (4 * config.max_tokens + PROBLEM)
    check_fits(needed, f"{most:,} held-out problems (eval_problems) and their answers")
    setup.asked(task.forms)  # what the template refuses is found now
    held_out = setup.asked([task.held_out(i) for i in range(most)])
    setup = replace(setup, held_out=short(held_out, setup))
    if new:
        first = setup.train(0, config.num_prompts)  # whether all are too long is found now
        setup = replace(setup, config=with_shared(setup, first))
    shared = setup.config.shared_prompt_tokens or 0
    as_shared = lambda generator: replace(generator, shared_prompt_tokens=shared)
    return replace(setup, generator=as_shared(generator), greedy=as_shared(greedy))


def with_shared(setup: Setup, first: Asked) -> FinetuneConfig:
    """The config of a new run, with how many tokens of prompts are read once.

    Decided once: a generation whose prompts happen to share more needs no programs of its own, and
    runs of earlier versions (None) go on reading prompts whole, with the same last bits.
    """
    if setup.config.shared_prompt_tokens is not None:
        return setup.config
    shared = common_tokens([*setup.held_out.prompts, *first.prompts])
    return replace(setup.config, shared_prompt_tokens=shared)


def short(asked: Asked, setup: Setup) -> Asked:
    """Held-out problems without those whose prompts are too long.

    Raises:
        InputError: none is left.
    """
    limit = setup.config.max_prompt_tokens
    lengths = [len(prompt) for prompt in asked.prompts]
    kept = [i for i, length in enumerate(lengths) if limit is None or length <= limit]
    dropped = len(lengths) - len(kept)
    if not kept:
        raise InputError(
            f"all {dropped:,} held-out problems have longer prompts than max_prompt_tokens "
            f"{limit:,}, the shortest {min(lengths):,} tokens; give more, or shorter prompts"
        )
    if dropped:
        setup.seen.warnings["long_held_out"] = (
            f"{dropped:,} of {len(lengths):,} held-out problems are left out: their prompts have "
            f"more than {limit:,} tokens (max_prompt_tokens), the longest {max(lengths):,}"
        )
    return Asked([asked.problems[i] for i in kept], [asked.prompts[i] for i in kept], dropped)


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values, of those that are finite; NaN of fewer than two."""
    there = values[np.isfinite(values)].astype(np.float64)
    return float(there.std(ddof=1) / np.sqrt(there.size)) if there.size > 1 else math.nan


def memory_of(config: FinetuneConfig) -> int:
    """Bytes for what the rows under generation remember."""
    return config.cache_bytes or (available_bytes() or (4 << 30)) // 2


def decaying(value: float, half: float | None) -> float | Callable[[ArrayLike], Array]:
    """A schedule that has fallen to half of `value` after so many generations."""
    if half is None:
        return value
    return lambda step: value / (1 + jnp.asarray(step, jnp.float32) / half)


def require_model(config: FinetuneConfig) -> str:
    """The model's folder or hub name."""
    if not config.model:
        raise InputError(
            "give --model FOLDER or a hub name; springroll export writes the model of a run of "
            "springroll train as such a folder"
        )
    return config.model
