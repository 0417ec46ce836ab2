"""The record of `springroll pretrain`. Imports no JAX before a function is called."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from springroll.cpu import use_cpu_devices
from springroll.memory import allow_page_locking
from springroll.pretrain.config import PretrainConfig
from springroll.pretrain.recipes import RECIPES
from springroll.run import job

if TYPE_CHECKING:
    from springroll.run.task import Task

DESCRIPTION = "Train a byte-level language model on text by evolution: forward passes only."


def set_up(config: PretrainConfig) -> None:
    """Make page-locked host memory and the devices of a CPU available to JAX."""
    allow_page_locking()
    use_cpu_devices(config.devices)


def build(config: PretrainConfig) -> job.Prepared[PretrainConfig]:
    """Load the text, make the model and the strategy."""
    from springroll.pretrain import build as parts
    from springroll.run.text_job import lines_to_beat

    made = parts.build(config)
    streams = "; layers pass through the device" if made.streams else ""
    opening = (
        f"{made.model.config.parameters:,} {config.precision} parameters, population "
        f"{config.pop_size:,}, {config.num_streams:,} streams of {config.tokens_per_member} bytes; "
        f"{made.corpus}{streams}"
    )
    return job.Prepared(config=config, task=made.task, opening=[opening, lines_to_beat(made.lines)])


def report(out: str, summary: job.Summary) -> job.Rows:
    """The score beside the lines to beat, the speed, and what to do next."""
    from springroll.run.text_job import text_report

    return text_report(out, summary)


def evaluate(run: job.OpenRun[PretrainConfig], options: job.EvalOptions) -> job.Evaluation:
    """Bits per byte of the newest weights."""
    from springroll.pretrain.trained import byte_model, saved_weights
    from springroll.run.text_job import evaluate_text

    return evaluate_text(run, saved_weights(run.config), byte_model(run.config).bits, options)


def sample(run: job.OpenRun[PretrainConfig], options: job.SampleOptions) -> job.Sample:
    """Bytes that follow the prompt."""
    from springroll.pretrain.trained import byte_model, saved_weights
    from springroll.run.text_job import sample_bytes

    return sample_bytes(run, saved_weights(run.config), byte_model(run.config), options)


def replay(run: job.OpenRun[PretrainConfig]) -> "Task":
    """What the loop trained."""
    from springroll.pretrain import build as parts

    use_cpu_devices(run.config.devices)
    return parts.build(run.config).task


def weights(run: job.OpenRun[PretrainConfig]) -> job.SavedWeights:
    """Where the weights are in a checkpoint."""
    from springroll.pretrain.trained import saved_weights

    return saved_weights(run.config)


def explain(config: PretrainConfig) -> job.Explained:
    """The score of one stream of bytes."""
    from springroll.pretrain.trained import explained

    return explained(config)


def of_model(name: str, sizes: Mapping[str, int | str]) -> PretrainConfig:
    """The config of a run that trains `egg` at these sizes: n_layers, hidden, precision."""
    del name  # there is one
    return PretrainConfig(**sizes)  # pyright: ignore[reportArgumentType]


JOB = job.Job(
    name="pretrain",
    description=DESCRIPTION,
    config=PretrainConfig,
    recipes=RECIPES,
    set_up=set_up,
    build=build,
    report=report,
    evaluate=evaluate,
    sample=sample,
    replay=replay,
    weights=weights,
    explain=explain,
    models=lambda: ["egg"],
    of_model=of_model,
)
