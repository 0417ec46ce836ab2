"""Members per second on one core, beside what was measured of the reference implementation.

CartPole-v1, the paper's policy, 256 members, episodes of 100 steps without early ends. What is
timed is the scoring of a population, its noise drawn beforehand or within as the engine likes; a
whole generation (drawing, scoring, update) is reported beside it. The reference's figures, 2,327
members/s at rank 1 and 738 at rank 4, were measured on one core of a comparable machine with its
policy of as many weights, and are constants here: its code is not run.

    python -m bench.reference_rate
"""

from typing import Any, cast

import jax
import numpy as np

from bench.evosax_rate import endless
from springroll.bench import measure
from springroll.envs.suites import environment
from springroll.models.policy import Compute, PolicyNetwork
from springroll.rl.build import computed
from springroll.rl.config import RLConfig
from springroll.rl.episodes import episodes_scorer
from springroll.rl.evolution import evolution

REFERENCE = {1: 2327.0, 4: 738.0}  # members per second, by rank
TARGET = {1: 2.0, 4: 5.0}


def run(
    rank: int, pop_size: int = 256, steps: int = 100, repeats: int = 7, **network: Any
) -> dict[str, Any]:
    """Members per second in float32, and in what the machine is quick at.

    Args:
        network: `width` and `layers` of the policy.
    """
    task = endless(environment("CartPole-v1", max_steps=steps))
    config = RLConfig(pop_size=pop_size, rank=rank, devices=1, **network)
    calls = {}
    for compute in cast(list[Compute], list(dict.fromkeys(("float32", computed(config))))):
        policy = PolicyNetwork(
            task.observation_size,
            task.actions.outputs,
            width=config.width,
            layers=config.layers,
            compute=compute,
        )
        learnt = evolution(config, episodes_scorer(config, task, policy)).task
        state, seen = learnt.init()
        members = jax.block_until_ready(learnt.ask(state))

        def scoring(learnt=learnt, state=state, members=members, seen=seen) -> Any:
            return learnt.evaluate(state, members, seen, 0)[0]

        def generation(learnt=learnt, state=state, seen=seen) -> Any:
            members = learnt.ask(state)
            fitness = learnt.evaluate(state, members, seen, 0)[0]
            return learnt.tell(state, members, np.asarray(fitness))[0]

        calls |= {compute: scoring, f"{compute}_generation": generation}
    seconds = measure.medians(measure.interleaved(calls, repeats))
    rate = {name: pop_size / each for name, each in seconds.items()}
    ours = max(rate[name] for name in rate if not name.endswith("generation"))
    return measure.record(
        f"reference_rate_rank_{rank}",
        ours,
        REFERENCE[rank],
        ours / REFERENCE[rank],
        unit="members per second",
        steps_per_second=ours * steps,
        rates=rate,
        pop_size=pop_size,
        steps=steps,
        target=f"ratio >= {TARGET[rank]:g}",
    )


def main() -> None:
    measure.pin_one_core()
    for rank in REFERENCE:
        measure.report(run(rank))


if __name__ == "__main__":
    main()
