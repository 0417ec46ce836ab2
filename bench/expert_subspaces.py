"""Toy mixtures of experts, trained on text: in which subspaces do gradients of experts lie, and
which experts does a step touch. See `bench.expert_granular`.

Letters: L layers, E experts, D width of the model, F width of an expert, r rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.subspace.basis import captured, svd_basis
from springroll.tasks.corpus import Corpus
from springroll.tasks.text import streams
from springroll.train.learners import optax_learner
from springroll.train.optimizers import balanced

RATE = 5e-3


class Toy(NamedTuple):
    """A trained model, its start, and the text it learnt."""

    model: Decoder
    start: Any
    params: Any
    nats: tuple[float, float]  # of the first and the last batch
    text: np.ndarray  # (bytes,) uint8, not seen in training


def train(config: DecoderConfig, corpus: Corpus, steps: int, batch: int, tokens: int) -> Toy:
    """A few hundred steps of AdamW with balancing, on the training text."""
    model = decoder(config)
    warm = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 10, steps, RATE / 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(warm))
    learner = optax_learner(model.loss, model.init, optimizer, adjust=balanced)
    state = learner.init(jax.random.key(0))
    start = jax.tree.map(jnp.copy, learner.params(state))
    source = streams(corpus.train, batch, tokens)
    nats = []
    for step in range(steps):
        state, figures = learner.step(state, jnp.asarray(source.batch(step)))
        nats.append(figures["nats"])
    return Toy(model, start, learner.params(state), (float(nats[0]), float(nats[-1])), corpus.valid)


# ---- which subspace keeps the gradient of the next batch ----


class Side(NamedTuple):
    """One side of some matrices of an expert: what a basis there would serve."""

    name: str
    matrices: tuple[str, ...]  # that would share the basis
    inputs: bool  # the side of the inputs, which is the last axis


SIDES = (
    Side("gate and up, input side", ("gate_proj", "up_proj"), True),
    Side("down, input side", ("down_proj",), True),
    Side("gate, output side", ("gate_proj",), False),
    Side("down, output side", ("down_proj",), False),
)


def expert_gradients(model: Decoder) -> Callable[[Any, Array], dict[str, Array]]:
    """(params, tokens) -> gradients of the experts' matrices, (L, E, out, in)."""

    def loss(experts: Any, params: Any, tokens: Array) -> Array:
        layers = params["layers"]
        mlp = layers["mlp"] | {"experts": experts}
        return model.loss(params | {"layers": layers | {"mlp": mlp}}, tokens)[0]

    gradient = jax.jit(jax.grad(loss))
    return lambda params, tokens: gradient(params["layers"]["mlp"]["experts"], params, tokens)


def seen_from(side: Side, gradients: dict[str, Array]) -> Array:
    """The gradients with the side's axis first: (L, E, m, n), matrices that share it in a row."""
    turned = [jnp.swapaxes(gradients[name], -1, -2) for name in side.matrices]
    return jnp.concatenate(turned if side.inputs else [gradients[m] for m in side.matrices], -1)


def common_rank(m: int, n: int, experts: int, rank: int) -> int:
    """The rank at which one basis for all experts costs as much as a basis of `rank` for each.

    Per expert P (m, r), S and two moments (r, n): E r (m + 3 n); shared r' (m + 3 E n).
    """
    return min(m, round(experts * rank * (m + 3 * n) / (m + 3 * experts * n)))


@partial(jax.jit, static_argnums=(2, 3))
def kept(now: Array, later: Array, rank: int, common: int) -> Array:
    """Shares of the energy of `later` (L, E, m, n) that bases of `now` keep, over all matrices.

    Returns (3,): a basis of `rank` per expert; one of `rank` per layer; one of rank `common`.
    """
    layers, experts, m, n = now.shape
    together = now.transpose(0, 2, 1, 3).reshape(layers, m, experts * n)
    own = svd_basis(now, rank)
    shared = svd_basis(together, max(rank, common))[:, None]
    energy = jnp.sum(jnp.square(later), axis=(-2, -1))
    bases = (own, shared[..., :rank], shared[..., :common])
    whole = [jnp.broadcast_to(b, (layers, experts, *b.shape[-2:])) for b in bases]
    return jnp.stack([jnp.sum(captured(later, b) * energy) / jnp.sum(energy) for b in whole])


