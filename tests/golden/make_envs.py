"""Write `control.json`: episodes of Gymnasium's CartPole-v1 and Pendulum-v1. Needs gymnasium."""

import json
from pathlib import Path

import gymnasium
import numpy as np


def episode(name: str, actions: list, start: list[float]) -> dict:
    """What Gymnasium says to these actions from this state, until the task is over."""
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    env.state = np.array(start)
    rows = {"start": start, "actions": [], "observations": [], "rewards": [], "terminated": []}
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        rows["actions"].append(np.asarray(action).tolist())
        rows["observations"].append([round(float(x), 7) for x in observation])
        rows["rewards"].append(round(float(reward), 7))
        rows["terminated"].append(bool(terminated))
        if terminated:
            break
    return rows


def main() -> None:
    draw = np.random.default_rng(0)
    pushes = [int(x) for x in draw.integers(0, 2, 100)]
    torques = [np.array([x], np.float32) for x in np.round(draw.uniform(-3, 3, 60), 3)]
    data = {
        "CartPole-v1": [
            episode("CartPole-v1", pushes, [0.01, -0.02, 0.03, 0.04]),  # the pole falls
            episode("CartPole-v1", [1] * 100, [2.3, 1.5, 0.05, 0.0]),  # the cart leaves the track
        ],
        "Pendulum-v1": [
            episode("Pendulum-v1", torques, [3.0, 0.5]),
            episode("Pendulum-v1", torques, [-1.0, 7.9]),  # as fast as it may be
        ],
        "limits": {
            name: gymnasium.spec(name).max_episode_steps for name in ("CartPole-v1", "Pendulum-v1")
        },
    }
    Path(__file__).with_name("control.json").write_text(json.dumps(data) + "\n")


if __name__ == "__main__":
    main()
