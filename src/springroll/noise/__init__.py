"""Counter-based random numbers: every draw is a function of its address."""

from springroll.noise.kinds import NOISE, Noise

__all__ = [
    "NOISE",
    "Noise",
]
