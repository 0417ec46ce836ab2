"""CartPole-v1: push a cart left or right so that the pole on it stays up.

Barto, Sutton, Anderson, "Neuronlike adaptive elements that can solve difficult learning control
problems" (1983), with the constants, thresholds and time limit of Gymnasium's CartPole-v1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Discrete, Environment, Step

GRAVITY = 9.8  # m/s^2
CART, POLE = 1.0, 0.1  # kg
HALF = 0.5  # m, half the pole's length
FORCE = 10.0  # N
SECONDS = 0.02  # per step
FARTHEST = 2.4  # m from the middle
STEEPEST = math.radians(12)


def cartpole(max_steps: int = 500) -> Environment:
    """Reward 1 for each step until the pole leans over 12 degrees or the cart is 2.4 m away.

    Observation, which is the state itself: the cart's position (m) and velocity, the pole's angle
    (radians from upright) and angular velocity. Action 0 pushes left, 1 right.
    """
    return Environment(
        name="CartPole-v1",
        observation_size=4,
        actions=Discrete(2),
        max_steps=max_steps,
        reset=_reset,
        step=_step,
        frame=_frame,
        version="springroll 1",
    )


def _reset(key: Array) -> tuple[Array, Array]:
    state = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
    return state, state


def _step(key: Array, state: Array, action: Array) -> Step:
    """One Euler step of the equations of motion; positions move by the velocities of before."""
    x, velocity, angle, spin = state
    force = jnp.where(action == 1, FORCE, -FORCE)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    mass = CART + POLE
    push = (force + POLE * HALF * spin**2 * sin) / mass
    swing = (GRAVITY * sin - cos * push) / (HALF * (4 / 3 - POLE * cos**2 / mass))
    pull = push - POLE * HALF * swing * cos / mass
    after = jnp.stack(
        [
            x + SECONDS * velocity,
            velocity + SECONDS * pull,
            angle + SECONDS * spin,
            spin + SECONDS * swing,
        ]
    )
    fallen = (jnp.abs(after[0]) > FARTHEST) | (jnp.abs(after[2]) > STEEPEST)
    return Step(after, after, jnp.float32(1), fallen, jnp.bool_(False))


def _frame(state: Array) -> np.ndarray:
    from PIL import Image, ImageDraw

    x, _, angle, _ = np.asarray(state, float)
    picture = Image.new("RGB", (300, 200), "white")
    draw = ImageDraw.Draw(picture)
    middle, track = 150 + x * 150 / FARTHEST, 150
    tip = (middle + 90 * math.sin(angle), track - 90 * math.cos(angle))
    draw.line((0, track, 300, track), fill="gray")
    draw.rectangle((middle - 22, track - 12, middle + 22, track + 12), fill="black")
    draw.line((middle, track, *tip), fill="peru", width=8)
    return np.asarray(picture)
