"""Step for step what the released PyTorch optimizers do, on the same gradients."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import hf_adamw
from springroll.subspace.projection import Projector
from springroll.trees import named_leaves
from tests.reference import galore_models
from tests.reference.gradient_sequence import FAMILIES, GAP, STEPS
from tests.reference.other_models import MODELS, batch, problem
from tests.reference.torch_parity import deviation, golden, trajectory, with_projectors

LR, DECAY, RANK = 0.01, 0.1, 4
NEVER = 10**6


@pytest.fixture(scope="module")
def kept():
    return golden("galore") | golden("apollo") | {f"fira/{k}": v for k, v in golden("fira").items()}


def theirs(kept, key, step):
    return {name: kept[f"{key}/{step}/{name}"] for name in ("tall", "wide", "vector")}


@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right", "full"])
def test_galore_torch(kept, side):
    tx = galore(
        hf_adamw(LR, weight_decay=DECAY),
        RANK,
        side=side,
        refresh_interval=GAP,
        compat="galore-torch",
    )
    for family in FAMILIES:
        ours = trajectory(tx, family, (GAP, STEPS))
        for step, params in ours.items():
            assert deviation(params, theirs(kept, f"{family}/{side}", step)) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("side", galore_models.SIDES)
@pytest.mark.parametrize("name", MODELS)
def test_galore_torch_on_models_of_other_libraries(name, side):
    """Attention and a head: matrices with an axis of heads, or laid out either way round."""
    params, loss = problem(name)
    tx = galore(
        hf_adamw(galore_models.LR, weight_decay=galore_models.DECAY),
        galore_models.RANK,
        scale=galore_models.SCALE,
        side=side,
        refresh_interval=galore_models.GAP,
        roles=sr.discover(loss, params, *batch(0)),
        compat="galore-torch",
    )
    start, state = named_leaves(params), tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(galore_models.STEPS):
        params, state = step(params, state, *batch(i))
    kept = golden("galore_models")
    for path, weight in named_leaves(params).items():
        theirs = kept[f"{name}/{side}/{path}"]
        moved = np.linalg.norm(theirs - start[path])
        assert np.linalg.norm(weight - theirs) < 2e-3 * moved, path
    assert sum(p is not None for p in map_projectors(state)) == 5


def map_projectors(state):
    return jax.tree.leaves(state.projectors, is_leaf=lambda x: isinstance(x, Projector))


@pytest.mark.parametrize("name", ["apollo", "mini"])
def test_apollo_torch(kept, name):
    options: Any = dict(
        weight_decay=DECAY, compat="apollo-torch", refresh="svd", refresh_interval=NEVER
    )
    tx = apollo(LR, RANK, scale=1.5, **options) if name == "apollo" else apollo_mini(LR, **options)
    supply = lambda step, state: with_projectors(state, step, kept, name)
    ours = trajectory(tx, "separated", (GAP, 2 * GAP, STEPS), supply)
    for step, params in ours.items():
        for scale_front in (False, True):
            assert deviation(params, theirs(kept, f"{name}/{scale_front}", step)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_fira(kept, family):
    tx = fira(LR, RANK, weight_decay=DECAY, compat="fira", refresh_interval=NEVER)
    supply = lambda step, state: with_projectors(state, step, kept, f"fira/{family}")
    ours = trajectory(tx, family, (GAP, 2 * GAP, STEPS), supply)
    for step, params in ours.items():
        assert deviation(params, theirs(kept, f"fira/{family}", step)) < 1e-5
