"""A population the slow way: one full matrix of noise and one copy of the weights per member."""

import jax
import numpy as np

LETTERS = "abcdefgh"


def all_noise(members):
    """[{path: E}] for every pair, dense float64 of unit variance, from the factors they hold."""
    perturbation = members.perturbation
    factors = jax.device_get(members.drawn())
    return [_noise(perturbation, factors, pair) for pair in range(members.pairs.shape[0])]


def _noise(perturbation, factors, pair):
    dense = {}
    for leaf in perturbation.evolved:
        mine = [np.take(x, pair, axis=leaf.stacked).astype(np.float64) for x in factors[leaf.path]]
        if leaf.kind == "dense":
            dense[leaf.path] = mine[0] * perturbation.noise.scale
            continue
        names = LETTERS[: len(leaf.shape)]
        left, right = (
            "".join(n for n, role in zip(names, leaf.roles, strict=True) if role in ("s", side))
            for side in "mn"
        )
        product = np.einsum(f"{left}z,{right}z->{names}", *mine)
        dense[leaf.path] = product * perturbation.noise.scale**2 / np.sqrt(perturbation.rank)
    return dense


def all_params(params, members):
    """The weights of every member, formed, in the order of the members."""
    signs = members.perturbation.signs
    return [
        _moved(params, noise, sign * float(members.sigma))
        for noise in all_noise(members)
        for sign in signs
    ]


def _moved(params, noise, step):
    def one(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        moved = np.asarray(x, np.float64) + step * noise[name] if name in noise else np.asarray(x)
        return moved.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def weighted_sum(members, weights):
    """{path: sum_i w_i s_i E_i}, term by term."""
    signs = members.perturbation.signs
    total = {leaf.path: np.zeros(leaf.shape) for leaf in members.perturbation.evolved}
    for pair, noise in enumerate(all_noise(members)):
        for k, sign in enumerate(signs):
            for path in total:
                total[path] += float(weights[pair * len(signs) + k]) * sign * noise[path]
    return total
