"""Toy experts: energy kept beside slow loops, laws of bases, and experts that a step touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import expert_subspaces as subspaces
from springroll.models.decoder_config import CONFIGS
from springroll.tasks.corpus import load_corpus

pytestmark = pytest.mark.slow


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def kept(*args):
    return np.array(subspaces.kept(*args))


def slow_kept(now, later, rank, common):
    """The same with numpy, a matrix at a time."""
    layers, experts, _, _ = now.shape
    kept, total = np.zeros(3), 0.0
    for i in range(layers):
        together = np.concatenate(list(now[i]), axis=1)
        for e in range(experts):
            own = np.linalg.svd(now[i, e])[0][:, :rank]
            all_ = np.linalg.svd(together)[0]
            for j, basis in enumerate((own, all_[:, :rank], all_[:, :common])):
                kept[j] += np.sum((basis.T @ later[i, e]) ** 2)
            total += np.sum(later[i, e] ** 2)
    return kept / total


def test_energy_kept_is_that_of_slow_loops():
    now, later = normal(0, 2, 3, 8, 5), normal(1, 2, 3, 8, 5)
    slow = slow_kept(np.array(now), np.array(later), 2, 4)
    np.testing.assert_allclose(kept(now, later, 2, 4), slow, rtol=1e-4)


def test_experts_that_are_alike_need_one_basis():
    now = jnp.broadcast_to(normal(0, 2, 1, 8, 5), (2, 3, 8, 5))
    own, shared, _ = kept(now, now + 0.1 * normal(2, 2, 3, 8, 5), 2, 4)
    assert own == pytest.approx(shared, abs=1e-4)


def test_an_own_basis_is_the_best_of_its_rank_on_its_own_batch():
    now = normal(3, 2, 3, 8, 5)
    own, shared, common = kept(now, now, 2, 4)
    assert shared < own < 1 and shared < common < 1


def test_a_dead_expert_has_no_energy_and_does_no_harm():
    now = normal(4, 2, 3, 8, 5).at[:, 1].set(0)
    found = kept(now, now, 2, 4)
    np.testing.assert_allclose(found, slow_kept(np.array(now), np.array(now), 2, 4), rtol=1e-4)
    assert np.all(kept(jnp.zeros_like(now), now, 2, 4) >= 0)  # finite where nothing was seen


@pytest.mark.parametrize(("m", "n", "experts", "rank"), [(128, 128, 8, 32), (64, 128, 8, 16)])
def test_common_rank_costs_the_same_bytes(m, n, experts, rank):
    common = subspaces.common_rank(m, n, experts, rank)
    own_bytes = experts * rank * (m + 3 * n)
    per_rank = m + 3 * experts * n
    assert abs(common * per_rank - own_bytes) <= per_rank / 2
    assert rank < common <= m


def test_common_rank_is_no_more_than_there_is():
    assert subspaces.common_rank(8, 1, 64, 8) == 8


def test_sides_of_gradients():
    """(out, in) matrices: an input side has the inputs first, and gate and up one basis."""
    g = {"gate_proj": normal(0, 1, 2, 3, 5), "up_proj": normal(1, 1, 2, 3, 5)}
    both, _, out, _ = subspaces.SIDES
    joined = subspaces.seen_from(both, g)
    assert joined.shape == (1, 2, 5, 6)
    np.testing.assert_array_equal(joined[0, 1, :, :3], g["gate_proj"][0, 1].T)
    np.testing.assert_array_equal(joined[0, 1, :, 3:], g["up_proj"][0, 1].T)
    np.testing.assert_array_equal(subspaces.seen_from(out, g), g["gate_proj"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    text = "".join(f"def times_{i}(x):\n    return {i} * x\n\n" for i in range(3000))
    (folder / "text.py").write_text(text)
    return subspaces.train(CONFIGS["moe-tiny"], load_corpus(str(folder)), 30, 4, 16)


def test_a_toy_learns_and_keeps_its_start(toy):
    assert toy.nats[1] < 0.8 * toy.nats[0]
    assert float(jnp.std(toy.start["embed_tokens"])) == pytest.approx(0.05, rel=0.02)
    assert np.all(np.array(toy.start["norm"]) == 1) and np.any(np.array(toy.params["norm"]) != 1)
    bias = toy.params["layers"]["mlp"]["e_score_correction_bias"]
    assert np.any(np.array(bias) != 0)  # routers were balanced


def test_energies_have_a_row_per_side(toy):
    rows = subspaces.energies(toy, 2, 16, pairs=1, share=4)
    assert [row["side"] for row in rows] == [side.name for side in subspaces.SIDES]
    for row in rows:
        assert row["rank"] == row["width"] // 4 < row["common_rank"]
        assert row["shared"] <= row["shared_equal_bytes"] + 1e-6
        assert 0 < row["own"] <= 1 + 1e-5 and row["tokens"] == 32


def test_gradients_of_experts_are_slopes_of_the_loss(toy):
    tokens = jnp.asarray(toy.text[:34].reshape(2, 17))
    found = subspaces.expert_gradients(toy.model)(toy.params, tokens)
    loss = jax.jit(lambda params: toy.model.loss(params, tokens)[0])
    along = jax.tree.map(lambda g: g / jnp.linalg.norm(g), found)

    def moved(step):
        mlp = toy.params["layers"]["mlp"]
        experts = jax.tree.map(lambda w, d: w + step * d, mlp["experts"], along)
        return toy.params | {"layers": toy.params["layers"] | {"mlp": mlp | {"experts": experts}}}

    slope = float(loss(moved(1e-2)) - loss(moved(-1e-2))) / 2e-2
    assert slope == pytest.approx(float(sum(map(jnp.linalg.norm, found.values()))), rel=2e-2)


def test_more_tokens_touch_more_experts(toy):
    rows = subspaces.touched(toy, (1, 64), draws=2, longest=32)
    few, many = rows
    top = toy.model.config.top_k / toy.model.config.experts
    assert few["start"] == few["trained"] == few["uniform"] == pytest.approx(top)
    assert many["trained"] > few["trained"] and many["uniform"] > 0.999


def test_batches_continue_one_another():
    text = np.arange(100, dtype=np.uint8)
    first, second = subspaces.consecutive(text, 2, 2, 10)
    np.testing.assert_array_equal(first[:, -1], second[:, 0])


def test_chance_by_counting():
    config = subspaces.fine_grained(CONFIGS["moe-1m"], 4, 2)
    rng = np.random.default_rng(0)
    picks = rng.random((20_000, 3, 4)).argsort(-1)[..., :2]  # 3 tokens, 2 of 4 experts
    seen = np.mean(np.any(picks.reshape(20_000, 6) == 0, axis=1))
    assert subspaces.chance(config, 3) == pytest.approx(seen, abs=0.01)


def test_more_and_narrower_experts_are_as_many_parameters():
    base = CONFIGS["moe-1m"]
    fine = subspaces.fine_grained(base, 64, 8)
    assert (fine.experts, fine.top_k, fine.ffn) == (64, 8, base.ffn // 8)
    routers = base.layers * (64 - base.experts) * (base.hidden + 1)
    assert fine.parameters - base.parameters == routers


@pytest.mark.parametrize("every", [1, 4, 16])
def test_adam_moves_an_idle_weight_further(every):
    """v averages over idle steps too and m is spent over them: sqrt(every), roughly."""
    assert subspaces.skipping(every) == pytest.approx(every**0.5, rel=0.03)


def test_skipping_is_adam_step_by_step():
    m = v = 0.0
    moved = []
    for t in range(160):
        gradient = float(t % 4 == 0)
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        moved.append(m / v**0.5)
    found = subspaces.skipping(4, 0.5, 0.9, periods=40)
    assert found == pytest.approx(np.sum(moved[-40:]) / 10, rel=1e-4)
