"""What a job is: one record by which every command knows it. Imports no JAX.

`springroll NAME` builds a run from the record and trains it; `eval`, `sample`, `replay`, `explain`
and `export` ask the record of the run they are given. A further job is a room that exports such a
record as `JOB`, and a line in `cli/jobs.py`.
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import tyro

from springroll.errors import InputError
from springroll.run.config import RunConfig, run_id
from springroll.run.options import COUNT, NOT_NEGATIVE, SEED, check_ranges, option
from springroll.run.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from springroll.atomic import JsonObject
    from springroll.cluster.crew import Crew
    from springroll.models.hf.lora import Adapter
    from springroll.run.folder import RunFolder
    from springroll.run.loop import Result
    from springroll.run.task import Task
    from springroll.trees import PyTree

C = TypeVar("C", bound=RunConfig)

Summary: TypeAlias = Mapping[str, float]
"""What summary.json holds: the newest figures of a run, and its counts."""
Rows: TypeAlias = Sequence[tuple[str, str]]
"""Lines of a report: a name, and what is to be said of it."""
Figures: TypeAlias = dict[str, str | int | float]


class OpenRun(NamedTuple, Generic[C]):
    """A run folder that is there, and its config."""

    path: str  # as the user spelt it
    folder: "RunFolder"
    config: C

    def refused(self, why: str) -> InputError:
        """The error of a command that has no answer for runs of this job."""
        return InputError(f"{self.path} is a run of springroll {self.config.command}, {why}")

    def trained_by_gradients(self) -> InputError:
        """The error of `replay` where a journal holds losses."""
        return InputError(
            f"{self.path} was trained by gradients: its journal holds losses, which do not "
            f"determine weights; they are in its checkpoints"
        )


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[C]):
    """A run that is ready to start."""

    config: C
    """With everything decided that was left to the job."""
    task: "Task"
    """What the loop trains."""
    opening: "Sequence[str | Table]"
    """What is printed before training starts."""
    finish: "Callable[[Result, RunFolder], Sequence[str]]" = lambda result, folder: ()
    """Called when the budget is spent; returns lines to print."""
    warm: Callable[[], None] = lambda: None
    """Compiles what a generation runs, so that the seconds of the run do not pay for it."""
    close: Callable[[], Sequence[str]] = lambda: ()
    """Called at the end, whatever ended it; returns lines to print."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Bits per byte of the weights in a run's newest checkpoint, beside the lines to beat.

    The text is the run's validation sample, or, with --data, a sample of all of another text. For a
    run of `finetune` the answers to held-out problems are judged, for one of `rl` the returns of
    episodes are averaged.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run."""
    data: str | None = None
    """Other text: `stdlib`, a file, a folder, `minipile`, or a hub name."""
    streams: int | None = option(None, COUNT)
    """Rows of the sample, each read from the beginning of a memory; default: as in training."""
    tokens: int | None = option(None, COUNT)
    """Bytes per row; default: as in training."""
    problems: int | None = option(None, COUNT)
    """Held-out problems; default: as in training."""
    temperature: float = option(0.0, NOT_NEGATIVE)
    """Sampling temperature of answers to problems; 0 takes the likeliest token."""
    seed: int = option(0, SEED)
    """Equal seeds draw equal answers."""
    episodes: int | None = option(None, COUNT)
    """Episodes of a policy; default: as in training."""
    answers: int | None = option(None, COUNT)
    """Also print so many of the answers, from the best to the worst, and put them into the JSON;
    without a number 3."""
    best: bool = False
    """For a run of `finetune` or `rl`: take the weights that validated best, not the newest."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: str | None = None
    """Also write the JSON to this file."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Evaluation(NamedTuple):
    """What the weights of a run score now."""

    figures: Figures
    table: "Table"  # the same for people
    notes: Sequence[str]  # checkpoints passed over, one line each
    answers: "Sequence[JsonObject]" = ()  # rows of `answers.answer_row`, where they are asked for


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SamplingOptions):
    """Generate text with the weights of a run's newest checkpoint, or of a model, and print it."""

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run, a Hugging Face folder, or a name on the hub."""
    prompt: str = ""
    """What the text begins with."""
    chat: bool = False
    """Treat the prompt as a user's message and put it into the model's chat template."""
    length: int = option(512, COUNT)
    """Bytes to generate; of a model with a tokenizer, tokens at most."""
    temperature: float = option(0.7, NOT_NEGATIVE)
    """1 draws from the model's distribution, less is safer, 0 always takes the likeliest."""
    seed: int = option(0, SEED)
    """Equal seeds write equal text."""
    out: str | None = None
    """Also write the bytes, as they are, to this file."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self.check_drawn(self.temperature)


class Sample(NamedTuple):
    """Text that a model wrote, the prompt included."""

    text: bytes | str
    notes: Sequence[str]


class SavedWeights(NamedTuple):
    """Where in a checkpoint the weights are, and what model they are of."""

    part: "PyTree"  # shapes of the part that holds them
    prefix: str  # the path of that part
    params: "Callable[[PyTree], PyTree]"  # the part -> the weights
    model: "PyTree" = None  # the model's configuration
    like: str | Path | None = None  # the Hugging Face folder that the run began with
    dtype: Literal["float32", "bfloat16"] = "float32"
    identity: Mapping[str, str] | None = None  # of what `params` reads beside the checkpoint
    adapter: "Adapter | None" = None  # where the part is one, beside the weights of `like`


class Explained(NamedTuple):
    """A function whose parameters are perturbed or projected, as `sr.explain` takes it."""

    fn: "Callable[..., PyTree]"
    params: "PyTree"  # arrays or their shapes
    args: "tuple[PyTree, ...]"


@dataclass(frozen=True, kw_only=True)
class Job(Generic[C]):
    """One thing that springroll trains. Nothing here imports JAX before a function is called."""

    name: str
    """Of the command."""
    description: str
    """What its --help says first."""
    config: type[C]
    """The options of a run; without arguments they are the defaults."""
    recipes: Mapping[str, Callable[[], C]] = field(default_factory=dict)
    """Full configs by name, for `--recipe NAME`: functions whose docstrings say on what hardware,
    how long, and how good."""
    set_up: Callable[[C], None] = lambda config: None
    """What has to be set before JAX starts, such as the number of devices."""
    build: Callable[[C], Prepared[C]]
    """Makes everything a run needs. Raises InputError for options that cannot be."""
    report: Callable[[str, Summary], Rows]
    """(run folder, summary) -> what is printed at the end, below the name of the run."""
    evaluate: Callable[[OpenRun[C], EvalOptions], Evaluation]
    """What the weights of a run score now."""
    sample: Callable[[OpenRun[C], SampleOptions], Sample]
    """Lets a run write text. Raises InputError where its model writes none."""
    replay: "Callable[[OpenRun[C]], Task]"
    """What the loop trained. Raises InputError where the journal does not determine the weights."""
    weights: Callable[[OpenRun[C]], SavedWeights]
    """Where the weights are in a checkpoint. Raises InputError where they are not of one model."""
    exports: bool = False
    """Whether transformers knows the model, so that it can be exported."""
    explain: Callable[[C], Explained]
    """The function that a run with this config trains."""
    answers: bool = False
    """Whether what is evaluated are answers, which people can read."""
    keeps_best: bool = False
    """Whether the weights that validated best are kept beside the newest."""
    models: Callable[[], Sequence[str]] = lambda: ()
    """Names of built-in models that `explain` knows through this job."""
    of_model: Callable[[str, Mapping[str, int | str]], C] | None = None
    """(one of `models`, sizes) -> the config of a run that would train it."""
    flags: "Mapping[str, Callable[[CommandLine[C]], int]]" = field(default_factory=dict)
    """Flags with which the command does something else than to train, and returns an exit code."""


class CommandLine(NamedTuple, Generic[C]):
    """The arguments of a command behind one of its flags."""

    arguments: Sequence[str]
    parse: Callable[[Sequence[str]], C]
    take_option: Callable[[Sequence[str], str], tuple[str | None, list[str]]]

    def config(self) -> C:
        """The options of a run, from all arguments."""
        return self.parse(self.arguments)

    def take(self, option: str) -> "tuple[str | None, CommandLine[C]]":
        """The value of an option that is none of a run (None: not given), and the rest."""
        value, rest = self.take_option(self.arguments, option)
        return value, self._replace(arguments=rest)


def run_job(job: Job[C], config: C, console: "Console | None" = None) -> "Result | None":
    """Train: a new run folder, or, with `config.resume`, the one there gone on with.

    Where the config or the launcher says that the process is one of several, they share the run.

    Args:
        job: what to train.
        config: the options of the run.
        console: where progress and other lines go; None prints none.

    Returns:
        How it ended; None of a process that does not lead.

    Raises:
        InputError: the options cannot be, the folder holds another run or is occupied.
        ClusterError: another process is gone.
    """
    from springroll.run.join import join, launch_for

    launch = launch_for(config)
    leads = launch is None or launch.rank == 0
    folder = None
    if config.resume:
        folder, config = open_resumed(job, config, leads)
    elif leads:
        from springroll.run.folder import RunFolder

        RunFolder.refuse_occupied(config.out)  # before what takes long
    job.set_up(config)  # before JAX starts, which it does to say how much memory there is
    if launch is None:
        return trained(job, config, folder, console, None)
    crew = join(launch, config, lambda line: print_all(console, [line]))
    if not config.resume:
        config = typing.cast(C, config.for_processes(launch.size))
    try:
        crew.agree({"options": run_id(config), "run": folder.run_id if folder else "a new one"})
        if crew.back is not None and folder is None:  # the run is no new one any more
            folder, config = open_resumed(job, replace(config, resume=True), leads)
        if leads:
            return trained(job, config, folder, console, crew)
        followed(job, config, folder, crew)
        return None
    except BaseException as error:
        crew.fail(str(error) or type(error).__name__, 2 if isinstance(error, InputError) else 3)
        raise
    finally:
        crew.close()


def open_resumed(job: Job[C], config: C, leads: bool) -> "tuple[RunFolder, C]":
    """The folder of a run that goes on, and its config.

    Raises:
        InputError: another process has it, or this one does not see it.
    """
    from springroll.run.folder import open_run
    from springroll.run.rebuild import open_journal

    folder, config = open_run(config, job.config())
    if leads:
        open_journal(folder).close()  # a run in use, or without its journal, before what takes long
    return folder, config


def trained(
    job: Job[C],
    config: C,
    folder: "RunFolder | None",
    console: "Console | None",
    crew: "Crew | None",
) -> "Result":
    """The run of a process on its own, or of one that leads others."""
    from springroll.run.config import check_sizes
    from springroll.run.folder import open_run
    from springroll.run.loop import run
    from springroll.run.share import Share

    check_sizes(config)  # before anything is allocated
    ready = job.build(config)  # what is wrong with the options leaves no folder behind
    try:
        share = Share(ready.task, crew)
        share.meet()  # processes that differ leave no folder behind either
        if crew is None:
            ready.warm()  # nor do programs that cannot be compiled
        if folder is None:
            folder, config = open_run(ready.config, job.config())
        print_all(console, ready.opening)
        result = run(config, ready.task, folder, console=console, share=share)
        if result.signal is None:
            print_all(console, ready.finish(result, folder))
        return result
    finally:
        print_all(console, ready.close())


def followed(job: Job[C], config: C, folder: "RunFolder | None", crew: "Crew") -> None:
    """The run of a process that follows: nothing is printed or written."""
    from springroll.run.follow import follow
    from springroll.run.share import Share

    ready = job.build(config)
    try:
        share = Share(ready.task, crew)
        share.meet()
        came_back = crew.back is not None
        follow(ready.config, ready.task, share, folder, came_back=came_back)
    finally:
        ready.close()


def print_all(console: "Console | None", lines: "Sequence[str | Table]") -> None:
    """Each on a line of its own, as it is."""
    if console is not None:
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=isinstance(line, str))
