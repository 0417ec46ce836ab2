"""GRPO's objective against its formula, and the rows it learns from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.finetune.grpo import EPSILON, Rollout, advantages, policy_loss, rollout_of
from springroll.generate.generator import Generated
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS

MODEL = decoder(CONFIGS["llama-tiny"])
PARAMS = MODEL.init(jax.random.key(0))


def rollout(seed=0, rows=3, time=6):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 256, (rows, time)).astype(np.int32)
    targets = random.integers(0, 256, (rows, time)).astype(np.int32)
    targets[:, :2] = -1
    targets[1, 4:] = -1
    log_p = log_probabilities(PARAMS, tokens, targets)
    shift = random.normal(size=log_p.shape).astype(np.float32) * 0.3
    advantage = random.normal(size=rows).astype(np.float32)
    return Rollout(
        *map(jnp.asarray, (tokens, targets, advantage, log_p + shift, log_p - 2 * shift))
    )


def log_probabilities(params, tokens, targets, temperature=1.0):
    logits = np.asarray(MODEL.apply(params, jnp.asarray(tokens))) / temperature
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    at = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets >= 0, at, 0).astype(np.float32)


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_it_is_the_formula(kl):
    given = rollout()
    temperature = 1.7
    loss = policy_loss(MODEL, temperature=temperature, clip=0.2, kl=kl)
    value, figures = loss(PARAMS, given)
    log_p = log_probabilities(
        PARAMS, np.asarray(given.tokens), np.asarray(given.targets), temperature
    )
    total = []
    for row in range(3):
        gains = []
        for at in range(6):
            if given.targets[row, at] < 0:
                continue
            ratio = np.exp(log_p[row, at] - float(given.old[row, at]))
            a = float(given.advantage[row])
            gain = min(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
            less = float(given.reference[row, at]) - log_p[row, at]
            gains.append(gain - kl * (np.exp(less) - less - 1))
        total.append(np.mean(gains))
    np.testing.assert_allclose(value, -np.mean(total), rtol=1e-4)
    assert 0 < figures["clipped"] < 1


def test_its_gradient_at_the_old_weights_is_the_policy_gradient():
    given = rollout()
    log_p = log_probabilities(PARAMS, np.asarray(given.tokens), np.asarray(given.targets))
    given = given._replace(old=jnp.asarray(log_p))
    loss = policy_loss(MODEL, temperature=1.0, clip=0.2, kl=0.0)

    def likelihood(params):
        nats, _ = MODEL.token_nats(params, given.tokens, given.targets)
        counts = jnp.sum(given.targets >= 0, axis=1).astype(jnp.float32)
        return jnp.mean(given.advantage * jnp.sum(nats, axis=1) / counts)

    ours, plain = jax.grad(lambda p: loss(p, given)[0])(PARAMS), jax.grad(likelihood)(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-7), ours, plain)


def test_advantages_are_within_the_answers_to_one_prompt():
    reward = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, np.nan]], np.float32)
    found = advantages(reward)
    first = reward[:, 0]
    np.testing.assert_allclose(
        found[:, 0], (first - first.mean()) / (first.std() + EPSILON), rtol=1e-5
    )
    assert not found[:, 1].any()  # all alike: nothing to learn, and nothing divided by zero


def test_rows_hold_prompt_and_answer_and_learn_the_end():
    tokens = np.array([[[7, 8, 0], [9, 9, 9]]], np.int32)
    log_p = np.array([[[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]]], np.float32)
    finished = np.array([[True, False]])
    lengths, stopped = np.array([[2, 3]], np.int32), np.zeros((1, 2), bool)
    generated = Generated(tokens, lengths, finished, stopped, log_p, 0, 0, 0)
    rows = rollout_of([[1, 2, 3], [4]], generated, np.array([[0.5, -0.5]], np.float32), 3)
    assert rows.tokens.shape == (2, 4 + 3)
    assert rows.tokens[0].tolist() == [1, 2, 3, 7, 8, 0, 0]
    assert rows.targets[0].tolist() == [-1, -1, 7, 8, 0, -1, -1]
    assert rows.old[0].tolist() == [0, 0, -1, -2, -3, 0, 0]
    assert rows.targets[1].tolist() == [9, 9, 9, -1, -1, -1, -1]
    assert rows.advantage.tolist() == [0.5, -0.5]


def test_token_nats_do_not_depend_on_the_chunk():
    from springroll.models.cross_entropy import cross_entropy, token_nats

    x = jax.random.normal(jax.random.key(1), (2, 7, 4))
    head = jax.random.normal(jax.random.key(2), (11, 4))
    targets = jnp.arange(14, dtype=jnp.int32).reshape(2, 7) % 11 - 1
    whole, pieces = token_nats(x, head, targets), token_nats(x, head, targets, chunk=44)
    np.testing.assert_allclose(whole, pieces, rtol=1e-6)
    assert whole.shape == targets.shape and not whole[targets < 0].any()
    counted = np.float32((targets >= 0).sum())
    np.testing.assert_allclose(whole.sum() / counted, cross_entropy(x, head, targets), rtol=1e-6)
