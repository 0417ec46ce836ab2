"""What a generation of evolution knows, by sigma: a rate and a sigma to begin with, in minutes.

N members in antithetic pairs answer P prompts once, at several sizes of the perturbation. Of the
differences between the two members of a pair some are the same on all prompts; the rest is chance
of the prompts asked. With `v` the variance over pairs of the mean difference, `reliability` is the
share of it that other prompts would show too, `loss` what the members' mean reward lies below that
of the weights, and `c` the factor from mean reward to shaped fitness. To second order a step of
rate lr then gains `lr sqrt(N) c v reliability / 4` along the gradient and loses
`lr^2 c^2 v loss / 2` to its noise, which harms as that of a member does, so that

    rate = sqrt(N) reliability / (4 c loss),      gain = N v reliability^2 / (32 loss).

Rates are without momentum; with momentum m give (1 - m) times that. Where members lose much of the
reward the second order is not enough: such a sigma is too large whatever the gain says.

    python -m bench.fitness_signal --model FOLDER --task "arithmetic digits=2" [--scales 0.3 1 3]
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from springroll.bench import measure
from springroll.finetune.config import FinetuneConfig
from springroll.markdown import markdown_table
from springroll.ranges import COUNT

HEAD = ["sigma", "of the weights", "of members", "reliability", "rate", "gain per generation"]


class Signal(NamedTuple):
    """Of one generation."""

    base: float  # reward of the weights
    mean: float  # and of the members
    reliability: float  # of differences between members, 0 to 1
    rate: float  # without momentum; infinite where members lose nothing
    gain: float  # of reward per generation, at that rate


def signal_of(rewards: np.ndarray, base: np.ndarray) -> Signal:
    """Of rewards (N, P), members 2 p and 2 p + 1 a pair, and those of the weights (P,)."""
    members, prompts = rewards.shape
    difference = rewards[0::2] - rewards[1::2]
    total = float(difference.mean(axis=1).var(ddof=1))
    chance = float(difference.var(axis=1, ddof=1).mean()) / prompts
    reliability = max(0.0, 1 - chance / total) if total else 0.0
    loss = float(base.mean() - rewards.mean())
    factor = np.sqrt(prompts) / max(float(rewards.std()), 1e-12)
    if loss <= 0:
        return Signal(float(base.mean()), float(rewards.mean()), reliability, np.inf, np.inf)
    rate = float(np.sqrt(members) * reliability / (4 * factor * loss))
    gain = members * total * reliability**2 / (32 * loss)
    return Signal(float(base.mean()), float(rewards.mean()), reliability, rate, gain)


def signals(config: FinetuneConfig, scales: Sequence[float]) -> dict[float, Signal]:
    """By sigma: that of the config, or the usual one, times each of the scales."""
    from springroll.finetune.job import task_of
    from springroll.finetune.setup import prepare

    setup = prepare(config)
    asked = setup.train(0, config.num_prompts)
    usual, found = config.sigma, {}
    for scale in scales:
        if usual is None:
            task = task_of(config, setup)
            usual = float(task.ask(task.init()[0]).sigma)
        task = task_of(replace(config, sigma=scale * usual), setup)
        state, carry = task.init()
        rewards, _, _ = task.evaluate(state, task.ask(state), carry, asked)
        written = setup.generator.run(state.params, None, asked.prompts)
        base = setup.judged(asked, written).reward[0]
        found[scale * usual] = signal_of(np.asarray(rewards), base)
    setup.task.close()
    return found


def line(sigma: float, signal: Signal) -> list[str]:
    """A row of the table."""
    figures = [f"{x:.3g}" for x in signal]
    return [f"{sigma:.3g}", *figures]


def main() -> None:
    parser = measure.Arguments(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="arithmetic digits=2")
    parser.add_argument("--data")
    parser.add_argument("--weights", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--scales", nargs="+", type=float, default=[0.3, 1.0, 3.0])
    for name, usual in (("pop-size", 64), ("prompts", 16), ("max-tokens", 16)):
        parser.add_number(f"--{name}", int, COUNT, default=usual)
    given = parser.parse_args()
    config = FinetuneConfig(
        model=given.model,
        task=given.task,
        data=given.data,
        weights=given.weights,
        pop_size=given.pop_size,
        prompts=given.prompts,
        max_tokens=given.max_tokens,
    )
    found = signals(config, given.scales)
    rows = [line(sigma, signal) for sigma, signal in found.items()]
    print(markdown_table([HEAD, *rows]), file=sys.stderr)
    for sigma, signal in found.items():
        ratio = signal.mean / signal.base if signal.base else 0.0
        rate = signal.rate if np.isfinite(signal.rate) else None
        figures = {"sigma": sigma, "reliability": signal.reliability, "rate": rate}
        measure.report(measure.record("fitness_signal", signal.mean, signal.base, ratio, **figures))


if __name__ == "__main__":
    main()
