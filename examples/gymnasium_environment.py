"""An environment of your own with Gymnasium's interface: land softly, with little fuel.

    springroll rl --env examples/gymnasium_environment.py:lander --pop-size 256 --width 64 \\
        --lr 0.05 --deterministic --seconds 60 --out lander

Any environment that is registered with Gymnasium is found by its id instead:

    springroll rl --env gymnasium-CartPole-v1 --pop-size 256 --width 64 --lr 0.05 \\
        --deterministic --seconds 60 --out cartpole

This one does not even import gymnasium: `reset(seed=...)`, `step(action)`, an `action_space` and
`max_steps` are all that is asked for. The environments run in processes of their own, several in
each; all of them get their actions from one call of the policy.

A soft landing returns 100 less the fuel. Any actions return -17 and the first weights -10; within
half a minute on two cores it is 93. CartPole reaches its 500 in the same time.
"""

import random
from types import SimpleNamespace

GRAVITY, THRUST, SECONDS = 1.6, 4.0, 0.2  # m/s^2, m/s^2, per step


class Lander:
    """A moon lander that can only burn or not. It sees its height, its speed and its fuel."""

    action_space = SimpleNamespace(n=2)  # as gymnasium.spaces.Discrete(2)
    max_steps = 300

    def reset(self, seed: int | None = None) -> tuple[list[float], dict]:
        draw = random.Random(seed)
        self.height, self.speed = draw.uniform(30, 60), draw.uniform(-5, 2)
        self.fuel = 1.0
        return self.seen(), {}

    def step(self, action: int) -> tuple[list[float], float, bool, bool, dict]:
        burning = action == 1 and self.fuel > 0
        self.fuel -= burning * 0.01
        self.speed += SECONDS * (burning * THRUST - GRAVITY)
        self.height += SECONDS * self.speed
        landed = self.height <= 0
        reward = 100 - 10 * max(0.0, -self.speed - 1) if landed else 0.0
        return self.seen(), reward - burning * 0.2, landed, False, {}

    def seen(self) -> list[float]:
        return [self.height / 50, self.speed / 10, self.fuel]


def lander() -> Lander:
    return Lander()
