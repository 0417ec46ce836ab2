"""Step for step what the released PyTorch optimizers do, on the same gradients."""

from typing import Any

import pytest

from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import hf_adamw
from tests.reference.gradient_sequence import FAMILIES, GAP, STEPS
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
