"""Control: a policy learns from the return of its episodes. What a run is made of, and running it.

With the command's other methods and with what is no JAX it is the same run: an `Arena` scores, a
`Task` learns, the loop does the rest.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from springroll.errors import InputError
from springroll.rl.config import RLConfig

if TYPE_CHECKING:
    from rich.console import Console

    from springroll.rl.scorer import Arena, Learning
    from springroll.run.folder import RunFolder
    from springroll.run.loop import Result
    from springroll.run.task import Task


def rl(config: RLConfig, console: "Console | None" = None) -> "Result":
    """Run it: a new run folder, or an old one gone on with; progress on `console`.

    Raises:
        InputError: no such environment or it cannot be made, the folder holds another run, or a
            figure is off.
    """
    from springroll.cpu import use_cpu_devices
    from springroll.run.folder import open_run
    from springroll.run.loop import run

    use_cpu_devices(config.devices)
    if config.resume:
        folder, config = open_run(config, RLConfig())
        arena, learning = prepare(config)
    else:
        config = replace(config, compute=computed(config))
        arena, learning = prepare(config)  # first: wrong options leave no folder behind
        folder, config = open_run(config, RLConfig())
    try:
        learning = beside_random(config, arena, learning)
        if arena.rollout is not None:
            warm(learning.task)
        if console is not None:
            console.print(
                opening(config, arena, learning), markup=False, highlight=False, soft_wrap=True
            )
        result = run(config, learning.task, folder, console=console)
        if result.signal is None and config.gif:
            note = film(config, learning, result, folder)
            if note and console is not None:
                console.print(note, markup=False, highlight=False, soft_wrap=True)
        return result
    finally:
        arena.close()
        if console is not None and arena.failures():
            console.print(arena.failures(), markup=False, highlight=False, soft_wrap=True)


def prepare(config: RLConfig) -> "tuple[Arena, Learning]":
    """What is to be learnt, and how."""
    arena = arena_of(config)
    try:
        return arena, learning_on(config, arena)
    except BaseException:
        arena.close()
        raise


def learning_on(config: RLConfig, arena: "Arena") -> "Learning":
    """The method."""
    if config.method == "ppo":
        from springroll.rl.ppo import ppo_learning

        return ppo_learning(config, arena)
    from springroll.rl.evolution import evolution

    return evolution(config, arena)


def beside_random(config: RLConfig, arena: "Arena", learning: "Learning") -> "Learning":
    """The same with the return of random actions as a line to beat."""
    if config.method == "ppo":
        from springroll.rl.ppo import random_return
    else:
        from springroll.rl.evolution import random_return
    value = random_return(config, arena)
    if value is None:
        return learning
    curve = replace(learning.task.curve, lines={"random": value})
    task = replace(learning.task, summary={"random_return": value}, curve=curve)
    return learning._replace(task=task)


def arena_of(config: RLConfig) -> "Arena":
    """Where it is learnt."""
    from springroll.envs.python_env import is_python

    if is_python(config.env):
        from springroll.rl.python_scorer import python_arena

        return python_arena(config)
    from springroll.envs.suites import environment
    from springroll.rl.episodes import episodes_arena
    from springroll.rl.policy import policy_of

    options = {} if config.max_steps is None else {"max_steps": config.max_steps}
    found = environment(config.env, **options)
    return episodes_arena(config, found, policy_of(config, found.observation_size, found.actions))


def computed(config: RLConfig) -> str:
    """What hidden layers multiply in: as given, or what the device is quick at.

    Full noise makes every product one of a matrix of its own with a vector, in which 16 bits are
    slow on a CPU.
    """
    if config.compute != "auto":
        return config.compute
    import jax

    from springroll.cpu import cpu_multiplies_bfloat16

    on_cpu = jax.default_backend() == "cpu"
    quick = not on_cpu or (config.method == "eggroll" and cpu_multiplies_bfloat16())
    return "bfloat16" if quick else "float32"


def warm(task: "Task") -> None:
    """Compile what a generation runs, so that the seconds of no method pay for it."""
    import numpy as np

    state, carry = task.init()
    members = task.ask(state)
    scores, carry, _ = task.evaluate(state, members, carry, task.batch(0))
    task.tell(state, members, np.asarray(scores))


def opening(config: RLConfig, arena: "Arena", learning: "Learning") -> str:
    """What learns what, before it starts."""
    random = learning.task.summary.get("random_return")
    beat = "" if random is None else f"; random actions return {random:.4g}"
    who = f"{config.pop_size:,} members, " if config.method != "ppo" else ""
    rank = f" of rank {config.rank}" if config.method == "eggroll" else ""
    compute = "" if config.method == "ppo" or arena.apply is None else f", {config.compute}"
    return f"{arena.name}: {arena.says}; {who}{config.method}{rank}{compute}{beat}"


def film(config: RLConfig, learning: "Learning", result: "Result", folder: "RunFolder") -> str:
    """An episode of the final policy as policy.gif; returns a line where that cannot be."""
    if learning.rollout is None:
        return ""
    import jax

    from springroll.envs.frames import NoPicture, draw, write_gif
    from springroll.envs.recording import recorded

    environment = learning.rollout.environment
    if environment.frame is None and environment.animate is None:
        return ""
    params, seen = learning.weights(result.state, result.carry)
    states, _ = recorded(learning.rollout, params, jax.random.key(config.seed), seen)
    try:
        write_gif(folder.path / "policy.gif", draw(environment, states))
    except NoPicture as reason:
        return f"no policy.gif: {reason}"
    return ""


def evaluated_run(
    config: RLConfig, path: str, best: bool
) -> "tuple[int, Mapping[str, Any], list[str]]":
    """What the weights of a run return now: (generation, figures, notes on damaged checkpoints).

    Args:
        best: those that validated best, instead of the newest.

    Raises:
        InputError: there is no checkpoint that can be read.
    """
    from springroll.cpu import use_cpu_devices
    from springroll.run.checkpoint import load_newest
    from springroll.run.folder import RunFolder
    from springroll.run.task import Training

    use_cpu_devices(config.devices)
    folder = RunFolder.resume(path)
    arena, learning = prepare(config)
    try:
        task = learning.task
        found, notes = load_newest(
            folder.best if best else folder.checkpoints, Training(*task.init())
        )
        if found is None or task.validate is None:
            why = "".join(f" ({note})" for note in notes)
            raise InputError(f"{path} has no checkpoint that can be read{why}")
        return found.generation, task.validate(*found.tree), notes
    finally:
        arena.close()


def explained_policy(config: RLConfig) -> tuple[Any, ...]:
    """(fn, params, observation), the last two as shapes: what is perturbed.

    Raises:
        InputError: what the run evolves is no function of JAX.
    """
    arena = arena_of(config)
    try:
        traced = arena.traced()
        if traced is None:
            raise InputError(f"{arena.name} is no function of JAX, so there is nothing to look at")
        return traced
    finally:
        arena.close()
