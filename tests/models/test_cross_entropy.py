"""Chunked cross-entropy: equal to the plain one, and never tokens x vocabulary in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.models.cross_entropy import cross_entropy, token_nats
from tests.compiling import normal, quick_jit, temporary_bytes

BATCH, TIME, WIDTH, VOCAB = 2, 10, 8, 300  # three slices of at least 128, the last overlaps


def draw():
    x, head = normal(0, BATCH, TIME, WIDTH), normal(1, VOCAB, WIDTH)
    targets = np.random.default_rng(2).integers(0, VOCAB, (BATCH, TIME))
    return x, head, jnp.asarray(targets, jnp.int32)


def plain(x, head, targets):
    picked = jnp.take_along_axis(jax.nn.log_softmax(x @ head.T), targets[..., None], axis=-1)
    return -jnp.mean(picked)


def gradients(fn, x, head, targets):
    return jax.value_and_grad(fn, (0, 1))(x, head, targets)


@functools.cache
def expected():
    return quick_jit(functools.partial(gradients, plain))(*draw())


@pytest.mark.parametrize("chunk", [1, 150 * BATCH * TIME, 1 << 20])
def test_value_and_gradients_are_those_of_the_plain_one(chunk):
    fn = functools.partial(cross_entropy, chunk=chunk)
    ours = quick_jit(functools.partial(gradients, fn))(*draw())
    for a, b in zip(*map(jax.tree.leaves, (ours, expected())), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_negative_targets_do_not_count():
    x, head, targets = draw()
    ours = quick_jit(functools.partial(cross_entropy, chunk=1))
    none, some = np.full_like(targets, -1), np.array(targets)
    some[:, 6:] = -1
    want = quick_jit(plain)(x[:, :6], head, targets[:, :6])
    np.testing.assert_allclose(ours(x, head, some), want, rtol=1e-5)
    assert ours(x, head, none) == 0


@pytest.mark.parametrize("chunk", [1, None])
def test_a_target_outside_the_vocabulary_has_no_loss(chunk):
    x, head, targets = draw()
    outside = np.array(targets)
    outside[0, 0] = len(head)
    fn = quick_jit(functools.partial(token_nats, chunk=chunk))
    nats = np.array(fn(x, head, outside))
    assert np.isnan(nats[0, 0]) and np.isfinite(nats.ravel()[1:]).all()


def test_neither_loss_nor_gradient_holds_tokens_times_vocabulary():
    batch, time, width, vocab = 4, 256, 16, 4096
    shape = jax.ShapeDtypeStruct
    args = (
        shape((batch, time, width), jnp.float32),
        shape((vocab, width), jnp.float32),
        shape((batch, time), jnp.int32),
    )
    fn = functools.partial(cross_entropy, chunk=1)
    compiled = jax.jit(functools.partial(gradients, fn)).lower(*args).compile()
    logits = batch * time * vocab * 4
    assert temporary_bytes(compiled) < logits / 3
    whole = jax.jit(functools.partial(gradients, plain)).lower(*args).compile()
    assert temporary_bytes(whole) > logits


def test_bfloat16_has_float32_logits():
    x, head, targets = draw()
    narrow = [x.astype(jnp.bfloat16), head.astype(jnp.bfloat16)]
    wide = [a.astype(jnp.float32) for a in narrow]
    loss = quick_jit(cross_entropy)(*narrow, targets)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, quick_jit(plain)(*wide, targets), rtol=1e-6)


def test_a_thin_head_is_differentiated_without_being_formed():
    x, head, targets = draw()
    left, right = jnp.ones((WIDTH, 2)) / 7, jnp.arange(2.0 * VOCAB).reshape(VOCAB, 2) / 50
    fn = functools.partial(cross_entropy, chunk=1)
    thin = lambda right: sr.Factored(base=head, left=left, right=right, roles="nm")
    loss = lambda right: sr.factored(fn, densify_limit=0)(x, thin(right), targets)
    dense = lambda right: plain(x, head + right @ left.T, targets)
    learn = lambda fn: quick_jit(jax.value_and_grad(fn))(right)
    for a, b in zip(learn(loss), learn(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_capped_logits_and_weighted_tokens_have_the_gradients_of_the_plain_ones():
    x, head, targets = draw()
    weight = normal(3, BATCH, TIME)
    targets = targets.at[0, 3].set(-1)

    def loss(x, head, nats):
        return jnp.sum(weight * nats(x, head))

    def capped(x, head):
        logits = 2 * jnp.tanh(jnp.einsum("BTD,VD->BTV", x, head) / 2) / np.float32(0.7)
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
        )
        return jnp.where(targets >= 0, -picked[..., 0], np.float32(0))

    ours = lambda x, head: token_nats(x, head, targets, 0.7, chunk=1, cap=2.0)
    learn = lambda nats: quick_jit(jax.value_and_grad(lambda x, head: loss(x, head, nats), (0, 1)))(
        x, head
    )
    for a, b in zip(*map(jax.tree.leaves, (learn(ours), learn(capped))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
