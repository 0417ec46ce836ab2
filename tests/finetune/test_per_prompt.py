"""Scores of members on prompts as the fitness of members."""

import jax.numpy as jnp
import numpy as np

from springroll.finetune.evolution import per_prompt, sampling_seed


def reference(scores):
    """The formula with loops."""
    members, prompts = scores.shape
    there = np.isfinite(scores)
    everyone = scores[there]
    deviation = np.sqrt(np.mean((everyone - everyone.mean()) ** 2) + 1e-5)
    fitness = np.full(members, np.nan)
    for i in range(members):
        of_member = []
        for j in range(prompts):
            if there[i, j]:
                mean = np.mean([scores[k, j] for k in range(members) if there[k, j]])
                of_member.append((scores[i, j] - mean) / deviation)
        if of_member:
            fitness[i] = np.sqrt(prompts) * np.mean(of_member)
    return fitness


def test_it_is_the_formula():
    scores = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    np.testing.assert_allclose(per_prompt(jnp.asarray(scores)), reference(scores), rtol=1e-4)


def test_missing_scores_count_for_nothing():
    scores = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    scores[2, 3] = np.nan
    scores[4] = np.nan
    fitness = np.asarray(per_prompt(jnp.asarray(scores)))
    assert np.isnan(fitness[4])
    np.testing.assert_allclose(fitness, reference(scores), rtol=1e-4, atol=1e-6)


def test_what_a_prompt_is_worth_to_all_cancels():
    scores = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)
    hard = scores + np.array([[0.0, 5.0, -3.0, 1.0]], np.float32)
    a, b = (np.asarray(per_prompt(jnp.asarray(x))) for x in (scores, hard))
    np.testing.assert_allclose(a / a[0], b / b[0], rtol=1e-3)


def test_equal_scores_weigh_nothing():
    assert not np.asarray(per_prompt(jnp.ones((4, 3)))).any()


def test_the_variance_of_chance_does_not_depend_on_the_number_of_prompts():
    random = np.random.default_rng(3)
    for prompts in (1, 16, 64):
        scores = random.normal(size=(512, prompts)).astype(np.float32)
        assert 0.85 < float(np.std(per_prompt(jnp.asarray(scores)))) < 1.15


def test_sampling_seeds_differ_between_generations_and_runs():
    seeds = {sampling_seed(seed, generation) for seed in range(3) for generation in range(100)}
    assert len(seeds) == 300
    assert 0 <= sampling_seed(2**63 - 1, 10**6) < 2**63
