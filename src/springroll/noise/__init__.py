"""Counter-based random numbers: every draw is a function of its address."""

from springroll.noise.kinds import NOISE, Noise, noise_named, normal_from_bits

__all__ = [
    "NOISE",
    "Noise",
    "noise_named",
    "normal_from_bits",
]