def energies(toy: Toy, sequences: int, tokens: int, pairs: int, share: int) -> list[dict[str, Any]]:
    """A row per side: energy of the next batch kept, mean over `pairs` of batches.

    Args:
        sequences, tokens: of a batch.
        pairs: of one batch, whose bases are taken, and the next.
        share: the rank is the width of the side divided by this.
    """
    gradient = expert_gradients(toy.model)
    batches = consecutive(toy.text, 2 * pairs, sequences, tokens)
    found = [gradient(toy.params, jnp.asarray(batch)) for batch in batches]
    rows = []
    for side in SIDES:
        seen = [seen_from(side, gradients) for gradients in found]
        _, experts, m, n = seen[0].shape
        rank = max(1, m // share)
        common = common_rank(m, n, experts, rank)
        shares = [kept(a, b, rank, common) for a, b in zip(seen[::2], seen[1::2], strict=True)]
        own, shared, equal = np.mean(np.array(shares), axis=0)
        row = {"side": side.name, "width": m, "rank": rank, "common_rank": common}
        row |= {"own": float(own), "shared": float(shared), "shared_equal_bytes": float(equal)}
        rows.append(row | {"random": rank / m, "tokens": sequences * tokens})
    return rows


def consecutive(text: np.ndarray, count: int, sequences: int, tokens: int) -> list[np.ndarray]:
    """`count` batches (sequences, tokens + 1), each the continuation of the one before."""
    source = streams(text, sequences, tokens)
    return [source.batch(i) for i in range(count)]


# ---- which experts a step touches ----


def touched(toy: Toy, sizes: Sequence[int], draws: int, longest: int) -> list[dict[str, Any]]:
    """A row per batch of so many tokens: the share of experts that get at least one.

    uniform: if every token chose at random, 1 - (1 - K/E)^tokens. start, trained: the toy's routers
    on its text before and after training, mean over `draws` batches and the layers.
    """
    config = toy.model.config
    load = jax.jit(lambda params, tokens: toy.model.loss(params, tokens)[1]["load"])
    rows = []
    for size in sizes:
        sequences = max(1, size // longest)
        batches = consecutive(toy.text, draws, sequences, size // sequences)
        row: dict[str, Any] = {"tokens": size, "uniform": chance(config, size)}
        for name, params in (("start", toy.start), ("trained", toy.params)):
            row[name] = float(np.mean([np.array(load(params, b)) > 0 for b in batches]))
        rows.append(row)
    return rows


def chance(config: DecoderConfig, tokens: int) -> float:
    """That an expert gets one of so many tokens, if each chooses its experts at random."""
    return 1 - (1 - config.top_k / config.experts) ** tokens


def skipping(every: int, b1: float = 0.9, b2: float = 0.999, periods: int = 4000) -> float:
    """How far Adam moves a weight whose gradient is 1 on every `every`-th step and else 0,
    beside an Adam that does nothing at all on the other steps, in the long run."""

    def step(carry: Any, t: Array) -> tuple[Any, Array]:
        m, v = carry
        gradient = (t % every == 0).astype(jnp.float32)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * jnp.square(gradient)
        return (m, v), m / jnp.sqrt(v)

    steps = max(periods * every, 20_000)  # until v has settled
    zero = jnp.float32(0)
    moves = lax.scan(step, (zero, zero), jnp.arange(steps, dtype=jnp.int32))[1]
    last = moves[-every * (periods // 4) :]
    # Skipped, a gradient that is 1 whenever it is seen moves the weight by 1 per period.
    return float(jnp.sum(last) / (len(last) // every))


def fine_grained(config: DecoderConfig, experts: int, top_k: int) -> DecoderConfig:
    """The same model with more and narrower experts, as many parameters."""
    ffn = max(1, config.ffn * config.experts // experts)
    return dataclasses.replace(config, experts=experts, top_k=top_k, ffn=ffn)
