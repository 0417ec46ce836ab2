"""Pendulum-v1: swing a rod up with a motor too weak to lift it, and keep it there.

The equations, costs and time limit are those of Gymnasium's Pendulum-v1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Box, Environment, Step

GRAVITY = 10.0  # m/s^2; the rod is 1 m long and weighs 1 kg
TORQUE = 2.0  # N m at most
FASTEST = 8.0  # rad/s
SECONDS = 0.05  # per step


def pendulum(max_steps: int = 200) -> Environment:
    """Reward `-(angle**2 + 0.1 * spin**2 + 0.001 * torque**2)` of the state before the step.

    The state is the angle (radians from upright, counted on beyond a turn) and the spin (rad/s),
    the observation the angle's cosine and sine and the spin, the action a torque, clipped to +-2.
    An episode ends by its time only.
    """
    return Environment(
        name="Pendulum-v1",
        observation_size=3,
        actions=Box((-TORQUE,), (TORQUE,)),
        max_steps=max_steps,
        reset=_reset,
        step=_step,
        frame=_frame,
        version="springroll 1",
    )


def _reset(key: Array) -> tuple[Array, Array]:
    farthest = jnp.array([jnp.pi, 1], jnp.float32)
    state = jax.random.uniform(key, (2,), jnp.float32, -farthest, farthest)
    return state, _observation(state)


def _step(key: Array, state: Array, action: Array) -> Step:
    """Semi-implicit Euler: the new angle follows from the new spin."""
    angle, spin = state
    torque = jnp.clip(action[0], -TORQUE, TORQUE)
    lean = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    reward = -(lean**2 + 0.1 * spin**2 + 0.001 * torque**2)
    spin = spin + SECONDS * (1.5 * GRAVITY * jnp.sin(angle) + 3 * torque)
    spin = jnp.clip(spin, -FASTEST, FASTEST)
    after = jnp.stack([angle + SECONDS * spin, spin])
    return Step(after, _observation(after), reward, jnp.bool_(False), jnp.bool_(False))


def _observation(state: Array) -> Array:
    return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])


def _frame(state: Array) -> np.ndarray:
    from PIL import Image, ImageDraw

    angle = float(state[0])
    picture = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(picture)
    tip = (100 - 80 * math.sin(angle), 100 - 80 * math.cos(angle))
    draw.line((100, 100, *tip), fill="firebrick", width=14)
    draw.ellipse((94, 94, 106, 106), fill="black")
    return np.asarray(picture)
