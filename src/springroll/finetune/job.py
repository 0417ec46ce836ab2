"""The record of `springroll finetune`. Imports no JAX before a function is called."""

from dataclasses import replace
from typing import TYPE_CHECKING

from springroll.cpu import use_cpu_devices
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.recipes import RECIPES
from springroll.memory import return_freed_blocks
from springroll.program import program
from springroll.run import job

if TYPE_CHECKING:
    from springroll.finetune.setup import Setup
    from springroll.run.task import Task
    from springroll.run.weights import Weights

DESCRIPTION = """\
Fine-tune a language model on a reward: forward passes only, or GRPO to compare with.

  springroll finetune --model FOLDER --task "countdown numbers=3 largest=20"
  springroll finetune --model FOLDER --task my_module:reward --data prompts.jsonl
"""


def build(config: FinetuneConfig) -> job.Prepared[FinetuneConfig]:
    """Read the model's files, the tokenizer and the problems."""
    from springroll.finetune.evolution import with_sigma
    from springroll.finetune.planned import planned
    from springroll.finetune.setup import prepare, resolved
    from springroll.run.config import check_sizes

    setup = prepare(config, new=not config.resume)
    config = setup.config
    if not config.resume:
        config = with_sigma(resolved(config, setup.parameters), setup)
    check_sizes(config)  # with the lengths that were left to the task
    config, setup, tables = planned(config, setup)
    group = "answers per prompt" if config.method == "grpo" else "members"
    opening = (
        f"{config.model}: {setup.parameters:,} {config.weights} parameters; {setup.task.name}; "
        f"{config.method} with {config.population:,} {group}, {config.num_prompts:,} prompts a "
        f"generation, up to {config.max_tokens:,} tokens an answer; validated on "
        f"{setup.held_out_line}"
    )

    def close() -> list[str]:
        setup.task.close()
        return list(filter(None, [setup.task.failures.line]))

    opened = [opening, *tables]
    return job.Prepared(config=config, task=task_of(config, setup), opening=opened, close=close)


def task_of(config: FinetuneConfig, setup: "Setup") -> "Task":
    """What the loop trains, by the method of the config."""
    if config.method == "grpo":
        from springroll.finetune.grpo import grpo_task

        return grpo_task(config, setup)
    from springroll.finetune.evolution import es_task

    return es_task(config, setup)


def saved_weights(config: FinetuneConfig, setup: "Setup") -> job.SavedWeights:
    """Where in a checkpoint the weights are, and of what model they are."""
    if config.method == "grpo":
        from springroll.finetune.grpo import saved_weights
    else:
        from springroll.finetune.evolution import saved_weights
    return saved_weights(config, setup)._replace(
        model=setup.model.config,
        like=config.model,
        dtype="bfloat16" if config.weights == "bfloat16" else "float32",
    )


def report(out: str, summary: job.Summary) -> job.Rows:
    """Accuracy beside what else changed, the speed, and what to do next."""
    from springroll.run.report import closing_rows, figure_rows

    names = {
        "held-out accuracy at the start": ("first_valid_accuracy", "%"),
        "held-out accuracy": ("valid_accuracy", "%"),
        "standard error of accuracy": ("valid_accuracy_error", "%"),
        "best held-out accuracy": ("best_valid_accuracy", "%"),
        "held-out format rate": ("valid_format_rate", "%"),
        "held-out truncation rate": ("valid_truncation_rate", "%"),
        "held-out mean length": ("valid_mean_length", " tokens"),
        "held-out reward at the start": ("first_valid_reward", ""),
        "held-out reward": ("valid_reward", ""),
        "standard error of reward": ("valid_reward_error", ""),
        "best held-out reward": ("best_valid_reward", ""),
        "best generation": ("best_generation", ""),
    }
    phases = {
        f"to {name}": (f"{name}_seconds", " s a generation")
        for name in ("generate", "score", "update")
    }
    following = ("next", f"{program()} export {out} FOLDER")
    warnings = [("warning", str(x)) for name, x in summary.items() if name.startswith("warning_")]
    figures = [*figure_rows(summary, names), *warnings, *figure_rows(summary, phases)]
    return [*figures, *closing_rows(out, summary), following]


def evaluate(run: job.OpenRun[FinetuneConfig], options: job.EvalOptions) -> job.Evaluation:
    """The answers to held-out problems, judged."""
    from rich.table import Table

    from springroll.finetune.setup import prepare

    count = options.problems or run.config.eval_problems
    setup = prepare(replace(run.config, eval_problems=count))
    setup = replace(setup, greedy=replace(setup.greedy, temperature=options.temperature))
    weights = loaded(run, setup, options.best)
    figures = {
        "run": run.path,
        "generation": weights.generation,
        "problems": len(setup.held_out.problems),
        **setup.validated(weights.params, options.answers or 0, options.seed),
    }
    title = f"{run.path} at generation {weights.generation:,}"
    how = f"at temperature {options.temperature:g}" if options.temperature else "greedily"
    caption = f"{setup.held_out_line}, {how}"
    table = Table("held-out", "", title=title, caption=caption)
    for name, value in figures.items():
        if name.startswith("valid_"):
            table.add_row(name.removeprefix("valid_").replace("_", " "), f"{value:.4g}")
    notes = [*weights.notes, *(f"warning: {line}" for line in setup.seen.warnings.values())]
    return job.Evaluation(figures, table, notes, setup.seen.answers)


def loaded(run: job.OpenRun[FinetuneConfig], setup: "Setup", best: bool = False) -> "Weights":
    """The newest weights of a run, or those that validated best."""
    from springroll.run.weights import load_weights

    return load_weights(run, saved_weights(run.config, setup), best=best)


def sample(run: job.OpenRun[FinetuneConfig], options: job.SampleOptions) -> job.Sample:
    """Tokens that follow the prompt."""
    from springroll.finetune.setup import prepare
    from springroll.generate.token_model import TokenModel, written

    setup = prepare(run.config)
    weights = loaded(run, setup)
    model = TokenModel(setup.model, weights.params, setup.tokenizer)
    return job.Sample(written(model, options), weights.notes)


def replay(run: job.OpenRun[FinetuneConfig]) -> "Task":
    """What the loop trained."""
    from springroll.finetune.setup import prepare

    if run.config.method == "grpo":
        raise run.trained_by_gradients()
    return task_of(run.config, prepare(run.config))


def weights(run: job.OpenRun[FinetuneConfig]) -> job.SavedWeights:
    """Where the weights are in a checkpoint."""
    from springroll.finetune.setup import prepare

    return saved_weights(run.config, prepare(run.config))


def explain(config: FinetuneConfig) -> job.Explained:
    """The logits of a row of tokens."""
    from springroll.finetune.setup import prepare

    return prepare(config).explained()


def set_up(config: FinetuneConfig) -> None:
    """Keep the memory of the process close to what is held, and make the devices of a CPU available
    to JAX."""
    return_freed_blocks()
    use_cpu_devices(config.devices or 1)


JOB = job.Job(
    name="finetune",
    set_up=set_up,
    description=DESCRIPTION,
    config=FinetuneConfig,
    recipes=RECIPES,
    build=build,
    report=report,
    evaluate=evaluate,
    sample=sample,
    replay=replay,
    weights=weights,
    exports=True,
    explain=explain,
    answers=True,
    keeps_best=True,
)
