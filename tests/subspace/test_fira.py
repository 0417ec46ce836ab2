"""fira: GaLore inside the subspace, the scaled gradient outside, nothing twice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import hf_adamw
from springroll.subspace.projection import ProjectionOptions

L, M, N, R = 2, 8, 12, 3


def gradient(seed):
    return {"w": jax.random.normal(jax.random.key(seed), (L, M, N))}


PARAMS = gradient(0)


def first_update(tx):
    """(update, the projection PPᵀ of the first step)."""
    updates, state = jax.jit(tx.update)(gradient(1), jax.jit(tx.init)(PARAMS), PARAMS)
    frame = state if hasattr(state, "projectors") else state[0]
    basis = frame.projectors["w"].left
    return updates["w"], basis @ jnp.matrix_transpose(basis)


def test_inside_it_is_galore_and_outside_the_scaled_gradient():
    ours, inside = first_update(fira(1e-2, R, scale=0.5))
    low, _ = first_update(galore(hf_adamw(1e-2), R, scale=0.5))
    np.testing.assert_allclose(inside @ ours, low, atol=1e-6)
    grad = gradient(1)["w"]
    outside = grad - inside @ grad
    ratio = (ours - low) / outside
    np.testing.assert_allclose(ratio, jnp.broadcast_to(ratio[:, :1], ratio.shape), rtol=2e-2)
    assert float(jnp.max(ratio)) < 0


def test_the_released_leak_is_only_in_compat():
    """There, a share 1 - scale of the gradient inside takes the way outside."""
    options: ProjectionOptions = {"side": "in", "rows": "in", "refresh": "power", "stagger": True}
    ours, inside = first_update(fira(1e-2, R, **options))
    leaky, same = first_update(fira(1e-2, R, compat="fira", **options))
    np.testing.assert_allclose(inside, same, atol=1e-6)
    np.testing.assert_allclose(ours - inside @ ours, leaky - inside @ leaky, atol=1e-6)
    assert float(jnp.max(jnp.abs(inside @ (ours - leaky)))) > 1e-3


def test_at_scale_one_there_is_nothing_to_leak():
    options: ProjectionOptions = {"side": "in", "rows": "in", "refresh": "power", "stagger": False}
    options["moments"] = "keep"
    ours, _ = first_update(fira(1e-2, R, scale=1.0, **options))
    released, _ = first_update(fira(1e-2, R, scale=1.0, compat="fira", **options))
    np.testing.assert_allclose(ours, released, atol=1e-7)


def test_full_rank_is_adam():
    ours, _ = first_update(fira(1e-2, M, scale=1.0))
    low, _ = first_update(galore(hf_adamw(1e-2), M, scale=1.0))
    np.testing.assert_allclose(ours, low, atol=1e-6)


def test_one_line_for_wrong_input():
    with pytest.raises(InputError, match="side is 'full'; fira scales channels"):
        fira(1e-2, R, side="full")
    misspelt: Any = "Fira"
    with pytest.raises(InputError, match="compat is 'Fira'; expected one of fira; did you mean"):
        fira(1e-2, R, compat=misspelt)
