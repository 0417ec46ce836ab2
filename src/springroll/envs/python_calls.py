"""Seeds of calls and episodes of code that is not JAX."""

import numpy as np


def pair_seeds(seed: int, generation: int, members: int, signs: int, episodes: int) -> np.ndarray:
    """Seeds (members, episodes) int64 in 0 .. 2^31 - 1, new ones in every generation.

    The `signs` members that share their noise (2 for antithetic pairs) share their seeds as well:
    their scores then differ by their weights alone.
    """
    draw = np.random.default_rng([seed, generation])
    seeds = draw.integers(0, 2**31, (members // signs, episodes))
    return np.repeat(seeds, signs, axis=0)
