"""Counting experts: by formulas, from arrays that exist, and on four devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bench import expert_bytes
from bench import lowgrad_communication as communication
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, llama

pytestmark = pytest.mark.slow

OLMOE = CONFIGS["olmoe-1b-7b"]
TINY = CONFIGS["moe-tiny"]


def test_a_token_meets_top_k_of_the_experts():
    row = expert_bytes.parameters(TINY)
    expert = 3 * TINY.hidden * TINY.ffn
    idle = TINY.layers * (TINY.experts - TINY.top_k) * expert
    assert row["total"] - row["active"] == idle
    assert row["adam_bytes"] == 4 * row["weights_bytes"] == 8 * row["total"]
    assert expert_bytes.parameters(CONFIGS["llama-tiny"])["ratio"] == 1


@pytest.mark.parametrize(("given", "ratio"), [("olmoe-1b-7b", 5.4), ("gpt-oss-120b", 20.5)])
def test_ratios_of_published_models(given, ratio):
    """OLMoE's authors say 6.9B and 1.3B; gpt-oss's 116.8B and 5.1B without the embedding."""
    assert expert_bytes.parameters(CONFIGS[given])["ratio"] == pytest.approx(ratio, rel=0.1)


@pytest.fixture(scope="module")
def olmoe():
    return expert_bytes.expert_state("olmoe-1b-7b", 256)


def test_full_state_of_the_experts_of_olmoe(olmoe):
    numbers = OLMOE.layers * OLMOE.experts * 3 * OLMOE.hidden * OLMOE.ffn
    assert olmoe["AdamW, float32"]["state"] == 8 * numbers
    assert olmoe["AdamW, float32"]["gradient"] == 4 * numbers
    assert olmoe["AdamW, 8 bits"]["state"] == pytest.approx(2 * (1 + 4 / 256) * numbers)


def test_low_rank_state_of_the_experts_of_olmoe(olmoe):
    """Bases: gate and up share one; shared ones are one per layer, those of down one per expert."""
    d, f, r = OLMOE.hidden, OLMOE.ffn, 256
    experts = OLMOE.layers * OLMOE.experts
    low = 4 * experts * r * (2 * f + d)
    for own in ("own", "shared"):
        row = olmoe[f"lowgrad, {own} bases, 32 bits"]
        streams = experts if own == "own" else OLMOE.layers
        assert row["bases"] == 4 * r * (streams * d + experts * f)
        assert row["low"] == row["gradient"] == low and row["moments"] == 2 * low
        assert row["state"] == row["bases"] + row["low"] + row["moments"]
        eight = olmoe[f"lowgrad, {own} bases, 8 bits"]
        assert eight["bases"] == row["bases"]
        assert eight["moments"] == pytest.approx(row["moments"] / 4 * (1 + 4 / 256))


def test_the_wrapper_has_a_basis_for_every_matrix(olmoe):
    d, f, r = OLMOE.hidden, OLMOE.ffn, 256
    experts = OLMOE.layers * OLMOE.experts
    row = olmoe["galore, own bases in bfloat16, 8 bits"]
    assert row["bases"] == pytest.approx(2 * experts * r * (d + d + f), rel=1e-3)
    assert row["gradient"] == olmoe["AdamW, float32"]["gradient"]


@pytest.mark.parametrize("own", [True, False])
def test_counted_bytes_are_those_of_arrays(own):
    """At small scale the state is made: as many bytes as shapes say, a basis for every expert."""
    model = decoder(TINY)
    params = model.init(jax.random.key(0))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    trainer = expert_bytes.expert_trainer(model, shapes, optax.adamw(1e-3), 8, own)
    state = trainer.init(params)
    label = f"lowgrad, {'own' if own else 'shared'} bases, 32 bits"
    row = expert_bytes.expert_state("moe-tiny", 8)[label]
    real = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    assert (real(state.projectors), real(state.low)) == (row["bases"], row["low"])
    assert expert_bytes._expert_bytes(state.opt) == row["moments"]
    stack = (TINY.layers, TINY.experts) if own else (TINY.layers,)
    gate = jnp.asarray(state.projectors["layers/mlp/experts/gate_proj"])
    assert gate.shape == (*stack, TINY.hidden, 8)
    gram = jnp.swapaxes(gate, -1, -2) @ gate
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(8), gram.shape), atol=1e-5)


def test_share_of_the_weight_gradient_by_hand():
    config = llama(32, 32, 2, 2, vocab=64)
    assert expert_bytes.weight_gradient_share(config, 8) == pytest.approx(8 * 64 / 32**2)
    moe = llama(32, 16, 2, 2, vocab=64, experts=8, top_k=2)
    square, wide = 4, 3 * 2  # matrices a token meets
    low, full = 8 * (square * 64 + wide * 48), square * 32 * 32 + wide * 32 * 16
    assert expert_bytes.weight_gradient_share(moe, 8) == pytest.approx(low / full)


def test_the_bound_of_the_speedup():
    assert expert_bytes.most_speedup(1, 1) == 1 and expert_bytes.most_speedup(1, 0) == 1.5
    needed = expert_bytes.most_speedup(8.6, 0.5)
    assert expert_bytes.most_speedup(needed, 0.5) == pytest.approx(8.6)


def test_memory_of_a_step_names_every_variant(monkeypatch):
    """The low-rank trainer has programs of its own, measured elsewhere; here two small ones."""

    def two(model, params, tokens):
        compiled = lambda n: jax.jit(lambda x: x @ x.T).lower(jnp.zeros((n, 4))).compile()
        return {"": compiled(8), " refresh": compiled(16)}

    monkeypatch.setattr(expert_bytes, "low_rank", lambda rank: two)
    rows = expert_bytes.step_memory("llama-tiny", 8, 8, 64)
    assert set(rows) == {f"{a}, {b}" for a in ("AdamW", "lowgrad") for b in ("kept", "recomputed")}
    kept, recomputed = rows["AdamW, kept"], rows["AdamW, recomputed"]
    assert recomputed["temporary"] < kept["temporary"] < kept["peak"] == kept["refresh_peak"]
    low = rows["lowgrad, kept"]
    assert low["peak"] == 4 * (8 * 4 + 8 * 8) < low["refresh_peak"] == 4 * (16 * 4 + 16 * 16)


def test_the_loss_of_all_devices_is_the_loss():
    """Every device routes its own tokens: same value, same gradient as all on one."""
    model = decoder(TINY)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, 256)
    whole, split = communication.shardings()
    loss = expert_bytes.on_each_device(model, whole.mesh)
    place = lambda tree, sharding: jax.tree.map(lambda x: jax.device_put(x, sharding), tree)
    many = jax.jit(jax.value_and_grad(loss))(place(params, whole), place(tokens, split))
    one = jax.jit(jax.value_and_grad(lambda p, t: model.loss(p, t)[0]))(params, tokens)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, many, one)


def test_only_coordinates_are_sent():
    """Matrices of the blocks by their formula; the rest is the same whatever the optimizer."""
    found, config = expert_bytes.sent("llama-tiny", 8), CONFIGS["llama-tiny"]
    d, f, stack = config.hidden, config.ffn, config.layers
    assert found["AdamW, blocks"] == 4 * stack * (4 * d * d + 3 * d * f)
    assert found["lowgrad, blocks"] == 4 * stack * 8 * (4 * d + 2 * f + d)
    assert found["lowgrad, rest"] == found["rest"] > 0


def test_devices_are_those_of_another_process(monkeypatch):
    """What comes back is the last line of a process that was told how many devices to have."""
    seen = {}

    def run(command, **options):
        seen.update(options, code=command[-1])
        return type("Done", (), {"stdout": 'a warning\n{"AdamW": 3}\n'})

    monkeypatch.setattr(expert_bytes.subprocess, "run", run)
    assert expert_bytes.sent_elsewhere("moe-tiny", 8) == json.loads('{"AdamW": 3}')
    assert f"device_count={expert_bytes.DEVICES}" in seen["env"]["XLA_FLAGS"]
    assert "sent('moe-tiny', 8)" in seen["code"] and seen["check"]
