"""The record of `springroll rl`. Imports no JAX before a function is called."""

from dataclasses import replace
from typing import TYPE_CHECKING

from springroll.cpu import use_cpu_devices
from springroll.rl.config import RLConfig
from springroll.rl.flags import list_environments, search
from springroll.rl.recipes import RECIPES
from springroll.run import job

if TYPE_CHECKING:
    from springroll.run.folder import RunFolder
    from springroll.run.loop import Result
    from springroll.run.task import Task

DESCRIPTION = """\
Learn to act: a policy network, or anything that returns a number, from its score alone.

  springroll rl --env CartPole-v1 --seconds 30
  springroll rl --env navix-DoorKey-8x8 --pop-size 4096 --rank 4
  springroll rl --env my_module:score          a Python function of weights
  springroll rl --list                         every environment there is
  springroll rl --tune --env ID --seconds 60 [--trials 20] [--factor 3]
                                               search over the settings that are not given
"""


def set_up(config: RLConfig) -> None:
    """Make the devices of a CPU available to JAX."""
    use_cpu_devices(config.devices)


def build(config: RLConfig) -> job.Prepared[RLConfig]:
    """Make the environment and what learns in it, and compile what a generation runs."""
    from springroll.rl import build as parts

    if not config.resume:
        config = replace(config, compute=parts.computed(config))
    scorer, learning = parts.prepare(config)
    try:
        learning = parts.beside_random(learning)
    except BaseException:
        scorer.close()
        raise

    def finish(result: "Result", folder: "RunFolder") -> list[str]:
        note = parts.film(config, learning, result, folder) if config.gif else ""
        return [note] if note else []

    def warm() -> None:
        if scorer.rollout is not None:
            parts.warm(learning.task)

    def close() -> list[str]:
        scorer.close()
        return [scorer.failures()] if scorer.failures() else []

    random = learning.task.summary.get("random_return")
    beat = "" if random is None else f"; random actions return {random:.4g}"
    who = f"{config.pop_size:,} members, " if config.method != "ppo" else ""
    rank = f" of rank {config.rank}" if config.method == "eggroll" else ""
    compute = "" if config.method == "ppo" or scorer.apply is None else f", {config.compute}"
    opening = f"{scorer.name}: {scorer.description}; {who}{config.method}{rank}{compute}{beat}"
    return job.Prepared(
        config=config,
        task=learning.task,
        opening=[opening],
        finish=finish,
        warm=warm,
        close=close,
    )


def report(out: str, summary: job.Summary) -> job.Rows:
    """The return beside that of random actions, the speed, and the picture of an episode."""
    from pathlib import Path

    from springroll.run.report import closing_rows

    returns = [
        (name.replace("_", " "), f"{summary[name]:.4g}")
        for name in ("eval_return", "random_return")
        if summary.get(name) is not None
    ]
    picture = f"{out}/policy.gif"
    episode = [("episode", picture)] if Path(picture).exists() else []
    return [*returns, *closing_rows(out, summary, "env_steps"), *episode]


def evaluate(run: job.OpenRun[RLConfig], options: job.EvalOptions) -> job.Evaluation:
    """The returns of episodes of the newest policy, or of the one that validated best."""
    from rich.table import Table

    from springroll.rl import build as parts

    count = options.episodes or run.config.eval_episodes
    use_cpu_devices(run.config.devices)
    generation, returns, notes = parts.evaluated(
        replace(run.config, eval_episodes=count), run, options.best
    )
    figures = {"run": run.path, "generation": generation, "episodes": count, **returns}
    title = f"{run.path} at generation {generation:,}"
    table = Table("return", "", title=title, caption=f"{count:,} episodes")
    table.add_row("mean", f"{returns['eval_return']:.4g}")
    table.add_row("deviation", f"{returns['eval_std']:.4g}")
    return job.Evaluation(figures, table, notes)


def sample(run: job.OpenRun[RLConfig], options: job.SampleOptions) -> job.Sample:
    """A policy writes no text."""
    raise run.refused("whose policy writes no text")


def replay(run: job.OpenRun[RLConfig]) -> "Task":
    """What the loop trained."""
    from springroll.rl.build import prepare

    if run.config.method == "ppo":
        raise run.trained_by_gradients()
    return prepare(run.config)[1].task


def weights(run: job.OpenRun[RLConfig]) -> job.SavedWeights:
    """What a policy needs beside its weights depends on the method; `evaluate` reads it."""
    raise run.refused("whose weights are read by springroll eval alone")


def explain(config: RLConfig) -> job.Explained:
    """The policy of one observation."""
    from springroll.rl.build import explained

    return explained(config)


JOB = job.Job(
    name="rl",
    description=DESCRIPTION,
    config=RLConfig,
    recipes=RECIPES,
    set_up=set_up,
    build=build,
    report=report,
    evaluate=evaluate,
    sample=sample,
    replay=replay,
    weights=weights,
    explain=explain,
    keeps_best=True,
    flags={"--list": list_environments, "--tune": search},
)
