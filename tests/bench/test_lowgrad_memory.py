"""The memory bench at a size that compiles in seconds: what holds at 7B holds in small."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from springroll.bench import lowgrad_memory
from springroll.bench.lowgrad_memory import adamw, low_rank, peak_bytes
from tests.subspace.stacked_model import init, remat_loss

KIB = 1024


@pytest.fixture(scope="module")
def model():
    """(model, shapes, one sequence) with blocks that outweigh embedding and activations."""
    small: Any = SimpleNamespace(loss=lambda params, tokens: (remat_loss(params, tokens), {}))
    params = jax.eval_shape(lambda: init(layers=6, d=192, f=512))
    return small, params, jax.ShapeDtypeStruct((1, 17), jnp.int32)


def test_peak_counts_donated_arguments_once():
    x = jax.ShapeDtypeStruct((256, KIB), jnp.float32)
    add = lambda x: x + 1
    assert peak_bytes(jax.jit(add).lower(x).compile()) == 2 * KIB * KIB
    assert peak_bytes(jax.jit(add, donate_argnums=0).lower(x).compile()) == KIB * KIB


def in_layers(path):
    return path.startswith("layers") and "bias" not in path


@pytest.mark.slow
def test_half_of_adamws_memory_also_while_subspaces_change(model):
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(model[1]))
    full = peak_bytes(adamw(*model)[""])
    assert full >= 4 * weights  # weights, two moments, gradients
    ours = {name: peak_bytes(program) for name, program in low_rank(48, in_layers)(*model).items()}
    assert set(ours) == {"", " refresh", " change of basis"}
    assert ours[""] <= 0.55 * full
    assert max(ours.values()) <= 0.65 * full


def test_a_record_has_every_line(monkeypatch):
    sizes = {"adamw": 4 * lowgrad_memory.GIB, "lowgrad r=8": lowgrad_memory.GIB}
    monkeypatch.setattr(lowgrad_memory, "peaks", lambda *_: sizes)
    record = lowgrad_memory.run(rank=8)
    assert record["ratio"] == 4 and record["lines"] == {"adamw": 4, "lowgrad r=8": 1}
