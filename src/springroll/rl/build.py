"""What a run of `springroll rl` is made of: where a policy is scored, and how it learns."""

from dataclasses import replace

import jax
import numpy as np

from springroll.cpu import cpu_multiplies_bfloat16
from springroll.envs.frames import NoPicture, draw, write_gif
from springroll.envs.python_env import is_python
from springroll.envs.rollout import record_episode
from springroll.envs.suites import environment
from springroll.errors import InputError
from springroll.rl.config import RLConfig
from springroll.rl.episodes import episodes_scorer
from springroll.rl.evolution import evolution
from springroll.rl.policy import policy_of
from springroll.rl.python_scorer import python_scorer
from springroll.rl.scorer import Learning, Scorer
from springroll.run.checkpoint import load_newest
from springroll.run.folder import RunFolder
from springroll.run.job import Explained, OpenRun
from springroll.run.loop import Result
from springroll.run.task import Task, Training
from springroll.run.weights import no_checkpoint


def prepare(config: RLConfig) -> tuple[Scorer, Learning]:
    """What is to be learnt, and how."""
    scorer = scorer_of(config)
    try:
        return scorer, learning_on(config, scorer)
    except BaseException:
        scorer.close()
        raise


def learning_on(config: RLConfig, scorer: Scorer) -> Learning:
    """The method."""
    if config.method == "ppo":
        from springroll.rl.ppo import ppo_learning  # rejax, of the extra rl

        return ppo_learning(config, scorer)
    return evolution(config, scorer)


def beside_random(learning: Learning) -> Learning:
    """The same with the return of random actions as a line to beat."""
    value = learning.random_return()
    if value is None:
        return learning
    curve = replace(learning.task.curve, lines={"random": value})
    task = replace(learning.task, summary={"random_return": value}, curve=curve)
    return learning._replace(task=task)


def scorer_of(config: RLConfig) -> Scorer:
    """Where it is learnt."""
    if is_python(config.env):
        return python_scorer(config)
    options = {} if config.max_steps is None else {"max_steps": config.max_steps}
    found = environment(config.env, **options)
    return episodes_scorer(config, found, policy_of(config, found.observation_size, found.actions))


def computed(config: RLConfig) -> str:
    """What hidden layers multiply in: as given, or what the device is quick at.

    Full noise makes every product one of a matrix of its own with a vector, in which 16 bits are
    slow on a CPU.
    """
    if config.compute != "auto":
        return config.compute
    on_cpu = jax.default_backend() == "cpu"
    quick = not on_cpu or (config.method == "eggroll" and cpu_multiplies_bfloat16())
    return "bfloat16" if quick else "float32"


def warm(task: Task) -> None:
    """Compile what a generation runs, so that the seconds of no method pay for it."""
    state, carry = task.init()
    members = task.ask(state)
    scores, carry, _ = task.evaluate(state, members, carry, task.batch(0))
    task.tell(state, members, np.asarray(scores))


def film(config: RLConfig, learning: Learning, result: Result, folder: RunFolder) -> str:
    """An episode of the final policy as policy.gif; returns a line where that cannot be."""
    if learning.rollout is None:
        return ""
    environment = learning.rollout.environment
    if environment.frame is None and environment.animate is None:
        return ""
    params, stats = learning.weights(result.state, result.carry)
    states, _ = record_episode(learning.rollout, params, jax.random.key(config.seed), stats)
    try:
        write_gif(folder.root / "policy.gif", draw(environment, states))
    except NoPicture as reason:
        return f"no policy.gif: {reason}"
    return ""


def evaluated(
    config: RLConfig, run: OpenRun[RLConfig], best: bool
) -> tuple[int, dict[str, float], list[str]]:
    """What the weights of a run return now: (generation, figures, notes on damaged checkpoints).

    Args:
        config: that of the run, with the number of episodes that is asked for.
        run: where the weights are.
        best: those that validated best, instead of the newest.

    Raises:
        InputError: there is no checkpoint that can be read.
    """
    scorer, learning = prepare(config)
    try:
        task = learning.task
        where = run.folder.best if best else run.folder.checkpoints
        loaded, notes = load_newest(where, Training(*task.init()))
        if loaded is None or task.validate is None:
            raise no_checkpoint(run, notes)
        figures = task.validate(*loaded.tree)
        return loaded.generation, {name: float(x) for name, x in figures.items()}, notes
    finally:
        scorer.close()


def explained(config: RLConfig) -> Explained:
    """The policy and the shapes it takes: what is perturbed.

    Raises:
        InputError: what the run evolves is no function of JAX.
    """
    scorer = scorer_of(config)
    try:
        traced = scorer.traced()
        if traced is None:
            raise InputError(f"{scorer.name} is no function of JAX, so there is nothing to look at")
        return traced
    finally:
        scorer.close()
