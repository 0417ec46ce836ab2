"""What a strategy says of its parameters when it begins: what costs much, and what stands still."""

import math
import warnings

import jax.numpy as jnp

from springroll.errors import InputError
from springroll.evolve.perturbation import Leaf, Perturbation
from springroll.evolve.roles import Roles, matches
from springroll.thin.densify import DEFAULT_LIMIT, DensifyWarning, formed_whole
from springroll.thin.roles import WeightRole


def announce(perturbation: Perturbation, roles: Roles | None) -> None:
    """Say of each parameter whose role was not given by the user what he may not expect.

    A weight that `sr.discover` found to be needed whole has full-rank noise, and every member forms
    it: a `DensifyWarning` says so, and above 1 MiB per member it is refused, as where no roles are
    given. Complex parameters are frozen with a warning.

    Raises:
        InputError: A weight above 1 MiB would be formed by every member.
    """
    roles = roles or {}
    patterns = [path for path, role in roles.items() if isinstance(role, str)]
    for leaf in perturbation.leaves:
        if any(matches(leaf.path, pattern) for pattern in patterns):
            continue
        role = roles.get(leaf.path)
        if isinstance(role, WeightRole) and role.formed and leaf.kind == "dense":
            _formed(leaf, role)
        if leaf.numbers is not None and jnp.issubdtype(leaf.numbers, jnp.complexfloating):
            warnings.warn(
                f"{leaf.path} ({leaf.dtype}{list(leaf.shape)}) is frozen, since it is complex; "
                "hold its real and imaginary parts as two arrays to evolve it, or give "
                f"roles={{{leaf.path!r}: 'frozen'}}",
                UserWarning,
                stacklevel=4,
            )


def _formed(leaf: Leaf, role: WeightRole) -> None:
    size = math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
    text = formed_whole(leaf.path, leaf.shape, leaf.dtype, size, role.reason)
    if size > DEFAULT_LIMIT:
        raise InputError(f"{text} (Above {DEFAULT_LIMIT:,} bytes it is refused.)")
    warnings.warn(text, DensifyWarning, stacklevel=5)
