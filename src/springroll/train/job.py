"""The record of `springroll train`. Imports no JAX before a function is called."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from springroll.cpu import use_cpu_devices
from springroll.memory import allow_page_locking, claim_device_memory
from springroll.run import job
from springroll.train.config import TrainConfig
from springroll.train.recipes import RECIPES

if TYPE_CHECKING:
    from springroll.run.task import Task

DESCRIPTION = """\
Train a decoder-only language model by gradients: on text, or on the answers of chats and of
prompts.

  springroll train --model llama-1m --optimizer lowgrad --data stdlib --steps 300
  springroll train --model FOLDER --data chats.jsonl --sequence 2048 --steps 500
"""


def set_up(config: TrainConfig) -> None:
    """Make page-locked host memory and the devices of a CPU available to JAX."""
    given = config.host_bytes  # the pool of locked memory has gaps between arrays
    allow_page_locking(None if given is None else given * 5 // 4)
    claim_device_memory()
    use_cpu_devices(config.devices or 1)


def build(config: TrainConfig) -> job.Prepared[TrainConfig]:
    """Load the text, make model and learner, and see that a step fits."""
    from springroll.train import build as parts

    made = parts.build(config if config.resume else parts.resolved(config))
    config, model = made.config, made.model.config
    active = f" ({model.active_parameters:,} active)" if getattr(model, "experts", 0) else ""
    per_step = config.batch * config.accumulate * config.sequence
    opening = (
        f"{config.model}: {model.parameters:,} {config.dtype} parameters{active}, "
        f"{config.optimizer}, {per_step:,} tokens a step; {made.data.opening[0]}"
    )
    lines = [opening, *made.notes, *made.data.opening[1:], made.memory.table()]
    return job.Prepared(config=config, task=made.task, opening=lines)


def report(out: str, summary: job.Summary) -> job.Rows:
    """The score beside the lines to beat, the speed, and what to do next."""
    from springroll.run.text_job import text_report

    nats = summary.get("valid_nats_per_answer_token")
    told = [] if nats is None else [("held-out answers", f"{nats:.4f} nats/token")]
    return [*told, *text_report(out, summary, "step")]


def evaluate(run: job.OpenRun[TrainConfig], options: job.EvalOptions) -> job.Evaluation:
    """Bits per byte of the newest weights, or nats per answer token."""
    from springroll.run.text_job import evaluate_text
    from springroll.train.trained import bits, evaluate_records, readable, saved_weights

    config = run.config
    if config.format == "records":
        return evaluate_records(run, options)
    return evaluate_text(run, saved_weights(config), bits(config), options, readable(config))


def sample(run: job.OpenRun[TrainConfig], options: job.SampleOptions) -> job.Sample:
    """Text that follows the prompt, in the tokens or bytes of the model."""
    from springroll.generate.token_model import like_folder, written
    from springroll.hub import hf_folder
    from springroll.run.text_job import sample_bytes
    from springroll.run.weights import load_weights
    from springroll.train.trained import byte_model, saved_weights

    saved = saved_weights(run.config)
    if saved.like is None:
        return sample_bytes(run, saved, byte_model(run.config), options)
    weights = load_weights(run, saved)
    model = like_folder(hf_folder(saved.like), saved.model, weights.params)
    return job.Sample(written(model, options), weights.notes)


def replay(run: job.OpenRun[TrainConfig]) -> "Task":
    """Losses do not determine weights."""
    raise run.trained_by_gradients()


def weights(run: job.OpenRun[TrainConfig]) -> job.SavedWeights:
    """Where the weights are in a checkpoint."""
    from springroll.train.trained import saved_weights

    return saved_weights(run.config)


def explain(config: TrainConfig) -> job.Explained:
    """The loss of one row of tokens."""
    from springroll.train.trained import explained

    return explained(config)


def models() -> Sequence[str]:
    """Decoders by name."""
    from springroll.models.decoder_config import CONFIGS

    return list(CONFIGS)


def of_model(name: str, sizes: Mapping[str, int | str]) -> TrainConfig:
    """The config of a run that trains a decoder of that name."""
    del sizes  # they follow from the name
    return TrainConfig(model=name)


JOB = job.Job(
    name="train",
    description=DESCRIPTION,
    config=TrainConfig,
    recipes=RECIPES,
    set_up=set_up,
    build=build,
    report=report,
    evaluate=evaluate,
    sample=sample,
    replay=replay,
    weights=weights,
    exports=True,
    explain=explain,
    models=models,
    of_model=of_model,
)
